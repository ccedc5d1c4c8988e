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

from ..config import SandboxSettings, ServerSettings
from ..errors import InvalidRequest, JournalFailed, McpRuntimeError, NotFound, Unavailable
from ..inputs.service import Inputs
from ..journal.events import Answered, RunFinished, RunQueued, SessionOpened
from ..journal.replay import UNDONE, load_recording
from ..journal.rows import AGENT, Reply, RunRow, SessionRow
from ..journal.store import Journal
from ..kernel import wire
from ..sandbox import Backend
from .calls import Router
from .home import Home
from .pool import Pool
from .request import Limits
from .resume import RERUN, begun, resumed, why_not_resumable
from .run import Run
from .session import HANDLE, SAVE_S, Session, new_session_id
from .turns import Turns

CLOSE_S = (
    2.5  # for files to arrive when the server ends, interrupted code included: a client kills it after a few seconds
)
OPEN_S = 0.5  # for a session that is being opened to be there before, so that its runs are handed on, too
DAY_S = 86_400.0
IDLE_CHECK_S = 0.05  # between looks for idle sessions, at least
RESUME_S = 3600.0  # older runs that a dead server has left go on only when somebody asks for their session
ROOM_S = 0.5  # between looks for room for a session whose run is to go on
MAIL_S = 0.5  # between looks for answers that other processes have left, while a run waits for one
IDLE_MAIL_S = 5.0  # the same while none does: it may be for a run that a dead server has left
MB = 1024 * 1024
VALUE_LIMIT = 256 * 1024  # characters of a value that leave the sandbox; larger ones belong into a file
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")

logger = logging.getLogger(__name__)


class Runtime:
    """All live sessions of this server."""

    def __init__(
        self,
        settings: ServerSettings,
        journal: Journal,
        router: Router,
        pool: Pool,
        tasks: TaskGroup,
        *,
        backend: str,
        limits: Limits,
        inputs: Inputs,
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.router = router
        self.pool = pool
        self.backend = backend
        self.limits = limits
        self.turns = Turns(settings.max_runs, settings.max_runs_per_principal)
        self.lost: dict[str, str] = {}  # runs whose variables cannot be had back, and why
        self.inputs = inputs
        self.changed: set[str] = set()  # packages of tools that have changed since the server started
        self.costs: Callable[[str], Mapping[str, float]] = lambda _: {}  # what a run has paid models for, as its usage
        self.on_code: Callable[[str], None] = lambda _: None  # told of every run's code, before it runs
        self._tasks = tasks
        self._live: dict[str, Session] = {}
        self._leaving: dict[str, Session] = {}  # closed, and not yet ready to be opened anew
        self._opening = anyio.Lock()
        self._is_closing = False

    # finding sessions -----------------------------------------------------------------------------

    async def session(self, handle: str | None, principal: str) -> Session:
        """Return the principal's session `handle`; None makes a new one, and so does a name that is not taken.

        Use what is returned without waiting in between, or it may have been closed for being idle. Raises `NotFound`
        for an unknown `s_...` handle, `InvalidRequest` for a name that is none, `Unavailable` if there are too many
        sessions or another server has this one.
        """
        return await self._get(handle, principal, make=True)

    async def known_session(self, handle: str, principal: str) -> Session:
        """Return the principal's session `handle`, which must be there; raises what `session` raises."""
        return await self._get(handle, principal, make=False)

    async def settle(self, session: str) -> None:
        """Wait until all that the runs of a session have left is in the journal, if it is live on this server."""
        live = self._live.get(session)
        if live is not None and live.home is not None:
            await live.home.settle()

    def holds(self, run: str) -> bool:
        """Return whether the end state of `run` is parked, or live, in one of this server's sandboxes."""
        return any(session.home is not None and session.home.holds(run) for session in self._live.values())

    def live_run(self, run: str, principal: str) -> tuple[Session, Run] | None:
        """Return a run of the principal's that is under way, with its session."""
        for session in self._live.values():
            found = session.under_way(run) if session.principal == principal else None
            if found is not None:
                return session, found
        return None

    def agents_of(self, run: str) -> Iterator[Run]:
        """Yield what is under way of the agents that a run has begun, and of those that these have begun."""
        for session in list(self._live.values()):
            if session.begun_by == run:
                for each in session.runs:
                    yield each
                    yield from self.agents_of(each.id)

    async def _get(self, handle: str | None, principal: str, *, make: bool) -> Session:
        found = self._find(handle, principal)
        if found is not None:
            return found
        async with self._opening:
            return self._find(handle, principal) or await self._open(handle, principal, make=make)

    def _find(self, handle: str | None, principal: str) -> Session | None:
        if handle is not None:
            for session in self._live.values():
                if handle in (session.id, session.name) and session.principal == principal:
                    return session
        return None

    async def _open(self, handle: str | None, principal: str, *, make: bool) -> Session:
        if handle is None:
            await self._make_room()
            return await self._make(None, principal)
        await self._until_left(handle)
        try:
            row = await self.journal.find_session(handle, principal)
        except NotFound:
            if not make or handle.startswith(HANDLE):
                raise NotFound(
                    f"There is no session {handle!r:.80}.",
                    remedy="Leave `session` out to start one, or give a name of your own.",
                ) from None
            await self._make_room()
            return await self._make(handle, principal)
        row = await self.journal.claim(row.id)
        try:
            await self._make_room()
            session = await self._take_over(row)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.journal.release(row.id)
            raise
        return self._serve(session)

    async def _make(self, name: str | None, principal: str) -> Session:
        check_name(name)
        row = await self.journal.create_session(new_session_id(), name, principal)
        self.journal.append(row.id, SessionOpened(name, principal, self.backend))
        return self._serve(Session(row, None, self))

    async def _take_over(self, row: SessionRow) -> Session:
        """Return a session that is in the journal, with its last run if that has no end, and all that are queued.

        What an older version recorded cannot go on, and what was executed again with recorded answers must not.
        """
        session = await self._go_on(row)
        for reply in await self.journal.replies():
            if reply.session == row.id:
                tell(session, reply)
        for stored in await self.journal.events(row.id, kind="answered"):
            if isinstance(stored.event, Answered) and stored.event.scope == "session":
                session.granted.add(stored.event.target)
        for queued in await self.journal.queued(row.id):
            for stored in await self.journal.events(row.id, run=queued.id, kind="run_queued"):
                if isinstance(stored.event, RunQueued):
                    session.submit(begun(stored.event))
        return session

    async def _go_on(self, row: SessionRow) -> Session:
        tip = await self.journal.run(row.tip) if row.tip else None
        if tip is None or tip.is_over or tip.session != row.id:
            return Session(row, tip, self)
        parent = await self.journal.run(tip.parent) if tip.parent else None
        try:
            recording = await load_recording(self.journal, tip)
            problem = why_not_resumable(recording, row.purpose)
        except JournalFailed as exc:
            problem = str(exc)
        if problem:
            message = f"Its server died while it ran, and it cannot go on. {problem}"
            error = {"type": "ServerDied", "message": message, "traceback": "", "line": None}
            self.journal.append(row.id, RunFinished("crashed", None, error, None, [UNDONE]), tip.id)
            return Session(row, parent, self)
        session = Session(row, parent, self)
        session.submit(resumed(recording))
        return session

    async def fork(self, at: RunRow, name: str | None, principal: str, purpose: str = "fork") -> Session:
        """Make a session whose state is the end of run `at`; where that is parked, they share the sandbox."""
        check_name(name)
        async with self._opening:
            await self._make_room()
            return await self._fork(at, name, principal, purpose)

    async def scratch(self, at: RunRow | None, principal: str) -> Session:
        """Make a session to execute something again in, in a sandbox of its own."""
        async with self._opening:
            await self._make_room()
            return await self._fork(at, None, principal, RERUN)

    async def begun_by(self, run: str, principal: str) -> Session:
        """Make a session, without variables, in which an agent of `run` works; raises `Unavailable` without room."""
        async with self._opening:
            await self._make_room()
            row = await self.journal.create_session(new_session_id(), None, principal, None, AGENT, run)
            self.journal.append(row.id, SessionOpened(None, principal, self.backend, run, AGENT))
            return self._serve(Session(row, None, self))

    async def _fork(self, at: RunRow | None, name: str | None, principal: str, purpose: str) -> Session:
        tip = at.id if at else None
        row = await self.journal.create_session(new_session_id(), name, principal, tip, purpose)
        self.journal.append(row.id, SessionOpened(name, principal, self.backend, tip, purpose))
        return self._serve(Session(row, at, self, self._home_of(tip) if purpose == "fork" else None))

    def _home_of(self, run: str | None) -> Home | None:
        homes = (session.home for session in self._live.values())
        return next((home for home in homes if home is not None and run is not None and home.holds(run)), None)

    async def _until_left(self, handle: str) -> None:
        """Wait for a session that is being closed: its last files belong to whoever opens it anew."""
        for session in list(self._leaving.values()):
            if handle in (session.id, session.name):
                await session.closed.wait()

    async def resume_interrupted(self) -> None:
        """Have the runs go on that were under way when their servers died, but not long ago."""
        for row, run in await self.journal.interrupted():
            if time.time() - run.started < RESUME_S:
                try:
                    await self._resume(row)
                except McpRuntimeError as exc:
                    logger.error("run %s of a dead server does not go on: %s", run.id, exc)

    async def _resume(self, row: SessionRow) -> None:
        """Have a session live, as soon as there is room for it."""
        while True:
            try:
                await self.session(row.id, row.principal)
            except Unavailable:
                if not self._is_full:
                    raise
            else:
                return
            await anyio.sleep(ROOM_S)

    # answers from elsewhere -----------------------------------------------------------------------

    async def hear_replies(self) -> None:
        """Take the answers that other processes leave in the journal, for as long as the server runs.

        They are looked for, because a file tells no other process that it has changed; seldom while no run waits.
        """
        while True:
            waits = any(session.waiting for session in self._live.values())
            await anyio.sleep(MAIL_S if waits else IDLE_MAIL_S)
            try:
                for reply in await self.journal.replies():
                    await self._hear(reply)
            except McpRuntimeError as exc:
                logger.error("an answer could not be taken: %s", exc)

    async def _hear(self, reply: Reply) -> None:
        session = self._live.get(reply.session)
        if session is None:
            row = await self.journal.session(reply.session)
            session = await self.session(row.id, row.principal)  # in which the run goes on, and comes to wait again
        tell(session, reply)

    # the lives of sessions ------------------------------------------------------------------------

    def package_changed(self, name: str) -> None:
        """Have every session import the tools of package `name` anew."""
        self.changed.add(name)
        for session in self._live.values():
            session.stale.add(name)

    def _serve(self, session: Session) -> Session:
        """Have a session live that is whole: whoever finds it finds all its runs."""
        session.stale |= self.changed
        self._live[session.id] = session
        self._tasks.start_soon(self._be, session)
        return session

    async def _be(self, session: Session) -> None:
        """Be the task that a session lives in."""
        try:
            await session.serve()
        except Exception:  # a mistake of ours costs one session its sandbox, and no other anything
            logger.exception("session %s failed inside the server", session.id)
        finally:
            self._forget(session)
            with anyio.move_on_after(SAVE_S, shield=True):
                try:
                    await self.journal.release(session.id)
                except JournalFailed as exc:
                    logger.error("session %s could not be released: %s", session.id, exc)
            self._leaving.pop(session.id, None)
            session.closed.set()

    def _forget(self, session: Session) -> None:
        """Let `session` be opened anew by whoever asks for it next, once it has ended."""
        if self._live.pop(session.id, None) is not None:
            self._leaving[session.id] = session

    @property
    def _is_full(self) -> bool:
        """Whether there are as many sessions as there may be, and all of them busy."""
        return len(self._live) >= self.settings.max_sessions and not any(each.is_idle for each in self._live.values())

    async def _make_room(self) -> None:
        """Close the session that has been idle longest, if there are as many as there may be."""
        if self._is_closing:
            raise Unavailable("The server is ending.", remedy="Ask the next one.")
        if len(self._live) < self.settings.max_sessions:
            return
        idle = [session for session in self._live.values() if session.is_idle]
        if not idle:
            raise Unavailable(
                f"All {self.settings.max_sessions} sessions are busy.", remedy="Try again, or raise max_sessions."
            )
        oldest = min(idle, key=lambda session: session.used)
        self.retire(oldest)
        await oldest.closed.wait()

    async def retire_idle(self) -> None:
        """Close sessions that have been idle for too long, for as long as the server runs."""
        while True:
            due = time.monotonic() - self.settings.session_idle_s
            idle = [session for session in self._live.values() if session.is_idle]
            for session in idle:
                if session.used <= due:
                    self.retire(session)
            left = [session.used - due for session in self._live.values()]
            await anyio.sleep(max(min(left, default=self.settings.session_idle_s), IDLE_CHECK_S))

    def retire(self, session: Session) -> None:
        """Close an idle session; it can be opened anew."""
        self._forget(session)
        session.close()

    async def close(self) -> None:
        """Stop what runs and save the files of all sessions, as far as that is done in time."""
        self._is_closing = True
        with anyio.move_on_after(OPEN_S, shield=True):
            async with self._opening:
                pass
        sessions = [*self._live.values(), *self._leaving.values()]
        with anyio.move_on_after(CLOSE_S, shield=True):
            for session in sessions:
                session.cancel()
            for session in sessions:
                await session.closed.wait()


def tell(session: Session, reply: Reply) -> None:
    """Have a run know what a person has answered elsewhere, if it is under way."""
    run = session.under_way(reply.run)
    if run is not None:
        told = json.loads(reply.text)
        run.questions.hear(reply.question, told["answer"], told["by"])


def check_name(name: str | None) -> None:
    """Raise `InvalidRequest` if a session cannot be called that."""
    if name is not None and not NAME.fullmatch(name):
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
    inputs: Inputs | None = None,
) -> AsyncIterator[Runtime]:
    """Run sessions on `backend` until the context is left; then they are closed, as `Session.cancel` says.

    A question that a run waits for is open for `waits_s`. `inputs` finds and keeps those of runs.
    """
    setup = wire.Setup(
        version=wire.VERSION,
        contained=backend.isolated,
        output_limit=sandbox.output_mb * MB,
        value_limit=VALUE_LIMIT,
        workspace_limit=sandbox.workspace_mb * MB,
        process_limit=sandbox.pids if backend.isolated else 0,
        checkpoints=sandbox.checkpoints,
        checkpoint_bytes=sandbox.checkpoint_mb * MB,
        limits=backend.limits,
    )
    async with anyio.create_task_group() as pool_tasks:
        pool = Pool(backend, setup, sandbox.pool_size, pool_tasks)
        pool_tasks.start_soon(pool.fill_soon)
        try:
            async with anyio.create_task_group() as tasks:
                limits = Limits(
                    files=sandbox.workspace_mb * MB,
                    output=sandbox.output_mb * MB,
                    shown=settings.result_chars,
                    items=settings.result_items,
                    waits_s=waits_s,
                )
                parts = settings, journal, router, pool, tasks
                runtime = Runtime(*parts, backend=backend.name, limits=limits, inputs=inputs or Inputs(journal))
                tasks.start_soon(runtime.retire_idle)
                tasks.start_soon(runtime.hear_replies)
                try:
                    yield runtime
                finally:
                    await runtime.close()
                    tasks.cancel_scope.cancel()
        finally:
            pool_tasks.cancel_scope.cancel()
