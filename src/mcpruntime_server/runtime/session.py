"""One session while it is live: a queue of runs, and the task that executes them one by one.

Rule: the session's state is the end of its tip, in the journal. A run starts from there wherever
the sandbox is by then; a run whose interpreter died leaves the tip where it was.
"""

from __future__ import annotations

import logging
import re
import secrets
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import anyio
from anyio.abc import TaskGroup

from ..errors import Conflict, InvalidRequest, JournalFailed, RateLimited, SandboxFailed
from ..journal.events import ApprovedCall, InputEntry, TipMoved
from ..journal.recording import Recording
from ..journal.rows import AGENT_PURPOSE, RunRow, SessionRow
from .argument_origins import find_origin_hints
from .environment import Environment, Restored
from .environment_lease import EnvironmentLease
from .input_staging import describe_inputs
from .package_changes import StalePackages
from .result_files import ResultFiles
from .resume import NOT_RESUMABLE_REASONS
from .run import Run, RunServices
from .run_execution import PreparedSandbox, RunExecution
from .run_queue import RunQueue
from .run_spec import RunSpec
from .session_services import SessionServices

SAVE_TIMEOUT_S = 10.0  # for the files of the last run to arrive before a sandbox is given up
MAX_CODE_CHARS = 16 * 1024 * 1024  # of one run; larger things are data, and belong in a file
MAX_QUEUED_RUNS = 1_000  # of one session
MAX_RESTORE_ATTEMPTS = 2  # something outside may kill one sandbox; the replay itself kills two
CODE_FENCE = re.compile(
    r"\s*(?P<mark>```+|~~~+)[ \t]*(?:python|py|python3)?[ \t]*\n(?P<code>.*?)\n?(?P=mark)\s*",
    re.DOTALL,
)
SESSION_ID_PREFIX = "s_"

NEW_SESSION_NOTE = "The session {!r} is new."
RESUMED_NOTE = "The session was resumed in a new sandbox."
REPLACED_NOTE = "The sandbox was replaced."
REBUILT_NOTE = (
    "{} of its steps {} executed again, with recorded answers; nothing outside was touched."
)

logger = logging.getLogger(__name__)


class Session:
    """One session while it is live on this server."""

    def __init__(
        self,
        row: SessionRow,
        tip: RunRow | None,
        services: SessionServices,
        environment: Environment | None = None,
    ) -> None:
        self.tip = tip.id if tip else None  # the run whose end state is the session's
        self.step = tip.step if tip else 0
        self.queue = RunQueue()
        self.lease = EnvironmentLease(services, row.id, environment)
        self.allowed_targets: set[str] = set()  # calls that people allowed for the whole session
        self.last_used = time.monotonic()
        self.closed = anyio.Event()
        self.is_closing = False
        self._row = row
        self._services = services
        self._run_services = create_run_services(services, row.id)
        self._stale_packages = StalePackages(services.package_changes, row.principal)
        self._next_note = first_note(row)  # for the report of the next run
        self._holder_count = 0  # requests during which it must not be closed for being idle
        self._last_inputs: tuple[str | None, Sequence[InputEntry]] = None, ()  # by run

    @property
    def id(self) -> str:
        """Its id, which nobody can guess."""
        return self._row.id

    @property
    def name(self) -> str | None:
        """The name that its client has given it."""
        return self._row.name

    @property
    def principal(self) -> str:
        """Whose it is."""
        return self._row.principal

    @property
    def handle(self) -> str:
        """What a client calls it."""
        return self.name or self.id

    @property
    def parent_run_id(self) -> str | None:
        """The run whose agent works in it, if it is an agent's."""
        return self._row.origin if self._row.purpose == AGENT_PURPOSE else None

    @property
    def environment(self) -> Environment | None:
        """The sandbox that it uses, and the states that are there."""
        return self.lease.environment

    @property
    def is_busy(self) -> bool:
        """Whether it has runs that are not finished."""
        return bool(self.queue.active_runs)

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed without anybody noticing."""
        return not self.is_busy and not self._holder_count

    # what requests may do -------------------------------------------------------------------------

    @contextmanager
    def keep_open(self) -> Iterator[None]:
        """Keep it from being closed for being idle."""
        self._holder_count += 1
        try:
            yield
        finally:
            self._holder_count -= 1
            self.last_used = time.monotonic()

    def cancel_run(self, run: Run) -> None:
        """Stop a run, or take it out of the queue; raises `JournalFailed`."""
        if run.is_first_in_session:
            run.cancel()
        else:
            run.cancel_queued()
            self.queue.remove_run(run)

    def start_run(
        self,
        code: str,
        timeout_s: float,
        idempotency_key: str | None = None,
        *,
        detached: bool = False,
        dry_run: bool = False,
        shows_pages: bool = False,
        context: tuple[InputEntry, ...] | None = None,
    ) -> Run:
        """Queue `code` behind the runs that are there; `context` None keeps the inputs of the last.

        A request that comes again while its run is not finished returns that run. It is recognised
        by its key; without one, by its code, unless the run will be detached.
        """
        if len(code) > MAX_CODE_CHARS:
            raise InvalidRequest(
                f"The code has {len(code):,} characters; the limit is {MAX_CODE_CHARS:,}.",
                remedy="Let the code read large data from a file or a tool.",
            )
        self._services.journal.check_room(self.id)
        spec = RunSpec(
            strip_fences(code),
            timeout_s,
            idempotency_key,
            is_dry_run=dry_run,
            starts_detached=detached,
            shows_pages=shows_pages,
            context=context,
        )
        same = self._find_same_run(spec)
        if same is not None:
            return same
        if len(self.queue.active_runs) >= MAX_QUEUED_RUNS:
            raise RateLimited(
                f"{MAX_QUEUED_RUNS} runs of the session {self.handle} are not finished.",
                remedy="Wait for some of them, or use another session.",
            )
        if self.parent_run_id is None:  # else an agent's, whose requests to models are limited
            self._services.run_starts.count(self.principal)
        return self.enqueue_run(spec)

    def _find_same_run(self, spec: RunSpec) -> Run | None:
        """Return the active run that the same request has started."""
        for run in self.queue.active_runs:
            if run.is_cancelled or run.spec.idempotency_key != spec.idempotency_key:
                continue
            if spec.idempotency_key is not None:
                return run
            if run.spec.is_same_request(spec) and not spec.starts_detached:
                return run
        return None

    def commit_plan(
        self, plan: Recording, approvals: Sequence[ApprovedCall], timeout_s: float
    ) -> Run:
        """Execute the code of a dry run again, and make the planned calls that are approved.

        Raises `Conflict` if the session has moved on since the plan was made.
        """
        start = plan.start
        if self.is_busy or self.tip != start.parent_id:
            raise Conflict(
                f"The session {self.handle} has moved on since run {start.run_id} was planned.",
                remedy="Plan it again, or go back first with "
                f"replay(action='rewind', step={start.step - 1}).",
            )
        self._services.run_starts.count(self.principal)
        key = commit_key(start.run_id)
        return self.enqueue_run(
            RunSpec(start.code, timeout_s, key, plan, is_dry_run=True, approvals=tuple(approvals))
        )

    def enqueue_run(self, spec: RunSpec) -> Run:
        """Queue a run, whose time limit is at most the greatest one of the settings."""
        spec = replace(spec, timeout_s=min(spec.timeout_s, self._services.limits.max_timeout_s))
        slot = self._services.scheduler.create_slot(self.principal)
        run = Run(spec, self.id, self._run_services, slot, self.allowed_targets)
        self.queue.add_run(run)
        if not spec.is_offline:
            self._services.announce_code(spec.code, self.principal)
        return run

    async def move_tip(self, tip: RunRow | None) -> None:
        """Continue from the end of another run, of any session; raises `JournalFailed`."""
        journal, before = self._services.journal, (self.tip, self.step)
        moved = (tip.id, tip.step) if tip else (None, 0)
        journal.append(self.id, TipMoved(moved[0], before[0]))
        self.tip, self.step = moved
        self._stale_packages.reset()
        try:
            await journal.flush()
        except JournalFailed:
            if self.tip == moved[0] and not self.is_busy:  # a move that failed did not happen
                journal.append(self.id, TipMoved(before[0], moved[0]))
                self.tip, self.step = before
            raise

    def skip_first_note(self) -> None:
        """Do not say that it is new."""
        self._next_note = ""

    def release_requests(self) -> None:
        """End the requests that wait for its runs, if the next server resumes the runs."""
        if self._row.purpose not in NOT_RESUMABLE_REASONS:
            for run in self.queue.active_runs:
                run.release_requests()

    async def cancel_all_runs(self) -> None:
        """Cancel every run and wait until all are finished."""
        runs = self.queue.active_runs
        for run in runs:
            run.cancel()
        for run in runs:
            await run.wait_until_finished()

    def close(self) -> None:
        """Take no more runs; the session ends when those in the queue are finished."""
        self.is_closing = True
        self.queue.close()

    def shut_down(self) -> None:
        """Close at once: undo the run that somebody waits for; leave others to the next server.

        Half a step could not be restored in another sandbox. A run that waits for an answer, or
        that nobody waits for, is suspended.
        """
        self.close()
        for run in self.queue.active_runs:
            if run.survives_server:
                run.suspend()
            elif run.is_first_in_session:
                run.cancel(undo=True)
            else:  # it must not start: the tip may be a run that continues elsewhere
                try:
                    self.cancel_run(run)
                except JournalFailed as exc:
                    run.suspend()
                    logger.error("a queued run of session %s was not cancelled: %s", self.id, exc)

    # its task -------------------------------------------------------------------------------------

    async def execute_runs(self) -> None:
        """Execute runs until the session is closed."""
        try:
            async with anyio.create_task_group() as savers:
                async for run in self.queue.take_runs():
                    await self._execute_run(run, savers)
                    del run  # see `take_runs`
                with anyio.move_on_after(SAVE_TIMEOUT_S):
                    if self.environment is not None:
                        await self.environment.wait_for_files()
                savers.cancel_scope.deadline = anyio.current_time() + SAVE_TIMEOUT_S
        finally:
            self.queue.discard()
            self.lease.leave("The session was idle or was closed.")

    async def _execute_run(self, run: Run, savers: TaskGroup) -> None:
        parent, step = self.tip, self.step + 1
        recording = run.spec.recording
        if run.spec.is_resumed and recording is not None:
            parent, step = recording.start.parent_id, recording.start.step
        execution = RunExecution(
            run,
            parent,
            step,
            partial(self._prepare_sandbox, parent, run),
            self._stale_packages.take,
            self._services.find_fetchers,
        )
        try:
            await execution.execute()
        finally:
            self.queue.remove_run(run)
            self.last_used = time.monotonic()
            if run.is_undone:
                self.tip, self.step = parent, step - 1
                self._stale_packages.reset()
            else:
                self.tip, self.step = run.id, step
                self._last_inputs = run.id, execution.inputs
            self.lease.release(run, savers)
            if any(each["path"] for each in execution.inputs):
                savers.start_soon(self._hash_inputs, run, execution.inputs)

    async def _hash_inputs(self, run: Run, inputs: Sequence[InputEntry]) -> None:
        """Journal the digests of large inputs while nobody waits for the session."""
        try:
            await self._services.inputs.hash_files(
                self.id, run.id, inputs, lambda: not self.is_closing
            )
        except JournalFailed as exc:
            logger.error("the inputs of run %s were not hashed: %s", run.id, exc)

    async def _find_inputs(self, spec: RunSpec, parent: str | None) -> Sequence[InputEntry]:
        """Return the inputs of a run that follows run `parent`."""
        if spec.context is not None:
            return spec.context
        if spec.recording is not None:
            return spec.recording.start.context
        if self._last_inputs[0] != parent:
            self._last_inputs = parent, await self._services.inputs.load_context(parent)
        return self._last_inputs[1]

    async def _prepare_sandbox(self, parent: str | None, run: Run) -> PreparedSandbox:
        """Return a sandbox for `run` in the end state of run `parent`; raises `McpRuntimeError`."""
        for _ in range(MAX_RESTORE_ATTEMPTS):
            environment = await self.lease.acquire()
            with suppress(SandboxFailed):
                return await self._restore_state(environment, parent, run)
        if parent is not None:
            self._services.lost_states[parent] = "No sandbox survived it when it was restored."
        return await self._restore_state(await self.lease.acquire(), parent, run)

    async def _restore_state(
        self, environment: Environment, parent: str | None, run: Run
    ) -> PreparedSandbox:
        run.attach_link(environment.link)
        inputs = await self._find_inputs(run.spec, parent)
        restored = await environment.restore_state(parent, run)
        run.report.notes += self._take_notes(restored, run.spec)
        staged = await environment.stage_inputs(run, inputs)
        return PreparedSandbox(
            environment.link,
            inputs,
            staged,
            is_fresh=restored.is_fresh and parent is not None,
            is_shared=environment.is_shared,
            describe_restored_state=partial(describe_state_after_death, environment, parent),
        )

    def _take_notes(self, restored: Restored, spec: RunSpec) -> list[str]:
        """Return what the client of a run should know about the state that it starts from."""
        if self.lease.take_was_replaced():
            self._next_note = REPLACED_NOTE
        notes = [self._next_note]
        if restored.rebuilt_steps:
            verb = "was" if restored.rebuilt_steps == 1 else "were"
            notes.append(REBUILT_NOTE.format(restored.rebuilt_steps, verb))
        notes += restored.notes
        if spec.context:
            notes.append(describe_inputs(spec.context))
        if not spec.is_resumed:  # nobody may be there to read the notes of a resumed run
            self._next_note = ""
        return [note for note in notes if note]


def create_run_services(services: SessionServices, session_id: str) -> RunServices:
    """Return what the runs of a session work with."""
    limits = services.limits
    return RunServices(
        services.journal,
        services.router,
        limits,
        ResultFiles(limits.max_file_bytes, limits.max_shown_chars, limits.max_shown_items),
        services.get_spending,
        partial(find_origin_hints, services.journal, services.router, session_id),
        services.observers,
    )


def first_note(row: SessionRow) -> str:
    """Return the note for the first run of a session that has become live; "" for none."""
    if row.run_count:
        return RESUMED_NOTE
    return NEW_SESSION_NOTE.format(row.name) if row.name else ""


def describe_state_after_death(environment: Environment, parent: str | None) -> str:
    """Return what the next run starts with if the run after `parent` dies."""
    if parent is None:
        return "The next run starts as this one did: without variables and files."
    if environment.holds_state(parent):
        return "Variables and files are back as they were before this step."
    return (
        "Files are back as they were before this step; variables will be, "
        "as far as the journal can repeat them."
    )


def commit_key(plan: str) -> str:
    """Return the idempotency key of the run that commits the dry run `plan`, only once."""
    return f"commit:{plan}"


def new_session_id() -> str:
    """Return an id that nobody can guess."""
    return f"{SESSION_ID_PREFIX}{secrets.token_urlsafe(16)}"


def strip_fences(code: str) -> str:
    """Return `code` without a Markdown fence around it and without a common indentation."""
    fenced = CODE_FENCE.fullmatch(code)
    inner = fenced["code"] if fenced else code.removeprefix("\ufeff")
    return textwrap.dedent(inner) if inner.lstrip("\n")[:1] in (" ", "\t") else inner
