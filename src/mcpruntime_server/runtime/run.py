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
from ..journal.events import Input, RunFinished
from ..journal.replay import FILES, FRESH, INTERRUPTED, UNDONE, Recording
from ..journal.store import Journal
from ..kernel import wire
from ..kernel.present import shorten
from ..sandbox.link import Link
from .calls import Answers, CallLog, Router
from .history import entry_of, plan_waits, wait_of
from .listener import RunListener
from .overflow import Overflow
from .plan import Plan
from .printed import Printed
from .questions import Question, Questions
from .record import Record
from .replayer import Replayer
from .report import Report, Status
from .request import Limits, Request, new_run_id
from .turns import Turn

REASON_CHARS = 300  # of what a sandbox says about the end of an interpreter

logger = logging.getLogger(__name__)


class Run:
    """Code on its way through a sandbox."""

    stage = ""  # what is done before the code can begin, for people
    watchers = 0  # requests that wait for it
    undone = False  # whether the session's state is that of before it
    _is_next = False  # of its session's runs
    _cancelled = False
    _undo = False
    _is_suspended = False
    _was_interrupted = False

    def __init__(
        self,
        request: Request,
        session: str,
        journal: Journal,
        router: Router,
        limits: Limits,
        overflow: Overflow,
        *,
        turn: Turn,
        granted: set[str],
        stale: set[str],
    ) -> None:
        recording = request.recording
        resumed = recording if request.resumes else None
        self.request = request
        self.id = resumed.start.run if resumed else request.id or new_run_id()
        self.seed = recording.start.seed if recording else secrets.token_hex(16)
        self.inputs: Sequence[Input] = request.context or ()
        self.told_inputs: Sequence[Mapping[str, Any]] = ()  # as the kernel knows them
        self.fresh = request.fresh  # whether it begins without the variables of the run before it
        self.detached = request.detached  # it goes on when nobody waits for it
        self.told: dict[str, int] = {}  # what clients have been told of its output
        self.told_questions: set[str] = set()
        self.costs: Callable[[], Mapping[str, float]] = dict  # what it has paid models for
        self.state_after_death: Callable[[], str] = str  # says what the next run begins with, should this one die
        self._stale = set(recording.start.stale) if recording else stale
        self._renewed: list[str] = []  # packages of tools that it imports anew
        self.report = Report(self.id, session, 0)
        self.failure: McpRuntimeError | None = None  # why there is nothing to report
        self.finished = anyio.Event()  # its report is whole
        self.files_stored = anyio.Event()  # the content of the files that it changed is in the journal, or lost
        self._news: anyio.Event | None = None  # set at the next piece of output, if somebody waits for it
        self._record = Record(journal, session, self.id, request, resumed)
        self.questions = Questions(journal, session, self.id, self, expires_s=limits.waits_s, granted=granted)
        self._plan = Plan(request.approved) if request.dry_run else None
        self._log = CallLog(journal, session, self.id, self.questions, self._plan)
        if resumed:
            self._remember(resumed)
        self._turn = turn
        self._turning = anyio.Lock()
        self._waiting = anyio.CancelScope()  # for its turn
        answers: Answers = router
        self.replayer: Replayer | None = None
        if recording is not None:
            self.replayer = Replayer(recording, router, request)
            self.replayer.halt = self._halt
            answers = self.replayer
        self.printed = Printed(self._record.append, limits.output, resumed.printed if resumed else {})
        self.listener = RunListener(self.report, self._record, self._log, self.printed, answers, limits)
        self.listener.on_news = self.notify
        self.overflow = overflow
        self._link: Link | None = None
        self._parent: str | None = None
        self._halted: McpRuntimeError | None = None
        self._asked = time.perf_counter()

    # what a request may do ------------------------------------------------------------------------

    def cancel(self, *, undo: bool = False) -> None:
        """Interrupt the code, or keep it from starting; the session stays.

        What it has done to variables and files until then stays too, unless it is to be undone.
        """
        self._cancelled = True
        self._undo = undo
        self._waiting.cancel()
        if self._link is not None:
            self._link.stop("cancelled")

    def drop(self) -> None:
        """End it before its turn has come; raises `JournalFailed`."""
        self._cancelled = self.undone = True
        self.report.status = "cancelled"
        self._record.announce()
        self._record.end(RunFinished("cancelled", flags=[UNDONE]))
        self.files_stored.set()
        self.finished.set()
        self.notify()

    def suspend(self) -> None:
        """Leave it as it is in the journal, where another server finds it and goes on with it."""
        if self._record.has_begun and not self._is_suspended:
            self._record.suspend()
        self._is_suspended = self._cancelled = self.listener.is_deaf = True
        self._waiting.cancel()
        if self._link is not None:
            self._link.fail("its server ends, and the run goes on in the next")

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to stop, or not to start."""
        return self._cancelled

    def prepare_in(self, link: Link) -> None:
        """What `link` executes from here on is for this run: stopping the run stops it."""
        self._link = link

    @property
    def state(self) -> Status:
        """What it does, in the word that clients are told."""
        if self.finished.is_set():
            return self.report.status
        if not self._is_next or (self._turn.is_waiting and not self._record.has_begun):
            return "queued"
        return "waiting" if self.questions.open else "running"

    @property
    def asks(self) -> set[str]:
        """What it wants to have answered, its agents included."""
        return {*self.questions.open, *filter(None, [self.questions.elsewhere])}

    @property
    def goes_on_elsewhere(self) -> bool:
        """Whether it is to outlive this server: it waits for an answer, or nobody waits for it."""
        return bool(self.questions.open) or self.detached

    @property
    def is_next(self) -> bool:
        """Whether no other run of its session comes before it."""
        return self._is_next

    async def announce(self) -> None:
        """Have it survive the death of the server from here on, though it has not begun; raises `JournalFailed`."""
        if not self._record.has_begun and self.request.recording is None:
            self._record.announce()
        await self._record.flush()

    async def begun_for_sure(self) -> None:
        """Wait until the journal has its beginning, as far as it can: what somebody has heard of is not forgotten."""
        with suppress(JournalFailed):  # which its end tells
            await self._record.flush()

    def snapshot(self) -> Report:
        """Return what is known of it by now; of its output, what no client has been told yet."""
        news = self.printed.since(self.told)
        report = replace(self.report, stdout=news["stdout"], stderr=news["stderr"], notes=list(self.report.notes))
        if not self.finished.is_set():
            report.status, report.calls = self.state, list(self._log.ledger)
            report.waiting_for = [
                wait_of(each.asked, each.target, each.args, each.line) for each in self.questions.open.values()
            ]
            if self.stage and report.status == "running":
                report.notes.append(f"{self.stage[:1].upper()}{self.stage[1:]}.")
        return report

    def last_report(self) -> Report:
        """Return what became of it, with the output that no client has been told yet."""
        if not self.told:
            return self.report
        news = self.printed.since(dict(self.told))
        return replace(self.report, stdout=news["stdout"], stderr=news["stderr"])

    async def heard(self) -> None:
        """Wait until an answer that it was given has reached the code, or it asks, prints or ends otherwise."""
        while any(question.answer is not None for question in self.questions.open.values()):
            await self.news()

    async def until_answered(self, questions: Sequence[Question]) -> None:
        """Wait until one of its questions is answered, or it is over."""
        while not self.finished.is_set() and all(question.answer is None for question in questions):
            await self.news()

    @property
    def runs_ahead(self) -> int:
        """How many runs of the server go before it can."""
        return self._turn.ahead

    def elapsed_s(self) -> float:
        """Return the seconds since it was asked for."""
        return time.perf_counter() - self._asked

    async def over(self) -> None:
        """Wait for its end."""
        await self.finished.wait()

    async def news(self) -> None:
        """Wait until it has printed something more, has come to another stage, or is finished."""
        if not self.finished.is_set():
            self._news = self._news or anyio.Event()
            await self._news.wait()

    def enter_stage(self, stage: str) -> None:
        """Tell who waits what is being done before the code can begin; "" when nothing more is."""
        self.stage = stage
        self.notify()

    # waiting for an answer --------------------------------------------------------------------------

    def pause(self) -> None:
        """Have its time limit stand still, and let others execute."""
        self._turn.give_back()
        if self._link is not None:
            self._link.pause()

    async def go_on(self) -> None:
        """End the pause, as soon as it may execute again."""
        async with self._turning:
            if not self._turn.is_taken and not self.questions.is_paused:
                await self._turn.take()
        if self.questions.is_paused:  # again, meanwhile
            self._turn.give_back()
        elif self._link is not None:
            self._link.go_on()

    def notify(self) -> None:
        """Tell who watches it that something has changed."""
        if self._news is not None:
            self._news.set()
            self._news = None

    # its way through a sandbox --------------------------------------------------------------------

    async def execute(self, parent: str | None, step: int, get_link: Callable[[], Awaitable[Link]]) -> None:
        """Run the code to its end as step `step`, after run `parent`.

        Whatever happens, the run is finished, journaled and told afterwards.
        """
        self._parent = parent
        self.report.step = step
        self._is_next = True
        self.notify()
        try:
            with self._waiting:
                await self._turn.take()
            if not self._cancelled:
                self._link = await get_link()
            if not self._is_suspended:
                self._begin()
            if self._link is None or self._cancelled:
                self.report.status, self.undone = "cancelled", True
            else:
                await self._execute_in(self._link)
        except McpRuntimeError as exc:
            self._fail(exc)
        except BaseException:
            self.report.status, self.undone = "cancelled", True
            raise
        finally:
            self._finish()

    def _begin(self) -> None:
        """Journal that it starts, or goes on."""
        self._renewed = sorted(self._stale)
        self._stale.clear()
        self._record.begin(
            self._parent,
            self.report.step,
            self.code_name,
            seed=self.seed,
            stale=self._renewed,
            detached=self.detached,
            context=self.inputs,
        )
        self.notify()

    @property
    def code_name(self) -> str:
        """What tracebacks call its code."""
        return f"<step {self.report.step}>"

    def _remember(self, recording: Recording) -> None:
        """Go on with what it has done in another server."""
        self.questions.restore(recording)
        for call in recording.calls:
            self._log.remember(call, entry_of(call))
        if self._plan is not None:
            self._plan.restore(recording)

    async def _execute_in(self, link: Link) -> None:
        report, request = self.report, self.request
        report.usage["setup_ms"] = (time.perf_counter() - self._asked) * 1e3
        readings = dict(request.recording.readings) if request.recording else None
        try:
            done, stopped = await link.execute(
                request.code,
                self.code_name,
                self.listener,
                request.timeout_s,
                self._renewed,
                seed=self.seed,
                clocks=readings,
                inputs=self.told_inputs,
            )
            self._conclude(done, stopped, link)
        except SandboxFailed as exc:
            self.undone = True
            report.fail(exc, status="cancelled" if self._cancelled else "crashed")
            report.notes.append(f"The session goes on in a new sandbox. {self.state_after_death()}".strip())
        except JournalFailed as exc:
            self._fail(exc)
        except Exception:  # a mistake of ours must not take the other sessions with it
            logger.exception("run %s failed inside the server", self.id)
            link.fail("the server made a mistake, which its log describes")
            self._fail(McpRuntimeError("The run failed inside the server; its log says why."))

    def _fail(self, failure: McpRuntimeError) -> None:
        self.failure = failure
        self.undone = True
        self.report.fail(failure)

    def _halt(self, reason: McpRuntimeError) -> None:
        """End it for a reason of the host's."""
        self._halted = reason
        if self._link is not None:
            self._link.stop("cancelled")

    def _conclude(self, done: wire.Done, stopped: str | None, link: Link) -> None:
        report, halted = self.report, self._halted
        report.end(done, stopped)
        if halted is not None:
            report.fail(halted, f"[{halted.code}] {halted}", "error")
        self._record.note_clocks(done.clocks)
        self.undone = done.status == "died" or halted is not None or (self._undo and stopped is not None)
        if self._plan is not None and self._plan.calls:
            self.undone = True  # variables may hold what stands for results
            if report.status in ("ok", "error"):
                report.wait_for(plan_waits(self._plan.calls))
        self._was_interrupted = stopped is not None or done.status == "interrupted"
        self._note_state(stopped, link)

    def _note_state(self, stopped: str | None, link: Link) -> None:
        """Say how the run was stopped, and what the next one begins with."""
        notes = self.report.notes
        if stopped == "timeout":
            notes.append(f"Stopped after {self.request.timeout_s:g} s; pass a larger timeout_s if it needs more.")
        if link.restarts:  # in this run or since the last one
            notes.append(shorten(link.restarts[-1], REASON_CHARS)[0])
            link.restarts.clear()
        if self.report.status == "waiting":
            made = sum(entry.status == "ok" for entry in self._log.ledger) if self.request.approved else 0
            done = "The calls that were committed were made" if made else "Nothing of the plan was done"
            notes.append(f"{done}; variables and files are as before.")
        elif self.undone:
            notes.append(self.state_after_death())
        elif stopped is not None:
            notes.append("Variables and files are kept as they were when the code stopped.")

    def _finish(self) -> None:
        report = self.report
        self._turn.give_back()
        report.calls = self._log.ledger
        report.usage |= self.costs()
        report.usage["total_ms"] = (time.perf_counter() - self._asked) * 1e3
        report.usage = {name: round(value, 3) for name, value in report.usage.items()}
        kept = {FRESH: self.fresh, FILES: self.listener.has_files, INTERRUPTED: self._was_interrupted}
        flags = [UNDONE] if self.undone else sorted(flag for flag, holds in kept.items() if holds)
        try:
            if not self._is_suspended:
                self._record_end(flags)
        except (JournalFailed, ValueError) as exc:
            report.notes.append(f"The end of this run could not be journaled: {exc}")
        report.stdout, report.stderr = self.printed.text("stdout"), self.printed.text("stderr")
        if self._link is not None:
            texts = {"stdout": report.stdout, "stderr": report.stderr}
            report.kept = self.overflow.keep(self._link, self.id, texts, report.value)
        if self.undone or not self.listener.has_files:
            self.files_stored.set()
        self._link = None
        self.finished.set()
        self.notify()

    def _record_end(self, flags: list[str]) -> None:
        report = self.report
        if not self._record.has_begun:
            self._begin()
        self.printed.close()
        if self.printed.differs:
            report.notes.append("After the crash of the server the code printed something else than before it.")
        self._record.end(RunFinished(report.status, report.value, report.error, report.usage, flags))

    async def recorded(self) -> str:
        """Wait until a crash of the server would not lose this run; return what to tell the client if it would."""
        try:
            await self._record.written()
        except JournalFailed as exc:
            return f"This run could not be recorded: {exc}"
        return ""
