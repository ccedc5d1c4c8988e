"""Sessions on real sandboxes and a real journal: reports match the journal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.inputs.store import InputStore
from mcpruntime_server.config import SandboxSettings, ServerSettings
from mcpruntime_server.errors import CallFailed, InvalidRequest, NotFound, Unavailable
from mcpruntime_server.journal import events
from mcpruntime_server.journal.store import Journal, open_journal
from mcpruntime_server.runtime.router import Route, Router
from mcpruntime_server.runtime.run import Run
from mcpruntime_server.runtime.run_journal import MAX_READINGS
from mcpruntime_server.runtime.runtime import Runtime, open_runtime
from mcpruntime_server.runtime.session import Session, strip_fences
from mcpruntime_server.sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from mcpruntime_server.sandbox.local_backend import LocalBackend

SANDBOX = SandboxSettings(memory_mb=256, workspace_mb=32, output_mb=1, pool_size=0)
WITH_POOL = replace(SANDBOX, pool_size=1)
CALL = "from mcpruntime_sandbox.sandboxed.library.tools import host, HostError\n"

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]


async def answer(target: str, args: dict[str, Any]) -> Any:
    """Answer the calls of these tests."""
    if target == "t.fail":
        raise CallFailed("tool_error", "it failed", data={"why": 1})
    if target == "t.break":
        raise RuntimeError("secret of the host")
    if target == "t.odd":
        return {1, 2}
    if target == "t.hang":
        await anyio.sleep_forever()
    return args


@asynccontextmanager
async def running(
    folder: Path,
    heard: list[str] | None = None,
    sandbox: SandboxSettings = SANDBOX,
    **settings: Any,
) -> AsyncIterator[tuple[Runtime, Journal]]:
    """Bring up a runtime on local sandboxes."""
    owner = "tester"
    backend = LocalBackend(
        sandbox, folder / "boxes", KERNEL_ARGV, KERNEL_ENV, owner, lambda each: each == owner
    )

    async def listen(target: str, args: dict[str, Any]) -> Any:
        if heard is not None:
            heard.append(target)
        return await answer(target, args)

    router = Router(
        {
            "t": Route(listen, lambda _: "write"),
            "quiet": Route(answer, lambda _: "read", is_listed=False),
        }
    )
    async with (
        open_journal(folder / "data") as journal,
        open_runtime(
            ServerSettings(**settings), sandbox, journal, router, backend, InputStore(journal)
        ) as runtime,
    ):
        yield runtime, journal


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[tuple[Runtime, Journal]]:
    async with running(tmp_path, sandbox=WITH_POOL) as pair:
        yield pair


async def finish(session: Session, code: str, timeout_s: float = 30.0) -> Run:
    """Run `code` to its end."""
    run = session.start_run(code, timeout_s)
    with anyio.fail_after(60):
        await run.finished.wait()
    return run


async def finish_parked(session: Session, code: str) -> Run:
    """Run `code` to its end and wait until the sandbox has parked its state, or cannot."""
    run = await finish(session, code)
    assert session.environment is not None
    link = session.environment.link
    with anyio.fail_after(60):
        while link.live_run not in {*link.parked_runs, *link.park_failures}:  # noqa: ASYNC110
            await anyio.sleep(0.005)  # the link has no event for this
    return run


async def journaled(journal: Journal, run: Run) -> list[events.Event]:
    return [
        stored.event for stored in await journal.load_events(run.report.session_id, run_id=run.id)
    ]


@pytest.mark.parametrize(
    "code",
    [
        "print('out')\nimport sys; print('err', file=sys.stderr)\nx = {'a': [1, None]}",
        "1 / 0",
        "import os; os._exit(3)",
        f"{CALL}[host.call('t.echo', {{'n': n}}) for n in range(3)]",
        f"{CALL}try: host.call('t.fail', {{}})\nexcept HostError as e: x = [e.kind, e.data]",
        f"{CALL}host.call('t.break', {{}})",
        f"{CALL}host.call('t.odd', {{}})",
        f"{CALL}host.call('u.none', {{}})",
        "print('x' * 2_000_000)",
    ],
)
async def test_a_report_matches_the_journal(runtime: tuple[Runtime, Journal], code: str) -> None:
    session = await runtime[0].open_session("report", "me")
    run = await finish(session, code)
    report, found = run.report, await journaled(runtime[1], run)
    start, *middle, end = found
    assert isinstance(start, events.RunStarted)
    assert isinstance(end, events.RunFinished)
    assert (start.code, start.step) == (code, report.step)
    assert (end.status, end.value, end.error, end.usage) == (
        report.status,
        report.value,
        report.error,
        report.usage,
    )
    printed = {"stdout": "", "stderr": ""}
    for event in middle:
        if isinstance(event, events.OutputWritten):
            printed[event.stream] += event.text
    assert printed == {"stdout": report.stdout, "stderr": report.stderr}
    started = [event for event in middle if isinstance(event, events.CallStarted)]
    ended = [event for event in middle if isinstance(event, events.CallFinished)]
    assert [event.call_id for event in ended] == [event.call_id for event in started]
    assert [
        (event.target, "error" if event.error else "ok") for event in map(dict_of(started), ended)
    ] == [(entry.target, entry.status) for entry in report.calls]
    assert "secret of the host" not in repr(found)


def dict_of(started: list[events.CallStarted]) -> Callable[[events.CallFinished], Any]:
    """Return a function that adds the target of its call to the end of one."""
    targets = {event.call_id: event.target for event in started}

    class Ended:
        def __init__(self, end: events.CallFinished) -> None:
            self.target, self.error = targets[end.call_id], end.error

    return Ended


async def test_forged_clock_readings_are_bounded(runtime: tuple[Runtime, Journal]) -> None:
    code = (
        f"{CALL}import gc\n"
        "[clocks] = [o for o in gc.get_objects() if type(o).__name__ == 'RecordedClocks']\n"
        "for n in range(4):\n"
        "    forged = {'loop1': [n] * 60_000, 'x' * 999: [1], 'time': [10**99, 'x', None]}\n"
        "    clocks.readings = forged\n"
        "    host.call('t.echo', {'n': n})"
    )
    session = await runtime[0].open_session("report", "me")
    run = await finish(session, code)
    assert run.report.status == "ok", run.report
    events_read = [e for e in await journaled(runtime[1], run) if isinstance(e, events.ClocksRead)]
    assert {name for event in events_read for name in event.readings} == {"loop1"}
    numbers = [len(values) for event in events_read for values in event.readings.values()]
    assert sum(numbers) == MAX_READINGS


async def test_files_are_journaled_with_their_content_and_restored(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("report", "me")
        await finish(
            session,
            "import os\nos.mkdir('d')\nopen('d/a', 'w').write('one')\nopen('b', 'w').write('two')",
        )
        await finish(session, "os.remove('b')\nopen('d/a', 'a').write('!')")
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("report", "me")
        run = await finish(session, "import os\nsorted(os.listdir()), open('d/a').read()")
        assert run.report.value is not None
        assert run.report.value["text"] == '[["d"], "one!"]'


async def test_a_call_that_is_unfinished_when_its_run_ends_stays_started(
    runtime: tuple[Runtime, Journal],
) -> None:
    session = await runtime[0].open_session("report", "me")
    run = await finish(session, f"{CALL}host.call('t.hang', {{}})", timeout_s=0.3)
    assert run.report.status == "timeout"
    assert [entry.status for entry in run.report.calls] == ["started"]
    kinds = [type(event) for event in await journaled(runtime[1], run)]
    assert events.CallStarted in kinds
    assert events.CallFinished not in kinds


async def test_calls_of_an_unlisted_route_are_journaled_but_not_in_the_ledger(
    runtime: tuple[Runtime, Journal],
) -> None:
    session = await runtime[0].open_session("report", "me")
    run = await finish(session, f"{CALL}host.call('quiet.echo', {{}})")
    assert run.report.calls == []
    assert any(isinstance(event, events.CallStarted) for event in await journaled(runtime[1], run))


async def test_a_session_of_another_principal_is_not_found(
    runtime: tuple[Runtime, Journal],
) -> None:
    mine = await runtime[0].open_session("report", "me")
    await finish(mine, "x = 1")
    with pytest.raises(NotFound):
        await runtime[0].open_session(mine.id, "somebody else")
    theirs = await runtime[0].open_session("report", "somebody else")
    assert theirs.id != mine.id
    assert (await finish(theirs, "x")).report.status == "error"


@pytest.mark.parametrize("name", ["", " x", "a/b", "x" * 65, "é", "a\n"])
async def test_an_invalid_name_is_refused(runtime: tuple[Runtime, Journal], name: str) -> None:
    with pytest.raises(InvalidRequest):
        await runtime[0].open_session(name, "me")


async def test_a_session_that_another_server_holds_is_unavailable(tmp_path: Path) -> None:
    async with running(tmp_path) as (one, _), running(tmp_path) as (other, _):
        session = await one.open_session("report", "me")
        await finish(session, "1")
        with pytest.raises(Unavailable, match="in use by another server"):
            await other.open_session("report", "me")


async def test_a_closed_session_is_opened_again_only_when_its_files_are_saved(
    tmp_path: Path,
) -> None:
    read = "import os\nos.path.getsize('f') if os.path.exists('f') else 0"
    async with running(tmp_path, max_sessions=1) as (runtime, _):
        for turn in range(3):
            for name in ("a", "b"):
                session = await runtime.open_session(name, "me")
                run = await finish(session, read)
                assert run.report.value is not None
                assert run.report.value["text"] == str(turn)
                await finish(session, f"open('f', 'wb').write(bytes({turn + 1}))")


async def test_unfinished_runs_are_journaled_as_cancelled_at_shutdown(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, journal):
        session = await runtime.open_session("report", "me")
        run = session.start_run("import time; time.sleep(99)", 99)
        queued = session.start_run("1", 99)
        await finish(await runtime.open_session("other", "me"), "1")
    async with open_journal(tmp_path / "data") as journal:
        for each in (run, queued):
            assert (await journal.load_run(each.id)).status == "cancelled"


@pytest.mark.parametrize(
    ("code", "inner"),
    [
        ("```python\nx\n```", "x"),
        ("```\nx\n```\n", "x"),
        ("\n ```py\nx\n```", "x"),
        ("````\n```\nx\n```\n````", "```\nx\n```"),
        ("x = '```'", "x = '```'"),
        ("  x\n  y", "x\ny"),
        ("x\n  y", "x\n  y"),
        ("\ufeffx", "x"),
        ("", ""),
        ("```python\n```", ""),
    ],
)
def test_fences_and_indentation_are_removed(code: str, inner: str) -> None:
    assert strip_fences(code) == inner
