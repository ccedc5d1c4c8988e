"""Results have one format, are compared with significance, and become documents by code."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.comparison import compare_files, compare_results
from bench.mode_tables import win_table
from bench.report import describe_run, fill_marks, write_report
from bench.results import SuiteResult, hash_tree, read_result, record_result
from bench.sections import SECTIONS
from bench.statistics import percentile, wilson_interval
from bench.suites import SUITES

ROOT = Path(__file__).parents[2]


def write_result(file: Path, suite: str, samples: dict[str, list[float]]) -> SuiteResult:
    with record_result(suite, file, seed=7) as recorder:
        for name, values in samples.items():
            recorder.add(name, "ms", values)
        recorder.details["same"] = [9, 10]
    return read_result(file)


def test_a_result_says_where_it_was_measured(tmp_path: Path) -> None:
    result = write_result(tmp_path / "new" / "one.json", "same-tape", {"a": [1.0, 2.0]})
    assert (result.suite, result.seed, result.schema_version) == ("same-tape", 7, 1)
    where = result.environment
    assert where.sources == hash_tree("src")
    assert where.processors
    assert where.packages["mcp"]


def test_every_suite_has_a_section_of_the_report() -> None:
    assert set(SUITES) == set(SECTIONS)


def make_task(name: str, group: str, tokens: int, turns: int) -> dict[str, object]:
    usage = {"tokens_in": tokens, "tokens_out": 0, "turns": turns}
    groups = {"category": group, "difficulty": "easy", "fan_out": "1 to 4 calls"}
    return {"task": name, "usage": usage, "seconds": 1.0, "requests_before_call": 1, **groups}


def test_the_report_says_where_function_calls_win() -> None:
    functions = [make_task("a", "text", 10, 2), make_task("b", "math", 50, 9)]
    programs = [make_task("b", "math", 20, 3), make_task("a", "text", 20, 3)]
    rows = [line.split(" | ") for line in win_table(functions, programs).splitlines()]
    wins = {row[0].strip("| "): [cell.strip(" |") for cell in row[1:4]] for row in rows}
    assert wins["text"] == ["1", "1", "1"]
    assert wins["math"] == ["1", "0", "0"]
    assert wins["all"] == ["2", "1", "1"]


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"suite": "perf"}')
    assert write_report([file], tmp_path) == 2
    assert compare_files(file, file, seed=0) == 2


def test_only_a_significant_change_is_a_regression(tmp_path: Path) -> None:
    draw = random.Random(1)
    base = [10 + draw.random() for _ in range(40)]
    before = write_result(tmp_path / "a.json", "x", {"fast": base, "slow": base, "pair": [1.0]})
    after = write_result(
        tmp_path / "b.json",
        "x",
        {"fast": base[::-1], "slow": [each * 1.5 for each in base], "pair": [1.0]},
    )
    verdicts = {change.name: change.verdict for change in compare_results(before, after, 0)}
    assert verdicts == {"fast": "same", "slow": "worse", "mean over 1 pairs": "same"}
    assert compare_files(tmp_path / "a.json", tmp_path / "b.json", seed=0) == 1
    assert compare_files(tmp_path / "a.json", tmp_path / "a.json", seed=0) == 0
    again = {change.interval for change in compare_results(before, after, 0)}
    assert again == {change.interval for change in compare_results(before, after, 0)}


def write_outcomes(file: Path, outcomes: list[bool]) -> None:
    with record_result("mrbs", file) as recorder:
        for number, is_right in enumerate(outcomes):
            recorder.add(f"task {number}: right", "success", [float(is_right)], "higher")


@pytest.mark.parametrize(
    ("lost", "won", "code", "says"),
    [
        (10, 0, 1, "worse"),
        (12, 2, 1, "worse"),
        (0, 10, 0, "better"),
        (3, 3, 0, "same"),
        (1, 0, 0, "same"),
        (4, 2, 0, "same"),
    ],
)
def test_tasks_are_compared_in_pairs(
    tmp_path: Path, lost: int, won: int, code: int, says: str
) -> None:
    before = [number % 3 > 0 for number in range(66)]
    right = [number for number, is_right in enumerate(before) if is_right]
    wrong = [number for number, is_right in enumerate(before) if not is_right]
    changed = {*right[:lost], *wrong[:won]}
    after = [is_right != (number in changed) for number, is_right in enumerate(before)]
    write_outcomes(tmp_path / "a.json", before)
    write_outcomes(tmp_path / "b.json", after)
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "compare", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()[0]) == (code, says), done.stdout + done.stderr


def test_noise_is_rarely_taken_for_a_change(tmp_path: Path) -> None:
    draw = random.Random(7)
    times = {f"{number}": [draw.lognormvariate(2, 0.4) for _ in range(30)] for number in range(24)}
    before = write_result(tmp_path / "a.json", "perf", times)
    again = {name: [draw.lognormvariate(2, 0.4) for _ in range(30)] for name in times}
    after = write_result(tmp_path / "b.json", "perf", again)
    verdicts = Counter(change.verdict for change in compare_results(before, after, 0))
    assert verdicts["same"] >= 21, "a 95 % interval is wrong for about 1 of 20"
    slower = {name: [1.5 * each for each in values] for name, values in again.items()}
    after = write_result(tmp_path / "c.json", "perf", slower)
    verdicts = Counter(change.verdict for change in compare_results(before, after, 0))
    assert verdicts["worse"] >= 21
    assert verdicts["better"] == 0


def test_a_report_is_written_once_and_checked_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "tape.json"
    write_result(file, "same-tape", {"a: replay": [5.0], "b: replay": [7.0]})
    readme = tmp_path / "README.md"
    readme.write_text("# x\n<!-- bench:replays -->\nstale\n<!-- /bench:replays -->\nend\n")
    assert write_report([file], tmp_path) == 0
    assert "9 of 10" in (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "9 of 10" in readme.read_text()
    assert "stale" not in readme.read_text()
    assert write_report([file], tmp_path, check=True) == 0
    write_result(file, "same-tape", {"a: replay": [50.0]})
    assert write_report([file], tmp_path, check=True) == 1


def test_a_section_without_a_new_result_stays(tmp_path: Path) -> None:
    tape, retrieval = tmp_path / "tape.json", tmp_path / "retrieval.json"
    write_result(tape, "same-tape", {"a: replay": [5.0]})
    with record_result("retrieval", retrieval) as recorder:
        recorder.details["skills"] = {"by name": [1.0, 0.75]}
    document = tmp_path / "docs" / "benchmarks.md"
    assert write_report([retrieval], tmp_path) == 0
    searches = document.read_text()
    assert write_report([tape], tmp_path) == 0
    both = document.read_text()
    assert "0.75" in both
    assert both.index("## Same tape") < both.index("## Searches")
    assert write_report([tape, retrieval], tmp_path, check=True) == 0
    assert searches.count("## ") == 1


def test_a_result_names_the_tree_of_its_sources_which_outlives_a_rebase(tmp_path: Path) -> None:
    result = write_result(tmp_path / "a.json", "x", {"a": [1.0]})
    assert f"`src` {hash_tree('src')}" in describe_run(result, "x")
    command = ["git", "status", "--porcelain", "--", "src"]
    if not subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD:src"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(hash_tree("src"))


def test_marks_keep_the_text_around_them() -> None:
    text = "a\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nb"
    expected = "a\n<!-- bench:x -->\nnew\n<!-- /bench:x -->\nb"
    assert fill_marks(text, {"x": "new", "y": "unused"}) == expected


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"), [(66, 66, 0.945, 1.0), (0, 10, 0.0, 0.278)]
)
def test_wilson_intervals_are_those_of_the_tables(
    successes: int, total: int, low: float, high: float
) -> None:
    found = wilson_interval(successes, total)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.001)


def test_almost_all_is_not_rounded_to_all() -> None:
    assert wilson_interval(800, 800).as_percent() == "100% (99.5% to 100%)"
    assert wilson_interval(1, 3).as_percent() == "33% (6% to 79%)"


def test_percentiles_are_nearest_ranks() -> None:
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
