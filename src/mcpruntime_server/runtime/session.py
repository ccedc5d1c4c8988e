"""Sessions: a namespace and a workspace that outlive requests, sandboxes and the server.

Each live session is one task, which executes its runs one after the other and holds the session's sandbox. Where the
sandbox is gone (idle too long, died, server restarted) the next run gets a new one, with the workspace's files restored
from the journal; variables do not come back, and the run's notes say so.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import TaskGroup

from ..config import SandboxSettings, ServerSettings
from ..errors import InvalidRequest, JournalFailed, NotFound, Unavailable
from ..journal.events import FileEntry, FilesChanged, RunStarted, SandboxEnded, SandboxStarted, SessionOpened
from ..journal.rows import SessionRow
from ..journal.store import Journal
from ..kernel import wire
from ..sandbox import Backend
from ..sandbox.link import Link
from .calls import Router
from .overflow import Overflow
from .pool import Pool, Slot
from .run import Limits, Run, new_run_id

SAVE_S = 10.0  # for the files of the last run to arrive before a sandbox is given up
CLOSE_S = 2.5  # for the same when the server ends, interrupted code included: a client kills it after a few seconds
IDLE_CHECK_S = 0.05  # between looks for idle sessions, at least
MAX_CODE = 16 * 1024 * 1024  # characters of one run's code; larger things are data, and belong in a file
FENCE = re.compile(r"\s*(?P<mark>```+|~~~+)[ \t]*(?:python|py|python3)?[ \t]*\n(?P<code>.*?)\n?(?P=mark)\s*", re.DOTALL)
MB = 1024 * 1024
VALUE_LIMIT = 256 * 1024  # characters of a value that leave the sandbox; larger ones belong into a file
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
HANDLE = "s_"  # what the handles that the server gives out begin with

NEW = "The session {!r} is new."
RESUMED = "The session was resumed in a new sandbox: variables are gone, workspace files are kept."
REPLACED = "The sandbox was replaced: variables are gone, saved files are kept."

logger = logging.getLogger(__name__)


class Session:
    """One session while it is live on this server."""

    def __init__(self, row: SessionRow, files: dict[str, FileEntry], runtime: Runtime) -> None:
        self.id = row.id
        self.name = row.name
        self.principal = row.principal
        self.used = time.monotonic()
        self._runtime = runtime
        self._files = files
        self._step = row.runs
        self._tip = row.tip
        self._slot: Slot | None = None
        self._saving = anyio.Lock()
        self._overflow = Overflow(runtime.limits.files)
        self._note = RESUMED if row.runs else NEW.format(row.name) if row.name else ""
        self._send, self._receive = anyio.create_memory_object_stream[Run](math.inf)
        self._unfinished: set[Run] = set()
        self.stale: set[str] = set()  # packages of tools that have changed since the last run was asked for
        self.closed = anyio.Event()

    @property
    def handle(self) -> str:
        """What a client calls this session."""
        return self.name or self.id

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way or waits for its turn."""
        return bool(self._unfinished)

    def start(self, code: str, timeout_s: float) -> Run:
        """Queue `code`; it runs when the runs before it are over."""
        if len(code) > MAX_CODE:
            raise InvalidRequest(
                f"The code has {len(code):,} characters; the limit is {MAX_CODE:,}.",
                remedy="Have the code read large data from a file or a tool.",
            )
        journal, router = self._runtime.journal, self._runtime.router
        self._step += 1
        start = RunStarted(new_run_id(), self._tip, self._step, strip_fences(code), f"<step {self._step}>", timeout_s)
        run = Run(start, self.id, journal, router, self._runtime.limits, self._overflow, self.stale)
        self.stale = set()
        self._tip = start.run
        self._unfinished.add(run)
        self._send.send_nowait(run)
        self._runtime.on_code(start.code)
        return run

    def close(self) -> None:
        """Take no more runs; the session ends when those that are queued are over."""
        self._send.close()

    def cancel(self) -> None:
        """Close, and stop what runs or is queued."""
        self.close()
        for run in self._unfinished:
            run.cancel()

    async def serve(self) -> None:
        """Execute runs until the session is closed."""
        try:
            async with anyio.create_task_group() as savers:
                async for run in self._receive:
                    await self._execute(run, savers)
                with anyio.move_on_after(SAVE_S):
                    await self._until_saved()
                savers.cancel_scope.deadline = anyio.current_time() + SAVE_S
        finally:
            self._send.close()
            self._receive.close()
            self._give_up_sandbox("The session was idle or was closed.")

    async def _execute(self, run: Run, savers: TaskGroup) -> None:
        try:
            await run.execute(partial(self._link, run))
        finally:
            self._unfinished.discard(run)
            self.used = time.monotonic()
        if self._slot is not None and (run.report.changed or run.report.removed):
            savers.start_soon(self._save, run, self._slot.link)

    async def _save(self, run: Run, link: Link) -> None:
        """Take the run's files into the journal; they are what a new sandbox gets."""
        async with self._saving:  # in the order of the runs, or an older state of a file would win
            await link.saved()
            try:
                changed = await run.store_files()
            except JournalFailed as exc:
                logger.error("the files of run %s were not saved: %s", run.start.run, exc)
                return
            for path in run.report.removed:
                self._files.pop(path, None)
            self._files.update(changed)

    async def _until_saved(self) -> None:
        if self._slot is not None:
            await self._slot.link.saved()

    async def _link(self, run: Run) -> Link:
        """Return the sandbox for `run`, a new one with the files restored where there is none that lives."""
        if self._slot is not None and not self._slot.link.closed.is_set():
            return self._slot.link
        if self._slot is not None:
            self._give_up_sandbox(await self._slot.link.why())
            self._note = REPLACED
        slot = await self._runtime.pool.acquire()
        try:
            await self._move_into(slot.link, run)
        except BaseException:
            slot.release()
            raise
        self._slot = slot
        return slot.link

    async def _move_into(self, link: Link, run: Run) -> None:
        """Journal the new sandbox, say what it means for the session, and restore its files."""
        info, journal = link.info, self._runtime.journal
        journal.append(self.id, SandboxStarted(info.id, info.image, link.python, link.platform))
        async with self._saving:  # the last sandbox's files first
            for path, entry in self._files.items():
                try:
                    link.put(path, entry["mode"], await journal.get_blob(entry["digest"]))
                except (JournalFailed, NotFound) as exc:
                    run.report.notes.append(f"The file {path!r} is not restored: {exc}")
        if self._note:
            run.report.notes.append(self._note)
            self._note = ""

    def _give_up_sandbox(self, reason: str) -> None:
        if self._slot is not None:
            self._slot.release()
            self._slot = None
            try:
                self._runtime.journal.append(self.id, SandboxEnded(reason))
            except JournalFailed as exc:
                logger.error("the end of a sandbox of session %s was not journaled: %s", self.id, exc)


class Runtime:
    """All live sessions; finds, resumes and opens them."""

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
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.router = router
        self.pool = pool
        self.backend = backend
        self.limits = limits
        self._tasks = tasks
        self.on_code: Callable[[str], None] = lambda _: None  # told of every run's code, before it runs
        self._live: dict[str, Session] = {}
        self._leaving: dict[str, Session] = {}  # closed, and not yet ready to be opened anew
        self._opening = anyio.Lock()

    async def session(self, handle: str | None, principal: str) -> Session:
        """Return the principal's session `handle`; None makes a new one, and so does a name that is not taken.

        Use what is returned without waiting in between, or it may have been closed for being idle. Raises `NotFound`
        for an unknown `s_...` handle, `InvalidRequest` for a name that is none, `Unavailable` if there are too many
        sessions or another server has this one.
        """
        found = self._find(handle, principal)
        if found is not None:
            return found
        async with self._opening:
            return self._find(handle, principal) or await self._open(handle, principal)

    def package_changed(self, name: str) -> None:
        """Have every session import the tools of package `name` anew."""
        for session in self._live.values():
            session.stale.add(name)

    def forget(self, session: Session) -> None:
        """Let `session` be opened anew by whoever asks for it next, once it has ended."""
        if self._live.pop(session.id, None) is not None:
            self._leaving[session.id] = session

    async def close(self) -> None:
        """Stop what runs and save the files of all sessions, as far as that is done in time."""
        sessions = [*self._live.values(), *self._leaving.values()]
        with anyio.move_on_after(CLOSE_S, shield=True):
            for session in sessions:
                session.cancel()
            for session in sessions:
                await session.closed.wait()

    def _find(self, handle: str | None, principal: str) -> Session | None:
        if handle is not None:
            for session in self._live.values():
                if handle in (session.id, session.name) and session.principal == principal:
                    return session
        return None

    async def _open(self, handle: str | None, principal: str) -> Session:
        await self._make_room()
        if handle is None:
            row = await self.journal.create_session(new_session_id(), None, principal)
        else:
            await self._until_left(handle)
            row = await self._find_or_create(handle, principal)
        if not row.runs:
            self.journal.append(row.id, SessionOpened(row.name, principal, self.backend))
        session = self._live[row.id] = Session(row, await self._files_of(row), self)
        self._tasks.start_soon(self._serve, session)
        return session

    async def _serve(self, session: Session) -> None:
        try:
            await session.serve()
        except Exception:  # a mistake of ours costs one session its sandbox, and no other anything
            logger.exception("session %s failed inside the server", session.id)
        finally:
            self.forget(session)
            with anyio.move_on_after(SAVE_S, shield=True):
                try:
                    await self.journal.release(session.id)
                except JournalFailed as exc:
                    logger.error("session %s could not be released: %s", session.id, exc)
            self._leaving.pop(session.id, None)
            session.closed.set()

    async def _until_left(self, handle: str) -> None:
        """Wait for a session that is being closed: its last files belong to whoever opens it anew."""
        for session in list(self._leaving.values()):
            if handle in (session.id, session.name):
                await session.closed.wait()

    async def _find_or_create(self, handle: str, principal: str) -> SessionRow:
        try:
            row = await self.journal.find_session(handle, principal)
        except NotFound:
            if handle.startswith(HANDLE):
                raise NotFound(
                    f"There is no session {handle!r:.80}.",
                    remedy="Leave `session` out to start one, or give a name of your own.",
                ) from None
            if not NAME.fullmatch(handle):
                raise InvalidRequest(
                    f"{handle!r:.80} cannot name a session.",
                    remedy="Use up to 64 letters, digits, spaces, dots, dashes and underscores.",
                ) from None
            return await self.journal.create_session(new_session_id(), handle, principal)
        return await self.journal.claim(row.id)

    async def _files_of(self, row: SessionRow) -> dict[str, FileEntry]:
        """Return the workspace as the session's runs have left it."""
        files: dict[str, FileEntry] = {}
        for stored in await self.journal.events(row.id, kind="files_changed") if row.runs else ():
            if isinstance(stored.event, FilesChanged):
                for path in stored.event.removed:
                    files.pop(path, None)
                files.update(stored.event.changed)
        return files

    async def _make_room(self) -> None:
        """Close the session that has been idle longest, if there are as many as there may be."""
        if len(self._live) < self.settings.max_sessions:
            return
        idle = [session for session in self._live.values() if not session.is_busy]
        if not idle:
            raise Unavailable(
                f"All {self.settings.max_sessions} sessions are busy.", remedy="Try again, or raise max_sessions."
            )
        oldest = min(idle, key=lambda session: session.used)
        self._retire(oldest)
        await oldest.closed.wait()

    async def retire_idle(self) -> None:
        """Close sessions that have been idle for too long, for as long as the server runs."""
        while True:
            due = time.monotonic() - self.settings.session_idle_s
            idle = [session for session in self._live.values() if not session.is_busy]
            for session in idle:
                if session.used <= due:
                    self._retire(session)
            left = [session.used - due for session in self._live.values()]
            await anyio.sleep(max(min(left, default=self.settings.session_idle_s), IDLE_CHECK_S))

    def _retire(self, session: Session) -> None:
        self.forget(session)
        session.close()


@asynccontextmanager
async def open_runtime(
    settings: ServerSettings, sandbox: SandboxSettings, journal: Journal, router: Router, backend: Backend
) -> AsyncIterator[Runtime]:
    """Run sessions on `backend` until the context is left; then what is under way is cancelled and journaled so."""
    setup = wire.Setup(
        version=wire.VERSION,
        contained=backend.isolated,
        output_limit=sandbox.output_mb * MB,
        value_limit=VALUE_LIMIT,
        workspace_limit=sandbox.workspace_mb * MB,
        process_limit=sandbox.pids if backend.isolated else 0,
        seed="",  # each sandbox gets its own
        limits=backend.limits,
    )
    async with anyio.create_task_group() as pool_tasks:
        pool = Pool(backend, setup, sandbox.pool_size, pool_tasks)
        pool.fill()
        try:
            async with anyio.create_task_group() as tasks:
                limits = Limits(
                    files=sandbox.workspace_mb * MB,
                    output=sandbox.output_mb * MB,
                    shown=settings.result_chars,
                    items=settings.result_items,
                )
                runtime = Runtime(settings, journal, router, pool, tasks, backend=backend.name, limits=limits)
                tasks.start_soon(runtime.retire_idle)
                try:
                    yield runtime
                finally:
                    await runtime.close()
                    tasks.cancel_scope.cancel()
        finally:
            pool_tasks.cancel_scope.cancel()


def new_session_id() -> str:
    """Return a handle that nobody can guess."""
    return f"{HANDLE}{secrets.token_urlsafe(16)}"


def strip_fences(code: str) -> str:
    """Return `code` without a Markdown fence around it and without a common indentation."""
    fenced = FENCE.fullmatch(code)
    inner = fenced["code"] if fenced else code.removeprefix("\ufeff")
    return textwrap.dedent(inner) if inner.lstrip("\n")[:1] in (" ", "\t") else inner
