"""One session while it is live: a queue of runs, one task that executes them, and a place in a sandbox.

Rule: the session's state is the end of its tip, in the journal. A run begins from there wherever the sandbox is by
then; one whose interpreter died leaves the tip where it was.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from ..capabilities.inputs.store import InputStore
from ..errors import InvalidRequest, JournalFailed, SandboxFailed
from ..journal.events import ApprovedCall, InputEntry, SandboxStarted, SandboxStopped, TipMoved
from ..journal.recording import Recording
from ..journal.rows import AGENT_PURPOSE, RunRow, SessionRow
from ..journal.store import Journal
from ..sandbox.link import SandboxLink
from .argument_origins import find_origin_hints
from .environment import Environment, Restored
from .input_staging import describe_inputs
from .result_files import ResultFiles
from .router import Router
from .run import Run
from .run_scheduler import RunScheduler
from .run_spec import RunLimits, RunSpec
from .sandbox_pool import SandboxPool

SAVE_TIMEOUT_S = 10.0  # for the files of the last run to arrive before a sandbox is given up
MAX_CODE_CHARS = (
    16 * 1024 * 1024
)  # characters of one run's code; larger things are data, and belong in a file
MAX_RESTORE_ATTEMPTS = 2  # to bring variables back: one sandbox may be killed from outside, two are killed by what is executed again
MAX_IDEMPOTENCY_KEYS = (
    10_000  # idempotency keys that a live session remembers; the journal knows them all
)
CODE_FENCE = re.compile(
    r"\s*(?P<mark>```+|~~~+)[ \t]*(?:python|py|python3)?[ \t]*\n(?P<code>.*?)\n?(?P=mark)\s*",
    re.DOTALL,
)
SESSION_ID_PREFIX = "s_"  # what the handles that the server gives out begin with

NEW_SESSION_NOTE = "The session {!r} is new."
RESUMED_NOTE = "The session was resumed in a new sandbox."
REPLACED_NOTE = "The sandbox was replaced."
REBUILT_NOTE = (
    "{} of its steps {} executed again, with recorded answers; nothing outside was touched."
)

logger = logging.getLogger(__name__)


class SessionServices(Protocol):
    """What a session needs of the runtime."""

    journal: Journal
    router: Router
    pool: SandboxPool
    limits: RunLimits
    scheduler: RunScheduler
    lost_states: dict[str, str]  # runs whose variables cannot be had back, and why
    stale_packages: set[str]  # packages of tools that have changed since the server started
    inputs: InputStore
    get_spending: Callable[[str], Mapping[str, float]]
    announce_code: Callable[[str], None]


class Session:
    """One session while it is live on this server."""

    def __init__(
        self,
        row: SessionRow,
        tip: RunRow | None,
        services: SessionServices,
        environment: Environment | None = None,
    ) -> None:
        self.id = row.id
        self.name = row.name
        self.principal = row.principal
        self.parent_run_id = (
            row.origin if row.purpose == AGENT_PURPOSE else None
        )  # the run whose agent works in it
        self.last_used = time.monotonic()
        self.tip = tip.id if tip else None
        self.step = tip.step if tip else 0
        self.environment = environment
        self._services = services
        self._result_files = ResultFiles(
            services.limits.max_file_bytes,
            services.limits.max_shown_chars,
            services.limits.max_shown_items,
        )
        self._next_note = (
            RESUMED_NOTE if row.run_count else NEW_SESSION_NOTE.format(row.name) if row.name else ""
        )
        self._send, self._receive = anyio.create_memory_object_stream[Run](math.inf)
        self._active_runs: list[Run] = []
        self._runs_by_key: dict[str, str] = {}  # idempotency key -> the run that it has started
        self._holder_count = 0  # requests during which it must not be closed for being idle
        self._holds_environment = False  # in its home
        self._last_inputs: tuple[str | None, Sequence[InputEntry]] = (
            None,
            (),
        )  # of a run, the one that is asked for again
        self.allowed_targets: set[str] = (
            set()
        )  # targets of calls that a person has allowed for as long as it lasts
        self.stale_packages: set[str] = (
            set()
        )  # packages of tools that may have changed since its state was reached
        self.closed = anyio.Event()
        self.is_closing = False
        if environment is not None:
            environment.add_session(self)

    @property
    def handle(self) -> str:
        """What a client calls this session."""
        return self.name or self.id

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way or waits for its turn."""
        return bool(self._active_runs)

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed without anybody noticing."""
        return not self._active_runs and not self._holder_count

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

    def find_run_by_key(self, key: str) -> str | None:
        """Return the run that the request `key` has started since this session is live."""
        return self._runs_by_key.get(key)

    @property
    def waiting_runs(self) -> list[Run]:
        """The runs that wait for an answer."""
        return [run for run in self._active_runs if run.questions.open_questions]

    @property
    def active_runs(self) -> Sequence[Run]:
        """Its runs that are under way, and those that wait for their turn."""
        return tuple(self._active_runs)

    def find_active_run(self, run_id: str) -> Run | None:
        """Return that run if it runs or waits for its turn."""
        return next((each for each in self._active_runs if each.id == run_id), None)

    def cancel_run(self, run: Run) -> None:
        """Stop a run, or take it out of the queue; raises `JournalFailed`."""
        if run.is_first_in_session:
            run.cancel()
        else:
            run.cancel_queued()
            self._active_runs.remove(run)

    def count_runs_before(self, run: Run) -> int:
        """Return how many of its runs are to end before `run` begins."""
        return self._active_runs.index(run) if run in self._active_runs else 0

    def start_run(
        self,
        code: str,
        timeout_s: float,
        idempotency_key: str | None = None,
        *,
        detached: bool = False,
        dry_run: bool = False,
        context: tuple[InputEntry, ...] | None = None,
    ) -> Run:
        """Queue `code`; it runs when the runs before it are over. `context` are its inputs; None: as before.

        The same request again, by its key or by its code, is the run that it has started, while that is not over; by
        its code alone only if somebody is to wait for it.
        """
        if len(code) > MAX_CODE_CHARS:
            raise InvalidRequest(
                f"The code has {len(code):,} characters; the limit is {MAX_CODE_CHARS:,}.",
                remedy="Have the code read large data from a file or a tool.",
            )
        code = strip_fences(code)
        for run in self._active_runs:
            asked = run.spec.code, run.spec.is_dry_run, run.spec.context
            is_same = asked == (code, dry_run, context) and not detached
            if (
                run.spec.idempotency_key == idempotency_key
                and (idempotency_key is not None or is_same)
                and not run.is_cancelled
            ):
                return run
        return self.enqueue_run(
            RunSpec(
                code,
                timeout_s,
                idempotency_key,
                is_dry_run=dry_run,
                starts_detached=detached,
                context=context,
            )
        )

    def commit_plan(
        self, plan: Recording, approvals: Sequence[ApprovedCall], timeout_s: float
    ) -> Run:
        """Execute the code of a dry run again, and make those of its planned calls that are approved.

        Raises `InvalidRequest` if the session is not in the state any more that it was planned in.
        """
        start = plan.start
        if self.is_busy or self.tip != start.parent_id:
            raise InvalidRequest(
                f"The session {self.handle} has gone on since run {start.run_id} was planned.",
                remedy=f"Plan it again, or go back with replay(action='rewind', step={start.step - 1}) first.",
            )
        key = commit_key(start.run_id)
        return self.enqueue_run(
            RunSpec(start.code, timeout_s, key, plan, is_dry_run=True, approvals=tuple(approvals))
        )

    def enqueue_run(self, spec: RunSpec) -> Run:
        """Queue a run."""
        around = self._services
        run = Run(
            spec,
            self.id,
            around.journal,
            around.router,
            around.limits,
            self._result_files,
            slot=around.scheduler.create_slot(self.principal),
            allowed_targets=self.allowed_targets,
            stale_packages=self.stale_packages,
        )
        run.get_spending = partial(around.get_spending, run.id)
        run.questions.find_origin_hints = partial(
            find_origin_hints, around.journal, around.router, self.id
        )
        self._active_runs.append(run)
        if spec.idempotency_key is not None:
            self._runs_by_key[spec.idempotency_key] = run.id
            if len(self._runs_by_key) > MAX_IDEMPOTENCY_KEYS:
                del self._runs_by_key[next(iter(self._runs_by_key))]
        self._send.send_nowait(run)
        around.announce_code(spec.code)
        return run

    async def move_tip(self, tip: RunRow | None) -> None:
        """Go on from the end of another run, of this session's or of any other's; raises `JournalFailed`."""
        journal, before = self._services.journal, (self.tip, self.step)
        moved = (tip.id, tip.step) if tip else (None, 0)
        journal.append(self.id, TipMoved(moved[0], before[0]))
        self.tip, self.step = moved
        self.stale_packages |= self._services.stale_packages
        try:
            await journal.flush()
        except JournalFailed:
            if (
                self.tip == moved[0] and not self.is_busy
            ):  # what is told to have failed has not happened
                journal.append(self.id, TipMoved(before[0], moved[0]))
                self.tip, self.step = before
            raise

    async def cancel_all_runs(self) -> None:
        """Cancel what runs or is queued, and wait until it is over."""
        runs = list(self._active_runs)
        for run in runs:
            run.cancel()
        for run in runs:
            await run.wait_until_finished()

    def close(self) -> None:
        """Take no more runs; the session ends when those that are queued are over."""
        self.is_closing = True
        self._send.close()

    def shut_down(self) -> None:
        """Close; what somebody waits for is undone, for half a step could not be had back in another sandbox.

        What nobody waits for, and what waits for an answer, is left to the next server.
        """
        self.close()
        for run in list(self._active_runs):
            if run.survives_server:
                run.suspend()
            elif run.is_first_in_session:
                run.cancel(undo=True)
            else:  # it must not begin any more: the tip may be a run that goes on elsewhere
                try:
                    self.cancel_run(run)
                except JournalFailed as exc:
                    run.suspend()
                    logger.error("a queued run of session %s was not cancelled: %s", self.id, exc)

    # its task ---------------------------------------------------------------------------------------

    async def execute_runs(self) -> None:
        """Execute runs until the session is closed."""
        try:
            async with anyio.create_task_group() as savers:
                async for run in self._receive:
                    if not run.finished.is_set():  # else it was cancelled in the queue
                        await self._execute_run(run, savers)
                with anyio.move_on_after(SAVE_TIMEOUT_S):
                    if self.environment is not None:
                        await self.environment.wait_for_files()
                savers.cancel_scope.deadline = anyio.current_time() + SAVE_TIMEOUT_S
        finally:
            self._send.close()
            self._receive.close()
            self._leave_environment("The session was idle or was closed.")

    async def _execute_run(self, run: Run, savers: TaskGroup) -> None:
        recording = run.spec.recording if run.spec.is_resumed else None
        parent, step = (
            (recording.start.parent_id, recording.start.step)
            if recording
            else (self.tip, self.step + 1)
        )
        try:
            await run.execute(parent, step, partial(self._restore_link, parent, run))
        finally:
            self._active_runs.remove(run)
            self.last_used = time.monotonic()
            self.tip, self.step = (parent, step - 1) if run.is_undone else (run.id, step)
            if run.is_undone:
                self.stale_packages |= self._services.stale_packages
            if not run.is_undone:
                self._last_inputs = run.id, run.inputs
            self._release_environment(run, savers)
            if any(each["path"] for each in run.inputs):
                savers.start_soon(self._hash_inputs, run)

    async def _hash_inputs(self, run: Run) -> None:
        """Have the journal know the content of large inputs, while nobody waits."""
        try:
            await self._services.inputs.hash_files(
                self.id, run.id, run.inputs, lambda: not self.is_closing
            )
        except JournalFailed as exc:
            logger.error("the inputs of run %s are not known by content: %s", run.id, exc)

    async def _find_inputs(self, run: Run, parent: str | None) -> Sequence[InputEntry]:
        """Return what `run`, which follows run `parent`, has as inputs."""
        request = run.spec
        if request.context is not None:
            return request.context
        if request.recording is not None:
            return request.recording.start.context
        if self._last_inputs[0] != parent:
            self._last_inputs = parent, await self._services.inputs.load_context(parent)
        return self._last_inputs[1]

    def _release_environment(self, run: Run, savers: TaskGroup) -> None:
        """Let others of the family use the sandbox; the files that `run` has changed come meanwhile."""
        if self.environment is None or not self._holds_environment:
            return
        self.environment.record_run_end(run)
        self.environment.use_lock.release()
        self._holds_environment = False
        if not run.files_stored.is_set():
            savers.start_soon(self.environment.save_files, run)

    async def _restore_link(self, parent: str | None, run: Run) -> SandboxLink:
        """Return the sandbox for `run`, in the state that run `parent` has left."""
        for _ in range(MAX_RESTORE_ATTEMPTS):
            home = await self._acquire_environment()
            with suppress(SandboxFailed):
                return await self._restore_state(home, parent, run)
        if parent is not None:
            self._services.lost_states[parent] = "No sandbox survived it when it was brought back."
        return await self._restore_state(await self._acquire_environment(), parent, run)

    async def _restore_state(self, home: Environment, parent: str | None, run: Run) -> SandboxLink:
        run.attach_link(home.link)
        run.inputs = await self._find_inputs(run, parent)
        run.describe_restored_state = partial(self._describe_restored_state, home, parent)
        arrival = await home.restore_state(parent, run)
        run.starts_fresh = arrival.is_fresh and parent is not None
        self._add_notes(arrival, run)
        await home.stage_inputs(run)
        return home.link

    async def _acquire_environment(self) -> Environment:
        """Return the home whose turn this session has: its family's if that is free, else one of its own."""
        if self.environment is not None and self.environment.is_closed:
            self._leave_environment(await self.environment.link.describe_failure())
            self._next_note = REPLACED_NOTE
            self._holds_environment = False
        if self.environment is not None:
            try:
                self.environment.use_lock.acquire_nowait()
            except anyio.WouldBlock:
                self._leave_environment("Another session of the family is using the sandbox.")
            else:
                self._holds_environment = True
                return self.environment
        around = self._services
        slot = await around.pool.acquire()
        self.environment = Environment(
            slot, around.journal, around.router, around.limits, around.lost_states, around.inputs
        )
        self.environment.add_session(self)
        self.environment.use_lock.acquire_nowait()
        self._holds_environment = True
        info = slot.link.info
        around.journal.append(
            self.id,
            SandboxStarted(info.id, info.image, slot.link.python_version, slot.link.platform),
        )
        return self.environment

    def _add_notes(self, arrival: Restored, run: Run) -> None:
        steps = arrival.rebuilt_steps
        rebuilt = REBUILT_NOTE.format(steps, "was" if steps == 1 else "were") if steps else ""
        notes = [self._next_note, rebuilt, *arrival.notes]
        if run.spec.context:
            notes.append(describe_inputs(run.spec.context))
        run.report.notes += [note for note in notes if note]
        if not run.spec.is_resumed:  # nobody may be there to read what that one says
            self._next_note = ""

    def _describe_restored_state(self, home: Environment, parent: str | None) -> str:
        """Return what the next run begins with if this one dies."""
        if parent is None:
            return "The next run begins as this one did: without variables and files."
        if home.holds_state(parent):
            return "Variables and files are back as they were before this step."
        return "Files are back as they were before this step; variables will be, as far as the journal can repeat them."

    def _leave_environment(self, reason: str) -> None:
        if self.environment is not None:
            self.environment.remove_session(self)
            self.environment = None
            try:
                self._services.journal.append(self.id, SandboxStopped(reason))
            except JournalFailed as exc:
                logger.error(
                    "the end of a sandbox of session %s was not journaled: %s", self.id, exc
                )


def commit_key(plan: str) -> str:
    """Return the idempotency key of the run that commits the dry run `plan`: it is committed once."""
    return f"commit:{plan}"


def new_session_id() -> str:
    """Return a handle that nobody can guess."""
    return f"{SESSION_ID_PREFIX}{secrets.token_urlsafe(16)}"


def strip_fences(code: str) -> str:
    """Return `code` without a Markdown fence around it and without a common indentation."""
    fenced = CODE_FENCE.fullmatch(code)
    inner = fenced["code"] if fenced else code.removeprefix("\ufeff")
    return textwrap.dedent(inner) if inner.lstrip("\n")[:1] in (" ", "\t") else inner
