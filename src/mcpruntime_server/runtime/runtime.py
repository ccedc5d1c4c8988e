"""All live sessions: finding, resuming, opening, forking and closing them.

When the server of a session has died, the first server that is asked for the session takes it over
and continues its unfinished run.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import TaskGroup

from ..config import SandboxSettings, ServerSettings
from ..errors import Conflict, InvalidRequest, JournalFailed, McpRuntimeError, NotFound, Unavailable
from ..journal import retention
from ..journal.events import QuestionAnswered, RunError, RunFinished, RunQueued, SessionOpened
from ..journal.recording import load_recording
from ..journal.rows import AGENT_PURPOSE, UNDONE_FLAG, RunRow, SessionRow, SubmittedAnswer
from ..journal.store import Journal
from ..protocol import wire
from ..sandbox import Backend
from ..sandbox.link import LinkHelpers, ReadLargeCall
from .environment import Environment
from .input_provider import InputProvider
from .observer import NO_OBSERVERS, Observers
from .package_changes import PackageChanges
from .rates import RunStarts
from .resume import FORK_PURPOSE, RERUN_PURPOSE, queued_spec, resumed_spec, why_not_resumable
from .router import Router
from .run import Run
from .run_scheduler import RunScheduler
from .run_spec import RunLimits
from .run_state import FINAL_STATES, RunState
from .sandbox_facts import collect_facts, name_python
from .sandbox_pool import SandboxPool
from .session import SAVE_TIMEOUT_S, SESSION_ID_PREFIX, Session, new_session_id
from .session_services import SessionServices

CLOSE_TIMEOUT_S = 2.5  # for interrupted code and its files: a client soon kills a server that ends
OPEN_TIMEOUT_S = 0.5  # for a session that is being opened: its runs are suspended, too
QUIET_S = 10.0  # after which a moment of work that is not urgent disturbs nobody
DAY_S = 86_400.0
IDLE_CHECK_INTERVAL_S = 0.05  # at least
MAX_RESUME_AGE_S = 3600.0  # older runs of dead servers are resumed only with their session
CAPACITY_POLL_INTERVAL_S = 0.5  # while there is no room for a session with a run to resume
REPLY_POLL_INTERVAL_S = 0.5  # for answers from other processes, while a run waits for one
BUSY_REPLY_POLL_INTERVAL_S = 1.0  # while runs are active, which another process may cancel
IDLE_REPLY_POLL_INTERVAL_S = 5.0  # while none is: an answer may be for a dead server's run
ATTACHED_PURPOSES = (RERUN_PURPOSE, AGENT_PURPOSE)  # of sessions that are deleted with another
MB = 1024 * 1024
MAX_VALUE_CHARS = 256 * 1024  # of a value that leaves the sandbox whole
SESSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")

logger = logging.getLogger(__name__)


class Runtime:
    """All live sessions of this server; `tasks` is the group that they live in."""

    def __init__(
        self,
        settings: ServerSettings,
        services: SessionServices,
        backend: Backend,
        tasks: TaskGroup,
    ) -> None:
        self._settings = settings
        self._services = services
        self._backend = backend
        self._tasks = tasks
        self._sessions: dict[str, Session] = {}
        self._closing_sessions: dict[str, Session] = {}  # not ready to be opened again yet
        self._opening_lock = anyio.Lock()
        self._is_closing = False
        self.is_stopping = False  # requests must no longer wait for runs

    @property
    def journal(self) -> Journal:
        """Where everything that happens is recorded."""
        return self._services.journal

    def count_sandboxes(self) -> dict[str, int]:
        """Return how many sandboxes are starting, ready and in use, by these names."""
        return self._services.pool.count_sandboxes()

    def count_sessions(self) -> dict[str, int]:
        """Return how many live sessions are idle and busy, by these names."""
        idle = sum(session.is_idle for session in self._sessions.values())
        return {"idle": idle, "busy": len(self._sessions) - idle}

    def is_quiet(self) -> bool:
        """Return whether no session has been used for some seconds."""
        due = time.monotonic() - QUIET_S
        return all(each.is_idle and each.last_used <= due for each in self._sessions.values())

    def count_active_runs(self) -> dict[str, int]:
        """Return how many unfinished runs are in each state, by the states' names."""
        names = (state.name.lower() for state in RunState if state not in FINAL_STATES)
        counts = dict.fromkeys(names, 0)
        for session in self._sessions.values():
            for run in session.queue.active_runs:
                if not run.lifecycle.is_final:
                    counts[run.lifecycle.state.name.lower()] += 1
        return counts

    async def name_python(self) -> str:
        """Return the interpreter of new sandboxes, with its version if it is known."""
        return await name_python(self._backend, self.journal, self._services.pool)

    # finding sessions and runs --------------------------------------------------------------------

    async def open_session(self, handle: str | None, principal: str) -> Session:
        """Return the principal's session `handle`; None, or a name that is not taken, creates one.

        Use the session without awaiting anything first, or it may be closed for being idle. Raises
        `NotFound` for an unknown `s_...` handle, `InvalidRequest` for an invalid name, and
        `Unavailable` if there are too many sessions or another server has this one.
        """
        return await self._find_or_open(handle, principal, create=True)

    async def find_session(self, handle: str, principal: str) -> Session:
        """Return the principal's existing session `handle`; raises as `open_session` does."""
        return await self._find_or_open(handle, principal, create=False)

    async def wait_for_files(self, session_id: str) -> None:
        """Wait until everything that a session's runs have left is in the journal."""
        live = self._sessions.get(session_id)
        if live is not None and live.environment is not None:
            await live.environment.wait_for_files()

    def find_active_run(self, run_id: str, principal: str) -> tuple[Session, Run] | None:
        """Return a run of the principal's that is not finished, with its session."""
        for session in self._sessions.values():
            if session.principal == principal:
                run = session.queue.find_active(run_id)
                if run is not None:
                    return session, run
        return None

    def agent_runs(self, run_id: str) -> Iterator[Run]:
        """Yield the active runs of the agents that a run has started, and of their agents."""
        for session in list(self._sessions.values()):
            if session.parent_run_id == run_id:
                for run in session.queue.active_runs:
                    yield run
                    yield from self.agent_runs(run.id)

    def count_start(self, principal: str) -> None:
        """Count runs that a request of a principal starts; raises `RateLimited`."""
        self._services.run_starts.count(principal)

    def current_tier(self, run_id: str, recorded: str) -> str:
        """Return how the variables at the end of a run can be restored on this server now.

        `recorded` is the tier that follows from the journal alone; "" for a run without a state.
        """
        if recorded and self._find_environment(run_id) is not None:
            return "parked"
        return "files-only" if recorded and run_id in self._services.lost_states else recorded

    async def _find_or_open(self, handle: str | None, principal: str, *, create: bool) -> Session:
        found = self._find_live(handle, principal)
        if found is not None:
            return found
        async with self._opening_lock:
            found = self._find_live(handle, principal)
            return found or await self._open_handle(handle, principal, create=create)

    def _find_live(self, handle: str | None, principal: str) -> Session | None:
        if handle is not None:
            for session in self._sessions.values():
                if handle in (session.id, session.name) and session.principal == principal:
                    return session
        return None

    def _find_environment(self, run_id: str) -> Environment | None:
        """Return an environment that holds the end state of a run."""
        for session in self._sessions.values():
            if session.environment is not None and session.environment.holds_state(run_id):
                return session.environment
        return None

    # opening sessions -----------------------------------------------------------------------------

    async def _open_handle(self, handle: str | None, principal: str, *, create: bool) -> Session:
        if handle is None:
            return await self._create_session(None, principal)
        await self._wait_until_closed(handle)
        try:
            row = await self.journal.find_session(handle, principal)
        except NotFound:
            if create and not handle.startswith(SESSION_ID_PREFIX):
                return await self._create_session(handle, principal)
            raise NotFound(
                f"There is no session {handle!r:.80}.",
                remedy="Leave `session` out to start one, or give a name of your own.",
            ) from None
        row = await self.journal.claim_session(row.id)
        try:
            await self._ensure_capacity(principal)
            session = await self._take_over(row)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.journal.release_session(row.id)
            raise
        return self._start_session(session)

    async def _wait_until_closed(self, handle: str) -> None:
        """Wait for a session that is being closed: its last files must be saved first."""
        for session in list(self._closing_sessions.values()):
            if handle in (session.id, session.name):
                await session.closed.wait()

    async def _create_session(
        self,
        name: str | None,
        principal: str,
        tip: RunRow | None = None,
        purpose: str = "",
        parent_run_id: str | None = None,
        *,
        shares_environment: bool = False,
    ) -> Session:
        """Create a session that starts from run `tip`, or an agent's for `parent_run_id`."""
        check_session_name(name)
        await self._ensure_capacity(principal)
        session_id, tip_id = new_session_id(), tip.id if tip else None
        origin = parent_run_id or tip_id
        # A request that is cancelled meanwhile would leave a name that is taken by no session.
        with anyio.CancelScope(shield=True):
            row = await self.journal.create_session(
                session_id, name, principal, tip_id, purpose, parent_run_id
            )
        opened = SessionOpened(name, principal, self._backend.name, origin, purpose)
        self.journal.append(row.id, opened)
        environment = self._find_environment(tip.id) if tip and shares_environment else None
        return self._start_session(Session(row, tip, self._services, environment))

    async def fork_session(self, at: RunRow, name: str | None, principal: str) -> Session:
        """Create a session that starts from the end of run `at`.

        It shares the sandbox that holds that state, if there is one.
        """
        async with self._opening_lock:
            return await self._create_session(
                name, principal, at, FORK_PURPOSE, shares_environment=True
            )

    async def open_scratch_session(self, at: RunRow | None, principal: str) -> Session:
        """Create a session to execute something again in, in a sandbox of its own."""
        async with self._opening_lock:
            return await self._create_session(None, principal, at, RERUN_PURPOSE)

    async def open_agent_session(self, run_id: str, principal: str) -> Session:
        """Create an empty session for an agent of a run; raises `Unavailable` if none is free."""
        async with self._opening_lock:
            return await self._create_session(None, principal, None, AGENT_PURPOSE, run_id)

    # taking over sessions of dead servers ---------------------------------------------------------

    async def _take_over(self, row: SessionRow) -> Session:
        """Return a session from the journal, with its unfinished run and its queued runs."""
        session = await self._restore_session(row)
        for answer in await self.journal.list_submitted_answers():
            if answer.session_id == row.id:
                deliver_answer(session, answer)
        for stored in await self.journal.load_events(row.id, event_type=QuestionAnswered):
            if isinstance(stored.event, QuestionAnswered) and stored.event.scope == "session":
                session.allowed_targets.add(stored.event.target)
        for queued in await self.journal.list_queued_runs(row.id):
            events = await self.journal.load_events(row.id, run_id=queued.id, event_type=RunQueued)
            for stored in events:
                if isinstance(stored.event, RunQueued):
                    session.enqueue_run(queued_spec(stored.event))
        return session

    async def _restore_session(self, row: SessionRow) -> Session:
        """Return a session whose unfinished run is resumed, or ended if it cannot be resumed."""
        tip = await self.journal.load_run(row.tip) if row.tip else None
        if tip is None or tip.is_finished or tip.session_id != row.id:
            return Session(row, tip, self._services)
        parent = await self.journal.load_run(tip.parent_id) if tip.parent_id else None
        session = Session(row, parent, self._services)
        try:
            recording = await load_recording(self.journal, tip)
            problem = why_not_resumable(recording, row.purpose)
        except JournalFailed as exc:
            problem = str(exc)
        if not problem:
            session.enqueue_run(resumed_spec(recording))
            return session
        message = f"Its server died while it ran, and it cannot be resumed. {problem}"
        error: RunError = {
            "type": "ServerDied",
            "message": message,
            "traceback": "",
            "line": None,
            "hint": "",
        }
        crashed = RunFinished("crashed", None, error, None, [UNDONE_FLAG])
        self.journal.append(row.id, crashed, tip.id)
        return session

    async def resume_interrupted_runs(self) -> None:
        """Resume the runs that were active when their servers died, unless that is long ago."""
        for row, run in await self.journal.list_interrupted_runs():
            if time.time() - run.started_at < MAX_RESUME_AGE_S:
                try:
                    await self._resume_session(row)
                except McpRuntimeError as exc:
                    logger.error("run %s of a dead server is not resumed: %s", run.id, exc)

    async def _resume_session(self, row: SessionRow) -> None:
        """Open a session as soon as there is room for it."""
        while True:
            try:
                await self.open_session(row.id, row.principal)
            except Unavailable:
                if not self._is_full(row.principal):
                    raise
            else:
                return
            await anyio.sleep(CAPACITY_POLL_INTERVAL_S)

    # answers from other processes -----------------------------------------------------------------

    async def receive_submitted_answers(self) -> None:
        """Deliver the answers that other processes leave in the journal, until cancelled.

        The journal is polled, because a file cannot tell another process that it has changed.
        """
        while True:
            waited_s = 0.0
            while waited_s < self._reply_poll_interval_s():  # shorter once a run waits
                await anyio.sleep(REPLY_POLL_INTERVAL_S)
                waited_s += REPLY_POLL_INTERVAL_S
            try:
                for answer in await self.journal.list_submitted_answers():
                    await self._deliver_answer(answer)
            except McpRuntimeError as exc:
                logger.error("an answer could not be delivered: %s", exc)

    def _reply_poll_interval_s(self) -> float:
        queues = [session.queue for session in self._sessions.values()]
        if any(queue.waiting_runs for queue in queues):
            return REPLY_POLL_INTERVAL_S
        is_busy = any(queue.active_runs for queue in queues)
        return BUSY_REPLY_POLL_INTERVAL_S if is_busy else IDLE_REPLY_POLL_INTERVAL_S

    async def _deliver_answer(self, answer: SubmittedAnswer) -> None:
        session = self._sessions.get(answer.session_id)
        if session is None:  # its run is resumed, and asks again
            row = await self.journal.load_session(answer.session_id)
            session = await self.open_session(row.id, row.principal)
        deliver_answer(session, answer)

    # the lifetimes of sessions --------------------------------------------------------------------

    def _start_session(self, session: Session) -> Session:
        """Make a session live that has all its runs."""
        self._sessions[session.id] = session
        self._tasks.start_soon(self._run_session, session)
        return session

    async def _run_session(self, session: Session) -> None:
        """Execute the runs of a session until it is closed, then release it."""
        try:
            await session.execute_runs()
        except Exception:  # a mistake of ours must not take other sessions with it
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
        """Let the next request for `session` open it again, once it is closed."""
        if self._sessions.pop(session.id, None) is not None:
            self._closing_sessions[session.id] = session

    def _is_full(self, principal: str) -> bool:
        """Return whether the maximum number of sessions is live and all of them are busy."""
        candidates = self._sessions_in_the_way(principal)
        return bool(candidates) and not any(each.is_idle for each in candidates)

    async def _ensure_capacity(self, principal: str) -> None:
        """Close an idle session, if the maximum number is live, of all or of a principal.

        It is one of the principal that has most, and of these the one that has been idle longest.
        Raises `Unavailable` if none is idle.
        """
        if self._is_closing:
            raise Unavailable("The server is shutting down.", remedy="Ask the next one.")
        candidates = self._sessions_in_the_way(principal)
        if not candidates:
            return
        idle = [session for session in candidates if session.is_idle]
        if not idle:
            is_shared = any(session.principal != principal for session in candidates)
            setting = "max_sessions" if is_shared else "max_sessions_per_principal"
            raise Unavailable(
                f"All {len(candidates)} sessions are busy.",
                remedy=f"Try again, or raise {setting}.",
            )
        counts = Counter(session.principal for session in self._sessions.values())
        oldest = min(idle, key=lambda session: (-counts[session.principal], session.last_used))
        self.retire_session(oldest)
        await oldest.closed.wait()

    def _sessions_in_the_way(self, principal: str) -> Sequence[Session]:
        """Return the live sessions, one of which must be closed before a principal gets another."""
        sessions = tuple(self._sessions.values())
        own = [session for session in sessions if session.principal == principal]
        if len(own) >= self._settings.max_sessions_per_principal:
            return own
        return sessions if len(sessions) >= self._settings.max_sessions else ()

    async def retire_idle_sessions(self) -> None:
        """Close sessions that have been idle for too long, as long as the server runs."""
        limit_s = self._settings.session_idle_s
        while True:
            due = time.monotonic() - limit_s
            for session in list(self._sessions.values()):
                if session.is_idle and session.last_used <= due:
                    self.retire_session(session)
            left_s = [session.last_used - due for session in self._sessions.values()]
            await anyio.sleep(max(min(left_s, default=limit_s), IDLE_CHECK_INTERVAL_S))

    def retire_session(self, session: Session) -> None:
        """Close an idle session; it can be opened again."""
        self._forget_session(session)
        session.close()

    async def delete_session(self, row: SessionRow) -> None:
        """Delete an idle session with its attempts and its agents; forks are never deleted with it.

        Raises `Conflict` if a run of it is unfinished or pinned, or if a fork needs its steps, and
        `Unavailable` if another server has it.
        """
        async with self._opening_lock:
            survey = partial(retention.list_removed_sessions, row.id, ATTACHED_PURPOSES)
            found = await self.journal.read(survey)
            for session_id in found:
                self._check_deletable(session_id)
            for session_id in found:
                if session_id in self._sessions:
                    self.retire_session(self._sessions[session_id])
                await self._wait_until_closed(session_id)
            await self.journal.claim_session(row.id)
            try:
                hidden = await retention.hide_session(self.journal, row.id, ATTACHED_PURPOSES)
            finally:
                with anyio.CancelScope(shield=True):
                    await self.journal.release_session(row.id)
        await retention.erase_hidden_sessions(self.journal, hidden)
        logger.info("%s deleted session %s, %d in all", row.principal, row.id, len(hidden))

    def _check_deletable(self, session_id: str) -> None:
        live = self._sessions.get(session_id)
        if live is not None and not live.is_idle:
            raise Conflict(
                "A run of the session is unfinished, so it is not deleted.",
                remedy="Cancel the run, or wait for its end.",
            )

    def release_requests(self) -> None:
        """End all requests with what is known of their runs, which the next server continues."""
        self.is_stopping = True
        for session in self._sessions.values():
            session.release_requests()

    async def close(self) -> None:
        """Stop all runs and save the files of all sessions, as far as there is time for it."""
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


def deliver_answer(session: Session, answer: SubmittedAnswer) -> None:
    """Give a run the answer that another process has submitted, if it is active, or cancel it."""
    run = session.queue.find_active(answer.run_id)
    if run is not None and answer.is_cancellation:
        if not run.control.stop_request.is_cancelled:
            session.cancel_run(run)
    elif run is not None:
        data = json.loads(answer.answer_json)
        run.questions.receive_answer(answer.question_id, data["answer"], data["by"])


def check_session_name(name: str | None) -> None:
    """Raise `InvalidRequest` if a session cannot have that name."""
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
    inputs: InputProvider,
    *,
    package_changes: PackageChanges | None = None,
    get_spending: Callable[[str], Mapping[str, float]] = lambda _: {},
    announce_code: Callable[[str, str], None] = lambda *_: None,
    question_expires_s: float = DAY_S,
    runs_per_minute: int = 0,
    approvals_command: str = "",
    find_fetchers: Callable[[], Sequence[str]] = tuple,
    web_rules: Sequence[str] = (),
    observers: Observers = NO_OBSERVERS,
    read_large_call: ReadLargeCall | None = None,
) -> AsyncIterator[Runtime]:
    """Run sessions on `backend` until the context is left; then they are shut down.

    `get_spending` returns what a run has paid models, by the names that its usage has;
    `announce_code` is called with code and principal of every run before it starts.
    `approvals_command` is named to people who have to answer, what `find_fetchers` returns to code
    that looks for a network. With `web_rules`, code may make web requests. `read_large_call` reads
    calls that would hold the event loop.
    """
    setup = wire.Setup(
        version=wire.PROTOCOL_VERSION,
        has_own_processes=backend.is_isolated,
        max_output_bytes=sandbox.output_mb * MB,
        max_value_chars=MAX_VALUE_CHARS,
        max_shown_chars=settings.result_chars,
        max_shown_items=settings.result_items,
        max_file_bytes=sandbox.workspace_mb * MB,
        max_processes=sandbox.pids if backend.is_isolated else 0,
        max_checkpoints=sandbox.checkpoints,
        max_checkpoint_bytes=sandbox.checkpoint_mb * MB,
        resource_limits=backend.resource_limits,
        facts=dict(collect_facts(settings, sandbox, web_rules, is_isolated=backend.is_isolated)),
        web={} if web_rules else None,
    )
    limits = RunLimits(
        max_timeout_s=sandbox.max_timeout_s,
        max_file_bytes=sandbox.workspace_mb * MB,
        max_output_bytes=sandbox.output_mb * MB,
        max_shown_chars=settings.result_chars,
        max_shown_items=settings.result_items,
        question_expires_s=question_expires_s,
        approvals_command=approvals_command,
    )
    helpers = LinkHelpers(router.supply_reply, read_large_call)
    async with anyio.create_task_group() as pool_tasks:
        pool = SandboxPool(backend, setup, sandbox.pool_size, pool_tasks, observers, helpers)
        pool_tasks.start_soon(pool.fill_after_start)
        services = SessionServices(
            journal=journal,
            router=router,
            pool=pool,
            limits=limits,
            scheduler=RunScheduler(settings.max_runs, settings.max_runs_per_principal),
            inputs=inputs,
            package_changes=package_changes or PackageChanges(),
            get_spending=get_spending,
            announce_code=announce_code,
            run_starts=RunStarts(runs_per_minute),
            find_fetchers=find_fetchers,
            observers=observers,
        )
        try:
            async with anyio.create_task_group() as tasks:
                runtime = Runtime(settings, services, backend, tasks)
                tasks.start_soon(runtime.retire_idle_sessions)
                tasks.start_soon(runtime.receive_submitted_answers)
                try:
                    yield runtime
                finally:
                    await runtime.close()
                    tasks.cancel_scope.cancel()
        finally:
            pool_tasks.cancel_scope.cancel()
