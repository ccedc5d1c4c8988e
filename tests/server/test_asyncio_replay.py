"""Programs as `asyncio` developers write them are repeated: rerun, rebuilt, and resumed.

Their upstream has random latency, fails at random and never answers the same twice. Each program in
`asyncio_programs` returns what it has written, which must be what the upstream has logged.
"""

from __future__ import annotations

import ast
import os
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    ServerConnection,
    ToolAnswer,
    connect_server,
    write_settings,
)
from ..helpers.server_killing import KillableServer, ServerKilled, start_ready_server
from ..helpers.sizes import IS_LONG, choose_size
from .conftest import upstream_entry

PROGRAMS = {
    path.stem: path.read_text()
    for path in sorted((Path(__file__).parent / "asyncio_programs").glob("*.py"))
}
ROUNDS = choose_size("ASYNCIO_ROUNDS", short=1, long=12)
CASES = [f"{name}-{turn}" for turn in range(ROUNDS) for name in PROGRAMS]
KILLED_AT_ONCE = 9  # programs of one server
KILLED = [CASES[at : at + KILLED_AT_ONCE] for at in range(0, len(CASES), KILLED_AT_ONCE)]
SEED = os.environ.get("KILL_SEED") or secrets.token_hex(4)
GONE = {"command": "/nowhere/to/be/found"}
COMPARED = ("status", "value", "stdout", "stderr", "error")
MAX_DELAY_MS = "8"
MAX_CALLS_BEFORE_KILL = 12 if IS_LONG else 5  # the shortest program makes 6


def program_code(case: str) -> str:
    """Return the code of a case; every second one runs in the session's own event loop."""
    name, _, turn = case.rpartition("-")
    code = PROGRAMS[name]
    if (list(PROGRAMS).index(name) + int(turn)) % 2:
        code = code.replace("asyncio.run(main())", "await main()")
    return f"TAG = {case!r}\n{code}"


def settings_of(folder: Path, upstream: dict[str, Any]) -> Path:
    return write_settings(
        folder,
        sandbox={"backend": "local", "pool_size": 0, "timeout_s": TEST_TIMEOUT_S},
        mcpServers={"jittery": upstream},
    )


def log_of(folder: Path) -> Path:
    return folder / "done"


def written_items(log: Path, case: str) -> list[str]:
    """Return the items that the upstream has written for a case."""
    lines = log.read_text().splitlines() if log.exists() else []
    prefix = f"record {case}:"
    return sorted(line.removeprefix("record ") for line in lines if line.startswith(prefix))


@dataclass(frozen=True)
class Recorded:
    """A server that cannot reach any upstream, and what its clients were told when one could."""

    server: ServerConnection
    answers: dict[str, ToolAnswer]
    log: Path


@pytest.fixture(scope="module")
async def recorded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Recorded]:
    folder = tmp_path_factory.mktemp("asyncio")
    entry = upstream_entry("jittery", str(log_of(folder)), MAX_DELAY_MS)
    async with connect_server(settings_of(folder, entry)) as server:
        answers = {case: await server.run(program_code(case), case) for case in CASES}
    async with connect_server(settings_of(folder, GONE)) as server:
        yield Recorded(server, answers, log_of(folder))


@pytest.mark.parametrize("case", CASES)
async def test_a_program_that_is_rerun_does_the_same(recorded: Recorded, case: str) -> None:
    told = recorded.answers[case]
    assert told.status == "ok", told.text
    assert sorted(told.value["written"]) == written_items(recorded.log, case)
    again = await recorded.server.replay("rerun", case, step=1)
    assert "The same as recorded in step" in again.note, again.text
    for field in COMPARED:
        assert again.data.get(field) == told.data.get(field), field


@pytest.mark.parametrize("case", CASES)
async def test_a_program_that_is_rebuilt_leaves_the_same_variables(
    recorded: Recorded, case: str
) -> None:
    told = recorded.answers[case]
    answer = await recorded.server.run("written.append('next')\n[result, written[:-1]]", case)
    assert answer.status == "ok", answer.text
    expected = {**told.value, "written": [*told.value["written"], "next"]}
    assert answer.value == [expected, told.value["written"]]
    assert "differs" not in str(answer.data.get("note")).lower(), answer.text


@pytest.mark.parametrize("cases", KILLED, ids=lambda cases: f"{cases[0]} to {cases[-1]}")
async def test_programs_whose_server_is_killed_go_on(tmp_path: Path, cases: list[str]) -> None:
    print(f"KILL_SEED={SEED}")  # shown where it fails
    log = log_of(tmp_path)
    settings = settings_of(tmp_path, upstream_entry("jittery", str(log), MAX_DELAY_MS))
    most = MAX_CALLS_BEFORE_KILL * len(cases)
    kill_after = random.Random(f"{SEED} {cases}").randint(1, most)
    async with start_ready_server(settings) as server, anyio.create_task_group() as tasks:
        for case in cases:
            tasks.start_soon(run_until_killed, server, case)
        with anyio.fail_after(TEST_TIMEOUT_S):
            while count_lines(log) < kill_after:  # noqa: ASYNC110
                await anyio.sleep(0.002)
        server.kill()
    async with start_ready_server(settings) as server, anyio.create_task_group() as tasks:
        for case in cases:
            tasks.start_soon(finish_program, server, case, log)


def count_lines(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


async def run_until_killed(server: KillableServer, case: str) -> None:
    """Ask for a run; a short program may have ended before the kill."""
    with suppress(ServerKilled):
        await server.run(program_code(case), case, case)


async def finish_program(server: KillableServer, case: str, log: Path) -> None:
    """Attach to a run until it is finished; what it has written is what the upstream has logged."""
    told = await server.run(program_code(case), case, case)
    while told["status"] in ("queued", "running", "waiting"):
        answers = {
            wait["id"]: resolve_doubt(wait, log, case) for wait in told.get("waiting_for", ())
        }
        told = await server.wait_run(told["run"], **({"answers": answers} if answers else {}))
    told = await server.wait_run(told["run"])
    assert told["status"] == "ok", told
    assert sorted(told["value"]["written"]) == written_items(log, case)


def resolve_doubt(wait: dict[str, Any], log: Path, case: str) -> Any:
    """Return the outcome of a write during which the server was killed."""
    assert wait["kind"] == "in_doubt", wait
    item = ast.literal_eval(wait["call"].partition("item=")[2].removesuffix(")"))
    if item in written_items(log, case):
        return {"result": {"item": item, "serial": 0}}
    return "again"
