"""Damaged journals, silent sandboxes and runs of other principals cost no more than they must."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.config import Config
from mcpruntime_server.errors import InvalidRequest, NotFound
from mcpruntime_server.runtime import environment, time_travel
from mcpruntime_server.runtime.run import Run
from mcpruntime_server.runtime.session import Session
from mcpruntime_server.sandbox.local_backend import _find_processes
from mcpruntime_server.server.replay_tool import ReplayToolHandler

from .test_journaled_runs import CALL, finish, running

LONG = "#" * 20_000  # more than an event holds in itself
MANY = "import os\nos.makedirs('d')\nfor n in range(400): open(f'd/{n}', 'w').write(str(n))"


async def told(session: Session, code: str) -> tuple[str | None, str]:
    """Return value and notes of a run that must succeed."""
    run = await finish(session, code)
    assert run.report.status == "ok", run.report
    value = run.report.value
    return value and value["text"], " ".join(run.report.notes)


def spoil(folder: Path, digest: str) -> None:
    """Damage a blob."""
    [path] = [
        path
        for path in (folder / "data" / "blobs").rglob("*")
        if path.is_file() and digest.endswith(path.name)
    ]
    path.chmod(0o600)
    path.write_bytes(b"spoilt")


def damage_event(folder: Path, kind: str, step: int) -> None:
    """Spoil the blobs that the event of `kind` of a step refers to."""
    with sqlite3.connect(folder / "data" / "journal.db") as connection:
        query = """
            SELECT large_fields FROM events JOIN runs ON runs.id = events.run_id
            WHERE kind = ? AND step = ? AND large_fields <> ''"""
        found = [
            digest
            for (large,) in connection.execute(query, (kind, step))
            for digest in json.loads(large).values()
        ]
    connection.close()
    assert found
    for digest in found:
        spoil(folder, digest)


async def make_line(folder: Path) -> None:
    async with running(folder) as (runtime, _):
        session = await runtime.open_session("s", "me")
        await told(session, "x = [1]\nopen('f', 'w').write('one')")
        await told(
            session,
            f"{CALL}x.append(len(host.call('t.echo', {{'text': 'a' * 20_000}})['text']))\n{LONG}",
        )
        await told(session, f"x.append(3)\nopen('f', 'w').write('three')\n{MANY}")
        await told(session, "x.append(4)\nopen('g', 'w').write('four')")


@pytest.mark.parametrize("kind", ["run_started", "call_finished"])
async def test_a_damaged_step_costs_the_variables_after_it_and_nothing_else(
    tmp_path: Path, kind: str
) -> None:
    await make_line(tmp_path)
    damage_event(tmp_path, kind, 2)
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("s", "me")
        value, notes = await told(session, "'x' in globals(), open('f').read(), open('g').read()")
        assert value == '[false, "three", "four"]'
        assert "Variables are gone" in notes
        assert "damaged" in notes
        await time_travel.rewind_session(runtime, session, 1, None, cancel=False)
        assert await told(session, "x, open('f').read()") == ('[[1], "one"]', NOTE_OF_REBUILD)


NOTE_OF_REBUILD = (
    "1 of its steps was executed again, with recorded answers; nothing outside was touched."
)


async def test_a_damaged_file_is_reported_and_the_rest_is_restored(tmp_path: Path) -> None:
    await make_line(tmp_path)
    spoil(tmp_path, sha256(b"three").hexdigest())
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("s", "me")
        value, notes = await told(session, "x, open('f').read(), open('g').read()")
        assert (
            value == '[[1, 20000, 3, 4], "three", "four"]'
        )  # executed again, the step has written it again
        assert "not restored" not in notes


async def test_a_damaged_file_list_is_reported_and_the_session_continues(tmp_path: Path) -> None:
    await make_line(tmp_path)
    damage_event(tmp_path, "files_changed", 3)
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("s", "me")
        value, notes = await told(session, "'x' in globals(), open('g').read()")
        assert value == '[false, "four"]'
        assert "is damaged" in notes
        assert "changed were lost" in notes
        await time_travel.rewind_session(runtime, session, 2, None, cancel=False)
        assert (await told(session, "x, open('f').read()"))[0] == '[[1, 20000], "one"]'


async def test_an_unfinished_run_with_damaged_code_is_not_resumed(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, journal):
        session = await runtime.open_session("s", "me")
        await told(session, "x = 1")
    async with running(tmp_path) as (runtime, journal):
        session = await runtime.open_session("s", "me")
        await told(session, f"x = 2\n{LONG}")
        tip = session.tip
    with sqlite3.connect(
        tmp_path / "data" / "journal.db"
    ) as connection:  # as if its server had died
        connection.execute("DELETE FROM events WHERE run_id = ? AND kind = 'run_finished'", (tip,))
        connection.execute(
            """UPDATE runs SET status = 'running', finished_at = NULL, last_sequence = NULL, flags = ''
            WHERE id = ?""",
            (tip,),
        )
    connection.close()
    damage_event(tmp_path, "run_started", 2)
    async with running(tmp_path) as (runtime, journal):
        session = await runtime.open_session("s", "me")
        assert (await told(session, "x"))[0] == "1"
        assert (await journal.load_run(str(tip))).status == "crashed"


async def test_a_sandbox_that_does_not_send_its_files_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "FILES_TIMEOUT_S", 0.5)
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("s", "me")
        await told(session, "x = 1")
        run = await finish(session, "x = 2\nopen('big', 'wb').write(bytes(30_000_000))")
        assert session.environment is not None
        for process in _find_processes(session.environment.link.info.id):
            os.kill(process, signal.SIGSTOP)
        await time_travel.rewind_session(runtime, session, 1, None, cancel=False)
        assert (await told(session, "x"))[0] == "1"
        await time_travel.rewind_session(runtime, session, None, run.id, cancel=False)
        assert (await told(session, "x, __import__('os').path.getsize('big')"))[
            0
        ] == "[2, 30000000]"


async def test_runs_of_other_principals_are_not_found(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, _):
        mine = await runtime.open_session("mine", "me")
        run = await finish(mine, "secret = 1")
        theirs = await runtime.open_session("theirs", "you")
        await finish(theirs, "x = 1")
        replay = ReplayToolHandler(Config(), runtime, (), "you")
        attempts: list[Callable[[], Awaitable[Any]]] = [
            lambda: replay.fork_session(mine.id, None, None, None),
            lambda: replay.fork_session("theirs", None, run.id, None),
            lambda: replay.rewind_session("theirs", None, run.id, cancel=False),
            lambda: replay.rewind_session(mine.id, 0, None, cancel=True),
            lambda: replay.rerun_steps("theirs", None, run.id, None, (), Run.wait_until_finished),
            lambda: replay.show_run("theirs", None, run.id),
            lambda: replay.list_steps(mine.id),
            lambda: replay.compare_runs("theirs", None, None, run.id),
            lambda: replay.compare_runs("theirs", None, None, mine.id),
        ]
        for attempt in attempts:
            with pytest.raises((NotFound, InvalidRequest)) as refused:
                await attempt()
            assert "secret" not in str(refused.value)
        assert mine.tip == run.id
