"""A plain model of sessions with rewinds and forks, and a player that compares real ones with it.

A state is variables and files; a run makes one state from another; sessions point at runs. The
model knows nothing else.
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

from mcpruntime_server.capabilities.inputs.store import InputStore
from mcpruntime_server.config import SandboxSettings, ServerSettings
from mcpruntime_server.journal.store import open_journal
from mcpruntime_server.runtime import run_history, time_travel
from mcpruntime_server.runtime.router import Route, Router
from mcpruntime_server.runtime.run import Run
from mcpruntime_server.runtime.runtime import open_runtime
from mcpruntime_server.runtime.session import Session
from mcpruntime_server.sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from mcpruntime_server.sandbox.docker_backend import DockerBackend
from mcpruntime_server.sandbox.local_backend import LocalBackend, _find_processes

SANDBOX = SandboxSettings(
    memory_mb=256, workspace_mb=32, tmp_mb=16, output_mb=1, pids=64, pool_size=0, checkpoints=2
)
MAX_SESSIONS = 3  # others are evicted and restored
TEST_TIMEOUT_S = 60.0
FAILURE_NOTES = (
    "gone",
    "differs",
    "not restored",
    "were lost",
    "not among them",
)  # words of notes about a state that is incomplete
VARIABLE_NAMES = ("x", "y", "z")
DEATH_CODE = {
    "exit": "os._exit(3)",
    "kill": "os.kill(os.getpid(), 9)",
    "stubborn": "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass",
}
PRELUDE = """\
import os, shutil, uuid
from mcpruntime_sandbox.sandboxed.library.tools import host
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
class ModelState:
    """Variables, and files with their modes."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def to_json(self) -> Any:
        """Return the state in the format of `look()`."""
        return [self.variables, {path: list(file) for path, file in self.files.items()}]


# what can be done to a state --------------------------------------------------------------------


@dataclass(frozen=True)
class SetVariable:
    name: str
    value: int

    def code(self) -> str:
        return f"{self.name} = [{self.value}]"

    def apply(self, state: ModelState) -> ModelState:
        return ModelState({**state.variables, self.name: [self.value]}, state.files)


@dataclass(frozen=True)
class GrowVariable:
    """Append to a list a random value and the result of a call."""

    name: str

    def code(self) -> str:
        values = "[uuid.uuid4().hex, host.call('t.tick', {})]"
        return f"if {self.name!r} in globals(): {self.name} += {values}"

    def apply(self, state: ModelState) -> ModelState:
        if self.name not in state.variables:
            return state
        return ModelState(
            {**state.variables, self.name: [*state.variables[self.name], ANYTHING, ANYTHING]},
            state.files,
        )


@dataclass(frozen=True)
class DeleteVariable:
    name: str

    def code(self) -> str:
        return f"globals().pop({self.name!r}, None)"

    def apply(self, state: ModelState) -> ModelState:
        return ModelState(
            {name: value for name, value in state.variables.items() if name != self.name},
            state.files,
        )


@dataclass(frozen=True)
class WriteFile:
    path: str
    text: str
    mode: int

    def code(self) -> str:
        return f"write({self.path!r}, {self.text!r}, {self.mode})"

    def apply(self, state: ModelState) -> ModelState:
        parts = self.path.split("/")
        above = {"/".join(parts[:count]) for count in range(1, len(parts))}
        kept = {
            path: file
            for path, file in state.files.items()
            if path not in above and not path.startswith(f"{self.path}/")
        }
        return ModelState(state.variables, {**kept, self.path: (self.text, self.mode)})


@dataclass(frozen=True)
class DeletePath:
    """A file, or a folder with everything in it."""

    path: str

    def code(self) -> str:
        return f"free({self.path!r})"

    def apply(self, state: ModelState) -> ModelState:
        kept = {
            path: file
            for path, file in state.files.items()
            if path != self.path and not path.startswith(f"{self.path}/")
        }
        return ModelState(state.variables, kept)


StateChange = SetVariable | GrowVariable | DeleteVariable | WriteFile | DeletePath


class _Anything:
    """A value that the model cannot know before it is reported once."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


ANYTHING: Any = _Anything()

# what can be done to sessions --------------------------------------------------------------------

Index = int  # of a session, or of a run of it; any number is valid, modulo their count


@dataclass(frozen=True)
class RunCode:
    """Run code that changes the state and succeeds or fails."""

    session: Index
    changes: tuple[StateChange, ...]
    fails: bool = False


@dataclass(frozen=True)
class KillWorker:
    session: Index
    changes: tuple[StateChange, ...]
    cause: str


@dataclass(frozen=True)
class RunTogether:
    """Run in two sessions at the same time."""

    sessions: tuple[Index, Index]
    changes: tuple[StateChange, ...]


@dataclass(frozen=True)
class RewindSession:
    session: Index
    run: Index


@dataclass(frozen=True)
class ForkSession:
    session: Index
    run: Index


@dataclass(frozen=True)
class LoseSandbox:
    session: Index


@dataclass(frozen=True)
class RestartServer:
    pass


@dataclass(frozen=True)
class CrashServer:
    """Continue in a copy of the data folder as it is at this moment."""


@dataclass(frozen=True)
class CrashDuringRun:
    """The same in the middle of a run, which is then resumed."""

    session: Index
    changes: tuple[StateChange, ...]
    rest: tuple[StateChange, ...]


Action = (
    RunCode
    | KillWorker
    | RunTogether
    | RewindSession
    | ForkSession
    | LoseSandbox
    | RestartServer
    | CrashServer
    | CrashDuringRun
)

# the player --------------------------------------------------------------------------------------


@dataclass
class ModelSession:
    """A session in the model: the run it is at, and the runs it can be rewound to."""

    handle: str
    tip: str | None = None
    runs: list[str | None] = field(default_factory=lambda: [None])


@dataclass
class InterruptedRun:
    """A run that was under way when its server died."""

    session: ModelSession
    run: str
    changes: Sequence[StateChange]


class ModelPlayer:
    """Performs actions on real sessions and on the model, and compares them."""

    def __init__(self, folder: Path, backend: str) -> None:
        self._folder = folder / "0"
        self._backend_name = backend
        self._owner = folder.name
        self._states: dict[str | None, ModelState] = {None: ModelState()}
        self._steps: dict[str | None, int] = {None: 0}
        self._sessions = [ModelSession("s0")]
        self._ticks = 0  # calls that were made
        self._expected_ticks = 0  # calls that runs should have made
        self._call_hangs = anyio.Event()
        self._hang_enabled = True
        self._unfinished: InterruptedRun | None = None

    async def play(self, deeds: Sequence[Action]) -> None:
        """Perform all actions; raises AssertionError if the real sessions differ from the model."""
        left = list(deeds)
        while True:
            async with self._run_server():
                await self._finish_interrupted_run()
                while left and not isinstance(
                    left[0], RestartServer | CrashServer | CrashDuringRun
                ):
                    await self._perform(left.pop(0))
                if not left:
                    for known in self._sessions:
                        await self._run(known, ())
                    assert self._ticks == self._expected_ticks
                    return
                await self._stop_server(left.pop(0))

    @asynccontextmanager
    async def _run_server(self) -> AsyncIterator[None]:
        kind: type[LocalBackend | DockerBackend] = (
            DockerBackend if self._backend_name == "docker" else LocalBackend
        )
        boxes = self._folder / "boxes"
        backend = kind(
            SANDBOX, boxes, KERNEL_ARGV, KERNEL_ENV, self._owner, lambda owner: owner == self._owner
        )
        router = Router(
            {"t": Route(self._answer, lambda target: "read" if target == "t.hang" else "write")}
        )
        settings = ServerSettings(max_sessions=MAX_SESSIONS)
        async with (
            open_journal(self._folder / "data") as self._journal,
            open_runtime(
                settings, SANDBOX, self._journal, router, backend, InputStore(self._journal)
            ) as self._runtime,
        ):
            yield
        if isinstance(backend, DockerBackend):
            backend.close()

    async def _answer(self, target: str, args: dict[str, Any]) -> Any:
        if target == "t.hang" and self._hang_enabled:
            self._call_hangs.set()
            await anyio.sleep_forever()
        self._ticks += target == "t.tick"
        return self._ticks

    async def _perform(self, deed: Action) -> None:
        match deed:
            case RunCode(session, changes, fails):
                await self._run(self._select_session(session), changes, fails=fails)
            case KillWorker(session, changes, how):
                await self._kill_worker(self._select_session(session), changes, how)
            case RunTogether(sessions, changes):
                await self._run_together([self._select_session(each) for each in sessions], changes)
            case RewindSession(session, run):
                await self._rewind(self._select_session(session), run)
            case ForkSession(session, run):
                await self._fork(self._select_session(session), run)
            case LoseSandbox(session):
                await self._lose_sandbox(self._select_session(session))

    def _select_session(self, at: Index) -> ModelSession:
        return self._sessions[at % len(self._sessions)]

    # runs ----------------------------------------------------------------------------------------

    async def _run(
        self, known: ModelSession, changes: Sequence[StateChange], *, fails: bool = False
    ) -> None:
        run = await self._execute(known, build_code(changes, "1 / 0" if fails else ""))
        assert run.report.status == ("error" if fails else "ok"), run.report
        self._check_run(known, run, changes)
        if fails:
            await self._run(known, ())

    async def _run_together(
        self, knowns: Sequence[ModelSession], changes: Sequence[StateChange]
    ) -> None:
        async with anyio.create_task_group() as tasks:
            for handle in {known.handle for known in knowns}:
                tasks.start_soon(
                    self._run, next(known for known in knowns if known.handle == handle), changes
                )

    def _check_run(self, known: ModelSession, run: Run, changes: Sequence[StateChange]) -> None:
        """Compare the result of a run with the model, and learn the values it could not know."""
        report, state = run.report, self._apply_changes(known, changes)
        assert not any(word in note for note in report.notes for word in FAILURE_NOTES), (
            report.notes
        )
        assert report.step == self._steps[known.tip] + 1
        if report.value is not None:
            told = json.loads(report.value["text"])
            assert told == state.to_json(), (report.notes, told, state)
            state = ModelState(told[0], state.files)
        self._states[run.id], self._steps[run.id] = state, report.step
        known.tip = run.id
        known.runs.append(run.id)

    def _apply_changes(self, known: ModelSession, changes: Sequence[StateChange]) -> ModelState:
        """Return the state of a session after changes, and count the calls that they make."""
        state = self._states[known.tip]
        for change in changes:
            self._expected_ticks += (
                isinstance(change, GrowVariable) and change.name in state.variables
            )
            state = change.apply(state)
        return state

    async def _kill_worker(
        self, known: ModelSession, changes: Sequence[StateChange], how: str
    ) -> None:
        self._apply_changes(known, changes)
        run = await self._execute(
            known,
            build_code(changes, DEATH_CODE[how]),
            timeout_s=1.0 if how == "stubborn" else TEST_TIMEOUT_S,
        )
        assert run.report.status == ("timeout" if how == "stubborn" else "crashed"), run.report
        assert run.is_undone

    async def _execute(
        self, known: ModelSession, code: str, timeout_s: float = TEST_TIMEOUT_S
    ) -> Run:
        session = await self._open_session(known)
        run = session.start_run(code, timeout_s)
        with anyio.fail_after(2 * TEST_TIMEOUT_S):
            await run.finished.wait()
        assert not await run.wait_until_recorded()
        return run

    async def _open_session(self, known: ModelSession) -> Session:
        return await self._runtime.open_session(known.handle, "me")

    # moving in time ------------------------------------------------------------------------------

    async def _rewind(self, known: ModelSession, at: Index) -> None:
        run = known.runs[at % len(known.runs)]
        step = 0 if run is None else None
        await time_travel.rewind_session(
            self._runtime, await self._open_session(known), step, run, cancel=False
        )
        known.tip = run

    async def _fork(self, known: ModelSession, at: Index) -> None:
        run = known.runs[at % len(known.runs)]
        if run is None:
            return
        row = await run_history.find_any_session(self._journal, known.handle, "me")
        name = f"s{len(self._sessions)}"
        await time_travel.fork_session(self._runtime, row, None, run, name, "me")
        runs = [None, *(row.id for row in await self._journal.load_lineage(run))]
        self._sessions.append(ModelSession(name, run, runs))

    # what happens to sandboxes and servers -------------------------------------------------------

    async def _lose_sandbox(self, known: ModelSession) -> None:
        home = (await self._open_session(known)).environment
        if home is None:
            return
        name = home.link.info.id
        if self._backend_name == "docker":
            await anyio.run_process(["docker", "kill", name], check=False)
        for process in _find_processes(name):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with anyio.fail_after(TEST_TIMEOUT_S):
            await home.link.closed.wait()

    async def _stop_server(self, deed: Action) -> None:
        """Restart or crash the server, which may be in the middle of a run."""
        if isinstance(deed, CrashDuringRun):
            known = self._select_session(deed.session)
            code = "\n".join(
                [build_code(deed.changes, "host.call('t.hang', {})"), build_code(deed.rest)]
            )
            run = (await self._open_session(known)).start_run(code, TEST_TIMEOUT_S)
            self._call_hangs = anyio.Event()
            with anyio.fail_after(TEST_TIMEOUT_S):
                await self._call_hangs.wait()
            self._unfinished = InterruptedRun(known, run.id, (*deed.changes, *deed.rest))
        if isinstance(deed, CrashServer | CrashDuringRun):
            await self._journal.flush()
            self._folder = copy_data_folder(self._folder)

    async def _finish_interrupted_run(self) -> None:
        """Wait until the run that the last server left unfinished is resumed and finished."""
        if self._unfinished is None:
            return
        known, run, changes = (
            self._unfinished.session,
            self._unfinished.run,
            self._unfinished.changes,
        )
        self._hang_enabled, self._unfinished = False, None
        await self._open_session(known)
        [session] = [
            each for each in self._runtime._sessions.values() if each.handle == known.handle
        ]
        [resumed] = [each for each in session.queue.active_runs if each.id == run]
        with anyio.fail_after(2 * TEST_TIMEOUT_S):
            await resumed.finished.wait()
        assert resumed.report.status == "ok", resumed.report
        self._check_run(known, resumed, changes)
        self._hang_enabled = True


def build_code(changes: Sequence[StateChange], end: str = "") -> str:
    """Return code that makes changes, then runs `end`, by default reporting the state."""
    lines = [change.code() for change in changes]
    return "\n".join([PRELUDE, *lines, end or "look()"])


def copy_data_folder(place: Path) -> Path:
    """Return a copy of a folder as a server that is killed now would leave it."""
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
