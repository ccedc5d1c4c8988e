"""Tasks in SkillsBench's layout are judged by their own tests, in four conditions of skills."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import fake_llm
from bench.skillsbench.dockerfile import place_files
from bench.skillsbench.stage import SkillsStage, Verdict, build_image, open_stage
from bench.skillsbench.suite import OWN_TASKS, Attempt, summarize_conditions
from bench.skillsbench.task import Skill, SkillsTask, read_task, read_tasks
from bench.statistics import normalized_gain
from tests.helpers.sizes import ONLY_LONG

ROOT = Path(__file__).parents[2]
TASKS = {task.name: task for task in read_tasks(OWN_TASKS)}
# Plausible mistakes: what a solution has, and what a wrong one has in its place.
WRONG = {
    "invoice-totals": (
        ("ROUND_HALF_EVEN)", "ROUND_HALF_UP)"),
        ("part).quantize(CENT, ROUND_HALF_UP)", 'part).quantize(CENT, "ROUND_DOWN")'),
    ),
    "sensor-frames": (
        ("        at += 1\n", "        at += 7\n"),
        ('"<BHh"', '"<BHH"'),
    ),
    "shift-roster": (
        (" and not (roster and name in roster[-1])", ""),
        ('        if any(people[name]["lead"] for name in pair)\n', ""),
    ),
}


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SkillsStage]:
    async with open_stage(tmp_path_factory.mktemp("skills"), build_image(), 60.0) as stage:
        yield stage


def run_suite(file: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "skills", "--json", str(file), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


async def judge(stage: SkillsStage, task: SkillsTask, session: str, program: str) -> Verdict:
    await stage.prepare(session, place_files(task.environment.placements))
    await stage.server.run_program(program, session)
    return await stage.verify(task, f"{session} verified", await stage.read_files(session))


def as_program(solution: str) -> str:
    return f"import subprocess\nsubprocess.run(['bash', '-c', {solution!r}], cwd='/root')\nNone"


def test_the_oracle_passes_with_the_skills_of_a_task(tmp_path: Path) -> None:
    chosen = ("--limit", "1", "--condition", "curated")
    details = run_suite(tmp_path / "oracle.json", *chosen)["details"]
    assert list(details["conditions"]) == ["curated"]
    assert (details["conditions"]["curated"]["passed"], len(details["attempts"])) == (1, 1)
    assert details["attempts"][0]["offered"] == ["ledger-totals"]


@pytest.mark.parametrize("name", TASKS)
async def test_only_the_solution_of_a_task_passes(stage: SkillsStage, name: str) -> None:
    task = TASKS[name]
    solution = (task.folder / "solution" / "solve.sh").read_text()
    verdict = await judge(stage, task, f"{name} right", as_program(solution))
    assert verdict.has_passed, verdict.output
    untouched = place_files(task.environment.placements)
    assert not (await stage.verify(task, f"{name} empty", untouched)).has_passed
    outputs = ("totals.json", "summary.json", "roster.csv")
    echo = untouched | dict.fromkeys(outputs, task.instruction.encode())
    assert not (await stage.verify(task, f"{name} echo", echo)).has_passed
    for number, (right, wrong) in enumerate(WRONG[name]):
        assert solution.count(right) == 1
        program = as_program(solution.replace(right, wrong))
        verdict = await judge(stage, task, f"{name} wrong {number}", program)
        assert not verdict.has_passed, f"wrong solution {number}"


async def test_an_agent_sees_neither_tests_nor_solution(stage: SkillsStage) -> None:
    await stage.prepare("looks", place_files(TASKS["invoice-totals"].environment.placements))
    program = (
        "import os\n[os.listdir('/task'), os.path.exists('/tests'), os.path.exists('/solution')]"
    )
    answer = await stage.server.run_program(program, "looks")
    assert answer.value == [["verifier"], False, False]


async def test_nothing_that_an_agent_leaves_changes_the_judgement(stage: SkillsStage) -> None:
    program = """
import os, pathlib
passing = "import os; os._exit(0)"
home = pathlib.Path("/root")
for name in ("conftest.py", "json.py", "csv.py", "pytest.py", "sitecustomize.py"):
    (home / name).write_text(passing)
(home / "pytest.ini").write_text("[pytest]\\naddopts = --collect-only")
site = home / ".local/lib/python3.11/site-packages"
site.mkdir(parents=True)
(site / "usercustomize.py").write_text(passing)
for path in ("/tests/test_outputs.py", "/task/verifier/pytest/__init__.py"):
    try:
        open(path, "w").write(passing)
    except OSError:
        pass
"""
    verdict = await judge(stage, TASKS["invoice-totals"], "cheats", program)
    assert not verdict.has_passed
    assert "2 failed" in verdict.output or "1 failed" in verdict.output


def reply_with(program: str) -> dict[str, str]:
    return {"reply": f"```python\n# answer\n{program}\n```"}


def run_with_model(
    file: Path, entries: Sequence[Mapping[str, Any]], *options: str
) -> dict[str, Any]:
    with fake_llm.start_model_server() as model, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_TEST_KEY", fake_llm.API_KEY)
        model.set_script(*({"times": 99, **entry} for entry in entries))
        key = ("--api-key-variable", "BENCH_TEST_KEY", "--api-base", model.url)
        return run_suite(file, "--mode", "llm", "--model", "openai/echo", *key, *options)


def test_a_model_that_needs_the_skill_gains_by_it_and_its_failure_is_one_of_the_attempt(
    tmp_path: Path,
) -> None:
    solution = as_program((TASKS["sensor-frames"].folder / "solution/solve.sh").read_text())
    written = "```skill\n---\nname: frame-notes\ndescription: Of no use.\n---\nText.\n```"
    entries: list[dict[str, Any]] = [
        {"match": "Paths of the task", "fault": 400, "times": 1},
        {"match": "frame-sync/SKILL.md", **reply_with(solution)},
        {"match": "frame-notes/SKILL.md", **reply_with("'read the notes'")},
        {"match": "Paths of the task", **reply_with("'knows nothing'")},
        {"reply": written},
    ]
    only = ("--only", "sensor-frames")
    result = run_with_model(tmp_path / "llm.json", entries, *only)
    assert {
        name: (found["passed"], found.get("gain"))
        for name, found in result["details"]["conditions"].items()
    } == {
        "none": (0, None),
        "curated": (1, 1.0),
        "self-generated": (0, 0.0),
        "runtime-evolved": (0, 0.0),
    }
    attempts = {each["condition"]: each for each in result["details"]["attempts"]}
    assert {name: each["offered"] for name, each in attempts.items()} == {
        "none": [],
        "curated": ["frame-sync"],
        "self-generated": ["frame-notes"],
        "runtime-evolved": [],
    }
    assert "ModelFailed" in attempts["none"]["problem"]
    assert "ModelFailed" not in attempts["runtime-evolved"]["problem"]


@ONLY_LONG  # the test before has the same condition
def test_evolved_skills_come_from_other_tasks_and_earlier_attempts(tmp_path: Path) -> None:
    learning = "def check(body: list[int]) -> int:\n    return sum(body) % 7\ncheck(body=[1, 9])"
    entries = [
        {"match": "invoice", **reply_with(learning)},
        {
            "match": "serial line",
            **reply_with("from skills.invoice_totals import run\nrun(body=[3])"),
        },
    ]
    chosen = ("--condition", "runtime-evolved", "--limit", "2", "--trials", "2")
    attempts = run_with_model(tmp_path / "evolved.json", entries, *chosen)["details"]["attempts"]
    assert [(each["task"], each["number"], each["offered"]) for each in attempts] == [
        ("invoice-totals", 1, []),
        ("sensor-frames", 1, ["invoice_totals"]),
        ("invoice-totals", 2, ["invoice_totals", "sensor_frames"]),
        ("sensor-frames", 2, ["invoice_totals", "sensor_frames"]),
    ]
    assert "is in use" in attempts[0]["saved"]
    assert not any(each["has_passed"] for each in attempts)


def test_differences_are_paired_and_gains_are_normalised() -> None:
    def attempts(condition: str, passed: str) -> list[Attempt]:
        return [
            Attempt(condition, f"task {number}", 1, "easy", has_passed=mark == "1")
            for number, mark in enumerate(passed)
        ]

    found = summarize_conditions(
        [*attempts("none", "0011001100"), *attempts("curated", "1111001111")], seed=0
    )
    value, low, high = found["curated"]["difference"]
    assert value == pytest.approx(0.4)
    assert 0 < low < value < high < 1
    assert found["curated"]["gain"] == pytest.approx(2 / 3)
    assert normalized_gain(1.0, 1.0) is None
    assert normalized_gain(0.5, 0.25) == pytest.approx(-0.5)


def write_task(folder: Path, dockerfile: str | None) -> SkillsTask:
    texts = {
        "instruction.md": "Do it.",
        "task.toml": "[verifier]\ntimeout_sec = 9\n[agent]\ntimeout_sec = 7.5\n",
        "environment/a.csv": "a",
        "environment/b.csv": "b",
        "environment/data/deep/c.txt": "c",
        "environment/skills/one/SKILL.md": "---\nname: one\ndescription: The first.\n---\nText\n",
        "environment/skills/one/scripts/run.py": "pass",
        "solution/solve.sh": "true",
        "tests/test_outputs.py": "",
    }
    for name, text in {
        **texts,
        **({"environment/Dockerfile": dockerfile} if dockerfile else {}),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return read_task(folder)


@pytest.mark.parametrize(
    ("lines", "placed", "left_out"),
    [
        ("COPY data /root/data", {"data/deep/c.txt": b"c"}, []),
        ("COPY data/ ./in/", {"in/deep/c.txt": b"c"}, []),
        ("COPY *.csv .", {"a.csv": b"a", "b.csv": b"b"}, []),
        ("COPY a.csv in.csv", {"in.csv": b"a"}, []),
        (
            'COPY --chown=1:1 ["a.csv", "b.csv", "/root/in/"]',
            {"in/a.csv": b"a", "in/b.csv": b"b"},
            [],
        ),
        ("COPY . /root", {"a.csv": b"a", "b.csv": b"b", "data/deep/c.txt": b"c"}, []),
        ("COPY skills /root/.claude/skills", {}, []),
        ("ADD *.tar.gz /root/", {}, ["ADD *.tar.gz /root/"]),
        ("ENV TO=in\nCOPY a.csv ${TO}/${NONE:-x}.csv", {"in/x.csv": b"a"}, []),
        ("ARG TO=/root/in/\nCOPY a.csv $TO", {"in/a.csv": b"a"}, []),
        ("COPY ../instruction.md .", {}, ["COPY ../instruction.md ."]),
        ("FROM scratch\nWORKDIR /root\nCOPY b.csv .", {"b.csv": b"b"}, []),
        ("COPY --from=other /x /root/x", {}, ["COPY --from=other /x /root/x"]),
        ("SECRET a", {}, ["SECRET a"]),
        ("ADD https://example.org/x /root/x", {}, ["ADD https://example.org/x /root/x"]),
        ("COPY a.csv /etc/a.csv", {}, ["COPY a.csv /etc/a.csv"]),
        ("# COPY a.csv .", {}, []),
    ],
)
def test_a_dockerfile_says_where_the_data_goes(
    tmp_path: Path, lines: str, placed: dict[str, bytes], left_out: list[str]
) -> None:
    task = write_task(tmp_path / "task", f"FROM x\nWORKDIR /root\n{lines}\n")
    assert place_files(task.environment.placements) == placed
    assert list(task.environment.left_out) == left_out


def test_a_stage_begins_with_what_the_one_has_that_it_is_built_from(tmp_path: Path) -> None:
    lines = (
        "FROM x AS base\nENV A=1\nCOPY a.csv /root/\nRUN one\n"
        "FROM y\nCOPY data /root/data\nRUN lost\n"
        'FROM base\nENV B="$A 2" C=3\nENV OLD a b\nRUN two'
    )
    environment = write_task(tmp_path / "task", lines).environment
    assert place_files(environment.placements) == {"a.csv": b"a"}
    assert environment.variables == {"A": "1", "B": "1 2", "C": "3", "OLD": "a b"}
    assert [step.text for step in environment.steps] == ["RUN one", "RUN two"]


def test_commands_of_a_dockerfile_keep_their_folder_shell_and_variables(tmp_path: Path) -> None:
    lines = (
        "FROM x\nWORKDIR /root\nARG N=1\n"
        "RUN --mount=type=cache,target=/c echo $N \\\n # a note\n  && id\n"
        'WORKDIR in\nENV N=2\nRUN ["echo", "a b"]\nSHELL ["/bin/bash", "-c"]\n'
        "RUN <<EOF\necho 1\necho 2\nEOF\nRUN last"
    )
    first, second, third, last = write_task(tmp_path / "task", lines).environment.steps
    assert first.command == ("/bin/sh", "-c", "echo $N && id")
    assert (first.folder, first.variables) == ("/root", {"N": "1"})
    assert second.command == ("echo", "a b")
    assert (second.folder, second.variables) == ("/root/in", {"N": "2"})
    assert third.command == ("/bin/bash", "-c", "echo 1\necho 2")
    assert last.command == ("/bin/bash", "-c", "last")


DOCKERFILE = """\
FROM python:3.12-slim
ENV TABLE=sorted.csv NOTE="two words"
WORKDIR /root/work
COPY data/ ./in/
RUN mkdir -p out && sort -r in/deep/*.txt > "out/$TABLE"
RUN echo "$NOTE" > out/note.txt
RUN pip install there-is-no-such-package==1.0
RUN apt-get install -y jq
RUN mkdir /opt/tools
RUN curl -sS https://example.org/x -o x
"""


async def test_a_sandbox_runs_what_a_dockerfile_runs_or_says_why_not(
    stage: SkillsStage, tmp_path: Path
) -> None:
    task = write_task(tmp_path / "task", DOCKERFILE)
    tests = task.folder / "tests" / "test_outputs.py"
    tests.write_text(
        "import os\nfrom pathlib import Path\n"
        "def test_file():\n    assert Path('/root/work/out/sorted.csv').read_text() == 'c\\n'\n"
        "    assert os.environ['NOTE'] == 'two words'\n"
    )
    files = place_files(task.environment.placements)
    failed = await stage.prepare("follows", files, task.environment)
    shown = [each.partition(":")[0] for each in failed]
    assert shown == [
        "RUN pip install there-is-no-such-package==1.0",
        "RUN apt-get install -y jq",
        "RUN mkdir /opt/tools",
        "RUN curl -sS https",
    ]
    assert all("exit code" in each for each in failed)
    assert "Read-only file system" in failed[2]
    answer = await stage.server.run_program("import os; os.environ['TABLE']", "follows")
    assert answer.value == "sorted.csv"
    left = await stage.read_files("follows")
    assert left["work/out/note.txt"] == b"two words\n"
    assert (await stage.verify(task, "follows verified", left)).has_passed


def test_without_a_dockerfile_all_but_skills_goes_home(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", None)
    assert set(place_files(task.environment.placements)) == {"a.csv", "b.csv", "data/deep/c.txt"}
    assert task.timeout_s == 9
    [skill] = task.curated_skills()
    assert (skill.name, skill.description) == ("one", "The first.")
    assert set(skill.files) == {"SKILL.md", "scripts/run.py"}


def test_a_path_that_leads_out_of_the_home_folder_is_left_out(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", "FROM x\nWORKDIR /root\nCOPY a.csv ../etc/a.csv\n")
    assert place_files(task.environment.placements) == {}
    assert task.environment.left_out == ("COPY a.csv ../etc/a.csv",)


@pytest.mark.parametrize(
    "text", ["no front matter", "---\nname: ../up\n---\n", "---\n- a\n---\n", "---\nname: [\n---\n"]
)
def test_a_skill_without_a_proper_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="front matter"):
        Skill.from_text(text)


def test_a_task_that_lacks_a_part_is_named(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks" / "half", None)
    (tmp_path / "tasks/half/solution/solve.sh").unlink()
    with pytest.raises(ValueError, match=r"The task half has no solution/solve\.sh"):
        read_tasks(tmp_path)
