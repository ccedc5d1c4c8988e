"""The host's end of a sandbox: messages instead of bytes, runs instead of messages.

One reader and one writer task per link. The reader routes and never waits for a handler; every call is answered by a
task of its own, which is cancelled when its run is over. What the sandbox sends is not trusted: bytes that are no
message, or a message that does not fit the state, close the link (`SandboxFailed`) and never harm the host.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import anyio
from anyio.abc import TaskGroup

from ..errors import SandboxFailed
from ..kernel import wire
from . import Backend, Channel, SandboxInfo
from .bundle import bundle

MAX_CALLS = 1024  # of one run at once: each waits in the host's memory
READY_S = 30.0  # from a started process to a kernel that answers; a loaded machine can be slow
INTERRUPT_S = 3.0  # code gets this long to clean up after KeyboardInterrupt
PROMOTE_S = 20.0  # three waits of the supervisor's, each far longer than a fork takes on a loaded machine
UNPARKABLE_KEPT = 64  # reasons why runs are not parked; more of them are of no use to anybody
KILL_S = 5.0  # killing all processes and starting a fresh interpreter; far less on a machine that is not overloaded


class Listener(Protocol):
    """What a run does with what its sandbox sends. The methods are called in order and must not block."""

    def on_output(self, message: wire.Output) -> None:
        """Code printed something."""
        ...

    def on_files(self, message: wire.Files) -> None:
        """Code changed workspace files."""
        ...

    def on_file_data(self, message: wire.FileData) -> None:
        """A piece of a changed file, after the run is over."""
        ...

    def on_saved(self, message: wire.Saved) -> None:
        """The last piece of the last changed file has come."""
        ...

    async def on_call(self, message: wire.Call) -> wire.Reply:
        """Code asks for something; cancelled if the run ends first."""
        ...


Stopped = Literal["timeout", "cancelled"]


@dataclass
class _Execution:
    """The run that a link executes now; cancelling `patience` ends the wait for its own end."""

    number: int
    listener: Listener
    patience: anyio.CancelScope
    parks: bool
    over: anyio.Event = field(default_factory=anyio.Event)
    left_s: float | None = None  # of its time, while it is paused
    calls: set[anyio.CancelScope] = field(default_factory=set)  # that are being answered
    open_calls: int = 0  # that have come and have not been answered
    done: wire.Done | None = None
    stopped: Stopped | None = None


@dataclass
class _Promotion:
    """The wait for a parked copy to be the interpreter."""

    number: int
    over: anyio.Event = field(default_factory=anyio.Event)
    answer: wire.Promoted | None = None


class Link:
    """A sandbox whose kernel answers. `closed` is set when it is gone; `restarts` tells of interpreters that died."""

    def __init__(self, channel: Channel, checkpoints: int, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._checkpoints = checkpoints
        self.closed = anyio.Event()
        self.inputs: Path | None = None  # the folder whose files it sees, if it sees any
        self.python = ""
        self.platform = ""
        self.restarts: list[str] = []
        self.last_run = 0  # the number of the last execution
        self.live = 0  # the run whose end state the interpreter is in; 0: it is empty
        self.parked: set[int] = set()  # runs whose end states can be promoted
        self.parking: set[int] = set()  # runs of which the sandbox has not said yet whether they are parked
        self.unparkable: dict[int, str] = {}  # why others cannot
        self._channel = channel
        self._ready = anyio.Event()
        self._outgoing: list[bytes] = []
        self._is_idle = True  # nothing is on its way, so that a message may be sent at once
        self._has_outgoing = anyio.Event()
        self._promotion: _Promotion | None = None
        self._current: _Execution | None = None
        self._saving: tuple[int, Listener] | None = None
        self._saved = anyio.Event()
        self._saved.set()
        self._failure = ""
        self.broke_protocol = False  # it is gone because of what it sent

    @property
    def info(self) -> SandboxInfo:
        """What this sandbox is."""
        return self._channel.info

    async def memory(self) -> int | None:
        """Return the sandbox's memory in bytes, where it can be told."""
        return await self._channel.memory()

    # what others do with a link -------------------------------------------------------------------

    async def execute(
        self,
        code: str,
        name: str,
        listener: Listener,
        timeout_s: float,
        stale: Sequence[str] = (),
        *,
        seed: str = "",
        clocks: Mapping[str, list[float]] | None = None,
        park: bool = True,
        inputs: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[wire.Done, Stopped | None]:
        """Run `code`; return how it ended, and why if it was stopped from outside. One run at a time.

        The packages of tools named in `stale` have changed since they were imported. All chance follows from `seed`;
        `clocks` are readings that the code is told again. `park`: keep the state at its end, to be promoted. `inputs`
        are what `CONTEXT` is.

        Past `timeout_s` the code is interrupted, then its interpreter is killed. Raises `SandboxFailed` if the sandbox
        dies, breaks the protocol or does not react.
        """
        self.last_run += 1
        patience = anyio.CancelScope(deadline=anyio.current_time() + timeout_s)
        current = _Execution(self.last_run, listener, patience, park and self._checkpoints > 0)
        if not self.closed.is_set():
            self._current = current
            try:
                told = None if clocks is None else dict(clocks)
                context = list(map(dict, inputs)) or None
                self._send(wire.Execute(current.number, code, name, list(stale), seed, told, park, context))
                await self._wait(current)
            finally:
                self._current = None
                for scope in list(current.calls):
                    scope.cancel()  # calls whose run is over have nobody to answer
        if current.done is None:
            raise SandboxFailed(await self.why())
        return current.done, current.stopped

    async def _wait(self, current: _Execution) -> None:
        with current.patience:
            await current.over.wait()
        if current.over.is_set():
            return
        current.stopped = current.stopped or "timeout"
        for step, grace_s in ((wire.Interrupt, INTERRUPT_S), (wire.Kill, KILL_S)):
            self._send(step(current.number))
            with anyio.move_on_after(grace_s):
                await current.over.wait()
            if current.over.is_set():
                return
        self.fail("it did not react when its code was to be stopped")

    def stop(self, reason: Stopped) -> None:
        """Stop the run that is under way, if there is one: interrupt it, then kill its interpreter."""
        if self._current is not None and self._current.stopped is None:
            self._current.stopped = reason
            self._current.patience.cancel()

    def pause(self) -> None:
        """Have the time limit of the run that is under way stand still."""
        current = self._current
        if current is not None and current.left_s is None:
            current.left_s = current.patience.deadline - anyio.current_time()
            current.patience.deadline = math.inf

    def go_on(self) -> None:
        """End a pause."""
        current = self._current
        if current is not None and current.left_s is not None:
            current.patience.deadline = anyio.current_time() + current.left_s
            current.left_s = None

    def holds(self, number: int) -> bool:
        """Return whether the end state of run `number` is here, as far as can be told."""
        return number == self.live or number in self.parked or number in self.parking

    async def promote(self, number: int) -> wire.Promoted:
        """Make the parked end state of run `number` the interpreter's (0: an empty one); not while a run is under way.

        Where the answer is not `ok`, it is parked no more and the interpreter is empty. What the answer says of files
        is not undone here. Raises `SandboxFailed` if the sandbox is gone, or does not answer in time.
        """
        promotion = _Promotion(number)
        if not self.closed.is_set():
            self._promotion = promotion
            try:
                self._send(wire.Promote(number))
                with anyio.move_on_after(PROMOTE_S) as patience:
                    await promotion.over.wait()
                if patience.cancelled_caught:
                    self.fail("it did not promote a checkpoint in time")
            finally:
                self._promotion = None
        if promotion.answer is None:
            raise SandboxFailed(await self.why())
        return promotion.answer

    def remove(self, path: str) -> None:
        """Delete a workspace file, before whatever is executed next."""
        self._send(wire.Remove(path))

    def put(self, path: str, mode: int, data: bytes) -> None:
        """Write a file into the workspace, before whatever is executed next."""
        for offset in range(0, max(len(data), 1), wire.CHUNK):
            piece = data[offset : offset + wire.CHUNK]
            self._send(wire.Put(path, mode, offset, offset + len(piece) >= len(data), piece))

    async def saved(self) -> None:
        """Wait until the files of the last run have arrived, or the sandbox is gone."""
        await self._saved.wait()

    def fail(self, reason: str) -> None:
        """Give this sandbox up: everything that waits for it is told `reason`."""
        if not self.closed.is_set():
            self._failure = reason
            self.closed.set()
            self._saved.set()
            self._ready.set()
            self._has_outgoing.set()
            for waiting in (self._current, self._promotion):
                if waiting is not None:
                    waiting.over.set()

    async def why(self) -> str:
        """Return one sentence on why this sandbox is gone."""
        return f"The sandbox is gone: {self._failure or await self._channel.cause_of_death()}"

    # routing --------------------------------------------------------------------------------------

    def _send(self, message: wire.Message) -> None:
        data = wire.encode(message)
        if self._is_idle:
            data = data[self._channel.send_now(data) :]
        if data:
            self._outgoing.append(data)
            self._is_idle = False
            self._has_outgoing.set()

    async def _write(self) -> None:
        """Send what could not be sent at once."""
        while not self.closed.is_set():
            await self._has_outgoing.wait()
            self._has_outgoing = anyio.Event()
            while self._outgoing:
                data, self._outgoing = b"".join(self._outgoing), []
                try:
                    await self._channel.send(data)
                except SandboxFailed:
                    return  # the reader finds out why
            self._is_idle = True

    async def _read(self) -> None:
        decoder = wire.Decoder()
        while data := await self._channel.receive():
            try:
                for message in decoder.messages(data):
                    self._route(message)
            except wire.WireError as exc:
                self.broke_protocol = True
                self.fail(f"it broke the protocol ({exc})")
                return
        self.fail("")

    def _route(self, message: wire.Message) -> None:
        match message:
            case wire.Ready():
                self.python, self.platform = message.python, message.platform
                if not self.info.isolated or message.shares == self.info.id:
                    self.inputs = self.info.inputs
                self._ready.set()
            case wire.Restarted():
                self.restarts.append(message.reason)
                self.live = 0
            case wire.Parked() | wire.Unparkable() | wire.Dropped():
                self._route_parking(message)
            case wire.Promoted():
                self._route_promoted(message)
            case wire.FileData() | wire.Saved():
                self._route_files(message)
            case wire.Output() | wire.Call() | wire.Files() | wire.Done():
                if self._current is not None and self._current.done is None:  # else nobody waits for it any more
                    self._route_to(self._current, message)
            case _:
                raise wire.WireError(f"a sandbox does not send {type(message).__name__}")

    def _route_to(self, current: _Execution, message: wire.Output | wire.Call | wire.Files | wire.Done) -> None:
        match message:
            case wire.Output():
                current.listener.on_output(message)
            case wire.Call() if current.open_calls >= MAX_CALLS:
                error = {"kind": "unavailable", "message": f"{MAX_CALLS:,} calls are under way already", "data": None}
                self._reply(message, wire.Reply(message.id, None, error))
            case wire.Call():
                current.open_calls += 1
                self._tasks.start_soon(self._answer, current, message)
            case wire.Files():
                self._saving, self._saved = (current.number, current.listener), anyio.Event()
                current.listener.on_files(message)
            case wire.Done():
                if message.run != current.number:  # code forged the end of a run, and here is the true one
                    raise wire.WireError(f"the end of run {message.run} while run {current.number} is under way")
                current.done = message
                self.live = 0 if message.status == "died" else current.number
                if current.parks and self.live:
                    self.parking.add(self.live)
                current.over.set()

    def _route_parking(self, message: wire.Parked | wire.Unparkable | wire.Dropped) -> None:
        number = message.run
        if not 0 < number <= self.last_run:
            raise wire.WireError(f"{type(message).__name__} of run {number}, which there has not been")
        self.parking.discard(number)
        match message:
            case wire.Parked():
                self.parked.add(number)
            case wire.Unparkable():
                self.unparkable[number] = message.reason
            case wire.Dropped():
                self.parked.discard(number)
        if len(self.parked) > self._checkpoints + 1:  # the oldest goes when the newest stands
            raise wire.WireError(f"more than {self._checkpoints} checkpoints")
        while len(self.unparkable) > UNPARKABLE_KEPT:
            del self.unparkable[next(iter(self.unparkable))]

    def _route_promoted(self, message: wire.Promoted) -> None:
        promotion = self._promotion
        if promotion is None or promotion.answer is not None or message.run != promotion.number:
            raise wire.WireError(f"the promotion of run {message.run}, which nobody waits for")
        self.live = message.run if message.ok else 0
        if not message.ok:
            self.parked.discard(message.run)
            self.parking.discard(message.run)
        promotion.answer = message
        promotion.over.set()

    def _route_files(self, message: wire.FileData | wire.Saved) -> None:
        if self._saving is None or self._saving[0] != message.run:
            raise wire.WireError(f"{type(message).__name__} of a run that announced no files")
        if isinstance(message, wire.FileData):
            self._saving[1].on_file_data(message)
        else:
            self._saving[1].on_saved(message)
            self._saving = None
            self._saved.set()

    async def _answer(self, current: _Execution, call: wire.Call) -> None:
        reply = wire.Reply(call.id, None, wire.too_late(call.target))
        if self._current is current:  # else it was over before this task began
            with anyio.CancelScope() as scope:
                current.calls.add(scope)
                try:
                    reply = await current.listener.on_call(call)
                finally:
                    current.calls.discard(scope)
        current.open_calls -= 1
        self._reply(call, reply)

    def _reply(self, call: wire.Call, reply: wire.Reply) -> None:
        try:
            self._send(reply)
        except wire.WireError as exc:
            message = f"{call.target}: the result cannot be passed on: {exc}"
            self._send(wire.Reply(call.id, None, {"kind": "too_large", "message": message, "data": None}))


@asynccontextmanager
async def open_link(backend: Backend, setup: wire.Setup) -> AsyncIterator[Link]:
    """Start a sandbox and bring up the kernel in it; raises what `Backend.open` raises, and `SandboxFailed`."""
    async with backend.open(bundle() + wire.encode(setup)) as channel, anyio.create_task_group() as tasks:
        link = Link(channel, setup.checkpoints, tasks)
        tasks.start_soon(link._write)
        tasks.start_soon(link._read)
        try:
            with anyio.move_on_after(READY_S):
                await link._ready.wait()
            if not link.python:
                raise SandboxFailed(f"The kernel did not come up. {await link.why()}")
            yield link
        finally:
            link.fail("it was closed")
            tasks.cancel_scope.cancel()
