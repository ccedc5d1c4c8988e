"""One execution of code, from its request to its result; the journal knows it by its `Record`.

A run belongs to its session. Whoever asked for it only watches: `news` waits for something new. Most runs meet the
world; one that is given a recording meets the calls, the chance and the clocks of that (`replayer`).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio

from ..errors import JournalFailed, McpRuntimeError, SandboxFailed
from ..journal.events import InputEntry, RunFinished
from ..journal.recording import Recording
from ..journal.rows import FILES_FLAG, FRESH_FLAG, INTERRUPTED_FLAG, UNDONE_FLAG
from ..journal.store import Journal
from ..protocol import wire
from ..protocol.presentation import truncate_text
from ..sandbox.link import SandboxLink
from .output_buffer import OutputBuffer
from .pending_questions import PendingQuestion, PendingQuestions
from .plan import Plan
from .replayer import Replayer
from .result_files import ResultFiles
from .router import CallHandler, CallJournal, Router
from .run_history import ledger_entry_of, pending_question_view, planned_call_views
from .run_journal import RunJournal
from .run_listener import RunListener
from .run_report import RunReport, RunStatus
from .run_scheduler import RunSlot
from .run_spec import RunLimits, RunSpec, new_run_id

MAX_REASON_CHARS = 300  # of what a sandbox says about the end of an interpreter

logger = logging.getLogger(__name__)


class Run:
    """Code on its way through a sandbox."""

    stage = ""  # what is done before the code can begin, for people
    watchers = 0  # requests that wait for it
    is_undone = False  # whether the session's state is that of before it
    _is_first_in_session = False  # of its session's runs
    _cancelled = False
    _undo_when_stopped = False
    _is_suspended = False
    _was_interrupted = False

    def __init__(
        self,
        spec: RunSpec,
        session_id: str,
        journal: Journal,
        router: Router,
        limits: RunLimits,
        result_files: ResultFiles,
        *,
        slot: RunSlot,
        allowed_targets: set[str],
        stale_packages: set[str],
    ) -> None:
        recording = spec.recording
        resumed = recording if spec.is_resumed else None
        self.spec = spec
        self.id = resumed.start.run_id if resumed else spec.run_id or new_run_id()
        self.seed = recording.start.seed if recording else secrets.token_hex(16)
        self.inputs: Sequence[InputEntry] = spec.context or ()
        self.staged_inputs: Sequence[Mapping[str, Any]] = ()  # as the kernel knows them
        self.starts_fresh = (
            spec.starts_fresh
        )  # whether it begins without the variables of the run before it
        self.is_detached = spec.starts_detached  # it goes on when nobody waits for it
        self.delivered_output: dict[str, int] = {}  # what clients have been told of its output
        self.delivered_questions: set[str] = set()
        self.get_spending: Callable[[], Mapping[str, float]] = dict  # what it has paid models for
        self.describe_restored_state: Callable[[], str] = (
            str  # says what the next run begins with, should this one die
        )
        self._stale_packages = set(recording.start.stale_packages) if recording else stale_packages
        self._reimported_packages: list[str] = []  # packages of tools that it imports anew
        self.report = RunReport(self.id, session_id, 0)
        self.failure: McpRuntimeError | None = None  # why there is nothing to report
        self.finished = anyio.Event()  # its report is whole
        self.files_stored = (
            anyio.Event()
        )  # the content of the files that it changed is in the journal, or lost
        self._update: anyio.Event | None = (
            None  # set at the next piece of output, if somebody waits for it
        )
        self._journal = RunJournal(journal, session_id, self.id, spec, resumed)
        self.questions = PendingQuestions(
            journal,
            session_id,
            self.id,
            self,
            expires_s=limits.question_expires_s,
            allowed_targets=allowed_targets,
        )
        self._plan = Plan(spec.approvals) if spec.is_dry_run else None
        self._call_journal = CallJournal(journal, session_id, self.id, self.questions, self._plan)
        if resumed:
            self._restore_recorded(resumed)
        self._slot = slot
        self._slot_lock = anyio.Lock()
        self._queue_scope = anyio.CancelScope()  # for its turn
        answers: CallHandler = router
        self.replayer: Replayer | None = None
        if recording is not None:
            self.replayer = Replayer(recording, router, spec)
            self.replayer.on_halt = self._halt
            answers = self.replayer
        self.output = OutputBuffer(
            self._journal.append_event, limits.max_output_bytes, resumed.output if resumed else {}
        )
        self.listener = RunListener(
            self.report, self._journal, self._call_journal, self.output, answers, limits
        )
        self.listener.on_update = self.notify_watchers
        self.result_files = result_files
        self._link: SandboxLink | None = None
        self._parent: str | None = None
        self._halt_reason: McpRuntimeError | None = None
        self._requested_at = time.perf_counter()

    # what a request may do ------------------------------------------------------------------------

    def cancel(self, *, undo: bool = False) -> None:
        """Interrupt the code, or keep it from starting; the session stays.

        What it has done to variables and files until then stays too, unless it is to be undone.
        """
        self._cancelled = True
        self._undo_when_stopped = undo
        self._queue_scope.cancel()
        if self._link is not None:
            self._link.stop_run("cancelled")

    def cancel_queued(self) -> None:
        """End it before its turn has come; raises `JournalFailed`."""
        self._cancelled = self.is_undone = True
        self.report.status = "cancelled"
        self._journal.journal_queued()
        self._journal.journal_end(RunFinished("cancelled", flags=[UNDONE_FLAG]))
        self.files_stored.set()
        self.finished.set()
        self.notify_watchers()

    def suspend(self) -> None:
        """Leave it as it is in the journal, where another server finds it and goes on with it."""
        if self._journal.has_started and not self._is_suspended:
            self._journal.journal_suspended()
        self._is_suspended = self._cancelled = self.listener.is_closed = True
        self._queue_scope.cancel()
        if self._link is not None:
            self._link.fail("its server ends, and the run goes on in the next")

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to stop, or not to start."""
        return self._cancelled

    def attach_link(self, link: SandboxLink) -> None:
        """What `link` executes from here on is for this run: stopping the run stops it."""
        self._link = link

    @property
    def status(self) -> RunStatus:
        """What it does, in the word that clients are told."""
        if self.finished.is_set():
            return self.report.status
        if not self._is_first_in_session or (
            self._slot.is_waiting and not self._journal.has_started
        ):
            return "queued"
        return "waiting" if self.questions.open_questions else "running"

    @property
    def pending_ids(self) -> set[str]:
        """What it wants to have answered, its agents included."""
        return {*self.questions.open_questions, *filter(None, [self.questions.agent_question])}

    @property
    def survives_server(self) -> bool:
        """Whether it is to outlive this server: it waits for an answer, or nobody waits for it."""
        return bool(self.questions.open_questions) or self.is_detached

    @property
    def is_first_in_session(self) -> bool:
        """Whether no other run of its session comes before it."""
        return self._is_first_in_session

    async def announce(self) -> None:
        """Have it survive the death of the server from here on, though it has not begun; raises `JournalFailed`."""
        if not self._journal.has_started and self.spec.recording is None:
            self._journal.journal_queued()
        await self._journal.flush()

    async def flush_start(self) -> None:
        """Wait until the journal has its beginning, as far as it can: what somebody has heard of is not forgotten."""
        with suppress(JournalFailed):  # which its end tells
            await self._journal.flush()

    def snapshot_report(self) -> RunReport:
        """Return what is known of it by now; of its output, what no client has been told yet."""
        news = self.output.read_since(self.delivered_output)
        report = replace(
            self.report, stdout=news["stdout"], stderr=news["stderr"], notes=list(self.report.notes)
        )
        if not self.finished.is_set():
            report.status, report.calls = self.status, list(self._call_journal.ledger)
            report.pending_questions = [
                pending_question_view(each.asked, each.target, each.args, each.line)
                for each in self.questions.open_questions.values()
            ]
            if self.stage and report.status == "running":
                report.notes.append(f"{self.stage[:1].upper()}{self.stage[1:]}.")
        return report

    def final_report(self) -> RunReport:
        """Return what became of it, with the output that no client has been told yet."""
        if not self.delivered_output:
            return self.report
        news = self.output.read_since(dict(self.delivered_output))
        return replace(self.report, stdout=news["stdout"], stderr=news["stderr"])

    async def wait_for_receipt(self) -> None:
        """Wait until an answer that it was given has reached the code, or it asks, prints or ends otherwise."""
        while any(
            question.answer is not None for question in self.questions.open_questions.values()
        ):
            await self.wait_for_update()

    async def wait_until_answered(self, questions: Sequence[PendingQuestion]) -> None:
        """Wait until one of its questions is answered, or it is over."""
        while not self.finished.is_set() and all(question.answer is None for question in questions):
            await self.wait_for_update()

    @property
    def slots_ahead(self) -> int:
        """How many runs of the server go before it can."""
        return self._slot.slots_ahead

    def elapsed_s(self) -> float:
        """Return the seconds since it was asked for."""
        return time.perf_counter() - self._requested_at

    async def wait_until_finished(self) -> None:
        """Wait for its end."""
        await self.finished.wait()

    async def wait_for_update(self) -> None:
        """Wait until it has printed something more, has come to another stage, or is finished."""
        if not self.finished.is_set():
            self._update = self._update or anyio.Event()
            await self._update.wait()

    def set_stage(self, stage: str) -> None:
        """Tell who waits what is being done before the code can begin; "" when nothing more is."""
        self.stage = stage
        self.notify_watchers()

    # waiting for an answer --------------------------------------------------------------------------

    def pause(self) -> None:
        """Have its time limit stand still, and let others execute."""
        self._slot.release()
        if self._link is not None:
            self._link.pause_timeout()

    async def resume(self) -> None:
        """End the pause, as soon as it may execute again."""
        async with self._slot_lock:
            if not self._slot.is_held and not self.questions.is_paused:
                await self._slot.acquire()
        if self.questions.is_paused:  # again, meanwhile
            self._slot.release()
        elif self._link is not None:
            self._link.resume_timeout()

    def notify_watchers(self) -> None:
        """Tell who watches it that something has changed."""
        if self._update is not None:
            self._update.set()
            self._update = None

    # its way through a sandbox --------------------------------------------------------------------

    async def execute(
        self, parent: str | None, step: int, restore_link: Callable[[], Awaitable[SandboxLink]]
    ) -> None:
        """Run the code to its end as step `step`, after run `parent`.

        Whatever happens, the run is finished, journaled and told afterwards.
        """
        self._parent = parent
        self.report.step = step
        self._is_first_in_session = True
        self.notify_watchers()
        try:
            with self._queue_scope:
                await self._slot.acquire()
            if not self._cancelled:
                self._link = await restore_link()
            if not self._is_suspended:
                self._journal_start()
            if self._link is None or self._cancelled:
                self.report.status, self.is_undone = "cancelled", True
            else:
                await self._execute_on(self._link)
        except McpRuntimeError as exc:
            self._record_failure(exc)
        except BaseException:
            self.report.status, self.is_undone = "cancelled", True
            raise
        finally:
            self._finish()

    def _journal_start(self) -> None:
        """Journal that it starts, or goes on."""
        self._reimported_packages = sorted(self._stale_packages)
        self._stale_packages.clear()
        self._journal.journal_start(
            self._parent,
            self.report.step,
            self.code_name,
            seed=self.seed,
            stale_packages=self._reimported_packages,
            detached=self.is_detached,
            context=self.inputs,
        )
        self.notify_watchers()

    @property
    def code_name(self) -> str:
        """What tracebacks call its code."""
        return f"<step {self.report.step}>"

    def _restore_recorded(self, recording: Recording) -> None:
        """Go on with what it has done in another server."""
        self.questions.restore(recording)
        for call in recording.calls:
            self._call_journal.restore_call(call, ledger_entry_of(call))
        if self._plan is not None:
            self._plan.restore_recorded(recording)

    async def _execute_on(self, link: SandboxLink) -> None:
        report, request = self.report, self.spec
        report.usage["setup_ms"] = (time.perf_counter() - self._requested_at) * 1e3
        readings = dict(request.recording.clock_readings) if request.recording else None
        try:
            done, stopped = await link.execute(
                request.code,
                self.code_name,
                self.listener,
                request.timeout_s,
                self._reimported_packages,
                seed=self.seed,
                clock_readings=readings,
                inputs=self.staged_inputs,
            )
            self._apply_done(done, stopped, link)
        except SandboxFailed as exc:
            self.is_undone = True
            report.apply_failure(exc, status="cancelled" if self._cancelled else "crashed")
            report.notes.append(
                f"The session goes on in a new sandbox. {self.describe_restored_state()}".strip()
            )
        except JournalFailed as exc:
            self._record_failure(exc)
        except Exception:  # a mistake of ours must not take the other sessions with it
            logger.exception("run %s failed inside the server", self.id)
            link.fail("the server made a mistake, which its log describes")
            self._record_failure(
                McpRuntimeError("The run failed inside the server; its log says why.")
            )

    def _record_failure(self, failure: McpRuntimeError) -> None:
        self.failure = failure
        self.is_undone = True
        self.report.apply_failure(failure)

    def _halt(self, reason: McpRuntimeError) -> None:
        """End it for a reason of the host's."""
        self._halt_reason = reason
        if self._link is not None:
            self._link.stop_run("cancelled")

    def _apply_done(self, done: wire.RunDone, stopped: str | None, link: SandboxLink) -> None:
        report, halted = self.report, self._halt_reason
        report.apply_done(done, stopped)
        if halted is not None:
            report.apply_failure(halted, f"[{halted.code}] {halted}", "error")
        self._journal.journal_clock_readings(done.clock_readings)
        self.is_undone = (
            done.status == "died"
            or halted is not None
            or (self._undo_when_stopped and stopped is not None)
        )
        if self._plan is not None and self._plan.calls:
            self.is_undone = True  # variables may hold what stands for results
            if report.status in ("ok", "error"):
                report.apply_plan(planned_call_views(self._plan.calls))
        self._was_interrupted = stopped is not None or done.status == "interrupted"
        self._add_state_notes(stopped, link)

    def _add_state_notes(self, stopped: str | None, link: SandboxLink) -> None:
        """Say how the run was stopped, and what the next one begins with."""
        notes = self.report.notes
        if stopped == "timeout":
            notes.append(
                f"Stopped after {self.spec.timeout_s:g} s; pass a larger timeout_s if it needs more."
            )
        if link.restart_reasons:  # in this run or since the last one
            notes.append(truncate_text(link.restart_reasons[-1], MAX_REASON_CHARS)[0])
            link.restart_reasons.clear()
        if self.report.status == "waiting":
            made = (
                sum(entry.status == "ok" for entry in self._call_journal.ledger)
                if self.spec.approvals
                else 0
            )
            done = (
                "The calls that were committed were made"
                if made
                else "Nothing of the plan was done"
            )
            notes.append(f"{done}; variables and files are as before.")
        elif self.is_undone:
            notes.append(self.describe_restored_state())
        elif stopped is not None:
            notes.append("Variables and files are kept as they were when the code stopped.")

    def _finish(self) -> None:
        report = self.report
        self._slot.release()
        report.calls = self._call_journal.ledger
        report.usage |= self.get_spending()
        report.usage["total_ms"] = (time.perf_counter() - self._requested_at) * 1e3
        report.usage = {name: round(value, 3) for name, value in report.usage.items()}
        kept = {
            FRESH_FLAG: self.starts_fresh,
            FILES_FLAG: self.listener.has_changed_files,
            INTERRUPTED_FLAG: self._was_interrupted,
        }
        flags = (
            [UNDONE_FLAG]
            if self.is_undone
            else sorted(flag for flag, holds in kept.items() if holds)
        )
        try:
            if not self._is_suspended:
                self._journal_end(flags)
        except (JournalFailed, ValueError) as exc:
            report.notes.append(f"The end of this run could not be journaled: {exc}")
        report.stdout, report.stderr = (
            self.output.stream_text("stdout"),
            self.output.stream_text("stderr"),
        )
        if self._link is not None:
            texts = {"stdout": report.stdout, "stderr": report.stderr}
            report.result_files = self.result_files.save_long_results(
                self._link, self.id, texts, report.value
            )
        if self.is_undone or not self.listener.has_changed_files:
            self.files_stored.set()
        self._link = None
        self.finished.set()
        self.notify_watchers()

    def _journal_end(self, flags: list[str]) -> None:
        report = self.report
        if not self._journal.has_started:
            self._journal_start()
        self.output.close()
        if self.output.differs_from_recording:
            report.notes.append(
                "After the crash of the server the code printed something else than before it."
            )
        self._journal.journal_end(
            RunFinished(report.status, report.value, report.error, report.usage, flags)
        )

    async def wait_until_recorded(self) -> str:
        """Wait until a crash of the server would not lose this run; return what to tell the client if it would."""
        try:
            await self._journal.wait_until_durable()
        except JournalFailed as exc:
            return f"This run could not be recorded: {exc}"
        return ""
