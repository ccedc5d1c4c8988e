"""One run's way through a sandbox: slot, sandbox in the right state, execution, end."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import JournalFailed, JournalLimitReached, McpRuntimeError, SandboxFailed
from ..journal.events import EncodedJson, InputEntry, RunFinished, RunValue
from ..journal.large_values import encode_if_large
from ..journal.rows import FILES_FLAG, FRESH_FLAG, INTERRUPTED_FLAG
from ..protocol import wire
from ..protocol.truncation import truncate_text
from ..sandbox.link import SandboxLink
from .run import Run
from .run_history import planned_call_views
from .run_report import receive_value, validate_inspection_result
from .run_state import LifecycleEvent, RunState

MAX_REASON_CHARS = 300  # of what a sandbox says about the end of an interpreter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedSandbox:
    """A sandbox that is in the state that a run starts from, and has the run's inputs."""

    link: SandboxLink
    inputs: Sequence[InputEntry]
    staged_inputs: Sequence[Mapping[str, Any]]  # as the worker knows them
    is_fresh: bool  # the variables of the run before are not there
    is_shared: bool  # another session may need the state that the run starts from
    describe_restored_state: Callable[[], str]  # what the next run starts with if this one dies


class RunExecution:
    """Executes `run` as step `step`, after run `parent`."""

    def __init__(
        self,
        run: Run,
        parent: str | None,
        step: int,
        prepare_sandbox: Callable[[], Awaitable[PreparedSandbox]],
        take_stale_packages: Callable[[], list[str]],
        find_fetchers: Callable[[], Sequence[str]],
    ) -> None:
        self._run = run
        self._parent = parent
        self._step = step
        self._prepare_sandbox = prepare_sandbox
        self._take_stale_packages = take_stale_packages
        self._find_fetchers = find_fetchers
        self._sandbox: PreparedSandbox | None = None
        self._stale_packages: list[str] = []
        self._code: str | EncodedJson = run.spec.code

    @property
    def inputs(self) -> Sequence[InputEntry]:
        """The inputs of the run."""
        if self._sandbox is not None:
            return self._sandbox.inputs
        return self._run.spec.context or ()

    @property
    def _filename(self) -> str:
        """What tracebacks call the code."""
        return f"<step {self._step}>"

    @property
    def _code_to_send(self) -> str | wire.EncodedValue:
        code = self._code
        return wire.EncodedValue(code.data) if isinstance(code, EncodedJson) else code

    async def execute(self) -> None:
        """Execute the code to its end; the run is finished and journaled whatever happens."""
        run = self._run
        run.report.step = self._step
        run.lifecycle.apply(LifecycleEvent.HEAD_REACHED)
        try:
            self._code = await encode_if_large(run.spec.code)
            if await run.control.acquire_slot():
                run.lifecycle.apply(LifecycleEvent.SLOT_ACQUIRED)
            if not run.is_cancelled:
                self._sandbox = await self._prepare_sandbox()
            if run.lifecycle.state is not RunState.SUSPENDING:
                self._journal_start()
            if self._sandbox is None or run.is_cancelled:
                self._mark_cancelled()
            else:
                run.lifecycle.apply(LifecycleEvent.CODE_STARTED)
                await self._execute_code(self._sandbox)
        except McpRuntimeError as exc:
            self._mark_failed(exc)
        except BaseException:
            self._mark_cancelled()
            raise
        finally:
            self._finish()

    def _journal_start(self) -> None:
        run, recording = self._run, self._run.spec.recording
        if recording is not None:
            self._stale_packages = sorted(recording.start.stale_packages)
        else:
            self._stale_packages = self._take_stale_packages()
        run.journal.journal_start(
            self._parent,
            self._step,
            self._filename,
            self._code,
            stale_packages=self._stale_packages,
            detached=run.audience.is_detached,
            context=self.inputs,
        )

    async def _execute_code(self, sandbox: PreparedSandbox) -> None:
        run, spec, link = self._run, self._run.spec, sandbox.link
        run.report.usage["setup_ms"] = run.lifecycle.elapsed_s() * 1e3
        readings = dict(spec.recording.clock_readings) if spec.recording else None
        try:
            done, stopped = await link.execute(
                self._code_to_send,
                self._filename,
                run.listener,
                spec.timeout_s,
                self._stale_packages,
                seed=run.journal.seed,
                clock_readings=readings,
                park=not spec.is_offline,
                keep_previous=sandbox.is_shared or spec.is_dry_run or spec.is_offline,
                inputs=sandbox.staged_inputs,
                fetchers=self._find_fetchers(),
                inspection=spec.inspection,
            )
            limits = run.services.limits
            value = await receive_value(done.value, limits.max_shown_chars, limits.max_shown_items)
            run.ending.inspection_result = validate_inspection_result(done.inspection)
            await run.calls.ledger.format_last()
            self._apply_done(done, value, stopped, sandbox)
            with suppress(JournalFailed):  # the end of the run fails as well, and says so
                run.output.close()
            run.report.result_files = await run.services.result_files.save_long_results(
                link, run.id, run.output.read_from({}), run.report.value
            )
        except SandboxFailed as exc:
            run.ending.undo()
            run.report.apply_failure(exc, status="cancelled" if run.is_cancelled else "crashed")
            note = f"The session continues in a new sandbox. {sandbox.describe_restored_state()}"
            run.report.notes.append(note)
        except JournalFailed as exc:
            self._mark_failed(exc)
        except Exception:  # a mistake of ours must not take the other sessions with it
            logger.exception("run %s failed inside the server", run.id)
            link.fail("the server made a mistake, which its log describes")
            message = "The run failed inside the server; its log says why."
            self._mark_failed(McpRuntimeError(message))

    def _mark_failed(self, failure: McpRuntimeError) -> None:
        self._run.ending.failure = failure
        self._run.ending.undo()
        self._run.report.apply_failure(failure)

    def _mark_cancelled(self) -> None:
        self._run.report.status = "cancelled"
        self._run.ending.undo()

    def _apply_done(
        self,
        done: wire.RunDone,
        value: RunValue | None,
        stopped: str | None,
        sandbox: PreparedSandbox,
    ) -> None:
        """Take the code's end from the sandbox's word, as far as the host does not know better."""
        run, report, request = self._run, self._run.report, self._run.control.stop_request
        report.apply_done(done, value, stopped)
        if "wall_ms" in report.usage:  # the sandbox cannot tell who it waits for
            waited_ms = run.questions.timer.measure() * 1e3
            report.usage["wall_ms"] = max(report.usage["wall_ms"] - waited_ms, 0.0)
        if request.failure is not None:
            report.apply_failure(
                request.failure, f"[{request.failure.code}] {request.failure}", "error"
            )
        run.journal.journal_clock_readings(done.clock_readings)
        if (
            done.status == "died"
            or request.failure is not None
            or (request.undo and stopped is not None)
        ):
            run.ending.undo()
        plan = run.calls.plan
        if plan is not None and plan.calls:
            run.ending.undo()  # variables may hold what stands for results
            if report.status in ("ok", "error"):
                report.apply_plan(planned_call_views(plan.calls))
        if stopped is not None or done.status == "interrupted":
            run.ending.flags.add(INTERRUPTED_FLAG)
        self._add_state_notes(stopped, sandbox)

    def _add_state_notes(self, stopped: str | None, sandbox: PreparedSandbox) -> None:
        """Say how the run was stopped, and what the next one starts with."""
        run, notes, restarts = self._run, self._run.report.notes, sandbox.link.restart_reasons
        if stopped == "timeout":
            limit_s = run.spec.timeout_s
            remedy = "pass a larger timeout_s if it needs more"
            if limit_s >= run.services.limits.max_timeout_s:
                remedy = "no run may take longer ([sandbox] max_timeout_s)"
            notes.append(f"Stopped after {limit_s:g} s; {remedy}.")
        if restarts:  # in this run or since the last one
            notes.append(f"The sandbox says: {truncate_text(restarts[-1], MAX_REASON_CHARS)[0]!r}.")
            restarts.clear()
        if run.spec.is_offline:
            return  # nothing starts from its end
        if run.report.status == "waiting":
            has_committed = run.spec.approvals and any(
                entry.status == "ok" for entry in run.calls.ledger.entries
            )
            done = "Nothing of the plan was done"
            if has_committed:
                done = "The calls that were committed were made"
            notes.append(f"{done}; variables and files are as before.")
        elif run.is_undone:
            notes.append(sandbox.describe_restored_state())
        elif stopped is not None:
            notes.append("Variables and files are kept as they were when the code stopped.")

    # its end --------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Complete the report, journal the end, and wake everybody who waits for it."""
        run, report, output = self._run, self._run.report, self._run.output
        run.control.slot.release()
        report.calls = run.calls.ledger.entries
        report.usage |= run.services.get_spending(run.id)
        report.usage["total_ms"] = run.lifecycle.elapsed_s() * 1e3
        report.usage = {name: round(value, 3) for name, value in report.usage.items()}
        self._settle_flags()
        try:
            if run.lifecycle.state is not RunState.SUSPENDING:
                self._journal_end()
        except (JournalFailed, ValueError) as exc:
            report.notes.append(f"The end of this run could not be journaled: {exc}")
        report.stdout, report.stderr = output.stream_text("stdout"), output.stream_text("stderr")
        if run.is_undone or not run.listener.has_changed_files:
            run.file_storage.settle()
        run.control.detach_link()
        run.end()

    def _settle_flags(self) -> None:
        """Set the flags that describe the state at the end of the run."""
        flags = set()
        if self._sandbox is not None and self._sandbox.is_fresh:
            flags.add(FRESH_FLAG)
        if self._run.listener.has_changed_files:
            flags.add(FILES_FLAG)
        self._run.ending.settle_flags(flags)

    def _journal_end(self) -> None:
        run, report = self._run, self._run.report
        if not run.journal.has_started:
            self._journal_start()
        with suppress(JournalLimitReached):  # then this is what the run ends with
            run.output.close()
        if run.output.differs_from_recording:
            report.notes.append(
                "After the crash of the server the code printed something else than before it."
            )
        run.journal.journal_end(
            RunFinished(
                report.status,
                report.value,
                report.error,
                report.usage,
                sorted(run.ending.flags),
                report.media,
            )
        )
