"""What a crash cannot lose at the moment when a call reaches the outside."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.inputs.store import InputStore
from mcpruntime_server.config import SandboxSettings, ServerSettings
from mcpruntime_server.errors import CallFailed
from mcpruntime_server.journal.store import Durability, Journal, open_journal
from mcpruntime_server.runtime.router import Route, Router
from mcpruntime_server.runtime.run import Run
from mcpruntime_server.runtime.runtime import Runtime, open_runtime
from mcpruntime_server.sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from mcpruntime_server.sandbox.local_backend import LocalBackend

SANDBOX = SandboxSettings(memory_mb=256, workspace_mb=32, output_mb=1, pool_size=0)
CALL = """\
import time
from concurrent.futures import ThreadPoolExecutor
from mcpruntime_sandbox.sandboxed.library.tools import host, HostError
"""

Committed = list[tuple[str, dict[str, Any]]]  # kind and fields of each event


class Outside:
    """The routes of a runtime; at each call it looks at what a crash would leave of the journal."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[tuple[str, Committed]] = []  # target, and what was committed
        self.journal: Journal | None = None
        self.released = anyio.Event()
        self._database = folder / "data" / "journal.db"

    async def answer(self, target: str, args: dict[str, Any]) -> Any:
        """Answer with the number of calls so far, so that no answer comes twice."""
        self.seen.append((target, self._read_committed()))
        if target == "read.fail":
            raise CallFailed("tool_error", f"failure {len(self.seen)}", data={"odd": float("nan")})
        if target == "read.lost":
            assert self.journal is not None
            await self.journal.release_session((await self.journal.list_sessions())[0].id)
            self.released.set()
        return len(self.seen)

    def _read_committed(self) -> Committed:
        connection = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)
        try:
            rows = connection.execute("SELECT kind, body FROM events ORDER BY sequence").fetchall()
        finally:
            connection.close()
        return [(kind, json.loads(body)) for kind, body in rows]


@asynccontextmanager
async def running(
    folder: Path, durability: Durability = "process"
) -> AsyncIterator[tuple[Runtime, Outside]]:
    backend = LocalBackend(
        SANDBOX, folder / "boxes", KERNEL_ARGV, KERNEL_ENV, "tester", lambda each: each == "tester"
    )
    outside = Outside(folder)
    router = Router(
        {
            "read": Route(outside.answer, lambda _: "read"),
            "put": Route(outside.answer, lambda _: "idempotent"),
            "write": Route(outside.answer, lambda _: "write"),
            "paid": Route(outside.answer, lambda _: "read", is_billed=True),
        }
    )
    async with (
        open_journal(folder / "data", durability=durability) as journal,
        open_runtime(
            ServerSettings(), SANDBOX, journal, router, backend, InputStore(journal)
        ) as runtime,
    ):
        outside.journal = journal
        yield runtime, outside


async def finish(runtime: Runtime, code: str) -> Run:
    session = await runtime.open_session("s", "me")
    run = session.start_run(CALL + code, 30.0)
    with anyio.fail_after(60):
        await run.finished.wait()
    return run


def started(committed: Committed) -> list[str]:
    return [event["target"] for kind, event in committed if kind == "call_started"]


def answers(committed: Committed) -> list[Any]:
    """Return what the committed calls have answered, in their order."""
    finished = {
        event["call_id"]: event["error"]["message"] if "error" in event else event.get("value")
        for kind, event in committed
        if kind == "call_finished"
    }
    return [finished[number] for number in sorted(finished)]


@pytest.mark.parametrize("last", ["put.x", "write.x", "paid.x"])
async def test_everything_before_a_call_that_leaves_a_trace_is_durable(
    tmp_path: Path, last: str
) -> None:
    async with running(tmp_path) as (runtime, outside):
        code = (
            "now = time.time()\nseen = [host.call('read.x', {'n': n}) for n in range(3)]\n"
            "try: host.call('read.fail', {})\nexcept HostError as e: seen.append(str(e))\n"
            "with ThreadPoolExecutor(4) as pool:\n"
            "    seen += pool.map(lambda n: host.call('read.y', {'n': n}), range(4))\n"
            f"print('before', flush=True)\nhost.call({last!r}, {{'after': [now, *seen]}})"
        )
        run = await finish(runtime, code)
        assert run.report.status == "ok", run.report.error
    target, committed = outside.seen[-1]
    assert target == last
    assert started(committed) == [target for target, _ in outside.seen]
    [args] = [
        json.loads(event["args"])["after"]
        for kind, event in committed
        if event.get("target") == last
    ]
    assert sorted(map(str, answers(committed))) == sorted(map(str, args[1:]))
    clocks = [event["readings"] for kind, event in committed if kind == "clocks_read"]
    assert any(args[0] in readings for each in clocks for readings in each.values())


async def test_a_finished_call_is_durable_before_the_next_one_is_made(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, outside):
        targets = ["read.a", "put.a", "read.b", "write.a", "paid.a", "read.c"]
        run = await finish(runtime, f"[host.call(target, {{}}) for target in {targets}]")
        assert run.report.status == "ok", run.report.error
    for number, (_, committed) in enumerate(outside.seen):
        assert answers(committed) == list(range(1, number + 1))


async def test_code_that_knows_more_than_the_journal_changes_nothing(tmp_path: Path) -> None:
    code = """\
def attempt(target):
    try:
        return host.call(target, {})
    except HostError as error:
        return f"{error.kind}: {error}"
lost = attempt("read.lost")
while isinstance(again := attempt("read.x"), str):
    time.sleep(0.01)
[lost, attempt("write.x"), attempt("put.x"), attempt("paid.x"), attempt("read.y")]
"""
    async with running(tmp_path) as (runtime, outside):
        session = await runtime.open_session("s", "me")
        run = session.start_run(CALL + code, 60.0)
        with anyio.fail_after(60):
            await outside.released.wait()
            while len(run.calls.ledger.entries) < 2:  # noqa: ASYNC110 - no event for it
                await anyio.sleep(0.01)
            assert outside.journal is not None
            await outside.journal.claim_session((await outside.journal.list_sessions())[0].id)
            await run.finished.wait()
        assert str(run.report.value).count("is not in the journal") == 3, run.report
    assert {target for target, _ in outside.seen} == {"read.lost", "read.x", "read.y"}
