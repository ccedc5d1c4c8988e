"""The demo, run for real, and its parts."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.cli import main
from mcpruntime_server.cli.demo import ACT_NAMES, programs, upstream_servers
from mcpruntime_server.cli.demo.costs import (
    TextAmount,
    compute_cost,
    load_calls,
    sum_amounts,
)
from mcpruntime_server.cli.demo.demo_console import DemoConsole
from mcpruntime_server.cli.demo.sample_repository import COMMIT_COUNT, make_repository
from mcpruntime_server.cli.demo.scenario import ACTS
from mcpruntime_server.cli.demo.token_count import count_tokens
from mcpruntime_server.config import Config, load_config
from mcpruntime_server.errors import Unavailable
from tests.helpers.sizes import ONLY_LONG

DEMO_S = 120  # starting five processes on a machine that is busy takes its time
ESCAPE = re.compile(r"\033\[[\d;]*m")
PROGRAMS = (
    programs.collection_program(Path("/r")),
    programs.report_program(Path("/report.md")),
    programs.report_program(None),
    programs.skill_task_program(Path("/r")),
    programs.skill_use_program(Path("/r")),
    *(programs.SAVE, programs.SPOIL, programs.LOOK, programs.BY_HOUR),
    programs.JUDGE,
)


def missing() -> str:
    """Return why the demo cannot run here, or nothing."""
    try:
        upstream_servers.find_servers(Path("/r"), Path("/w"))
    except Unavailable as exc:
        return str(exc)
    return ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_demo(*options: str, acts: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("mcpruntime-server"))
    command = [program, *options, "demo", *(f"--act={name}" for name in acts)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEMO_S, check=False)


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_demo_uses_real_servers_and_shows_its_costs() -> None:
    done = run_demo()
    assert (done.returncode, done.stderr) == (0, "")
    assert "\033" not in done.stdout
    quarters = re.findall(r" s │ (\d{4}) Q\d +(\d+) commits", done.stdout)
    assert len(quarters) == 12
    assert sum(int(commits) for _, commits in quarters) == COMMIT_COUNT
    told = re.findall(r"┃ ?(.*)", done.stdout)
    answer = told[1:11]
    assert re.fullmatch(r"\d+ of \d+ hotfixes were made while Tokyo slept .*", answer[0])
    before, after = (
        int(re.findall(rf"{way} .* ([\d,]+)\n", done.stdout)[0].replace(",", ""))
        for way in ("one call a turn", "2 programs")
    )
    assert before > 10 * after > 0
    check_moves(told[0].split()[0], answer[0].split()[0], [*told[11:17], told[-1]])
    check_questions(done.stdout, told[0].split()[0], told[17:20])
    learning = told[20:-1]
    assert [line for line in learning if "is in use" in line] == ["hotfixes_by_author@1 is in use."]
    assert learning[-1].count("2025 Q") == 4
    assert (
        len(re.findall(r"\((?:rewind|fork) [\d.]+ ms, the run after it [\d.]+ ms", done.stdout))
        == 2
    )
    titles = re.findall(r"── (\d)/5  (\w+): ", done.stdout)
    assert titles == [(str(number), name) for number, name in enumerate(ACT_NAMES, 1)]


def check_moves(hotfixes: str, asleep: str, told: list[str]) -> None:
    """Check what the act "rewind and fork" has shown, against the numbers of before it."""
    saved, spoilt, _, back, _, hour, same = told
    assert saved.startswith(f"{hotfixes} hotfixes saved")
    assert spoilt.startswith("0 hotfixes kept, 0 of them at night")
    assert (
        back
        == f"{hotfixes} hotfixes and {asleep} at night in variables, {hotfixes} in hotfixes.json"
    )
    assert f"of {asleep} hotfixes" in hour
    assert same == "The same as recorded in step 1: output, value, calls and files."


def check_questions(shown: str, hotfixes: str, told: list[str]) -> None:
    """Check that the run waited with all its questions, and that the demo says who answered."""
    asked = re.search(r"waiting: (\d+) questions in one go", shown)
    assert asked is not None
    assert "answered by a script of this demo" in shown
    assert told[0].startswith(f"{asked[1]} answers for {hotfixes} hotfixes")
    assert told[2].endswith(("data loss in binary mode", "data loss in chunked mode"))
    assert re.search(rf"one question a turn +{asked[1]} ", shown)


@ONLY_LONG  # the whole demo has the same acts
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_acts_can_be_shown_alone_and_say_why() -> None:
    done = run_demo(acts=("replay", "undo"))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"── (\d/\d)  (\w+): ", done.stdout) == [("1/2", "undo"), ("2/2", "replay")]
    assert ACTS["undo"].why in done.stdout
    assert "mistake" in done.stdout
    assert "2023 Q1" not in done.stdout, "what it builds on is not shown"


def test_acts_are_complete_and_each_is_explained_in_one_sentence() -> None:
    assert tuple(ACTS) == ACT_NAMES
    assert [act.why for act in ACTS.values() if act.why.count(".") != 1] == []


def test_an_unknown_act_is_refused_with_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--act", "encore"]) == 2
    assert "skill" in capsys.readouterr().err


def test_a_wait_is_shown_in_a_terminal_alone() -> None:
    shown, plain = Terminal(), io.StringIO()
    for out in (shown, plain):
        with DemoConsole(out).show_wait("running"):
            pass
    assert "running" in shown.getvalue()
    assert plain.getvalue() == ""


def test_a_failed_demo_says_why_and_exits_with_an_error(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('[sandbox]\nimage = "no-such-image:here"\n')
    done = run_demo("--config", str(file))
    assert done.returncode == 1
    assert "no-such-image:here" in done.stdout


def test_a_demo_without_git_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("uvx", "npx", "node"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--data-dir", str(tmp_path), "demo"]) == Unavailable.exit_code
    assert "apt-get install git" in capsys.readouterr().err


def test_servers_that_nothing_can_run_are_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"mcp-server-git.*scripts/test-upstreams"):
        upstream_servers.find_servers(Path("/r"), Path("/w"), tmp_path)


def test_servers_that_are_not_installed_are_run_by_uvx_and_npx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "uvx").touch(mode=0o755)
    found = upstream_servers.find_servers(Path("/r"), Path("/w"), tmp_path)
    assert list(found) == ["git", "time"]
    assert found["time"] == {"command": str(tmp_path / "uvx"), "args": ["mcp-server-time"]}
    for name in ("npx", "node"):
        (tmp_path / name).touch(mode=0o755)
    found = upstream_servers.find_servers(Path("/r"), Path("/w"), tmp_path)
    assert found["files"]["args"] == ["-y", "@modelcontextprotocol/server-filesystem", "/w"]


def test_without_a_filesystem_server_the_report_goes_into_the_workspace() -> None:
    assert "tools.files" not in programs.report_program(None)
    assert 'open("report.md", "w")' in programs.report_program(None)


def test_the_demo_uses_the_sandbox_settings_of_the_user(tmp_path: Path) -> None:
    mine = Config.from_mapping(
        {"sandbox": {"memory_mb": 99, "packages": ["attrs"]}, "server": {"max_sessions": 1}}
    )
    upstream_servers.write_demo_settings(
        tmp_path / "server.toml", mine, {"time": {"command": "x", "args": []}}
    )
    found = load_config(tmp_path / "server.toml", environ={})
    assert found.sandbox == mine.sandbox
    assert found.server.data_dir == tmp_path / "data"
    assert list(found.mcpServers) == ["time"]


async def test_the_history_is_the_same_to_the_byte_each_time_it_is_made(tmp_path: Path) -> None:
    heads = set()
    for name in ("one", "two"):
        assert await make_repository(tmp_path / name) == COMMIT_COUNT
        head = await anyio.run_process(("git", "-C", str(tmp_path / name), "rev-parse", "HEAD"))
        heads.add(head.stdout)
    assert len(heads) == 1
    await anyio.run_process(("git", "-C", str(tmp_path / "one"), "fsck", "--strict"))
    status = await anyio.run_process(("git", "-C", str(tmp_path / "one"), "status", "--porcelain"))
    assert status.stdout == b""


def test_colour_never_changes_the_text_of_a_program() -> None:
    for code in (*PROGRAMS, 'f"{{x}} {1:{2}}"  # y\nif x: """a\n b"""\n', ""):
        shown, plain = Terminal(), io.StringIO()
        for out in (shown, plain):
            DemoConsole(out).write_program(code)
        assert ESCAPE.sub("", shown.getvalue()) == plain.getvalue()
        assert [line[7:] for line in plain.getvalue().splitlines()[:-1]] == [
            line.rstrip() for line in code.splitlines()
        ]


def test_the_programs_are_python_and_fit_a_terminal() -> None:
    for code in PROGRAMS:
        compile(code, "<step>", "exec")
        assert max(map(len, code.splitlines())) <= 100


def test_a_table_puts_figures_below_each_other() -> None:
    out = io.StringIO()
    DemoConsole(out).write_table(["", "n"], [("a", "1"), ("long", "1,000")])
    assert out.getvalue() == f"  {'':<4}       n\n  a          1\n  long   1,000\n"


def test_calls_are_counted_as_turns_of_their_own() -> None:
    events: list[dict[str, Any]] = [
        {"kind": "RunStarted", "run": "r"},
        {
            "kind": "CallStarted",
            "at": 100.0,
            "call_id": 1,
            "target": "catalog.shim",
            "args": '{"server":"git"}',
        },
        {
            "kind": "CallFinished",
            "at": 100.5,
            "call_id": 1,
            "value": {"source": "x" * 999},
            "error": None,
            "duration_ms": 500.0,
        },
        {
            "kind": "CallStarted",
            "at": 102.0,
            "call_id": 2,
            "target": "tools.git.git_log",
            "args": '{"n":1}',
        },
        {
            "kind": "CallStarted",
            "at": 103.0,
            "call_id": 3,
            "target": "tools.git.git_log",
            "args": '{"n":2}',
        },
        {
            "kind": "CallFinished",
            "at": 103.0,
            "call_id": 2,
            "value": "a commit",
            "error": None,
            "duration_ms": 1000.0,
        },
        {
            "kind": "CallFinished",
            "at": 104.5,
            "call_id": 3,
            "value": None,
            "error": {"message": "no"},
            "duration_ms": 1500.0,
        },
    ]
    calls = load_calls(events)
    cost = compute_cost(calls, "program", "answer")
    assert cost.call_count == 2
    turns = 'git.git_log {"n":1}\na commit', 'git.git_log {"n":2}\nno'
    assert cost.as_turns == TextAmount(sum(map(len, turns)), sum(map(count_tokens, turns)))
    assert cost.as_code.characters == len("programanswer")


def test_tokens_are_counted_with_cl100k_and_may_be_unknown() -> None:
    assert count_tokens("hello world") == 2
    assert count_tokens("<|endoftext|>") > 1
    assert sum_amounts([TextAmount(1, 2), TextAmount(3, 4)]) - TextAmount(1, 1) == TextAmount(3, 5)
    assert sum_amounts([TextAmount(1, None), TextAmount(3, 4)]) == TextAmount(4, None)
