"""One execution of code: it listens to the sandbox, writes the journal, and knows its result.

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
from ..journal.events import (
    ClocksRead,
    FileEntry,
    FilesChanged,
    Input,
    Output,
    RunFinished,
    RunQueued,
    RunResumed,
    RunStarted,
    RunSuspended,
)
from ..journal.replay import FILES, FRESH, INTERRUPTED, UNDONE, Recording
from ..journal.store import Journal
from ..kernel import wire
from ..kernel.present import shorten
from ..sandbox.link import Link
from .calls import Answers, CallLog, Router
from .files import Files
from .history import entry_of, plan_waits, wait_of
from .overflow import Overflow
from .plan import Plan, PlannedCall, is_planned, planned_call
from .printed import Printed
from .questions import Question, Questions
from .replayer import Replayer
from .report import Report, Status, checked_error, checked_readings, checked_usage, checked_value
from .request import Limits, Request, new_run_id
from .turns import Turn

FILE_OVERHEAD = 64 * 1024 * 1024  # bytes of file content that a sandbox may send beyond its workspace's size
REASON_CHARS = 300  # of what a sandbox says about the end of an interpreter

logger = logging.getLogger(__name__)


class Run:
    """Code on its way through a sandbox."""

    stage = ""  # what is done before the code can begin, for people
    watchers = 0  # requests that wait for it
    undone = False  # whether the session's state is that of before it
    files_came = False  # the content of the files that it changed, as far as it can be read
    _is_next = False  # of its session's runs
    _begun = False
    _cancelled = False
    _undo = False
    _is_suspended = False

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
        self._recording: Callable[[], Awaitable[Any]] | None = None
        self._news: anyio.Event | None = None  # set at the next piece of output, if somebody waits for it
        self._session = session
        self._journal = journal
        self.questions = Questions(journal, session, self.id, self, expires_s=limits.waits_s, granted=granted)
        self._plan = Plan(request.approved) if request.dry_run else None
        self._log = CallLog(journal, session, self.id, self.questions, self._plan)
        if resumed:
            self._remember(resumed)
        self._turn = turn
        self._turning = anyio.Lock()
        self._waiting = anyio.CancelScope()  # for its turn
        self._is_announced = request.id is not None
        self._answers: Answers = router
        self.replayer: Replayer | None = None
        if recording is not None:
            commits = request.dry_run and not request.resumes
            self.replayer = Replayer(
                recording,
                router,
                live=request.live,
                resumes=request.resumes,
                commits=commits,
                looks_up=request.looks_up,
            )
            self.replayer.halt = self._halt
            self._answers = self.replayer
        self._printed = Printed(self._append, limits.output, resumed.printed if resumed else {})
        self._read_before = {name: len(read) for name, read in resumed.readings.items()} if resumed else {}
        self._limits = limits
        self.overflow = overflow
        self._link: Link | None = None
        self._parent: str | None = None
        self._flags: set[str] = set()
        self._halted: McpRuntimeError | None = None
        self._asked = time.perf_counter()
        self._files = Files(limits.files + FILE_OVERHEAD)

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
        if not self._is_announced:
            self._announce()
        self._append(RunFinished("cancelled", flags=[UNDONE]))
        self._recording = self._journal.begin_flush()
        self.files_stored.set()
        self.finished.set()
        self.notify()

    def suspend(self) -> None:
        """Leave it as it is in the journal, where another server finds it and goes on with it."""
        if self._begun and not self._is_suspended:
            with suppress(JournalFailed):  # then it counts as one that a crash has stopped
                self._append(RunSuspended())
        self._is_suspended = self._cancelled = True
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
        if not self._is_next or (self._turn.is_waiting and not self._begun):
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
        if not self._begun and not self._is_announced and self.request.recording is None:
            self._announce()
        await self._journal.flush()

    async def begun_for_sure(self) -> None:
        """Wait until the journal has its beginning, as far as it can: what somebody has heard of is not forgotten."""
        with suppress(JournalFailed):  # which its end tells
            await self._journal.flush()

    def _announce(self) -> None:
        self._is_announced = True
        request = self.request
        context = None if request.context is None else list(request.context)
        self._append(RunQueued(self.id, request.code, request.timeout_s, request.key, request.dry_run, context))

    def snapshot(self) -> Report:
        """Return what is known of it by now; of its output, what no client has been told yet."""
        news = self.output_since(self.told)
        report = replace(self.report, stdout=news["stdout"], stderr=news["stderr"], notes=list(self.report.notes))
        if not self.finished.is_set():
            report.status, report.calls = self.state, list(self._log.ledger)
            report.waiting_for = [
                wait_of(each.asked, each.target, each.args, each.line) for each in self.questions.open.values()
            ]
            if self.stage and report.status == "running":
                report.notes.append(f"{self.stage[:1].upper()}{self.stage[1:]}.")
        return report

    def output_since(self, seen: dict[str, int]) -> dict[str, str]:
        """Return what each stream printed since `seen` (stream to pieces), and bring `seen` up to date."""
        return self._printed.since(seen)

    def has_output_since(self, seen: Mapping[str, int]) -> bool:
        """Return whether it has printed something since `seen`."""
        return self._printed.has_since(seen)

    def last_report(self) -> Report:
        """Return what became of it, with the output that no client has been told yet."""
        if not self.told:
            return self.report
        news = self.output_since(dict(self.told))
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

    async def news(self) -> None:
        """Wait until it has printed something more, has come to another stage, or is finished."""
        if not self.finished.is_set():
            self._news = self._news or anyio.Event()
            await self._news.wait()

    async def over(self) -> None:
        """Wait for its end."""
        await self.finished.wait()

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
        self._begun = True
        self._renewed = sorted(self._stale)
        self._stale.clear()
        request, recording = self.request, self.request.recording
        if request.resumes and recording is not None:
            answered = sum(call.finished is not None for call in recording.calls)
            self._append(RunResumed(answered))
            return
        start = RunStarted(
            run=self.id,
            parent=self._parent,
            step=self.report.step,
            code=request.code,
            name=self.code_name,
            timeout_s=request.timeout_s,
            idempotency_key=request.key,
            seed=self.seed,
            replays=recording.start.run if recording else None,
            stale=self._renewed,
            dry_run=request.dry_run,
            approved=list(request.approved),
            detached=self.detached,
            context=list(self.inputs),
        )
        self._append(start)
        self.notify()

    @property
    def code_name(self) -> str:
        """What tracebacks call its code."""
        return f"<step {self.report.step}>"

    def _append(
        self,
        event: RunQueued | RunStarted | RunResumed | RunSuspended | ClocksRead | Output | RunFinished | FilesChanged,
    ) -> None:
        self._journal.append(self._session, event, self.id)

    def _remember(self, recording: Recording) -> None:
        """Go on with what it has done in another server."""
        self.questions.restore(recording)
        for call in recording.calls:
            self._log.remember(call, entry_of(call))
            if self._plan is not None and is_planned(call):
                self._plan.add(planned_call(call))
        if self._plan is not None:
            for asked in recording.asked:
                answer = recording.answered.get(asked.question)
                if answer is not None:
                    (self._plan.allow if answer.decision == "allow" else self._plan.refuse)(asked.covers)

    async def _execute_in(self, link: Link) -> None:
        report, request = self.report, self.request
        report.usage["setup_ms"] = (time.perf_counter() - self._asked) * 1e3
        readings = dict(request.recording.readings) if request.recording else None
        try:
            done, stopped = await link.execute(
                request.code,
                self.code_name,
                self,
                request.timeout_s,
                self._renewed,
                seed=self.seed,
                clocks=readings,
                inputs=self.told_inputs,
            )
            self._conclude(done, stopped, link)
        except SandboxFailed as exc:
            report.status, self.undone = "cancelled" if self._cancelled else "crashed", True
            report.error = {"type": "SandboxFailed", "message": str(exc), "traceback": "", "line": None}
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
        self.report.status = "crashed"
        self.report.error = {"type": type(failure).__name__, "message": str(failure), "traceback": "", "line": None}

    def _halt(self, reason: McpRuntimeError) -> None:
        """End it for a reason of the host's."""
        self._halted = reason
        if self._link is not None:
            self._link.stop("cancelled")

    def _conclude(self, done: wire.Done, stopped: str | None, link: Link) -> None:
        report = self.report
        report.value, report.error = checked_value(done.value), checked_error(done.error)
        report.usage |= checked_usage(done.usage)
        self._note_clocks(done.clocks)
        died = done.status == "died"
        self.undone = died or self._halted is not None or (self._undo and stopped is not None)
        if self._halted is not None:
            report.status, report.value = "error", None
            message = f"[{self._halted.code}] {self._halted}"
            report.error = {"type": type(self._halted).__name__, "message": message, "traceback": "", "line": None}
        elif stopped is not None:
            report.status = "timeout" if stopped == "timeout" else "cancelled"
        elif done.status == "ok":
            report.status = "ok"
        else:
            report.status = "crashed" if died else "error"
        if self._plan is not None and self._plan.calls:
            self.undone = True  # variables may hold what stands for results
            if report.status in ("ok", "error"):
                self._conclude_plan(self._plan.calls)
        if stopped is not None or done.status == "interrupted":
            self._flags.add(INTERRUPTED)
        self._note_state(stopped, link)

    def _conclude_plan(self, calls: Sequence[PlannedCall]) -> None:
        """It has ended, and waits for its plan to be committed; what it did to variables and files is undone."""
        report = self.report
        report.status = "waiting"
        report.waiting_for = plan_waits(calls)
        if report.error is not None:
            report.notes.append(
                "The plan ends where the code could not go on; what follows is planned in another round."
            )

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

    def _note_clocks(self, clocks: Any) -> None:
        """Journal what clocks have told the code, without what the journal has already."""
        if not clocks:
            return
        readings = {}
        for name, values in checked_readings(clocks).items():
            known = min(self._read_before.get(name, 0), len(values))
            if known:
                self._read_before[name] -= known
            if values[known:]:
                readings[name] = values[known:]
        if readings:
            self._append(ClocksRead(readings))

    def _finish(self) -> None:
        report = self.report
        self._turn.give_back()
        report.calls = self._log.ledger
        report.usage |= self.costs()
        report.usage["total_ms"] = (time.perf_counter() - self._asked) * 1e3
        report.usage = {name: round(value, 3) for name, value in report.usage.items()}
        flags = {UNDONE} if self.undone else self._flags | ({FRESH} if self.fresh else set())
        try:
            if not self._is_suspended:
                self._record_end(sorted(flags))
        except (JournalFailed, ValueError) as exc:
            report.notes.append(f"The end of this run could not be journaled: {exc}")
        report.stdout, report.stderr = self._printed.text("stdout"), self._printed.text("stderr")
        if self._link is not None:
            texts = {"stdout": report.stdout, "stderr": report.stderr}
            report.kept = self.overflow.keep(self._link, self.id, texts, report.value)
        if self.undone or FILES not in self._flags:
            self.files_stored.set()
        self._link = None
        self.finished.set()
        self.notify()

    def _record_end(self, flags: list[str]) -> None:
        report = self.report
        if not self._begun:
            self._begin()
        self._printed.close()
        if self._printed.differs:
            report.notes.append("After the crash of the server the code printed something else than before it.")
        self._append(RunFinished(report.status, report.value, report.error, report.usage, flags))
        self._recording = self._journal.begin_flush()

    async def recorded(self) -> str:
        """Wait until a crash of the server would not lose this run; return what to tell the client if it would."""
        try:
            if self._recording is not None:
                await self._recording()
        except JournalFailed as exc:
            return f"This run could not be recorded: {exc}"
        return ""

    # what the sandbox sends -----------------------------------------------------------------------

    def on_output(self, message: wire.Output) -> None:
        """Take what was printed."""
        if not self._is_suspended:
            self._printed.take(message)
            self.notify()

    def on_files(self, message: wire.Files) -> None:
        """Note which files changed; their content follows."""
        self._flags.add(FILES)
        self.report.changed, self.report.removed = message.changed, message.removed
        if message.passed_over > 0:
            self.report.notes.append(
                f"{message.passed_over:,} files in the workspace are not kept: too many, or their names are not UTF-8."
            )

    def on_file_data(self, message: wire.FileData) -> None:
        """Take a piece of a changed file."""
        self._files.take(message)

    def on_saved(self, message: wire.Saved) -> None:
        """All files are here."""
        self.files_came = True

    async def on_call(self, message: wire.Call) -> wire.Reply:
        """Answer what the code asks for; what clocks told it before is journaled before."""
        if self._is_suspended:
            await anyio.sleep_forever()  # until its sandbox is gone
        try:
            self._note_clocks(message.clocks)
            return await self._answers.answer(message, self._log)
        except JournalFailed as exc:
            text = f"{message.target} was not called: {exc}"
            return wire.Reply(message.id, None, {"kind": "unavailable", "message": text, "data": None})

    async def store_files(self) -> FilesChanged | None:
        """Keep the content of the changed files; return what changed, or None if not all of it has come.

        The journal then says that they were lost, and a rebuild can mend that.
        """
        if not self.files_came:
            return None
        stored = {}
        for path, (mode, data) in self._files.complete.items():
            digest = await self._journal.put_blob(data)
            stored[path] = FileEntry(digest=digest, size=len(data), mode=mode)
        self._files.complete.clear()
        changed = FilesChanged(stored, self.report.removed)
        self._append(changed)
        return changed
