"""The command `replay`: what it prints for people and for programs, changes, and refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from mcp import MCPError
from rich.cells import cell_len

from mcpruntime_server.cli.views import STEPS_COLUMNS
from tests.helpers.commands import run_command, run_on_terminal
from tests.helpers.server_connection import connect_server

from .conftest import RunCommand, parse_json, write_local_settings

HARMFUL = "\x1b\x07\x9b\r\u202e\u2028"


def runs_of(run: RunCommand, session: str = "report") -> dict[str, dict[str, Any]]:
    """Return the runs of a session by the first line of their code."""
    return {
        each["code"]: each for each in parse_json(run("replay", "list", session, "--json"))["runs"]
    }


def test_a_session_is_drawn_with_its_lineage_branches_and_forks(run: RunCommand) -> None:
    lines = run("replay", "list", "report").stdout.splitlines()
    assert lines[0].startswith("── report · 5 runs · at step 3 ─")
    drawn = [(line.split()[0], *line.split()[1:3]) for line in lines[2:]]
    assert drawn == [
        ("●", "1", "ok"),
        ("●", "2", "ok"),
        ("├─○", "3", "error"),
        ("│", "✗", "4"),
        ("●", "3", "error"),
    ]
    assert "[fork: try] from tools import lively" in lines[3]
    assert "[undone] import os" in lines[5]
    assert "[tip] h = " in lines[6]


def test_a_session_is_listed_for_programs(run: RunCommand) -> None:
    found = parse_json(run("replay", "list", "report", "--json"))
    assert found["session"]["name"] == "report"
    steps = [
        (each["step"], each["status"], each["tier"], each["in_lineage"], each["files"])
        for each in found["runs"]
    ]
    assert steps == [
        (1, "ok", "rebuild", True, 0),
        (2, "ok", "rebuild", True, 1),
        (3, "error", "rebuild", False, 0),
        (4, "crashed", "", False, 0),
        (3, "error", "rebuild", True, 2),
    ]
    assert found["lineage"] == [each["id"] for each in found["runs"] if each["in_lineage"]]
    assert [each["session_id"] for each in runs_of(run, "try").values()] == [
        found["session"]["id"]
    ] * 2 + [found["runs"][1]["forks"][0]]


def test_steps_are_shown_with_code_calls_output_and_files(run: RunCommand) -> None:
    shown = run("replay", "report").stdout
    assert shown == run("replay", "show", "report").stdout
    one, two, three = shown.split("── step ")[1:]
    assert "  1  x = 1" in one
    assert "  2  print('hello')" in one
    assert "│ hello" in one
    assert "✓ lively.echo(text='said')" in two
    assert '→ "said"' in two
    assert "line 2" in two
    assert "4 B  f" in two
    assert "ValueError" in three
    assert run("replay", "report", "2").stdout.startswith(f"── step {two}"[:20])
    left = runs_of(run)["1 / 0"]
    assert "ZeroDivisionError" in run("replay", "report", left["id"]).stdout


def test_steps_are_shown_for_programs(run: RunCommand) -> None:
    steps = parse_json(run("replay", "report", "--json"))
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert (steps[0]["stdout"], steps[0]["code"]) == ("hello\n", "x = 1\nprint('hello')")
    assert steps[1]["files"]["f"]["size"] == 4
    assert [(call["target"], call["value"]) for call in steps[1]["calls"] if call["in_ledger"]] == [
        ("tools.lively.echo", "said")
    ]
    assert "\x1b[31m" in steps[2]["stdout"]
    assert parse_json(run("replay", "--json", "report", "1")) == steps[:1]


@pytest.mark.parametrize(
    "words",
    [
        ["replay", "report"],
        ["replay", "report", "--full"],
        ["replay", "list", "report"],
        ["runs", "report", "3"],
        ["replay", "diff", "report:1", "report:3"],
        ["replay", "diff", "report", "try", "--full"],
    ],
)
def test_recorded_control_characters_never_reach_the_terminal(
    run: RunCommand, words: list[str]
) -> None:
    done = run(*words)
    assert done.returncode in (0, 1)
    assert done.stdout
    assert [char for char in HARMFUL if char in done.stdout + done.stderr] == []
    assert all(line.isprintable() for line in done.stdout.split("\n"))


def test_a_terminal_gets_colours_and_no_other_control_sequences(used: Path) -> None:
    shown = run_on_terminal(used, "replay", "report")
    assert "\x1b[32m" in shown
    assert set(shown.replace("\x1b", "").split("\n")) & {"\r"} == {"\r"}
    assert "\x1b" not in re.sub("\x1b\\[[0-9;]*m", "", shown)


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize(
    ("words", "min_columns"),
    [
        (["replay", "list", "report"], STEPS_COLUMNS),  # ids are not cut
        (["replay", "report"], 0),
        (["replay", "diff", "report", "try"], 0),
    ],
)
def test_lines_fit_the_terminal(
    run: RunCommand, words: list[str], min_columns: int, columns: int
) -> None:
    env = {"TERM": "xterm", "COLUMNS": str(columns), "NO_COLOR": "1"}
    shown = run(*words, is_terminal=True, **env).stdout
    assert "\x1b" not in shown
    assert max(map(cell_len, shown.split("\n"))) <= max(columns, min_columns)


def test_runs_and_lineages_are_compared(run: RunCommand) -> None:
    same = run("replay", "diff", "report:1", "report:1")
    assert (same.returncode, "the same" in same.stdout) == (0, True)
    one = run("replay", "diff", "report:1", "report:2")
    assert one.returncode == 1
    assert "    -print('hello')" in one.stdout
    assert "+ lively.echo(text='said')" in one.stdout
    assert "    + f  4 B" in one.stdout
    found = parse_json(run("replay", "diff", "report", "try", "--json"))
    assert (len(found["common"]), len(found["steps"]), found["equal"]) == (2, 1, False)
    assert [change["path"] for change in found["files"] if change["path"] == "f"] == ["f"]
    told = run("replay", "diff", "report", "try").stdout
    assert "2 steps in common" in told
    assert "+bye" in told


def test_a_session_is_rewound_and_returns(run: RunCommand) -> None:
    left = runs_of(run)["1 / 0"]["id"]
    assert "continues from the end of step 1" in run("replay", "rewind", "report", "1").stdout
    assert [step["step"] for step in parse_json(run("replay", "report", "--json"))] == [1]
    beyond = run("replay", "rewind", "report", "2")
    assert beyond.returncode == 2
    assert "named by its id" in beyond.stderr
    assert parse_json(run("replay", "rewind", "report", left, "--json"))["step"] == 3
    assert [step["code"] for step in parse_json(run("replay", "report", "--json"))][-1] == "1 / 0"
    assert parse_json(run("replay", "rewind", "report", "0", "--json"))["run"] is None
    assert "at the beginning" in run("replay", "list", "report").stdout
    assert run("replay", "report").stdout == "nothing recorded yet\n"
    dead = run("replay", "rewind", "report", runs_of(run)["import os; os._exit(3)"]["id"])
    assert (dead.returncode, "has left no state" in dead.stderr) == (2, True)


def test_a_fork_starts_at_the_named_step(run: RunCommand) -> None:
    made = parse_json(run("replay", "fork", "report", "1", "--name", "new", "--json"))
    assert (made["name"], made["step"]) == ("new", 1)
    assert [step["step"] for step in parse_json(run("replay", "new", "--json"))] == [1]
    assert "new" in run("replay").stdout
    assert "fork of report:1" in run("replay").stdout
    assert "starts at the end of step 3" in run("replay", "fork", "report").stdout
    for words in (
        ["report", "1", "--name", "new"],
        ["report", "1", "--name", "a/b"],
        ["report", "0"],
    ):
        assert run("replay", "fork", *words).returncode == 2


def test_steps_are_rerun_as_recorded_and_with_other_code(run: RunCommand, tmp_path: Path) -> None:
    again = run("replay", "rerun", "report")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("as recorded") == 3
    other = tmp_path / "other.py"
    other.write_text("print(x + 1)\nlively.echo(text='new')")
    told = run("replay", "rerun", "try", "--code", other)
    assert told.returncode == 0
    assert "+2" in told.stdout
    found = parse_json(run("replay", "rerun", "try", "--code", other, "--live", "lively", "--json"))
    assert found["equal"] is False
    assert [call["b"]["value"] for call in found["runs"][0]["calls"]] == ["new"]
    assert run("replay", "rerun", "try", "--live", "livly").returncode == 2
    assert run("replay", "rerun", "try", "--code", tmp_path / "absent.py").returncode == 2
    assert "reruns, which --all lists" in run("replay").stdout
    assert "rerun, from report:2" in run("replay", "list", "--all").stdout


def test_a_session_is_exported_and_imported(run: RunCommand, tmp_path: Path) -> None:
    archive = tmp_path / "work.zip"
    assert parse_json(run("replay", "export", "report", archive, "--json"))["runs"] == 5
    again = run("replay", "export", "report", archive)
    assert again.returncode == 2
    assert run("replay", "export", "report", archive, "--force").returncode == 0
    elsewhere = write_local_settings(tmp_path / "elsewhere")
    row = parse_json(run_command("--config", elsewhere, "replay", "import", archive, "--json"))
    assert (row["name"], row["purpose"]) == ("report", "import")
    there = run_command("--config", elsewhere, "replay", "report").stdout
    assert there == run("replay", "report").stdout
    archive.write_bytes(archive.read_bytes()[:1000])
    broken = run_command("--config", elsewhere, "replay", "import", archive)
    assert (broken.returncode, "Traceback" in broken.stderr) == (2, False)
    assert (
        run_command("--config", elsewhere, "replay", "import", tmp_path / "absent.zip").returncode
        == 2
    )


EXPORTING = "open('f', 'w').write('one')\nexport('f')"


async def test_an_imported_export_is_said_to_be_where_it_was_recorded(tmp_path: Path) -> None:
    here = write_local_settings(tmp_path / "here")
    async with connect_server(here) as server:
        path = await server.evaluate(EXPORTING, "work")
    archive = tmp_path / "work.zip"
    printed = await to_thread.run_sync(run_command, "--config", here, "replay", "show", "work")
    assert "files.export(name='f', size=3)" in printed.stdout
    assert f"→ {path}\n" in printed.stdout
    for name in ("there", "further"):
        there = write_local_settings(tmp_path / name)
        for words in (
            (here, "replay", "export", "work", archive, "--force"),
            (there, "replay", "import", archive),
        ):
            done = await to_thread.run_sync(run_command, "--config", *words)
            assert done.returncode == 0, done.stderr
        async with connect_server(there) as server:
            shown = await server.replay("show", "work", step=1)
        call = f"files.export(name='f', size=3) = {path} (where it was recorded)"
        assert [each["call"] for each in shown.calls] == [call]
        here = there


HOSTILE_VALUE = {"kind": "\x1b", "text": "\x1b[2J", "type": "\x1b", "cut": True}
HOSTILE_ERROR = {
    "type": "\x1b]0;title\x07",
    "message": "\r\x9b",
    "traceback": "\x1b[2J",
    "line": -1,
    "hint": "\x1b",
}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            "run_finished",
            {"status": "\x1b[31m", "value": HOSTILE_VALUE, "error": HOSTILE_ERROR},
        ),
        (
            "run_finished",
            {"value": None, "flags": ["undone", "\x1b"], "usage": {"wall_ms": 1e300}},
        ),
        ("call_started", {"args": "{", "line_number": -1}),
        ("call_started", {"args": "[" * 100_000, "target": "\x1b]0;title\x07"}),
        (
            "call_finished",
            {
                "error": {"kind": "\x1b", "message": "\x1b]0;title\x07", "data": {"a": "\x1b"}},
                "duration_ms": -1e300,
            },
        ),
        ("call_finished", {"summary": {"args": {"\x1b": ["\x1b"]}, "outcome": "\x1b]0;t\x07"}}),
        ("run_started", {"code": "\0\ud800x = (\n\t'''\x1b"}),
    ],
)
def test_invented_content_of_an_archive_is_shown_safely(
    run: RunCommand, tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    good, evil = tmp_path / "good.zip", tmp_path / "evil.zip"
    assert run("replay", "export", "report", good).returncode == 0
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "events.jsonl":
                rows = [json.loads(line) for line in content.splitlines()]
                for row in rows:
                    row["body"] |= fields if row["kind"] == kind else {}
                content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
            target.writestr(name, content)
    there = ("--config", write_local_settings(tmp_path / "elsewhere"), "replay")
    assert run_command(*there, "import", evil).returncode == 0
    for words in (["list", "report"], ["report"], ["diff", "report:1", "report:2"]):
        done = run_command(*there, *words)
        assert done.returncode in (0, 1)
        assert (done.stderr, all(line.isprintable() for line in done.stdout.split("\n"))) == (
            "",
            True,
        )
    assert parse_json(run_command(*there, "report", "--json"))


def test_gc_removes_what_is_not_pinned(run: RunCommand) -> None:
    run("replay", "rerun", "try")
    assert "is pinned" in run("replay", "pin", "report:1", "--reason", "a skill").stdout
    assert "pinned: a skill" in run("replay", "list", "report").stdout
    assert parse_json(run("gc", "--dry-run", "--json"))["dry_run"] is True
    assert "would remove" in run("gc", "--dry-run").stdout
    assert run("gc").returncode == 0
    assert "no longer pinned" in run("replay", "unpin", "report:1").stdout
    assert run("replay", "unpin", "report:1").returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["replay", "raport"], "Last used: "),
        (["replay", "report", "9"], "has the steps 1 to 3"),
        (["replay", "report", "r_none"], "replay list report"),
        (["replay", "list", "raport"], "There is no session 'raport'"),
        (["replay", "diff", "report", "nobody"], "There is no session 'nobody'"),
        (["replay", "diff", "report", "r_none"], "There is no run 'r_none'"),
        (["replay", "diff", "report", "report:1"], "SESSION:STEP"),
        (["replay", "diff", "report:9", "report:1"], "has the steps 1 to 3"),
        (["replay", "pin", "r_none"], "There is no run 'r_none'"),
        (["replay", "rewind", "raport", "1"], "There is no session 'raport'"),
        (["replay", "rerun", "raport"], "There is no session 'raport'"),
        (["replay", "export", "raport", "/tmp/x.zip"], "There is no session 'raport'"),
        (["replay", "\x1b[31m\udc80"], "There is no session"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    run: RunCommand, words: list[str], said: str
) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


def test_damage_is_named_and_the_rest_is_shown(run: RunCommand, used: Path) -> None:
    with sqlite3.connect(used.parent / "data/journal.db") as connection:
        connection.execute("UPDATE events SET body = '{' WHERE kind = 'call_finished'")
    connection.close()
    for blob in (used.parent / "data/blobs").glob("??/*"):
        blob.write_bytes(b"damaged")
    shown = run("replay", "report", "2")
    assert shown.returncode == 0
    assert "! Event " in shown.stdout
    assert "lively.echo" in shown.stdout
    assert parse_json(run("replay", "report", "2", "--json"))[0]["damage"]
    assert "is damaged" in run("replay", "diff", "report:2", "report:3").stdout
    assert "damaged" in run("runs", "report", "2").stderr
    exported = run("replay", "export", "report", used.parent / "x.zip")
    assert (exported.returncode, "Traceback" in exported.stderr) == (1, False)


async def test_a_session_of_a_live_server_is_only_read(used: Path, run: RunCommand) -> None:
    async with connect_server(used) as server:
        await server.run("y = 1", session="report")
        gone = await to_thread.run_sync(run, "replay", "rewind", "report", "1")
        assert (gone.returncode, "in use by another server" in gone.stderr) == (3, True)
        assert "y = 1" in (await to_thread.run_sync(run, "replay", "report", "4")).stdout
        assert (
            await to_thread.run_sync(run, "replay", "fork", "report", "--name", "beside")
        ).returncode == 0
        assert await server.evaluate("y", session="beside") == 1


async def kill_server_in_run(settings: Path, pipe: Path) -> None:
    """Kill a server while it executes something in the session `report`."""
    wait = (
        "import time\nprint('begun', flush=True)\ntime.sleep(0.3)  # it is in the journal by then"
    )
    code = f"{wait}\nopen({str(pipe)!r}).read()"
    with suppress(BaseExceptionGroup, MCPError):
        async with connect_server(settings) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(server.run, code, "report")
            with anyio.fail_after(60):
                end = await to_thread.run_sync(
                    open, pipe, "w", abandon_on_cancel=True
                )  # when the code reads
            with end:
                [pid] = server.server_pids
                os.kill(pid, signal.SIGKILL)


async def test_a_run_of_a_killed_server_is_shown_and_cancelled_only_on_request(
    used: Path, run: RunCommand, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    await kill_server_in_run(used, pipe)
    shown = run("replay", "report", "4").stdout
    assert "· running ·" in shown
    assert "│ begun" in shown
    for words in (["rewind", "report", "1"], ["fork", "report"], ["rerun", "report", "4"]):
        done = run("replay", *words)
        assert (done.returncode, "is not finished" in done.stderr) == (2, True), done.stderr
    assert "· running ·" in run("replay", "report", "4").stdout
    assert run("replay", "rewind", "report", "1", "--cancel").returncode == 0
    assert [step["step"] for step in parse_json(run("replay", "report", "--json"))] == [1]


def test_an_empty_data_folder_is_reported(tmp_path: Path) -> None:
    settings = write_local_settings(tmp_path)
    assert "no sessions" in run_command("--config", settings, "replay").stdout
    assert json.loads(run_command("--config", settings, "replay", "--json").stdout) == []
    assert "right data folder" in run_command("--config", settings, "replay", "report").stderr


@pytest.mark.parametrize(
    "action",
    [
        *("list", "show", "diff", "rewind", "fork", "rerun", "delete", "probe", "ask", "variables"),
        *("export", "import", "pin", "unpin"),
    ],
)
def test_every_action_has_help(action: str) -> None:
    assert action in run_command("replay", "--help").stdout
    done = run_command("replay", action, "--help")
    assert (done.returncode, "--json" in done.stdout) == (0, True)
