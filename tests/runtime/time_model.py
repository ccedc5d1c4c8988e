"""A plain model of sessions that move in time, and a player that does the same to real ones and compares.

A state is variables and files; a run makes one from another; sessions point at runs. That is all that the model knows.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from mcpruntime_server.config import SandboxSettings, ServerSettings
from mcpruntime_server.journal.store import open_journal
from mcpruntime_server.runtime import history, timeline
from mcpruntime_server.runtime.calls import Route, Router
from mcpruntime_server.runtime.run import Run
from mcpruntime_server.runtime.session import Session
from mcpruntime_server.runtime.sessions import open_runtime
from mcpruntime_server.sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from mcpruntime_server.sandbox.docker import DockerBackend
from mcpruntime_server.sandbox.local import LocalBackend, _processes

SANDBOX = SandboxSettings(memory_mb=256, workspace_mb=32, tmp_mb=16, output_mb=1, pids=64, pool_size=0, checkpoints=2)
MAX_SESSIONS = 3  # more are closed and opened anew
SOON = 60.0
TROUBLE = ("gone", "differs", "not restored", "were lost", "not among them")  # in notes, when a state is not all there
NAMES = ("x", "y", "z")
DEATHS = {
    "exit": "os._exit(3)",
    "kill": "os.kill(os.getpid(), 9)",
    "stubborn": "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass",
}
PRELUDE = """\
import os, shutil, uuid
from mcpruntime_kernel.guest import host
def free(path):
    if os.path.isdir(path): shutil.rmtree(path)
    elif os.path.lexists(path): os.remove(path)
def write(path, text, mode=0o644):
    at = ""
    for part in path.split("/")[:-1]:
        at = os.path.join(at, part)
        if os.path.isfile(at): os.remove(at)
    if os.path.isdir(path): shutil.rmtree(path)
    if os.path.dirname(path): os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file: file.write(text)
    os.chmod(path, mode)
def look():
    found = {}
    for folder, _, names in os.walk("."):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name))
            if not path.startswith(".mcpruntime") and "__pycache__" not in path:
                with open(path) as file: found[path] = [file.read(), os.stat(path).st_mode & 0o777]
    return [{name: globals()[name] for name in ("x", "y", "z") if name in globals()}, found]
"""


@dataclass(frozen=True)
class State:
    """Variables, and files with their modes."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def told(self) -> Any:
        """Return it as `look()` tells it."""
        return [self.variables, {path: list(file) for path, file in self.files.items()}]


# what can be done to a state --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Set:
    name: str
    value: int

    def code(self) -> str:
        return f"{self.name} = [{self.value}]"

    def apply(self, state: State) -> State:
        return State({**state.variables, self.name: [self.value]}, state.files)


@dataclass(frozen=True)
class Grow:
    """Change an object in its place, with something that nobody can foresee and something from outside."""

    name: str

    def code(self) -> str:
        return f"if {self.name!r} in globals(): {self.name} += [uuid.uuid4().hex, host.call('t.tick', {{}})]"

    def apply(self, state: State) -> State:
        if self.name not in state.variables:
            return state
        return State({**state.variables, self.name: [*state.variables[self.name], ANYTHING, ANYTHING]}, state.files)


@dataclass(frozen=True)
class Forget:
    name: str

    def code(self) -> str:
        return f"globals().pop({self.name!r}, None)"

    def apply(self, state: State) -> State:
        return State({name: value for name, value in state.variables.items() if name != self.name}, state.files)


@dataclass(frozen=True)
class Write:
    path: str
    text: str
    mode: int

    def code(self) -> str:
        return f"write({self.path!r}, {self.text!r}, {self.mode})"

    def apply(self, state: State) -> State:
        parts = self.path.split("/")
        above = {"/".join(parts[:count]) for count in range(1, len(parts))}
        kept = {
            path: file
            for path, file in state.files.items()
            if path not in above and not path.startswith(f"{self.path}/")
        }
        return State(state.variables, {**kept, self.path: (self.text, self.mode)})


@dataclass(frozen=True)
class Delete:
    """A file, or a folder with all that is in it."""

    path: str

    def code(self) -> str:
        return f"free({self.path!r})"

    def apply(self, state: State) -> State:
        kept = {
            path: file
            for path, file in state.files.items()
            if path != self.path and not path.startswith(f"{self.path}/")
        }
        return State(state.variables, kept)


Change = Set | Grow | Forget | Write | Delete


class _Anything:
    """Stands for a value that the model cannot foresee; the first one told is what it is from then on."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


ANYTHING: Any = _Anything()

# what can be done to sessions -------------------------------------------------------------------------------

At = int  # which of the sessions, or of a session's runs, there are; any number will do


@dataclass(frozen=True)
class Go:
    """Run code that changes the state, and ends well or with an error."""

    session: At
    changes: tuple[Change, ...]
    fails: bool = False


@dataclass(frozen=True)
class Die:
    session: At
    changes: tuple[Change, ...]
    how: str


@dataclass(frozen=True)
class Together:
    """Run in two sessions at the same time."""

    sessions: tuple[At, At]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Rewind:
    session: At
    run: At


@dataclass(frozen=True)
class Fork:
    session: At
    run: At


@dataclass(frozen=True)
class LoseSandbox:
    session: At


@dataclass(frozen=True)
class Restart:
    pass


@dataclass(frozen=True)
class Crash:
    """Go on with what is on the disk at this moment, at another place."""


@dataclass(frozen=True)
class CrashIn:
    """The same in the middle of a run, which then goes on."""

    session: At
    changes: tuple[Change, ...]
    rest: tuple[Change, ...]


Deed = Go | Die | Together | Rewind | Fork | LoseSandbox | Restart | Crash | CrashIn

# the player -------------------------------------------------------------------------------------------------


@dataclass
class Known:
    """What the model knows of a session: the run that it is at, and those that it can go to."""

    handle: str
    at: str | None = None
    runs: list[str | None] = field(default_factory=lambda: [None])


@dataclass
class Unfinished:
    """A run that was under way when its server died."""

    known: Known
    run: str
    changes: Sequence[Change]


class Player:
    """Does deeds to real sessions and to the model, and compares."""

    def __init__(self, folder: Path, backend: str) -> None:
        self._place = folder / "0"
        self._backend_name = backend
        self._owner = folder.name
        self._states: dict[str | None, State] = {None: State()}
        self._steps: dict[str | None, int] = {None: 0}
        self._sessions = [Known("s0")]
        self._ticks = 0  # calls that were made
        self._due = 0  # calls that runs should have made
        self._hanging = anyio.Event()
        self._hangs = True
        self._unfinished: Unfinished | None = None

    async def play(self, deeds: Sequence[Deed]) -> None:
        """Do all of it; raises AssertionError where the real sessions are not as they should be."""
        left = list(deeds)
        while True:
            async with self._running():
                await self._go_on()
                while left and not isinstance(left[0], Restart | Crash | CrashIn):
                    await self._do(left.pop(0))
                if not left:
                    for known in self._sessions:
                        await self._run(known, ())
                    assert self._ticks == self._due
                    return
                await self._end(left.pop(0))

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        kind: type[LocalBackend | DockerBackend] = DockerBackend if self._backend_name == "docker" else LocalBackend
        boxes = self._place / "boxes"
        backend = kind(SANDBOX, boxes, KERNEL_ARGV, KERNEL_ENV, self._owner, lambda owner: owner == self._owner)
        router = Router({"t": Route(self._answer, lambda target: "read" if target == "t.hang" else "write")})
        settings = ServerSettings(max_sessions=MAX_SESSIONS)
        async with (
            open_journal(self._place / "data") as self._journal,
            open_runtime(settings, SANDBOX, self._journal, router, backend) as self._runtime,
        ):
            yield
        if isinstance(backend, DockerBackend):
            backend.close()

    async def _answer(self, target: str, args: dict[str, Any]) -> Any:
        if target == "t.hang" and self._hangs:
            self._hanging.set()
            await anyio.sleep_forever()
        self._ticks += target == "t.tick"
        return self._ticks

    async def _do(self, deed: Deed) -> None:
        match deed:
            case Go(session, changes, fails):
                await self._run(self._session(session), changes, fails=fails)
            case Die(session, changes, how):
                await self._die(self._session(session), changes, how)
            case Together(sessions, changes):
                await self._run_together([self._session(each) for each in sessions], changes)
            case Rewind(session, run):
                await self._rewind(self._session(session), run)
            case Fork(session, run):
                await self._fork(self._session(session), run)
            case LoseSandbox(session):
                await self._lose_sandbox(self._session(session))

    def _session(self, at: At) -> Known:
        return self._sessions[at % len(self._sessions)]

    # runs -------------------------------------------------------------------------------------------

    async def _run(self, known: Known, changes: Sequence[Change], *, fails: bool = False) -> None:
        run = await self._execute(known, code_of(changes, "1 / 0" if fails else ""))
        assert run.report.status == ("error" if fails else "ok"), run.report
        self._went(known, run, changes)
        if fails:
            await self._run(known, ())

    async def _run_together(self, knowns: Sequence[Known], changes: Sequence[Change]) -> None:
        async with anyio.create_task_group() as tasks:
            for handle in {known.handle for known in knowns}:
                tasks.start_soon(self._run, next(known for known in knowns if known.handle == handle), changes)

    def _went(self, known: Known, run: Run, changes: Sequence[Change]) -> None:
        """Compare what a run tells with what should be; what could not be foreseen is known from now on."""
        report, state = run.report, self._after(known, changes)
        assert not any(word in note for note in report.notes for word in TROUBLE), report.notes
        assert report.step == self._steps[known.at] + 1
        if report.value is not None:
            told = json.loads(report.value["text"])
            assert told == state.told(), (report.notes, told, state)
            state = State(told[0], state.files)
        self._states[run.id], self._steps[run.id] = state, report.step
        known.at = run.id
        known.runs.append(run.id)

    def _after(self, known: Known, changes: Sequence[Change]) -> State:
        """Return the state after changes in a session, and count the calls that they make."""
        state = self._states[known.at]
        for change in changes:
            self._due += isinstance(change, Grow) and change.name in state.variables
            state = change.apply(state)
        return state

    async def _die(self, known: Known, changes: Sequence[Change], how: str) -> None:
        self._after(known, changes)
        run = await self._execute(known, code_of(changes, DEATHS[how]), timeout_s=1.0 if how == "stubborn" else SOON)
        assert run.report.status == ("timeout" if how == "stubborn" else "crashed"), run.report
        assert run.undone

    async def _execute(self, known: Known, code: str, timeout_s: float = SOON) -> Run:
        session = await self._live(known)
        run = session.start(code, timeout_s)
        with anyio.fail_after(2 * SOON):
            await run.finished.wait()
        assert not await run.recorded()
        return run

    async def _live(self, known: Known) -> Session:
        return await self._runtime.session(known.handle, "me")

    # moving in time ---------------------------------------------------------------------------------

    async def _rewind(self, known: Known, at: At) -> None:
        run = known.runs[at % len(known.runs)]
        step = 0 if run is None else None
        await timeline.rewind(self._runtime, await self._live(known), step, run, cancel=False)
        known.at = run

    async def _fork(self, known: Known, at: At) -> None:
        run = known.runs[at % len(known.runs)]
        if run is None:
            return
        row = await history.find_session(self._journal, known.handle, "me")
        name = f"s{len(self._sessions)}"
        await timeline.fork(self._runtime, row, None, run, name, "me")
        runs = [None, *(row.id for row in await self._journal.line(run))]
        self._sessions.append(Known(name, run, runs))

    # what happens to sandboxes and servers ----------------------------------------------------------

    async def _lose_sandbox(self, known: Known) -> None:
        home = (await self._live(known)).home
        if home is None:
            return
        name = home.link.info.id
        if self._backend_name == "docker":
            await anyio.run_process(["docker", "kill", name], check=False)
        for process in _processes(name):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with anyio.fail_after(SOON):
            await home.link.closed.wait()

    async def _end(self, deed: Deed) -> None:
        """Have this server be the last one at this place, unless it ends in peace."""
        if isinstance(deed, CrashIn):
            known = self._session(deed.session)
            code = "\n".join([code_of(deed.changes, "host.call('t.hang', {})"), code_of(deed.rest)])
            run = (await self._live(known)).start(code, SOON)
            self._hanging = anyio.Event()
            with anyio.fail_after(SOON):
                await self._hanging.wait()
            self._unfinished = Unfinished(known, run.id, (*deed.changes, *deed.rest))
        if isinstance(deed, Crash | CrashIn):
            await self._journal.flush()
            self._place = copied(self._place)

    async def _go_on(self) -> None:
        """See the run to its end that the last server has left."""
        if self._unfinished is None:
            return
        known, run, changes = self._unfinished.known, self._unfinished.run, self._unfinished.changes
        self._hangs, self._unfinished = False, None
        await self._live(known)
        [session] = [each for each in self._runtime._live.values() if each.handle == known.handle]
        [resumed] = [each for each in session._unfinished if each.id == run]
        with anyio.fail_after(2 * SOON):
            await resumed.finished.wait()
        assert resumed.report.status == "ok", resumed.report
        self._went(known, resumed, changes)
        self._hangs = True


def code_of(changes: Sequence[Change], end: str = "") -> str:
    """Return code that makes changes, and then ends in some way, or tells the state."""
    lines = [change.code() for change in changes]
    return "\n".join([PRELUDE, *lines, end or "look()"])


def copied(place: Path) -> Path:
    """Return another place with what a server that is killed now would leave at this one."""
    other = place.parent / str(int(place.name) + 1)
    (other / "data").mkdir(parents=True)
    with sqlite3.connect(place / "data" / "journal.db", isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")  # nobody writes meanwhile
        for name in ("journal.db", "journal.db-wal"):
            shutil.copy(place / "data" / name, other / "data" / name)
        connection.execute("ROLLBACK")
    connection.close()
    shutil.copytree(place / "data" / "blobs", other / "data" / "blobs")
    return other
