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

from ..errors import InvalidRequest, JournalFailed, SandboxFailed
from ..inputs.service import Inputs
from ..journal.events import Approval, Input, SandboxEnded, SandboxStarted, TipMoved
from ..journal.replay import Recording
from ..journal.rows import AGENT, RunRow, SessionRow
from ..journal.store import Journal
from ..sandbox.link import Link
from .calls import Router
from .hints import find_hints
from .home import Arrival, Home
from .overflow import Overflow
from .placing import note_on
from .pool import Pool
from .request import Limits, Request
from .run import Run
from .turns import Turns

SAVE_S = 10.0  # for the files of the last run to arrive before a sandbox is given up
MAX_CODE = 16 * 1024 * 1024  # characters of one run's code; larger things are data, and belong in a file
TRIES = 2  # to bring variables back: one sandbox may be killed from outside, two are killed by what is executed again
MAX_KEYS = 10_000  # idempotency keys that a live session remembers; the journal knows them all
FENCE = re.compile(r"\s*(?P<mark>```+|~~~+)[ \t]*(?:python|py|python3)?[ \t]*\n(?P<code>.*?)\n?(?P=mark)\s*", re.DOTALL)
HANDLE = "s_"  # what the handles that the server gives out begin with

NEW = "The session {!r} is new."
RESUMED = "The session was resumed in a new sandbox."
REPLACED = "The sandbox was replaced."
REBUILT = "{} of its steps {} executed again, with recorded answers; nothing outside was touched."

logger = logging.getLogger(__name__)


class Surroundings(Protocol):
    """What a session needs of the runtime."""

    journal: Journal
    router: Router
    pool: Pool
    limits: Limits
    turns: Turns
    lost: dict[str, str]  # runs whose variables cannot be had back, and why
    changed: set[str]  # packages of tools that have changed since the server started
    inputs: Inputs
    costs: Callable[[str], Mapping[str, float]]
    on_code: Callable[[str], None]


class Session:
    """One session while it is live on this server."""

    def __init__(self, row: SessionRow, tip: RunRow | None, around: Surroundings, home: Home | None = None) -> None:
        self.id = row.id
        self.name = row.name
        self.principal = row.principal
        self.begun_by = row.origin if row.purpose == AGENT else None  # the run whose agent works in it
        self.used = time.monotonic()
        self.tip = tip.id if tip else None
        self.step = tip.step if tip else 0
        self.home = home
        self._around = around
        self._overflow = Overflow(around.limits.files, around.limits.shown, around.limits.items)
        self._note = RESUMED if row.runs else NEW.format(row.name) if row.name else ""
        self._send, self._receive = anyio.create_memory_object_stream[Run](math.inf)
        self._unfinished: list[Run] = []
        self._asked: dict[str, str] = {}  # idempotency key -> the run that it has started
        self._holders = 0  # requests during which it must not be closed for being idle
        self._has_turn = False  # in its home
        self._inputs: tuple[str | None, Sequence[Input]] = None, ()  # of a run, the one that is asked for again
        self.granted: set[str] = set()  # targets of calls that a person has allowed for as long as it lasts
        self.stale: set[str] = set()  # packages of tools that may have changed since its state was reached
        self.closed = anyio.Event()
        self.closing = False
        if home is not None:
            home.enter(self)

    @property
    def handle(self) -> str:
        """What a client calls this session."""
        return self.name or self.id

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way or waits for its turn."""
        return bool(self._unfinished)

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed without anybody noticing."""
        return not self._unfinished and not self._holders

    # what requests may do -------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it from being closed for being idle."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            self.used = time.monotonic()

    def run_of(self, key: str) -> str | None:
        """Return the run that the request `key` has started since this session is live."""
        return self._asked.get(key)

    @property
    def waiting(self) -> list[Run]:
        """The runs that wait for an answer."""
        return [run for run in self._unfinished if run.questions.open]

    @property
    def runs(self) -> Sequence[Run]:
        """Its runs that are under way, and those that wait for their turn."""
        return tuple(self._unfinished)

    def under_way(self, run: str) -> Run | None:
        """Return that run if it runs or waits for its turn."""
        return next((each for each in self._unfinished if each.id == run), None)

    def cancel_run(self, run: Run) -> None:
        """Stop a run, or take it out of the queue; raises `JournalFailed`."""
        if run.is_next:
            run.cancel()
        else:
            run.drop()
            self._unfinished.remove(run)

    def runs_before(self, run: Run) -> int:
        """Return how many of its runs are to end before `run` begins."""
        return self._unfinished.index(run) if run in self._unfinished else 0

    def start(
        self,
        code: str,
        timeout_s: float,
        key: str | None = None,
        *,
        detached: bool = False,
        dry_run: bool = False,
        context: tuple[Input, ...] | None = None,
    ) -> Run:
        """Queue `code`; it runs when the runs before it are over. `context` are its inputs; None: as before.

        The same request again, by its key or by its code, is the run that it has started, while that is not over; by
        its code alone only if somebody is to wait for it.
        """
        if len(code) > MAX_CODE:
            raise InvalidRequest(
                f"The code has {len(code):,} characters; the limit is {MAX_CODE:,}.",
                remedy="Have the code read large data from a file or a tool.",
            )
        code = strip_fences(code)
        for run in self._unfinished:
            asked = run.request.code, run.request.dry_run, run.request.context
            is_same = asked == (code, dry_run, context) and not detached
            if run.request.key == key and (key is not None or is_same) and not run.is_cancelled:
                return run
        return self.submit(Request(code, timeout_s, key, dry_run=dry_run, detached=detached, context=context))

    def commit(self, plan: Recording, approvals: Sequence[Approval], timeout_s: float) -> Run:
        """Execute the code of a dry run again, and make those of its planned calls that are approved.

        Raises `InvalidRequest` if the session is not in the state any more that it was planned in.
        """
        start = plan.start
        if self.is_busy or self.tip != start.parent:
            raise InvalidRequest(
                f"The session {self.handle} has gone on since run {start.run} was planned.",
                remedy=f"Plan it again, or go back with replay(action='rewind', step={start.step - 1}) first.",
            )
        key = commit_key(start.run)
        return self.submit(Request(start.code, timeout_s, key, plan, dry_run=True, approved=tuple(approvals)))

    def submit(self, request: Request) -> Run:
        """Queue a run."""
        around = self._around
        run = Run(
            request,
            self.id,
            around.journal,
            around.router,
            around.limits,
            self._overflow,
            turn=around.turns.turn(self.principal),
            granted=self.granted,
            stale=self.stale,
        )
        run.costs = partial(around.costs, run.id)
        run.questions.find_hints = partial(find_hints, around.journal, around.router, self.id)
        self._unfinished.append(run)
        if request.key is not None:
            self._asked[request.key] = run.id
            if len(self._asked) > MAX_KEYS:
                del self._asked[next(iter(self._asked))]
        self._send.send_nowait(run)
        around.on_code(request.code)
        return run

    async def move_tip(self, tip: RunRow | None) -> None:
        """Go on from the end of another run, of this session's or of any other's; raises `JournalFailed`."""
        journal, before = self._around.journal, (self.tip, self.step)
        moved = (tip.id, tip.step) if tip else (None, 0)
        journal.append(self.id, TipMoved(moved[0], before[0]))
        self.tip, self.step = moved
        self.stale |= self._around.changed
        try:
            await journal.flush()
        except JournalFailed:
            if self.tip == moved[0] and not self.is_busy:  # what is told to have failed has not happened
                journal.append(self.id, TipMoved(before[0], moved[0]))
                self.tip, self.step = before
            raise

    async def stop(self) -> None:
        """Cancel what runs or is queued, and wait until it is over."""
        runs = list(self._unfinished)
        for run in runs:
            run.cancel()
        for run in runs:
            await run.over()

    def close(self) -> None:
        """Take no more runs; the session ends when those that are queued are over."""
        self.closing = True
        self._send.close()

    def cancel(self) -> None:
        """Close; what somebody waits for is undone, for half a step could not be had back in another sandbox.

        What nobody waits for, and what waits for an answer, is left to the next server.
        """
        self.close()
        for run in list(self._unfinished):
            if run.goes_on_elsewhere:
                run.suspend()
            elif run.is_next:
                run.cancel(undo=True)
            else:  # it must not begin any more: the tip may be a run that goes on elsewhere
                try:
                    self.cancel_run(run)
                except JournalFailed as exc:
                    run.suspend()
                    logger.error("a queued run of session %s was not cancelled: %s", self.id, exc)

    # its task ---------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Execute runs until the session is closed."""
        try:
            async with anyio.create_task_group() as savers:
                async for run in self._receive:
                    if not run.finished.is_set():  # else it was cancelled in the queue
                        await self._execute(run, savers)
                with anyio.move_on_after(SAVE_S):
                    if self.home is not None:
                        await self.home.settle()
                savers.cancel_scope.deadline = anyio.current_time() + SAVE_S
        finally:
            self._send.close()
            self._receive.close()
            self._leave_home("The session was idle or was closed.")

    async def _execute(self, run: Run, savers: TaskGroup) -> None:
        recording = run.request.recording if run.request.resumes else None
        parent, step = (recording.start.parent, recording.start.step) if recording else (self.tip, self.step + 1)
        try:
            await run.execute(parent, step, partial(self._link, parent, run))
        finally:
            self._unfinished.remove(run)
            self.used = time.monotonic()
            self.tip, self.step = (parent, step - 1) if run.undone else (run.id, step)
            if run.undone:
                self.stale |= self._around.changed
            if not run.undone:
                self._inputs = run.id, run.inputs
            self._end_turn(run, savers)
            if any(each["path"] for each in run.inputs):
                savers.start_soon(self._hash, run)

    async def _hash(self, run: Run) -> None:
        """Have the journal know the content of large inputs, while nobody waits."""
        try:
            await self._around.inputs.hash_files(self.id, run.id, run.inputs, lambda: not self.closing)
        except JournalFailed as exc:
            logger.error("the inputs of run %s are not known by content: %s", run.id, exc)

    async def _inputs_of(self, run: Run, parent: str | None) -> Sequence[Input]:
        """Return what `run`, which follows run `parent`, has as inputs."""
        request = run.request
        if request.context is not None:
            return request.context
        if request.recording is not None:
            return request.recording.start.context
        if self._inputs[0] != parent:
            self._inputs = parent, await self._around.inputs.context_of(parent)
        return self._inputs[1]

    def _end_turn(self, run: Run, savers: TaskGroup) -> None:
        """Let others of the family use the sandbox; the files that `run` has changed come meanwhile."""
        if self.home is None or not self._has_turn:
            return
        self.home.ran(run)
        self.home.turn.release()
        self._has_turn = False
        if not run.files_stored.is_set():
            savers.start_soon(self.home.save, run)

    async def _link(self, parent: str | None, run: Run) -> Link:
        """Return the sandbox for `run`, in the state that run `parent` has left."""
        for _ in range(TRIES):
            home = await self._take_turn()
            with suppress(SandboxFailed):
                return await self._bring(home, parent, run)
        if parent is not None:
            self._around.lost[parent] = "No sandbox survived it when it was brought back."
        return await self._bring(await self._take_turn(), parent, run)

    async def _bring(self, home: Home, parent: str | None, run: Run) -> Link:
        run.prepare_in(home.link)
        run.inputs = await self._inputs_of(run, parent)
        run.state_after_death = partial(self._state_after_death, home, parent)
        arrival = await home.bring(parent, run)
        run.fresh = arrival.fresh and parent is not None
        self._tell(arrival, run)
        await home.provide(run)
        return home.link

    async def _take_turn(self) -> Home:
        """Return the home whose turn this session has: its family's if that is free, else one of its own."""
        if self.home is not None and self.home.is_gone:
            self._leave_home(await self.home.link.why())
            self._note = REPLACED
            self._has_turn = False
        if self.home is not None:
            try:
                self.home.turn.acquire_nowait()
            except anyio.WouldBlock:
                self._leave_home("Another session of the family is using the sandbox.")
            else:
                self._has_turn = True
                return self.home
        around = self._around
        slot = await around.pool.acquire()
        self.home = Home(slot, around.journal, around.router, around.limits, around.lost, around.inputs)
        self.home.enter(self)
        self.home.turn.acquire_nowait()
        self._has_turn = True
        info = slot.link.info
        around.journal.append(self.id, SandboxStarted(info.id, info.image, slot.link.python, slot.link.platform))
        return self.home

    def _tell(self, arrival: Arrival, run: Run) -> None:
        steps = arrival.rebuilt
        rebuilt = REBUILT.format(steps, "was" if steps == 1 else "were") if steps else ""
        notes = [self._note, rebuilt, *arrival.notes]
        if run.request.context:
            notes.append(note_on(run.request.context))
        run.report.notes += [note for note in notes if note]
        if not run.request.resumes:  # nobody may be there to read what that one says
            self._note = ""

    def _state_after_death(self, home: Home, parent: str | None) -> str:
        """Return what the next run begins with if this one dies."""
        if parent is None:
            return "The next run begins as this one did: without variables and files."
        if home.holds(parent):
            return "Variables and files are back as they were before this step."
        return "Files are back as they were before this step; variables will be, as far as the journal can repeat them."

    def _leave_home(self, reason: str) -> None:
        if self.home is not None:
            self.home.leave(self)
            self.home = None
            try:
                self._around.journal.append(self.id, SandboxEnded(reason))
            except JournalFailed as exc:
                logger.error("the end of a sandbox of session %s was not journaled: %s", self.id, exc)


def commit_key(plan: str) -> str:
    """Return the idempotency key of the run that commits the dry run `plan`: it is committed once."""
    return f"commit:{plan}"


def new_session_id() -> str:
    """Return a handle that nobody can guess."""
    return f"{HANDLE}{secrets.token_urlsafe(16)}"


def strip_fences(code: str) -> str:
    """Return `code` without a Markdown fence around it and without a common indentation."""
    fenced = FENCE.fullmatch(code)
    inner = fenced["code"] if fenced else code.removeprefix("\ufeff")
    return textwrap.dedent(inner) if inner.lstrip("\n")[:1] in (" ", "\t") else inner
