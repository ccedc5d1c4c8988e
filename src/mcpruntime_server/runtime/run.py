"""One execution of code, as its session and its clients know it.

A run is several objects, each with one job: `RunSpec` says what to execute and never
changes, `RunLifecycle` has the state, `RunReport` what is known of the outcome, `RunControl` the
slot and the sandbox, and `RunExecution` takes it through that sandbox. Most runs use live handlers;
one that has a recording gets its answers, its randomness and its clock readings from that
(`replayer`).

What clients have been sent of a run is not its business: see `server/delivery`.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from shlex import quote
from typing import Any

import anyio

from ..errors import JournalFailed, McpRuntimeError
from ..journal.events import RunFinished
from ..journal.large_values import encode_if_large
from ..journal.principals import LOCAL_PRINCIPAL
from ..journal.recording import Recording
from ..journal.rows import UNDONE_FLAG
from ..journal.store import Journal
from ..sandbox.link import SandboxLink
from .call_journal import CallJournal
from .observer import ObservedRun, Observers, RunMode
from .output_buffer import OutputBuffer
from .pending_questions import PendingQuestion, PendingQuestions
from .plan import Plan
from .replayer import OfflineCalls, Replayer
from .result_files import ResultFiles
from .router import Router
from .run_control import RunControl
from .run_ending import FileStorage, RunEnding
from .run_history import ledger_entry_of, pending_question_view
from .run_journal import RunJournal
from .run_listener import RunListener
from .run_report import ProbedValue, RunReport, RunStatus
from .run_scheduler import RunSlot
from .run_spec import RunLimits, RunSpec, new_run_id
from .run_state import LifecycleEvent, RunLifecycle, RunState


@dataclass(frozen=True)
class RunServices:
    """What the runs of one session work with."""

    journal: Journal
    router: Router
    limits: RunLimits
    result_files: ResultFiles
    get_spending: Callable[[str], Mapping[str, float]]  # what a run has paid models, as its usage
    find_origin_hints: Callable[[Mapping[str, Any]], Awaitable[list[str]]]
    observers: Observers


def add_principal(command: str, principal: str) -> str:
    """Return a command of the command line for the sessions of a principal."""
    return command if principal == LOCAL_PRINCIPAL else f"{command} --principal {quote(principal)}"


class Audience:
    """The requests that wait for a run, and whether it continues without any."""

    def __init__(self, *, is_detached: bool) -> None:
        self.is_detached = is_detached
        self.is_released = False  # nobody may wait: the server is stopping
        self._count = 0

    def join(self) -> None:
        """Count one more request that waits."""
        self._count += 1

    def leave(self) -> None:
        """Count one less."""
        self._count -= 1

    def detach(self) -> None:
        """Let the run continue when nobody waits for it."""
        self.is_detached = True

    def release(self) -> None:
        """End all waiting requests with what is known; the next server continues the run."""
        self.is_detached = self.is_released = True

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return self._count == 0

    @property
    def is_last(self) -> bool:
        """Whether the run is to stop if one of those who wait gives up."""
        return self._count == 1 and not self.is_detached


def halt_run(lifecycle: RunLifecycle, control: RunControl, reason: McpRuntimeError) -> None:
    """Stop a run because the host cannot let it continue."""
    if lifecycle.is_final or control.stop_request.failure is not None:
        return
    control.stop_request.failure = reason
    lifecycle.apply(LifecycleEvent.STOP_REQUESTED)
    control.stop_code()


class Run:
    """Code to execute in a session, and its outcome."""

    def __init__(
        self,
        spec: RunSpec,
        session_id: str,
        services: RunServices,
        slot: RunSlot,
        allowed_targets: set[str],
    ) -> None:
        recording = spec.recording
        resumed = recording if spec.is_resumed else None
        journal, limits = services.journal, services.limits
        self.spec = spec
        self.id = resumed.start.run_id if resumed else spec.run_id or new_run_id()
        self.services = services
        self.report = RunReport(self.id, session_id, 0, is_dry_run=spec.is_dry_run)
        self.ending = RunEnding()
        self.file_storage = FileStorage()
        self.lifecycle = RunLifecycle()
        self.audience = Audience(is_detached=spec.starts_detached)
        self.control = RunControl(slot)
        halt = partial(halt_run, self.lifecycle, self.control)
        self.journal = RunJournal(journal, session_id, self.id, spec, resumed, halt)
        self.questions = PendingQuestions(
            self.journal,
            self.id,
            weakref.proxy(self),  # without a cycle, a finished run and its output are freed at once
            services.find_origin_hints,
            expires_s=limits.question_expires_s,
            allowed_targets=allowed_targets,
            shows_pages=spec.shows_pages,
            approvals_command=add_principal(limits.approvals_command, slot.principal),
        )
        plan = Plan(spec.approvals) if spec.is_dry_run else None
        self.calls = CallJournal(
            journal, session_id, self.id, slot.principal, self.questions, plan, halt
        )
        if resumed:
            self._restore_recorded(resumed)
        self.replayer: Replayer | None = None
        if recording is not None:
            self.replayer = Replayer(recording, services.router, spec, on_halt=halt)
        self.listener = RunListener(
            slot.principal,
            self.report,
            self.journal,
            self.calls,
            OutputBuffer(
                self.journal.append_event,
                limits.max_output_bytes,
                resumed.output if resumed else {},
            ),
            self.replayer or (OfflineCalls() if spec.is_offline else services.router),
            limits,
            journal.blobs.drafts,
            on_update=self.lifecycle.notify_watchers,
        )
        self._end_callbacks: list[Callable[[], None]] = []
        self._observed = ObservedRun(self.id, session_id, find_mode(spec))
        services.observers.on_run_requested(self._observed)

    def _restore_recorded(self, recording: Recording) -> None:
        """Restore the calls, questions and plan of a run that another server has started."""
        self.questions.restore(recording)
        plan = Plan(recording.start.approved_calls)
        for call in recording.calls:
            self.calls.restore_call(call, ledger_entry_of(call, plan))
        if self.calls.plan is not None:
            self.calls.plan.restore_recorded(recording)

    # state ----------------------------------------------------------------------------------------

    @property
    def finished(self) -> anyio.Event:
        """Set when its report is complete."""
        return self.lifecycle.finished

    @property
    def output(self) -> OutputBuffer:
        """What its code has written to stdout and stderr."""
        return self.listener.output

    @property
    def probe_hits(self) -> Sequence[ProbedValue]:
        """The values of its probe."""
        return self.listener.probe_hits

    @property
    def status(self) -> RunStatus:
        """The word that clients get for what it does, or for how it ended."""
        if self.lifecycle.is_final:
            return self.report.status
        if self.lifecycle.is_queued:
            return "queued"
        return "waiting" if self.questions.open_questions else "running"

    @property
    def is_undone(self) -> bool:
        """Whether the session's state is still the one before it."""
        return self.ending.is_undone

    @property
    def is_cancelled(self) -> bool:
        """Whether a client or the server has cancelled or suspended it."""
        return self.control.stop_request.is_cancelled

    @property
    def is_first_in_session(self) -> bool:
        """Whether no other run of its session comes before it."""
        return self.lifecycle.has_reached_head

    @property
    def survives_server(self) -> bool:
        """Whether the next server continues it: it waits for an answer, or nobody waits for it."""
        return bool(self.questions.open_questions) or self.audience.is_detached

    @property
    def pending_ids(self) -> set[str]:
        """The ids of what it waits for, its agents included."""
        return {*self.questions.open_questions, *filter(None, [self.questions.agent_question])}

    @property
    def slots_ahead(self) -> int:
        """How many runs of the server get a slot before it does."""
        return self.control.slot.slots_ahead

    def snapshot_report(self) -> RunReport:
        """Return what is known of it by now."""
        report = replace(
            self.report,
            stdout=self.output.stream_text("stdout"),
            stderr=self.output.stream_text("stderr"),
            notes=list(self.report.notes),
        )
        if self.lifecycle.is_final:
            return report
        report.status, report.calls = self.status, list(self.calls.ledger.entries)
        report.pending_questions = [
            pending_question_view(each.asked, each.target, each.args, each.line)
            for each in self.questions.open_questions.values()
        ]
        stage = self.lifecycle.stage
        if stage and report.status == "running":
            report.notes.append(f"{stage[:1].upper()}{stage[1:]}.")
        return report

    # what a client may do -------------------------------------------------------------------------

    def cancel(self, *, undo: bool = False) -> None:
        """Interrupt the code, or keep it from starting; the session stays.

        With `undo`, what the code has done to variables and files until then is undone.
        """
        if self.lifecycle.is_final:
            return
        request = self.control.stop_request
        request.is_cancelled, request.undo = True, undo
        self.lifecycle.apply(LifecycleEvent.STOP_REQUESTED)
        self.control.stop_code()

    def cancel_queued(self) -> None:
        """Finish it before it has reached the head of its queue; raises `JournalFailed`."""
        self.control.stop_request.is_cancelled = True
        self.lifecycle.apply(LifecycleEvent.STOP_REQUESTED)
        self.report.status = "cancelled"
        self.ending.undo()
        self.journal.journal_queued(self.spec.code)
        self.journal.journal_end(RunFinished("cancelled", flags=[UNDONE_FLAG]))
        self.file_storage.settle()
        self.end()

    def end(self) -> None:
        """Wake everybody who waits for the report, which is complete."""
        self.lifecycle.apply(LifecycleEvent.ENDED)
        is_suspended = self.lifecycle.state is RunState.SUSPENDED
        status = "suspended" if is_suspended else self.report.status
        self.services.observers.on_run_ended(self._observed, status, self.report.usage)
        callbacks, self._end_callbacks = self._end_callbacks, []
        for callback in callbacks:
            callback()

    def call_at_end(self, callback: Callable[[], None]) -> None:
        """Call a function when the report is complete, unless it is already."""
        if not self.finished.is_set():
            self._end_callbacks.append(callback)

    def release_requests(self) -> None:
        """End the requests that wait for it, because its server is stopping."""
        self.audience.release()
        self.lifecycle.notify_watchers()

    def suspend(self) -> None:
        """Leave it in the journal as it is, where the next server finds and continues it."""
        if self.lifecycle.is_final:
            return
        if self.journal.has_started and self.lifecycle.state is not RunState.SUSPENDING:
            self.journal.journal_suspended()
        self.control.stop_request.is_cancelled = True
        self.lifecycle.apply(LifecycleEvent.SUSPEND_REQUESTED)
        self.listener.close()
        self.control.abandon_sandbox("its server ends, and the next one continues the run")

    # waiting --------------------------------------------------------------------------------------

    async def announce(self) -> None:
        """Make it survive the death of the server before it has started; raises `JournalFailed`."""
        code = await encode_if_large(self.spec.code)
        if not self.journal.has_started and self.spec.recording is None:
            self.journal.journal_queued(code)
        await self.journal.flush()

    async def flush_start(self) -> None:
        """Wait until the journal has its start, so that nothing that a client saw is forgotten."""
        with suppress(JournalFailed):  # its report says so when it is finished
            await self.journal.flush()

    async def wait_for_update(self) -> None:
        """Wait until it has new output, another state or stage, or is finished."""
        await self.lifecycle.wait_for_update()

    async def wait_until_finished(self) -> None:
        """Wait until its report is complete."""
        await self.finished.wait()

    async def wait_for_receipt(self) -> None:
        """Wait until the code has received every answer that its questions have."""
        while any(each.answer is not None for each in self.questions.open_questions.values()):
            await self.wait_for_update()

    async def wait_until_answered(self, questions: Sequence[PendingQuestion]) -> None:
        """Wait until one of its questions is answered, or it is finished."""
        while not self.finished.is_set() and all(each.answer is None for each in questions):
            await self.wait_for_update()

    async def wait_until_recorded(self) -> str:
        """Wait until its end is durable; return a note for the client if it cannot be."""
        try:
            if self.services.journal.survives_machine:
                await self.file_storage.wait()
            await self.journal.wait_until_durable()
        except JournalFailed as exc:
            return f"This run could not be recorded: {exc}"
        lost_reason = self.file_storage.lost_reason
        if lost_reason:
            return f"The files of this run could not be recorded: {lost_reason}"
        return ""

    # what its questions and its inputs need (`QuestionHost`, `StagingObserver`) -------------------

    def attach_link(self, link: SandboxLink) -> None:
        """Let it stop what `link` executes from here on."""
        self.control.attach_link(link)

    def set_stage(self, stage: str) -> None:
        """Tell the watchers what is done before the code can start; "" when it can."""
        self.lifecycle.set_stage(stage)

    def notify_watchers(self) -> None:
        """Wake every task that waits for an update."""
        self.lifecycle.notify_watchers()

    def pause(self) -> None:
        """Stop its clock, and let others use its slot."""
        self.control.pause()
        if not self.lifecycle.is_final:
            self.lifecycle.apply(LifecycleEvent.PAUSED)

    async def resume(self) -> None:
        """Start its clock again, as soon as it has a slot."""
        has_resumed = await self.control.resume(lambda: self.questions.is_paused)
        if has_resumed and not self.lifecycle.is_final:
            self.lifecycle.apply(LifecycleEvent.RESUMED)


def find_mode(spec: RunSpec) -> RunMode:
    """Return whether the calls of a run are made, planned, or answered from a recording."""
    if spec.is_dry_run:
        return "dry_run"
    if spec.is_offline:
        return "replay"
    return "live" if spec.recording is None or spec.is_resumed else "replay"
