"""Sessions are rewound, forked, rebuilt and rerun; steps that die are undone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcpruntime_server.errors import InvalidRequest, NotFound
from mcpruntime_server.journal.rows import SessionRow
from mcpruntime_server.runtime import run_history, time_travel
from mcpruntime_server.runtime.runtime import Runtime
from mcpruntime_server.runtime.session import Session

from .test_journaled_runs import CALL, finish, finish_parked, running

ECHO = f"{CALL}import random, uuid, time, os, secrets\n"
FICKLE = (
    "[random.random(), str(uuid.uuid4()), time.time(), os.urandom(4).hex(), secrets.token_hex(4), "
    "time.monotonic(),"
    " host.call('t.echo', {'n': time.time_ns()})]"
)


async def value(session: Session, code: str) -> str:
    run = await finish(session, code)
    assert run.report.status == "ok", run.report
    assert run.report.value is not None
    return str(run.report.value["text"])


async def row_of(runtime: Runtime, session: Session) -> SessionRow:
    return await run_history.find_any_session(runtime.journal, session.id)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    async with running(tmp_path) as (runtime, _):
        yield runtime


@pytest.mark.parametrize(
    "death",
    [
        "import os; os._exit(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import ctypes; ctypes.string_at(0)",
        "import sys\nsys.setrecursionlimit(10**8)\nd = []\nfor _ in range(10**6): d = [d]\nrepr(d)",
    ],
)
async def test_a_step_that_dies_is_undone_with_its_files(runtime: Runtime, death: str) -> None:
    session = await runtime.open_session("s", "me")
    await finish_parked(session, "x = [1]\nopen('kept', 'w').write('before')")
    run = await finish(
        session, f"x.append(2)\nopen('kept', 'w').write('after')\nopen('new', 'w').close()\n{death}"
    )
    assert run.report.status in {"crashed", "error"}
    if run.report.status == "crashed":
        assert "Variables and files are back as they were before this step." in run.report.notes
        assert (
            await value(session, "import os\n[x, open('kept').read(), os.path.exists('new')]")
            == '[[1], "before", false]'
        )
    assert session.step == 2 + (run.report.status == "error")


async def test_a_rewound_session_continues_from_there_and_can_return(runtime: Runtime) -> None:
    session = await runtime.open_session("s", "me")
    runs = [await finish(session, f"x = {n}\nopen('f', 'w').write(str(x))") for n in range(4)]
    await time_travel.rewind_session(runtime, session, 2, None, cancel=False)
    assert await value(session, "x, open('f').read()") == '[1, "1"]'
    await time_travel.rewind_session(runtime, session, None, runs[3].id, cancel=False)
    assert await value(session, "x, open('f').read()") == '[3, "3"]'
    await time_travel.rewind_session(runtime, session, 0, None, cancel=False)
    assert await value(session, "'x' in globals(), __import__('os').listdir()") == "[false, []]"


async def test_a_fork_and_its_origin_continue_independently(runtime: Runtime) -> None:
    session = await runtime.open_session("s", "me")
    await finish_parked(session, "x = [1]\nopen('f', 'w').write('one')")
    await finish_parked(session, "x.append(2)\nopen('f', 'w').write('two')")
    forked = await time_travel.fork_session(
        runtime, await row_of(runtime, session), 1, None, "other", "me"
    )
    await finish(forked, "x.append(3)\nopen('g', 'w').write('g')")
    assert await value(session, "import os\nx, sorted(os.listdir())") == '[[1, 2], ["f"]]'
    assert (
        await value(forked, "import os\nx, sorted(os.listdir()), open('f').read()")
        == '[[1, 3], ["f", "g"], "one"]'
    )
    assert forked.environment is session.environment


async def test_a_fork_can_return_to_its_first_state(runtime: Runtime) -> None:
    session = await runtime.open_session("s", "me")
    runs = [await finish(session, f"x = {n}") for n in range(3)]
    forked = await time_travel.fork_session(
        runtime, await row_of(runtime, session), None, runs[2].id, "other", "me"
    )
    await time_travel.rewind_session(runtime, forked, 1, None, cancel=False)
    await time_travel.rewind_session(runtime, forked, None, runs[2].id, cancel=False)
    assert await value(forked, "x") == "2"
    left = await finish(forked, "x = 3")
    await time_travel.rewind_session(runtime, forked, 1, None, cancel=False)
    tree = await run_history.load_tree(runtime.journal, await row_of(runtime, forked))
    assert {run.id for run in runs} | {left.id} <= {each.row.id for each in tree.runs}


async def test_branches_that_run_at_the_same_time_have_their_own_sandboxes(
    runtime: Runtime,
) -> None:
    session = await runtime.open_session("s", "me")
    await finish(session, "x = 1")
    forked = await time_travel.fork_session(
        runtime, await row_of(runtime, session), None, None, None, "me"
    )
    wait = "import time, os\nwhile not os.path.exists('go'): time.sleep(0.01)\nx"
    run = session.start_run(wait, 60)
    assert await value(forked, "x + 1") == "2"
    assert forked.environment is not session.environment
    run.cancel()
    await run.finished.wait()


async def test_a_session_is_rebuilt_after_a_restart_and_touches_nothing_outside(
    tmp_path: Path,
) -> None:
    calls: list[str] = []
    async with running(tmp_path, heard=calls) as (runtime, _):
        session = await runtime.open_session("s", "me")
        await finish(session, f"{ECHO}seen = [{FICKLE}]\nprint(seen)")
        await finish(session, f"seen.append({FICKLE})\nopen('f', 'w').write(repr(seen))")
        seen = await value(session, "seen")
    made = len(calls)
    async with running(tmp_path, heard=calls) as (runtime, _):
        session = await runtime.open_session("s", "me")
        run = await finish(session, "seen")
        assert run.report.value is not None
        assert run.report.value["text"] == seen
        assert "3 of its steps were executed again" in " ".join(run.report.notes)
        assert await value(session, "open('f').read() == repr(seen)") == "true"
    assert len(calls) == made


async def test_a_rerun_repeats_the_recording(runtime: Runtime) -> None:
    session = await runtime.open_session("s", "me")
    await finish(session, f"{ECHO}x = {FICKLE}")
    await finish(
        session, f"print(x == {FICKLE}, {FICKLE})\nopen('f', 'w').write(str({FICKLE}))\n{FICKLE}"
    )
    line = await runtime.journal.load_lineage(session.tip)
    made = await time_travel.rerun_runs(runtime, line, "me")
    assert made.differences == {row.id: [] for row in line}
    made = await time_travel.rerun_runs(runtime, line[1:], "me")
    assert made.differences == {line[1].id: []}


async def test_a_rerun_with_other_code_reports_where_it_diverges(runtime: Runtime) -> None:
    session = await runtime.open_session("s", "me")
    await finish(session, f"{CALL}a = host.call('t.echo', {{'n': 1}})")
    line = await runtime.journal.load_lineage(session.tip)
    made = await time_travel.rerun_runs(
        runtime, line, "me", code=f"{CALL}a = host.call('t.echo', {{'n': 2}})"
    )
    [report] = made.reports
    assert report.status == "error"
    assert report.error is not None
    assert "Step 1, call 1: the recording expects t.echo" in report.error["message"]
    assert "t.echo(n=2)" in report.error["message"]


async def test_bad_targets_are_refused(runtime: Runtime) -> None:
    session = await runtime.open_session("s", "me")
    await finish(session, "x = 1")
    died = await finish(session, "import os; os._exit(1)")
    row = await row_of(runtime, session)
    with pytest.raises(NotFound, match="no step 2"):
        await time_travel.rewind_session(runtime, session, 2, None, cancel=False)
    with pytest.raises(NotFound, match="has no run"):
        await time_travel.fork_session(runtime, row, None, "r_none", None, "me")
    with pytest.raises(InvalidRequest, match="left no state"):
        await time_travel.rewind_session(runtime, session, None, died.id, cancel=False)
    run = session.start_run("import time; time.sleep(99)", 99)
    with pytest.raises(InvalidRequest, match="a run that is not finished"):
        await time_travel.rewind_session(runtime, session, 1, None, cancel=False)
    await time_travel.rewind_session(runtime, session, 1, None, cancel=True)
    assert run.report.status == "cancelled"
    assert await value(session, "x") == "1"


async def test_a_rebuild_omits_interrupted_steps_and_says_so(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("s", "me")
        await finish(session, "x = 1")
        await finish(session, "x = 2\nwhile True: pass", timeout_s=0.2)
        await finish(session, "y = 3")
        assert await value(session, "x, y") == "[2, 3]"
    async with running(tmp_path) as (runtime, journal):
        session = await runtime.open_session("s", "me")
        tiers = [
            await time_travel.restore_tier(runtime, row)
            for row in await journal.load_lineage(session.tip)
        ]
        assert tiers == ["rebuild", "files-only", "files-only", "files-only"]
        run = await finish(session, "'x' in globals(), y if 'y' in globals() else None")
        assert "Variables are gone" in " ".join(
            run.report.notes
        ) or "before it was interrupted" in " ".join(run.report.notes)


async def test_a_stopped_step_can_be_executed_again_with_other_code(runtime: Runtime) -> None:
    session = await runtime.open_session("s", "me")
    await finish(session, "x = 1")
    await finish(session, "while True: pass", timeout_s=0.2)
    line = await runtime.journal.load_lineage(session.tip)
    with pytest.raises(InvalidRequest, match="was interrupted"):
        await time_travel.rerun_runs(runtime, line[1:], "me")
    made = await time_travel.rerun_runs(runtime, line[1:], "me", code="x + 1")
    assert made.reports[0].value is not None
    assert made.reports[0].value["text"] == "2"


async def test_a_rerun_that_removes_another_file_differs(runtime: Runtime) -> None:
    session = await runtime.open_session("s", "me")
    await finish(session, "import os\nopen('a', 'w').close()\nopen('b', 'w').close()")
    await finish(session, "os.remove('a')")
    line = await runtime.journal.load_lineage(session.tip)
    same = await time_travel.rerun_runs(runtime, line[1:], "me", code="os.remove('a')")
    assert same.differences == {line[1].id: []}
    other = await time_travel.rerun_runs(runtime, line[1:], "me", code="os.remove('b')")
    assert other.differences == {line[1].id: ["files"]}


async def test_calls_with_unusual_arguments_are_answered_in_a_rerun(runtime: Runtime) -> None:
    session = await runtime.open_session("s", "me")
    call = "try: print(host.call(target, {'server': [{}]}))\n    except HostError as e: print(e)"
    await finish(session, f"{CALL}for target in ('catalog.shim', 't.echo', 'x'):\n    {call}")
    line = await runtime.journal.load_lineage(session.tip)
    made = await time_travel.rerun_runs(runtime, line, "me", live=["t"])
    assert made.differences == {line[0].id: []}


async def test_a_run_that_is_cancelled_at_shutdown_is_undone(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("s", "me")
        await finish(session, "x = [1]\nopen('f', 'w').write('before')")
        run = session.start_run(
            "import time\nx.append(2)\nopen('f', 'w').write('after')\nprint('on')\ntime.sleep(99)",
            99,
        )
        await run.wait_for_update()
    assert (run.report.status, run.is_undone) == ("cancelled", True)
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("s", "me")
        assert session.step == 1
        assert (
            await time_travel.restore_tier(
                runtime, (await runtime.journal.load_lineage(session.tip))[-1]
            )
            == "rebuild"
        )
        assert await value(session, "x, open('f').read()") == '[[1], "before"]'


@pytest.mark.parametrize("deaths", [1, 2])
async def test_variables_survive_one_sandbox_that_dies_while_they_are_restored(
    tmp_path: Path, deaths: int
) -> None:
    """Code that kills its sandbox so many times when it is executed again; a file counts."""
    count = tmp_path / "count"
    count.write_text("-1")
    kill = (
        f"import os, signal\nn = int(open({str(count)!r}).read()) + 1\n"
        f"open({str(count)!r}, 'w').write(str(n))\n"
        f"if 0 < n <= {deaths}: os.kill(os.getppid(), signal.SIGKILL)\nx = 1"
    )
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("s", "me")
        await finish(session, kill)
    async with running(tmp_path) as (runtime, _):
        session = await runtime.open_session("s", "me")
        run = await finish(session, "'x' in globals()")
        assert run.report.status == "ok"
        assert run.report.value is not None
        assert run.report.value["text"] == ("true" if deaths == 1 else "false")
        assert ("No sandbox survived it" in " ".join(run.report.notes)) is (deaths == 2)
