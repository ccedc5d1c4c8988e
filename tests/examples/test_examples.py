"""The examples run as a newcomer runs them, say what they promise, and write nothing to stderr."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.upstreams import find_executable

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "example_settings")
TIMEOUT_S = 120.0
MAX_LINES = 100

RunExample = Callable[..., str]


def start_example(name: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run an example in an empty folder, with no settings of its user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCPRUNTIME")}
    homes = {"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    return subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        cwd=folder,
        env={**kept, **homes, **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def run_example(tmp_path: Path) -> RunExample:
    """Run an example, and return its output."""

    def run(name: str) -> str:
        done = start_example(name, tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    return run


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_listed_and_tested(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text("utf-8")
    assert text.count("\n") <= MAX_LINES
    assert "Expect " in (ast.get_docstring(ast.parse(text)) or "")
    assert f"examples/{name}.py" in (ROOT / "docs/examples.md").read_text("utf-8")
    assert f'run_example("{name}"' in Path(__file__).read_text("utf-8")


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("DOCKER_HOST", "unix:///absent", "[unavailable] The Docker engine at /absent does not"),
        ("MCPRUNTIME_SANDBOX__PIDS", "many", "[config_invalid] The settings are not usable:"),
    ],
)
def test_what_is_missing_is_named_without_a_traceback(
    tmp_path: Path, variable: str, value: str, problem: str
) -> None:
    done = start_example("time_travel", tmp_path, **{variable: value})
    assert done.returncode == 1
    assert done.stderr.startswith(problem)
    assert "Traceback" not in done.stderr


def test_an_agent_does_a_task_and_lets_one_watch(run_example: RunExample) -> None:
    output = run_example("simple_agent")
    assert "-> 75025" in output
    assert "[ok] [['Ann', 1100], ['Ben', 900]]" in output
    assert output.endswith("-> Ann, after 2 programs\n")


def test_a_file_is_analysed_and_plotted(run_example: RunExample, tmp_path: Path) -> None:
    output = run_example("data_analysis")
    assert "[8 rows x 1 column]" in output
    assert "revenue: {'north': 86586, 'south': 82651, 'west': 88279}" in output
    with Image.open(tmp_path / "revenue.png") as picture:
        colours = picture.convert("RGB").getcolors(picture.width * picture.height)
    assert picture.width > 400
    assert colours is not None
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= {colour for _, colour in colours}


def test_one_program_uses_git_and_a_folder(run_example: RunExample) -> None:
    for server in ("git", "filesystem"):
        if not find_executable(server).exists():
            pytest.skip(f"run scripts/test-upstreams to have the server {server}")
    output = run_example("git_to_report")
    assert '"commits": 300, "authors": 3' in output
    assert "# Commits by author\n 171 Ben\n  86 Cleo\n  43 Ann\n" in output


def test_one_program_uses_three_servers(run_example: RunExample) -> None:
    output = run_example("triage_issues")
    assert "'told': {1: 'ann'}" in output
    assert "The address 'ben' is not in the contacts" in output
    assert output.endswith("  fix/1\n  fix/3\n* main\n")


def test_events_are_read_with_a_plain_client(run_example: RunExample) -> None:
    first, again = run_example("stream_over_http").split("\n\n")
    assert [line.split()[0] for line in first.splitlines()] == [
        "run_queued",
        "run_started",
        "output",
        "output",
        "output",
        "run_finished",
    ]
    assert "'value': 42" in first
    assert again.splitlines()[1:] == first.splitlines()[2:]


def test_agents_start_agents_over_a_large_file(run_example: RunExample) -> None:
    output = run_example("recursive_agent")
    assert "'03': 'The volume /data is full.'" in output
    assert "'19': 'The database refuses more connections.'" in output
    found = re.search(r"3 sub-agents; all models together read ([\d,]+) tokens\n$", output)
    assert found is not None
    assert 0 < int(found[1].replace(",", "")) < 10_000


def test_a_skill_grows_over_two_sessions(run_example: RunExample) -> None:
    output = run_example("skill_evolution")
    states = re.findall(r"^-> (\w+): count_items@(\d)", output, re.MULTILINE)
    assert states == [("active", "1"), ("draft", "2"), ("active", "3")]
    assert "ValueError: too many values to unpack" in output
    assert output.count("{'figs': 9}") == 2


def test_a_session_is_rewound_forked_compared_and_replayed(run_example: RunExample) -> None:
    output = run_example("time_travel")
    sorted_prices = re.search(r"> prices +(\[\d.*\])", output)
    assert sorted_prices is not None
    rewound = re.search(r"rewound to step 2: +(.*)", output)
    assert rewound is not None
    assert rewound[1] == sorted_prices[1]
    assert "+prices = [price / 2 for price in prices]" in output
    assert "The same as recorded in all 3 steps" in output
    assert output.count("abandoned") == 1


def test_a_job_runs_in_the_background(run_example: RunExample) -> None:
    output = run_example("background_job")
    assert "meanwhile, in another session: 499999500000" in output
    assert "its value: built" in output
    assert all(f"part {part} of 3" in output for part in (1, 2, 3))
    assert "an endless run: cancelled\nthe session works: 3\n" in output


def test_a_person_decides_about_two_messages(run_example: RunExample) -> None:
    output = run_example("approval")
    assert re.findall("^-> (.+)", output, re.MULTILINE) == ["allow", "deny"]
    assert '"ann": "sent as number 1"' in output
    assert "it was refused by a person" in output


def test_a_plan_is_changed_and_committed(run_example: RunExample) -> None:
    output = run_example("plan_then_commit")
    assert output.count("mail.send_message(") == 3
    assert "The outbox: []" in output
    assert output.endswith(
        "  ann: Dear ann, everything is half price.\n  ben: Dear Ben, one more thing.\n"
    )


def test_code_searches_knowledge_of_its_own(run_example: RunExample) -> None:
    output = run_example("own_knowledge")
    assert "-> A hotel has at most three stars.\n   from knowledge://rules/travel.md#L" in output
    assert "-> Anything above 500 EUR needs two signatures." in output


def test_a_program_runs_the_code_of_its_users(run_example: RunExample) -> None:
    output = run_example("embedded_runtime")
    lines = {line.split()[0]: line for line in output.split("\n\n")[0].splitlines()}
    assert "value 49, output 'adding 3 prices\\n'" in lines["ann"]
    assert "error in line 2: TypeError" in lines["ben"]
    assert "stopped after 3 s" in lines["cleo"]
    assert "URLError" in lines["dan"]
    assert "PermissionError" in lines["eve"]
    assert re.search(r"\nben +value 49, output ''\n$", output)


def test_an_agent_of_another_framework_uses_the_server(run_example: RunExample) -> None:
    pytest.importorskip("pydantic_ai")
    output = run_example("pydantic_ai_agent")
    assert "tools: run_code, replay, list_skills, save_skill" in output
    assert output.endswith("-> There are 9,592 primes below 100,000.\n")
