"""All live sessions: finding, resuming, opening, forking and closing them.

A session whose server died is taken over by whoever is asked for it, and a run that was under way then goes on.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from ..capabilities.inputs.store import InputStore
from ..config import SandboxSettings, ServerSettings
from ..errors import InvalidRequest, JournalFailed, McpRuntimeError, NotFound, Unavailable
from ..journal.events import QuestionAnswered, RunFinished, RunQueued, SessionOpened
from ..journal.recording import load_recording
from ..journal.rows import AGENT_PURPOSE, UNDONE_FLAG, RunRow, SessionRow, SubmittedAnswer
from ..journal.store import Journal
from ..protocol import wire
from ..sandbox import Backend
from .environment import Environment
from .resume import RERUN_PURPOSE, queued_spec, resumed_spec, why_not_resumable
from .router import Router
from .run import Run
from .run_scheduler import RunScheduler
from .run_spec import RunLimits
from .sandbox_pool import SandboxPool
from .session import SAVE_TIMEOUT_S, SESSION_ID_PREFIX, Session, new_session_id

CLOSE_TIMEOUT_S = 2.5  # for files to arrive when the server ends, interrupted code included: a client kills it after a few seconds
OPEN_TIMEOUT_S = 0.5  # for a session that is being opened to be there before, so that its runs are handed on, too
DAY_S = 86_400.0
IDLE_CHECK_INTERVAL_S = 0.05  # between looks for idle sessions, at least
MAX_RESUME_AGE_S = (
    3600.0  # older runs that a dead server has left go on only when somebody asks for their session
)
CAPACITY_POLL_INTERVAL_S = 0.5  # between looks for room for a session whose run is to go on
REPLY_POLL_INTERVAL_S = (
    0.5  # between looks for answers that other processes have left, while a run waits for one
)
IDLE_REPLY_POLL_INTERVAL_S = (
    5.0  # the same while none does: it may be for a run that a dead server has left
)
MB = 1024 * 1024
MAX_VALUE_CHARS = (
    256 * 1024
)  # characters of a value that leave the sandbox; larger ones belong into a file
SESSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")

logger = logging.getLogger(__name__)


class Runtime:
    """All live sessions of this server."""

    def __init__(
        self,
        settings: ServerSettings,
        journal: Journal,
        router: Router,
        pool: SandboxPool,
        tasks: TaskGroup,
        *,
        backend: str,
        limits: RunLimits,
        inputs: InputStore,
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.router = router
        self.pool = pool
        self.backend = backend
        self.limits = limits
        self.scheduler = RunScheduler(settings.max_runs, settings.max_runs_per_principal)
        self.lost_states: dict[str, str] = {}  # runs whose variables cannot be had back, and why
        self.inputs = inputs
        self.stale_packages: set[str] = (
            set()
        )  # packages of tools that have changed since the server started
        self.get_spending: Callable[[str], Mapping[str, float]] = (
            lambda _: {}
        )  # what a run has paid models for, as its usage
        self.announce_code: Callable[[str], None] = lambda _: (
            None
        )  # told of every run's code, before it runs
        self._tasks = tasks
        self._sessions: dict[str, Session] = {}
        self._closing_sessions: dict[
            str, Session
        ] = {}  # closed, and not yet ready to be opened anew
        self._opening_lock = anyio.Lock()
        self._is_closing = False

    # finding sessions -----------------------------------------------------------------------------

    async def open_session(self, handle: str | None, principal: str) -> Session:
        """Return the principal's session `handle`; None makes a new one, and so does a name that is not taken.

        Use what is returned without waiting in between, or it may have been closed for being idle. Raises `NotFound`
        for an unknown `s_...` handle, `InvalidRequest` for a name that is none, `Unavailable` if there are too many
        sessions or another server has this one.
        """
        return await self._find_or_open(handle, principal, create=True)

    async def find_session(self, handle: str, principal: str) -> Session:
        """Return the principal's session `handle`, which must be there; raises what `session` raises."""
        return await self._find_or_open(handle, principal, create=False)

    async def wait_for_files(self, session: str) -> None:
        """Wait until all that the runs of a session have left is in the journal, if it is live on this server."""
        live = self._sessions.get(session)
        if live is not None and live.environment is not None:
            await live.environment.wait_for_files()

    def holds_state(self, run: str) -> bool:
        """Return whether the end state of `run` is parked, or live, in one of this server's sandboxes."""
        return any(
            session.environment is not None and session.environment.holds_state(run)
            for session in self._sessions.values()
        )

    def find_active_run(self, run_id: str, principal: str) -> tuple[Session, Run] | None:
        """Return a run of the principal's that is under way, with its session."""
        for session in self._sessions.values():
            found = session.find_active_run(run_id) if session.principal == principal else None
            if found is not None:
                return session, found
        return None

    def agent_runs(self, run_id: str) -> Iterator[Run]:
        """Yield what is under way of the agents that a run has begun, and of those that these have begun."""
        for session in list(self._sessions.values()):
            if session.parent_run_id == run_id:
                for each in session.active_runs:
                    yield each
                    yield from self.agent_runs(each.id)

    async def _find_or_open(self, handle: str | None, principal: str, *, create: bool) -> Session:
        found = self._find_live(handle, principal)
        if found is not None:
            return found
        async with self._opening_lock:
            return self._find_live(handle, principal) or await self._open_handle(
                handle, principal, create=create
            )

    def _find_live(self, handle: str | None, principal: str) -> Session | None:
        if handle is not None:
            for session in self._sessions.values():
                if handle in (session.id, session.name) and session.principal == principal:
                    return session
        return None

    async def _open_handle(self, handle: str | None, principal: str, *, create: bool) -> Session:
        if handle is None:
            await self._ensure_capacity()
            return await self._create_session(None, principal)
        await self._wait_until_closed(handle)
        try:
            row = await self.journal.find_session(handle, principal)
        except NotFound:
            if not create or handle.startswith(SESSION_ID_PREFIX):
                raise NotFound(
                    f"There is no session {handle!r:.80}.",
                    remedy="Leave `session` out to start one, or give a name of your own.",
                ) from None
            await self._ensure_capacity()
            return await self._create_session(handle, principal)
        row = await self.journal.claim_session(row.id)
        try:
            await self._ensure_capacity()
            session = await self._take_over(row)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.journal.release_session(row.id)
            raise
        return self._start_session(session)

    async def _create_session(self, name: str | None, principal: str) -> Session:
        check_session_name(name)
        row = await self.journal.create_session(new_session_id(), name, principal)
        self.journal.append(row.id, SessionOpened(name, principal, self.backend))
        return self._start_session(Session(row, None, self))

    async def _take_over(self, row: SessionRow) -> Session:
        """Return a session that is in the journal, with its last run if that has no end, and all that are queued.

        What an older version recorded cannot go on, and what was executed again with recorded answers must not.
        """
        session = await self._restore_session(row)
        for reply in await self.journal.list_submitted_answers():
            if reply.session_id == row.id:
                deliver_reply(session, reply)
        for stored in await self.journal.load_events(row.id, event_type=QuestionAnswered):
            if isinstance(stored.event, QuestionAnswered) and stored.event.scope == "session":
                session.allowed_targets.add(stored.event.target)
        for queued in await self.journal.list_queued_runs(row.id):
            for stored in await self.journal.load_events(
                row.id, run_id=queued.id, event_type=RunQueued
            ):
                if isinstance(stored.event, RunQueued):
                    session.enqueue_run(queued_spec(stored.event))
        return session

    async def _restore_session(self, row: SessionRow) -> Session:
        tip = await self.journal.load_run(row.tip) if row.tip else None
        if tip is None or tip.is_finished or tip.session_id != row.id:
            return Session(row, tip, self)
        parent = await self.journal.load_run(tip.parent_id) if tip.parent_id else None
        try:
            recording = await load_recording(self.journal, tip)
            problem = why_not_resumable(recording, row.purpose)
        except JournalFailed as exc:
            problem = str(exc)
        if problem:
            message = f"Its server died while it ran, and it cannot go on. {problem}"
            error = {"type": "ServerDied", "message": message, "traceback": "", "line": None}
            self.journal.append(
                row.id, RunFinished("crashed", None, error, None, [UNDONE_FLAG]), tip.id
            )
            return Session(row, parent, self)
        session = Session(row, parent, self)
        session.enqueue_run(resumed_spec(recording))
        return session

    async def fork_session(
        self, at: RunRow, name: str | None, principal: str, purpose: str = "fork"
    ) -> Session:
        """Make a session whose state is the end of run `at`; where that is parked, they share the sandbox."""
        check_session_name(name)
        async with self._opening_lock:
            await self._ensure_capacity()
            return await self._create_fork(at, name, principal, purpose)

    async def open_scratch_session(self, at: RunRow | None, principal: str) -> Session:
        """Make a session to execute something again in, in a sandbox of its own."""
        async with self._opening_lock:
            await self._ensure_capacity()
            return await self._create_fork(at, None, principal, RERUN_PURPOSE)

    async def open_agent_session(self, run: str, principal: str) -> Session:
        """Make a session, without variables, in which an agent of `run` works; raises `Unavailable` without room."""
        async with self._opening_lock:
            await self._ensure_capacity()
            row = await self.journal.create_session(
                new_session_id(), None, principal, None, AGENT_PURPOSE, run
            )
            self.journal.append(
                row.id, SessionOpened(None, principal, self.backend, run, AGENT_PURPOSE)
            )
            return self._start_session(Session(row, None, self))

    async def _create_fork(
        self, at: RunRow | None, name: str | None, principal: str, purpose: str
    ) -> Session:
        tip = at.id if at else None
        row = await self.journal.create_session(new_session_id(), name, principal, tip, purpose)
        self.journal.append(row.id, SessionOpened(name, principal, self.backend, tip, purpose))
        return self._start_session(
            Session(row, at, self, self._find_environment(tip) if purpose == "fork" else None)
        )

    def _find_environment(self, run: str | None) -> Environment | None:
        homes = (session.environment for session in self._sessions.values())
        return next(
            (
                home
                for home in homes
                if home is not None and run is not None and home.holds_state(run)
            ),
            None,
        )

    async def _wait_until_closed(self, handle: str) -> None:
        """Wait for a session that is being closed: its last files belong to whoever opens it anew."""
        for session in list(self._closing_sessions.values()):
            if handle in (session.id, session.name):
                await session.closed.wait()

    async def resume_interrupted_runs(self) -> None:
        """Have the runs go on that were under way when their servers died, but not long ago."""
        for row, run in await self.journal.list_interrupted_runs():
            if time.time() - run.started_at < MAX_RESUME_AGE_S:
                try:
                    await self._resume_session(row)
                except McpRuntimeError as exc:
                    logger.error("run %s of a dead server does not go on: %s", run.id, exc)

    async def _resume_session(self, row: SessionRow) -> None:
        """Have a session live, as soon as there is room for it."""
        while True:
            try:
                await self.open_session(row.id, row.principal)
            except Unavailable:
                if not self._is_full:
                    raise
            else:
                return
            await anyio.sleep(CAPACITY_POLL_INTERVAL_S)

    # answers from elsewhere -----------------------------------------------------------------------

    async def receive_replies(self) -> None:
        """Take the answers that other processes leave in the journal, for as long as the server runs.

        They are looked for, because a file tells no other process that it has changed; seldom while no run waits.
        """
        while True:
            waits = any(session.waiting_runs for session in self._sessions.values())
            await anyio.sleep(REPLY_POLL_INTERVAL_S if waits else IDLE_REPLY_POLL_INTERVAL_S)
            try:
                for reply in await self.journal.list_submitted_answers():
                    await self._deliver_reply(reply)
            except McpRuntimeError as exc:
                logger.error("an answer could not be taken: %s", exc)

    async def _deliver_reply(self, reply: SubmittedAnswer) -> None:
        session = self._sessions.get(reply.session_id)
        if session is None:
            row = await self.journal.load_session(reply.session_id)
            session = await self.open_session(
                row.id, row.principal
            )  # in which the run goes on, and comes to wait again
        deliver_reply(session, reply)

    # the lives of sessions ------------------------------------------------------------------------

    def mark_package_stale(self, name: str) -> None:
        """Have every session import the tools of package `name` anew."""
        self.stale_packages.add(name)
        for session in self._sessions.values():
            session.stale_packages.add(name)

    def _start_session(self, session: Session) -> Session:
        """Have a session live that is whole: whoever finds it finds all its runs."""
        session.stale_packages |= self.stale_packages
        self._sessions[session.id] = session
        self._tasks.start_soon(self._run_session, session)
        return session

    async def _run_session(self, session: Session) -> None:
        """Be the task that a session lives in."""
        try:
            await session.execute_runs()
        except Exception:  # a mistake of ours costs one session its sandbox, and no other anything
            logger.exception("session %s failed inside the server", session.id)
        finally:
            self._forget_session(session)
            with anyio.move_on_after(SAVE_TIMEOUT_S, shield=True):
                try:
                    await self.journal.release_session(session.id)
                except JournalFailed as exc:
                    logger.error("session %s could not be released: %s", session.id, exc)
            self._closing_sessions.pop(session.id, None)
            session.closed.set()

    def _forget_session(self, session: Session) -> None:
        """Let `session` be opened anew by whoever asks for it next, once it has ended."""
        if self._sessions.pop(session.id, None) is not None:
            self._closing_sessions[session.id] = session

    @property
    def _is_full(self) -> bool:
        """Whether there are as many sessions as there may be, and all of them busy."""
        return len(self._sessions) >= self.settings.max_sessions and not any(
            each.is_idle for each in self._sessions.values()
        )

    async def _ensure_capacity(self) -> None:
        """Close the session that has been idle longest, if there are as many as there may be."""
        if self._is_closing:
            raise Unavailable("The server is ending.", remedy="Ask the next one.")
        if len(self._sessions) < self.settings.max_sessions:
            return
        idle = [session for session in self._sessions.values() if session.is_idle]
        if not idle:
            raise Unavailable(
                f"All {self.settings.max_sessions} sessions are busy.",
                remedy="Try again, or raise max_sessions.",
            )
        oldest = min(idle, key=lambda session: session.last_used)
        self.retire_session(oldest)
        await oldest.closed.wait()

    async def retire_idle_sessions(self) -> None:
        """Close sessions that have been idle for too long, for as long as the server runs."""
        while True:
            due = time.monotonic() - self.settings.session_idle_s
            idle = [session for session in self._sessions.values() if session.is_idle]
            for session in idle:
                if session.last_used <= due:
                    self.retire_session(session)
            left = [session.last_used - due for session in self._sessions.values()]
            await anyio.sleep(
                max(min(left, default=self.settings.session_idle_s), IDLE_CHECK_INTERVAL_S)
            )

    def retire_session(self, session: Session) -> None:
        """Close an idle session; it can be opened anew."""
        self._forget_session(session)
        session.close()

    async def close(self) -> None:
        """Stop what runs and save the files of all sessions, as far as that is done in time."""
        self._is_closing = True
        with anyio.move_on_after(OPEN_TIMEOUT_S, shield=True):
            async with self._opening_lock:
                pass
        sessions = [*self._sessions.values(), *self._closing_sessions.values()]
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            for session in sessions:
                session.shut_down()
            for session in sessions:
                await session.closed.wait()


def deliver_reply(session: Session, reply: SubmittedAnswer) -> None:
    """Have a run know what a person has answered elsewhere, if it is under way."""
    run = session.find_active_run(reply.run_id)
    if run is not None:
        told = json.loads(reply.answer_json)
        run.questions.receive_answer(reply.question_id, told["answer"], told["by"])


def check_session_name(name: str | None) -> None:
    """Raise `InvalidRequest` if a session cannot be called that."""
    if name is not None and not SESSION_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r:.80} cannot name a session.",
            remedy="Use up to 64 letters, digits, spaces, dots, dashes and underscores.",
        )


@asynccontextmanager
async def open_runtime(
    settings: ServerSettings,
    sandbox: SandboxSettings,
    journal: Journal,
    router: Router,
    backend: Backend,
    *,
    waits_s: float = DAY_S,
    inputs: InputStore | None = None,
) -> AsyncIterator[Runtime]:
    """Run sessions on `backend` until the context is left; then they are closed, as `Session.cancel` says.

    A question that a run waits for is open for `waits_s`. `inputs` finds and keeps those of runs.
    """
    setup = wire.Setup(
        version=wire.PROTOCOL_VERSION,
        has_own_processes=backend.is_isolated,
        max_output_bytes=sandbox.output_mb * MB,
        max_value_chars=MAX_VALUE_CHARS,
        max_file_bytes=sandbox.workspace_mb * MB,
        max_processes=sandbox.pids if backend.is_isolated else 0,
        max_checkpoints=sandbox.checkpoints,
        max_checkpoint_bytes=sandbox.checkpoint_mb * MB,
        resource_limits=backend.resource_limits,
    )
    async with anyio.create_task_group() as pool_tasks:
        pool = SandboxPool(backend, setup, sandbox.pool_size, pool_tasks)
        pool_tasks.start_soon(pool.fill_after_delay)
        try:
            async with anyio.create_task_group() as tasks:
                limits = RunLimits(
                    max_file_bytes=sandbox.workspace_mb * MB,
                    max_output_bytes=sandbox.output_mb * MB,
                    max_shown_chars=settings.result_chars,
                    max_shown_items=settings.result_items,
                    question_expires_s=waits_s,
                )
                parts = settings, journal, router, pool, tasks
                runtime = Runtime(
                    *parts,
                    backend=backend.name,
                    limits=limits,
                    inputs=inputs or InputStore(journal),
                )
                tasks.start_soon(runtime.retire_idle_sessions)
                tasks.start_soon(runtime.receive_replies)
                try:
                    yield runtime
                finally:
                    await runtime.close()
                    tasks.cancel_scope.cancel()
        finally:
            pool_tasks.cancel_scope.cancel()
