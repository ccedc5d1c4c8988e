"""Moving in time: to an earlier step, into a new session, and through recorded runs once more.

Everything here is a change of the journal (a tip that moves, a session that begins at a run) or a run like any other;
how a sandbox gets into the state that is asked for is `home`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from ..errors import InvalidRequest
from ..journal.replay import FRESH, INTERRUPTED, UNDONE, Recording, load_recording
from ..journal.rows import RunRow, SessionRow
from ..journal.store import Journal
from .history import find_run, find_session
from .home import is_exact
from .report import Report
from .request import Request
from .run import Run
from .session import Session, strip_fences
from .sessions import Runtime

RERUN_EXTRA_S = 10.0  # a run may take so much longer than its time limit when it is executed again


@dataclass
class Rerun:
    """What became of runs that were executed again, in the scratch session `session`.

    `reports` are of the new runs, in order; `differences` says, by recorded run, which fields came out otherwise.
    """

    session: Session
    reports: list[Report] = field(default_factory=list)
    differences: dict[str, list[str]] = field(default_factory=dict)


async def target_of(journal: Journal, session: SessionRow, step: int | None, run: str | None) -> RunRow | None:
    """Return the run that `run` or, on the session's line, `step` names, or else its tip; None is step 0.

    Raises `NotFound`.
    """
    if run is None and step is None:
        return await journal.run(session.tip) if session.tip else None
    return None if run is None and step == 0 else await find_run(journal, session, run or str(step))


def check_end(run: RunRow | None) -> None:
    """Raise `InvalidRequest` if a run has no end state that a session could begin from."""
    if run is not None and not run.is_over:
        raise InvalidRequest(f"Run {run.id} is under way.", remedy="Wait for its end, or cancel it.")
    if run is not None and UNDONE in run.flags:
        raise InvalidRequest(
            f"Run {run.id} has left no state: its interpreter died, and what it did was undone.",
            remedy=f"Use the step before it, {run.step - 1}.",
        )


async def tier_of(runtime: Runtime, run: RunRow) -> str:
    """Return how the variables at the end of a run can be had back."""
    exact = is_exact(await runtime.journal.line(run.id))
    return known_tier(runtime, run.id, "rebuild" if exact else "files-only")


def known_tier(runtime: Runtime, run: str, recorded: str) -> str:
    """Return the tier of a run here and now, given the one that follows from the journal."""
    if recorded and runtime.holds(run):
        return "parked"
    return "files-only" if recorded and run in runtime.lost else recorded


async def rewind(
    runtime: Runtime, session: Session, step: int | None, run: str | None, *, cancel: bool
) -> RunRow | None:
    """Have the session go on from an earlier step, or from a run that it left; return that run (None: the beginning).

    Raises `InvalidRequest` while a run is under way, which `cancel` stops first, and `NotFound`.
    """
    if session.is_busy and not cancel:
        raise InvalidRequest(
            f"The session {session.handle} has a run under way.", remedy="Wait for its end, or rewind with cancel=true."
        )
    with session.held():
        await session.stop()
        row = await find_session(runtime.journal, session.id)
        target = await target_of(runtime.journal, row, step, run)
        check_end(target)
        if session.is_busy:
            raise InvalidRequest(f"The session {session.handle} has got another run meanwhile.", remedy="Try again.")
        await session.move_tip(target)
    return target


async def fork(
    runtime: Runtime, session: SessionRow, step: int | None, run: str | None, name: str | None, principal: str
) -> Session:
    """Make a session that goes on from the end of a run of another; raises `NotFound`, `InvalidRequest`."""
    target = await target_of(runtime.journal, session, step, run)
    if target is None:
        raise InvalidRequest("There is nothing to fork before the first step.", remedy="Start a new session instead.")
    check_end(target)
    await runtime.settle(target.session)
    return await runtime.fork(target, name, principal)


async def rerun(
    runtime: Runtime,
    targets: Sequence[RunRow],
    principal: str,
    *,
    code: str | None = None,
    live: Collection[str] = (),
    watch: Callable[[Run], Awaitable[None]] = Run.over,
) -> Rerun:
    """Execute recorded runs again, one after the other, in a fresh sandbox; calls are answered from the recordings.

    With `code`, that is executed instead of the (last) run's own; calls to servers or tools named in `live` are made.
    What came before the first is rebuilt. Nothing of the session that the runs belong to changes.
    """
    check_repeatable(targets if code is None else targets[:-1])
    for session in {target.session for target in targets}:
        await runtime.settle(session)
    journal = runtime.journal
    parent = await journal.run(targets[0].parent) if targets[0].parent else None
    made = Rerun(await runtime.scratch(parent, principal))
    try:
        for target in targets:
            recording = await load_recording(journal, target)
            is_last = target is targets[-1]
            run = made.session.submit(_request(recording, code if is_last else None, live))
            await watch(run)
            if run.failure is not None:
                raise run.failure
            await run.files_stored.wait()
            made.reports.append(run.report)
            made.differences[target.id] = await compare(journal, recording, run)
    finally:
        runtime.retire(made.session)
    return made


async def rerun_targets(
    journal: Journal, session: SessionRow, step: int | None, run: str | None, *, only_last: bool
) -> list[RunRow]:
    """Return the runs that a rerun of a step or run of a session is to execute; without either, the whole line.

    With `only_last` that is its last step. Raises `NotFound`, `InvalidRequest`.
    """
    if step is None and run is None and not only_last:
        targets = await journal.line(session.tip)
    else:
        target = await target_of(journal, session, step, run)
        targets = [] if target is None else [target]
    if not targets:
        raise InvalidRequest(f"The session {session.name or session.id} has no such step to execute.")
    return targets


def check_live(live: Collection[str], packages: Collection[str]) -> None:
    """Raise `InvalidRequest` if a name in `live` is neither a server nor a tool of one."""
    for name in live:
        if name.partition(".")[0] not in packages:
            known = ", ".join(sorted(packages)) or "none"
            raise InvalidRequest(
                f"{name!r:.80} is none of the servers that code can call.", remedy=f"These are: {known}."
            )


def check_repeatable(targets: Sequence[RunRow]) -> None:
    """Raise `InvalidRequest` if one of the runs cannot be executed again as it was."""
    for row in targets:
        if not row.is_over:
            raise InvalidRequest(f"Run {row.id} is under way.", remedy="Wait for its end, or cancel it.")
        if INTERRUPTED in row.flags:
            raise InvalidRequest(
                f"Step {row.step} was stopped in its middle, where nothing can stop it again.",
                remedy="Execute another step again, or this one with code of your own.",
            )


def _request(recording: Recording, code: str | None, live: Collection[str]) -> Request:
    start = recording.start
    own = strip_fences(code) if code is not None else start.code
    return Request(
        own, start.timeout_s + RERUN_EXTRA_S, None, recording, frozenset(live), fresh=FRESH in recording.flags
    )


async def compare(journal: Journal, recording: Recording, run: Run) -> list[str]:
    """Return the fields of a run that was executed again that differ from the recording."""
    assert run.replayer is not None, "it was given a recording"
    again = await load_recording(journal, await journal.run(run.id))
    differences = [name for name, was in recording.outcome.items() if again.outcome.get(name) != was]
    if run.replayer.divergence is not None or run.replayer.missing() is not None:
        differences.append("calls")
    if recording.digests != again.digests:
        differences.append("files")
    return differences
