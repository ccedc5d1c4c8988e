"""Moving in time: to an earlier step, into a new session, and through recorded runs once more.

Everything here is a change of the journal (a tip that moves, a session that begins at a run) or a run like any other;
how a sandbox gets into the state that is asked for is `home`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from ..errors import InvalidRequest
from ..journal.recording import Recording, load_recording
from ..journal.rows import FRESH_FLAG, INTERRUPTED_FLAG, UNDONE_FLAG, RunRow, SessionRow
from ..journal.store import Journal
from .environment import is_lineage_reproducible
from .run import Run
from .run_history import find_run, find_session
from .run_report import RunReport
from .run_spec import RunSpec
from .runtime import Runtime
from .session import Session, strip_fences

RERUN_EXTRA_TIMEOUT_S = (
    10.0  # a run may take so much longer than its time limit when it is executed again
)


@dataclass
class Rerun:
    """What became of runs that were executed again, in the scratch session `session`.

    `reports` are of the new runs, in order; `differences` says, by recorded run, which fields came out otherwise.
    """

    session: Session
    reports: list[RunReport] = field(default_factory=list)
    differences: dict[str, list[str]] = field(default_factory=dict)


async def find_target(
    journal: Journal, session: SessionRow, step: int | None, run: str | None
) -> RunRow | None:
    """Return the run that `run` or, on the session's line, `step` names, or else its tip; None is step 0.

    Raises `NotFound`.
    """
    if run is None and step is None:
        return await journal.load_run(session.tip) if session.tip else None
    return None if run is None and step == 0 else await find_run(journal, session, run or str(step))


def check_end_state(run: RunRow | None) -> None:
    """Raise `InvalidRequest` if a run has no end state that a session could begin from."""
    if run is not None and not run.is_finished:
        raise InvalidRequest(
            f"Run {run.id} is under way.", remedy="Wait for its end, or cancel it."
        )
    if run is not None and UNDONE_FLAG in run.flags:
        raise InvalidRequest(
            f"Run {run.id} has left no state: its interpreter died, and what it did was undone.",
            remedy=f"Use the step before it, {run.step - 1}.",
        )


async def restore_tier(runtime: Runtime, run: RunRow) -> str:
    """Return how the variables at the end of a run can be had back."""
    exact = is_lineage_reproducible(await runtime.journal.load_lineage(run.id))
    return current_tier(runtime, run.id, "rebuild" if exact else "files-only")


def current_tier(runtime: Runtime, run: str, recorded: str) -> str:
    """Return the tier of a run here and now, given the one that follows from the journal."""
    if recorded and runtime.holds_state(run):
        return "parked"
    return "files-only" if recorded and run in runtime.lost_states else recorded


async def rewind_session(
    runtime: Runtime, session: Session, step: int | None, run: str | None, *, cancel: bool
) -> RunRow | None:
    """Have the session go on from an earlier step, or from a run that it left; return that run (None: the beginning).

    Raises `InvalidRequest` while a run is under way, which `cancel` stops first, and `NotFound`.
    """
    if session.is_busy and not cancel:
        raise InvalidRequest(
            f"The session {session.handle} has a run under way.",
            remedy="Wait for its end, or rewind with cancel=true.",
        )
    with session.keep_open():
        await session.cancel_all_runs()
        row = await find_session(runtime.journal, session.id)
        target = await find_target(runtime.journal, row, step, run)
        check_end_state(target)
        if session.is_busy:
            raise InvalidRequest(
                f"The session {session.handle} has got another run meanwhile.", remedy="Try again."
            )
        await session.move_tip(target)
    return target


async def fork_session(
    runtime: Runtime,
    session: SessionRow,
    step: int | None,
    run: str | None,
    name: str | None,
    principal: str,
) -> Session:
    """Make a session that goes on from the end of a run of another; raises `NotFound`, `InvalidRequest`."""
    target = await find_target(runtime.journal, session, step, run)
    if target is None:
        raise InvalidRequest(
            "There is nothing to fork before the first step.", remedy="Start a new session instead."
        )
    check_end_state(target)
    await runtime.wait_for_files(target.session_id)
    return await runtime.fork_session(target, name, principal)


async def rerun_runs(
    runtime: Runtime,
    targets: Sequence[RunRow],
    principal: str,
    *,
    code: str | None = None,
    live: Collection[str] = (),
    watch: Callable[[Run], Awaitable[None]] = Run.wait_until_finished,
) -> Rerun:
    """Execute recorded runs again, one after the other, in a fresh sandbox; calls are answered from the recordings.

    With `code`, that is executed instead of the (last) run's own; calls to servers or tools named in `live` are made.
    What came before the first is rebuilt. Nothing of the session that the runs belong to changes.
    """
    check_repeatable(targets if code is None else targets[:-1])
    for session in {target.session_id for target in targets}:
        await runtime.wait_for_files(session)
    journal = runtime.journal
    parent = await journal.load_run(targets[0].parent_id) if targets[0].parent_id else None
    made = Rerun(await runtime.open_scratch_session(parent, principal))
    try:
        for target in targets:
            recording = await load_recording(journal, target)
            is_last = target is targets[-1]
            run = made.session.enqueue_run(_rerun_spec(recording, code if is_last else None, live))
            await watch(run)
            if run.failure is not None:
                raise run.failure
            await run.files_stored.wait()
            made.reports.append(run.report)
            made.differences[target.id] = await compare_with_recording(journal, recording, run)
    finally:
        runtime.retire_session(made.session)
    return made


async def find_rerun_targets(
    journal: Journal, session: SessionRow, step: int | None, run: str | None, *, only_last: bool
) -> list[RunRow]:
    """Return the runs that a rerun of a step or run of a session is to execute; without either, the whole line.

    With `only_last` that is its last step. Raises `NotFound`, `InvalidRequest`.
    """
    if step is None and run is None and not only_last:
        targets = await journal.load_lineage(session.tip)
    else:
        target = await find_target(journal, session, step, run)
        targets = [] if target is None else [target]
    if not targets:
        raise InvalidRequest(
            f"The session {session.name or session.id} has no such step to execute."
        )
    return targets


def check_live_targets(live: Collection[str], packages: Collection[str]) -> None:
    """Raise `InvalidRequest` if a name in `live` is neither a server nor a tool of one."""
    for name in live:
        if name.partition(".")[0] not in packages:
            known = ", ".join(sorted(packages)) or "none"
            raise InvalidRequest(
                f"{name!r:.80} is none of the servers that code can call.",
                remedy=f"These are: {known}.",
            )


def check_repeatable(targets: Sequence[RunRow]) -> None:
    """Raise `InvalidRequest` if one of the runs cannot be executed again as it was."""
    for row in targets:
        if not row.is_finished:
            raise InvalidRequest(
                f"Run {row.id} is under way.", remedy="Wait for its end, or cancel it."
            )
        if INTERRUPTED_FLAG in row.flags:
            raise InvalidRequest(
                f"Step {row.step} was stopped in its middle, where nothing can stop it again.",
                remedy="Execute another step again, or this one with code of your own.",
            )


def _rerun_spec(recording: Recording, code: str | None, live: Collection[str]) -> RunSpec:
    start = recording.start
    own = strip_fences(code) if code is not None else start.code
    return RunSpec(
        own,
        start.timeout_s + RERUN_EXTRA_TIMEOUT_S,
        None,
        recording,
        frozenset(live),
        starts_fresh=FRESH_FLAG in recording.flags,
    )


async def compare_with_recording(journal: Journal, recording: Recording, run: Run) -> list[str]:
    """Return the fields of a run that was executed again that differ from the recording."""
    assert run.replayer is not None, "it was given a recording"
    again = await load_recording(journal, await journal.load_run(run.id))
    differences = [
        name for name, was in recording.outcome.items() if again.outcome.get(name) != was
    ]
    if run.replayer.divergence is not None or run.replayer.find_missing_call() is not None:
        differences.append("calls")
    if recording.file_digests != again.file_digests:
        differences.append("files")
    return differences
