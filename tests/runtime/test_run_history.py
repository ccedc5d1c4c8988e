"""Reports, lineages and trees are read from the journal as they were; damage is reported."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.errors import InvalidRequest, NotFound
from mcpruntime_server.journal.store import Journal, open_journal
from mcpruntime_server.runtime import run_history, time_travel
from mcpruntime_server.runtime.call_ledger import LedgerEntry
from mcpruntime_server.runtime.run import Run
from mcpruntime_server.runtime.run_report import RunReport
from mcpruntime_server.runtime.runtime import Runtime
from mcpruntime_server.runtime.session import Session

from .test_journaled_runs import CALL, finish, running

CASES = [
    "print('out')\nimport sys; print('err', file=sys.stderr)\nx = {'a': [1, None]}",
    "1 / 0",
    "import os; os._exit(3)",
    "import os; print(1, flush=True); open('f', 'w').close(); os._exit(3)",
    f"{CALL}[host.call('t.echo', {{'n': n, 'm': [1.0, None, 'é']}}) for n in range(3)]",
    f"{CALL}try: host.call('t.fail', {{}})\nexcept HostError as e: x = [e.kind, e.data]",
    f"{CALL}host.call('t.break', {{}})",
    f"{CALL}host.call('t.odd', {{}})",
    f"{CALL}host.call('u.none', {{}})",
    f"{CALL}host.call('quiet.echo', {{}})",
    "print('x' * 2_000_000)",
    "import os\nos.mkdir('d')\nfor n in range(3): open(f'd/{n}', 'w').write(str(n))",
    "print('é\\ud800\\x1b[31m')",
    "'x' * 300_000",
    "",
]


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[tuple[Runtime, Journal]]:
    async with running(tmp_path) as pair:
        yield pair


async def finished(session: Session, code: str, timeout_s: float = 30.0) -> Run:
    """Run `code` to its end and wait until its files are kept."""
    run = await finish(session, code, timeout_s)
    with anyio.fail_after(30):
        await run.file_storage.wait()
    return run


def comparable(report: RunReport) -> RunReport:
    """Return what a report tells of the run, without what it told of the moment."""
    calls = [replace(entry, duration_ms=0.0) for entry in report.calls]
    return replace(
        report, calls=calls, notes=[], result_files={}, changed_files=sorted(report.changed_files)
    )


@pytest.mark.parametrize("code", CASES)
async def test_a_report_from_the_journal_equals_the_delivered_one(
    runtime: tuple[Runtime, Journal], code: str
) -> None:
    session = await runtime[0].open_session("report", "me")
    await finished(session, "open('kept', 'w').close()")
    run = await finished(session, code)
    found = await run_history.load_report(runtime[1], run.id)
    assert comparable(found) == comparable(run.report)
    told = [entry.duration_ms for entry in run.report.calls]
    assert [entry.duration_ms for entry in found.calls] == pytest.approx(told, abs=5.0)
    past = await run_history.load_recorded_run(runtime[1], await runtime[1].load_run(run.id))
    assert (past.code, past.damage) == (code, ())


async def test_removed_files_are_read_from_the_journal(runtime: tuple[Runtime, Journal]) -> None:
    session = await runtime[0].open_session("report", "me")
    await finished(session, "open('a', 'w').close()\nopen('b', 'w').close()")
    run = await finished(session, "import os\nos.remove('a')\nopen('b', 'w').write('b')")
    found = await run_history.load_report(runtime[1], run.id)
    assert (found.changed_files, found.removed_files) == (["b"], ["a"])


@pytest.mark.parametrize(
    ("code", "timeout_s"),
    [(f"{CALL}host.call('t.hang', {{}})", 0.5), ("import time\nprint(1)\ntime.sleep(99)", 0.5)],
)
async def test_a_stopped_run_is_read_from_the_journal(
    runtime: tuple[Runtime, Journal], code: str, timeout_s: float
) -> None:
    run = await finished(await runtime[0].open_session("report", "me"), code, timeout_s)
    found = await run_history.load_report(runtime[1], run.id)
    assert comparable(found) == comparable(run.report)
    assert found.status == "timeout"


async def test_an_unfinished_run_is_reported_so_far(runtime: tuple[Runtime, Journal]) -> None:
    session = await runtime[0].open_session("report", "me")
    run = session.start_run(
        f"{CALL}print('so far', flush=True)\nhost.call('t.hang', {{'n': 1}})", 30
    )
    with anyio.fail_after(30):
        while not run.calls.ledger.entries:
            await runtime[1].next_change(session.id).wait()
        while not run.output.stream_text("stdout"):
            await run.wait_for_update()
    found = await run_history.load_report(runtime[1], run.id)
    assert (found.status, found.stdout, found.value) == ("running", "so far\n", None)
    assert found.calls == [LedgerEntry("t.hang", {"n": 1})]
    run.cancel()
    await run.finished.wait()


async def test_a_lineage_spans_sessions_and_omits_abandoned_runs(
    runtime: tuple[Runtime, Journal],
) -> None:
    session = await runtime[0].open_session("report", "me")
    told = [await finished(session, f"x = {n}") for n in range(3)]
    await time_travel.rewind_session(runtime[0], session, 2, None, cancel=False)
    row = await run_history.find_any_session(runtime[1], "report")
    forked = await time_travel.fork_session(runtime[0], row, None, None, "other", "me")
    told[2:] = [await finished(forked, "x = 'forked'")]
    found = await run_history.load_lineage_reports(runtime[1], forked.tip)
    assert list(map(comparable, found)) == [comparable(run.report) for run in told]
    assert await run_history.load_lineage_reports(runtime[1], None) == []


async def test_a_tree_has_the_lineage_abandoned_runs_and_forks(
    runtime: tuple[Runtime, Journal],
) -> None:
    session = await runtime[0].open_session("report", "me")
    first = await finished(session, "\n  \nx = 1\nopen('a', 'w').close()")
    left = await finished(
        session, f"{CALL}host.call('t.echo', {{}})\nhost.call('quiet.echo', {{}})"
    )
    await time_travel.rewind_session(runtime[0], session, 1, None, cancel=False)
    dead = await finished(session, "import os; os._exit(1)")
    last = await finished(session, "x")
    row = await run_history.find_any_session(runtime[1], "report")
    forked = await time_travel.fork_session(runtime[0], row, 1, None, "other", "me")
    tree = await run_history.load_tree(
        runtime[1], await run_history.find_any_session(runtime[1], "report")
    )
    assert tree.lineage == (first.id, last.id)
    assert {each.row.id: (each.code, each.call_count, each.file_count) for each in tree.runs} == {
        first.id: ("x = 1", 0, 1),
        left.id: ("from mcpruntime_sandbox.sandboxed.library.tools import host, HostError", 1, 0),
        dead.id: ("import os; os._exit(1)", 0, 0),
        last.id: ("x", 0, 0),
    }
    assert [each.row.id for each in tree.children()[first.id]] == [left.id, dead.id, last.id]
    assert {run: [other.name for other in others] for run, others in tree.forks.items()} == {
        first.id: ["other"]
    }
    theirs = await run_history.load_tree(
        runtime[1], await run_history.find_any_session(runtime[1], "other")
    )
    assert (theirs.lineage, [each.code for each in theirs.runs], theirs.forks) == (
        (first.id,),
        ["x = 1"],
        {},
    )
    await finished(forked, "y = 2")
    await time_travel.rewind_session(runtime[0], forked, 0, None, cancel=False)
    theirs = await run_history.load_tree(
        runtime[1], await run_history.find_any_session(runtime[1], "other")
    )
    assert (theirs.lineage, [each.code for each in theirs.runs]) == ((), ["x = 1", "y = 2"])


async def test_a_damaged_blob_or_event_is_reported_with_the_rest(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, journal):
        session = await runtime.open_session("report", "me")
        run = await finished(
            session,
            "print('x' * 50_000)\nprint('y', flush=True)\nopen('f', 'w').close()\n'v' * 100_000",
        )
        await finished(session, "1")
    [value] = [
        path
        for path in (tmp_path / "data/blobs").glob("??/*")
        if path.read_bytes().count(b"v") >= 100_000
    ]
    value.write_bytes(b"other")
    with sqlite3.connect(tmp_path / "data/journal.db") as connection:
        connection.execute(
            "UPDATE events SET body = 'x' WHERE kind = 'run_started' AND run_id = ?", (run.id,)
        )
    connection.close()
    async with open_journal(tmp_path / "data") as journal:
        past = await run_history.load_recorded_run(journal, await journal.load_run(run.id))
        assert (past.report.status, past.report.value, past.code) == ("ok", None, "")
        assert past.report.stdout == run.report.stdout
        assert past.report.changed_files == ["f"]
        assert past.damage[0].startswith("Event 3 of session")
        assert any(value.name in text for text in past.damage)
        tree = await run_history.load_tree(
            journal, await run_history.find_any_session(journal, "report")
        )
        assert [each.code for each in tree.runs] == ["", "1"]
        assert len(tree.damage) == 1


async def test_an_error_for_a_missing_name_lists_known_ones(
    runtime: tuple[Runtime, Journal],
) -> None:
    journal = runtime[1]
    with pytest.raises(NotFound, match="no sessions here yet"):
        await run_history.find_any_session(journal, "report")
    session = await runtime[0].open_session("report", "me")
    row = await run_history.find_any_session(journal, session.id)
    with pytest.raises(NotFound, match="is empty"):
        await run_history.find_run(journal, row, "1")
    run = await finished(session, "1")
    with pytest.raises(NotFound, match="Last used: report"):
        await run_history.find_any_session(journal, "raport")
    with pytest.raises(NotFound, match="no sessions here yet"):
        await run_history.find_any_session(journal, "report", "somebody else")
    row = await run_history.find_any_session(journal, "report", "me")
    assert (
        (await run_history.find_run(journal, row, "1")).id
        == (await run_history.find_run(journal, row, run.id)).id
        == run.id
    )
    for which, said in (
        ("2", "has the steps 1 to 1"),
        ("0", "has the steps"),
        ("r_none", "has no run 'r_none'"),
    ):
        with pytest.raises(NotFound, match=said):
            await run_history.find_run(journal, row, which)
    with pytest.raises(NotFound):
        await run_history.load_report(journal, "r_none")


async def test_a_name_that_two_principals_use_is_ambiguous(
    runtime: tuple[Runtime, Journal],
) -> None:
    ids = [(await runtime[0].open_session("report", principal)).id for principal in ("me", "you")]
    with pytest.raises(InvalidRequest) as caught:
        await run_history.find_any_session(runtime[1], "report")
    assert all(each in str(caught.value) for each in ids)
    assert (await run_history.find_any_session(runtime[1], "report", "you")).id == ids[1]
