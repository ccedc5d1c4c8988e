"""Rewinding a session, forking it, and executing recorded runs again.

Each is a change of the journal (a tip that moves, a session that starts at a run) or a run like any
other. How a sandbox gets into a state is the business of `environment`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import Conflict, NotFound
from ..journal.events import CallError
from ..journal.recording import Recording, load_recording, load_session_recording
from ..journal.rows import FRESH_FLAG, INTERRUPTED_FLAG, UNDONE_FLAG, RunRow, SessionRow
from ..journal.store import Journal
from .call_ledger import LedgerEntry
from .environment import is_lineage_reproducible
from .run import Run
from .run_history import find_any_session, find_run, load_report
from .run_report import RunReport
from .run_spec import RunSpec
from .runtime import Runtime
from .session import Session, strip_fences

RERUN_EXTRA_TIMEOUT_S = 10.0  # beyond the recorded time limit


@dataclass
class Rerun:
    """The outcome of runs that were executed again, in the scratch session `session`."""

    session: Session
    reports: list[RunReport] = field(default_factory=list)  # of the new runs, in order
    differences: dict[str, list[str]] = field(default_factory=dict)  # fields, by recorded run


@dataclass(frozen=True)
class ChangedAnswer:
    """Another answer for a recorded call; `call` counts the calls of its step from 1."""

    call: int
    value: Any = None
    error: str | None = None  # the message of the error that the call raises


@dataclass(frozen=True)
class Rewound:
    """A session that was rewound: to the end of `run`, or to its beginning."""

    run: RunRow | None
    remaining_writes: Sequence[LedgerEntry] = ()  # calls of the steps left, which are not undone


async def find_target(
    journal: Journal, session: SessionRow, step: int | None, run: str | None
) -> RunRow | None:
    """Return the run `run`, or the one at `step` of the session, or else its tip; None is step 0.

    Raises `NotFound`.
    """
    if run is not None:
        return await find_run(journal, session, run)
    if step is not None:
        return None if step == 0 else await find_run(journal, session, str(step))
    return await journal.load_run(session.tip) if session.tip else None


def check_end_state(run: RunRow | None) -> None:
    """Raise `Conflict` if a run has no end state that a session could start from."""
    if run is None:
        return
    check_finished(run)
    if UNDONE_FLAG in run.flags:
        raise Conflict(
            f"Run {run.id} has left no state: its interpreter died, and what it did was undone.",
            remedy=f"Use the step before it, {run.step - 1}.",
        )


def check_finished(run: RunRow) -> None:
    """Raise `Conflict` if a run is not finished."""
    if not run.is_finished:
        raise Conflict(f"Run {run.id} is not finished.", remedy="Wait for its end, or cancel it.")


async def restore_tier(runtime: Runtime, run: RunRow) -> str:
    """Return how the variables at the end of a run can be restored."""
    exact = is_lineage_reproducible(await runtime.journal.load_lineage(run.id))
    return runtime.current_tier(run.id, "rebuild" if exact else "files-only")


async def rewind_session(
    runtime: Runtime, session: Session, step: int | None, run: str | None, *, cancel: bool
) -> Rewound:
    """Continue a session from another step, 0 for its beginning, or from an abandoned run.

    With `cancel`, active runs are stopped first; without it, they are an `Conflict`. Raises
    `NotFound`.
    """
    if session.is_busy and not cancel:
        raise Conflict(
            f"The session {session.handle} has a run that is not finished.",
            remedy="Wait for its end, or rewind with cancel=true.",
        )
    with session.keep_open():
        cancelled = [active.id for active in session.queue.active_runs]
        await session.cancel_all_runs()
        row = await find_any_session(runtime.journal, session.id)
        target = await find_target(runtime.journal, row, step, run)
        check_end_state(target)
        if session.is_busy:
            raise Conflict(
                f"Another run of the session {session.handle} was started meanwhile.",
                remedy="Try again.",
            )
        await session.move_tip(target)
        remaining = await find_remaining_writes(runtime.journal, row.tip, cancelled, target)
    return Rewound(target, remaining)


async def find_remaining_writes(
    journal: Journal, tip: str | None, cancelled: Sequence[str], target: RunRow | None
) -> list[LedgerEntry]:
    """Return the calls that may have written something outside, in the steps after `target`.

    These are the steps of the lineage of `tip`, and the runs that were `cancelled`.
    """
    writes = []
    for run in await journal.list_calling_runs(tip, target.id if target else None, cancelled):
        report = await load_report(journal, run)
        writes += [entry for entry in report.calls if may_have_written(entry)]
    return writes


def may_have_written(entry: LedgerEntry) -> bool:
    """Return whether a call was made that does more than read, and did not fail."""
    return entry.effect != "read" and entry.status in ("ok", "started")


async def fork_session(
    runtime: Runtime,
    session: SessionRow,
    step: int | None,
    run: str | None,
    name: str | None,
    principal: str,
) -> Session:
    """Create a session that starts from the end of a run; raises `NotFound`, `Conflict`."""
    target = await find_target(runtime.journal, session, step, run)
    if target is None:
        raise Conflict(
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
    answers: Sequence[ChangedAnswer] = (),
    changed: int = -1,
    live: Collection[str] = (),
    watch: Callable[[Run], Awaitable[None]] = Run.wait_until_finished,
) -> Rerun:
    """Execute recorded runs again, one after the other, in a new sandbox, with recorded answers.

    `code` and `answers` replace those of the run at the position `changed`, the last one if nothing
    else is said. Calls to the servers or tools in `live` are made.
    What came before the first run is rebuilt. The session that the runs belong to does not change.
    """
    edited = targets[changed]
    check_repeatable([each for each in targets if code is None or each is not edited])
    for session in {target.session_id for target in targets}:
        await runtime.wait_for_files(session)
    journal = runtime.journal
    parent = await journal.load_run(targets[0].parent_id) if targets[0].parent_id else None
    runtime.count_start(principal)
    rerun = Rerun(await runtime.open_scratch_session(parent, principal))
    try:
        for target in targets:
            recording = await load_recording(journal, target)
            own_code, given = None, recording
            if target is edited:
                own_code, given = code, change_answers(recording, answers)
            run = rerun.session.enqueue_run(_rerun_spec(given, own_code, live))
            await watch(run)
            if run.ending.failure is not None:
                raise run.ending.failure
            await run.file_storage.wait()
            rerun.reports.append(run.report)
            rerun.differences[target.id] = await compare_with_recording(journal, recording, run)
    finally:
        runtime.retire_session(rerun.session)
    return rerun


def change_answers(recording: Recording, answers: Sequence[ChangedAnswer]) -> Recording:
    """Return a recording in which some calls have other answers; raises `Conflict`."""
    calls = list(recording.calls)
    listed = [position for position, call in enumerate(calls) if call.in_ledger]
    for answer in answers:
        if not 1 <= answer.call <= len(listed):
            raise Conflict(
                f"Step {recording.start.step} has {len(listed)} calls, and no call {answer.call}.",
                remedy="Calls count from 1, in the order in which the step lists them.",
            )
        call = calls[listed[answer.call - 1]]
        if call.finished_sequence is None:
            raise Conflict(
                f"Call {answer.call} has no answer in the journal.",
                remedy="Change the answer of another call.",
            )
        error: CallError | None = None
        if answer.error is not None:
            error = {"kind": "tool_error", "message": answer.error, "data": None}
        changed = replace(call, value=answer.value, error=error, summary=None)
        calls[listed[answer.call - 1]] = changed
    return replace(recording, calls=tuple(calls))


async def find_rerun_targets(
    journal: Journal,
    session: SessionRow,
    step: int | None,
    run: str | None,
    *,
    only_last: bool,
    following: bool = False,
) -> list[RunRow]:
    """Return the runs that a rerun executes: the one at a step, or without one the whole session.

    With `only_last`, the last step stands for the session. With `following`, the steps that led
    from the step to the session's state are executed, too. Raises `NotFound`, `Conflict`.
    """
    if step is None and run is None and not only_last:
        targets = await journal.load_lineage(session.tip)
    else:
        target = await find_target(journal, session, step, run)
        targets = [] if target is None else [target]
        if following and target is not None:
            lineage = await journal.load_lineage(session.tip)
            ids = [row.id for row in lineage]
            targets += lineage[ids.index(target.id) + 1 :] if target.id in ids else []
    if not targets:
        handle = session.name or session.id
        raise Conflict(f"The session {handle} has no such step to execute.")
    return targets


def check_live_targets(live: Collection[str], packages: Collection[str]) -> None:
    """Raise `NotFound` if a name in `live` is neither a server nor a tool of one."""
    for name in live:
        if name.partition(".")[0] not in packages:
            known = ", ".join(sorted(packages)) or "none"
            raise NotFound(
                f"{name!r:.80} is none of the servers that code can call.",
                remedy=f"These are: {known}.",
            )


def check_repeatable(targets: Sequence[RunRow]) -> None:
    """Raise `Conflict` if one of the runs cannot be executed again as it was."""
    for row in targets:
        check_finished(row)
        if INTERRUPTED_FLAG in row.flags:
            raise Conflict(
                f"Step {row.step} was interrupted, and cannot be interrupted at the same place.",
                remedy="Execute another step again, or this one with code of your own.",
            )


def _rerun_spec(recording: Recording, code: str | None, live: Collection[str]) -> RunSpec:
    start = recording.start
    return RunSpec(
        start.code if code is None else strip_fences(code),
        start.timeout_s + RERUN_EXTRA_TIMEOUT_S,
        None,
        recording,
        frozenset(live),
        starts_fresh=FRESH_FLAG in recording.flags,
    )


async def compare_with_recording(journal: Journal, recording: Recording, run: Run) -> list[str]:
    """Return the fields of a run that differ from the recording that it was executed with."""
    assert run.replayer is not None, "it was given a recording"
    again = await load_session_recording(journal, run.report.session_id, run.id)
    recorded = recording.outcome
    differences = [name for name, value in recorded.items() if again.outcome.get(name) != value]
    if run.replayer.divergence is not None or run.replayer.find_missing_call() is not None:
        differences.append("calls")
    if recording.file_digests != again.file_digests:
        differences.append("files")
    return differences
