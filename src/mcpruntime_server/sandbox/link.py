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
from ..protocol import wire
from . import Backend, SandboxChannel, SandboxInfo
from .bundle import build_bundle

MAX_OPEN_CALLS = 1024  # of one run at once: each waits in the host's memory
READY_TIMEOUT_S = (
    30.0  # from a started process to a kernel that answers; a loaded machine can be slow
)
INTERRUPT_GRACE_S = 3.0  # code gets this long to clean up after KeyboardInterrupt
PROMOTE_TIMEOUT_S = (
    20.0  # three waits of the supervisor's, each far longer than a fork takes on a loaded machine
)
MAX_PARK_FAILURES = 64  # reasons why runs are not parked; more of them are of no use to anybody
KILL_GRACE_S = 5.0  # killing all processes and starting a fresh interpreter; far less on a machine that is not overloaded


class ExecutionListener(Protocol):
    """What a run does with what its sandbox sends. The methods are called in order and must not block."""

    def on_output(self, message: wire.Output) -> None:
        """Code printed something."""
        ...

    def on_files(self, message: wire.FilesChanged) -> None:
        """Code changed workspace files."""
        ...

    def on_file_data(self, message: wire.FileData) -> None:
        """A piece of a changed file, after the run is over."""
        ...

    def on_saved(self, message: wire.FilesSaved) -> None:
        """The last piece of the last changed file has come."""
        ...

    async def on_call(self, message: wire.Call) -> wire.Reply:
        """Code asks for something; cancelled if the run ends first."""
        ...


StopReason = Literal["timeout", "cancelled"]


@dataclass
class _Execution:
    """The run that a link executes now; cancelling `patience` ends the wait for its own end."""

    run_number: int
    listener: ExecutionListener
    timeout_scope: anyio.CancelScope
    is_park_requested: bool
    finished: anyio.Event = field(default_factory=anyio.Event)
    paused_time_left_s: float | None = None  # of its time, while it is paused
    call_scopes: set[anyio.CancelScope] = field(default_factory=set)  # that are being answered
    open_call_count: int = 0  # that have come and have not been answered
    done: wire.RunDone | None = None
    stop_reason: StopReason | None = None


@dataclass
class _Promotion:
    """The wait for a parked copy to be the interpreter."""

    run_number: int
    finished: anyio.Event = field(default_factory=anyio.Event)
    result: wire.Promoted | None = None


class SandboxLink:
    """A sandbox whose kernel answers. `closed` is set when it is gone; `restarts` tells of interpreters that died."""

    def __init__(
        self, channel: SandboxChannel, max_checkpoints: int, task_group: TaskGroup
    ) -> None:
        self._task_group = task_group
        self._max_checkpoints = max_checkpoints
        self.closed = anyio.Event()
        self.inputs_folder: Path | None = None  # the folder whose files it sees, if it sees any
        self.python_version = ""
        self.platform = ""
        self.restart_reasons: list[str] = []
        self.last_run_number = 0  # the number of the last execution
        self.live_run = 0  # the run whose end state the interpreter is in; 0: it is empty
        self.parked_runs: set[int] = set()  # runs whose end states can be promoted
        self.parking_runs: set[int] = (
            set()
        )  # runs of which the sandbox has not said yet whether they are parked
        self.park_failures: dict[int, str] = {}  # why others cannot
        self._channel = channel
        self._ready = anyio.Event()
        self._outgoing: list[bytes] = []
        self._is_writer_idle = True  # nothing is on its way, so that a message may be sent at once
        self._has_outgoing = anyio.Event()
        self._promotion: _Promotion | None = None
        self._execution: _Execution | None = None
        self._receiving_files: tuple[int, ExecutionListener] | None = None
        self._files_received = anyio.Event()
        self._files_received.set()
        self._failure_reason = ""
        self.has_broken_protocol = False  # it is gone because of what it sent

    @property
    def info(self) -> SandboxInfo:
        """What this sandbox is."""
        return self._channel.info

    async def read_memory_bytes(self) -> int | None:
        """Return the sandbox's memory in bytes, where it can be told."""
        return await self._channel.read_memory_bytes()

    # what others do with a link -------------------------------------------------------------------

    async def execute(
        self,
        code: str,
        filename: str,
        listener: ExecutionListener,
        timeout_s: float,
        stale_packages: Sequence[str] = (),
        *,
        seed: str = "",
        clock_readings: Mapping[str, list[float]] | None = None,
        park: bool = True,
        inputs: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[wire.RunDone, StopReason | None]:
        """Run `code`; return how it ended, and why if it was stopped from outside. One run at a time.

        The packages of tools named in `stale` have changed since they were imported. All chance follows from `seed`;
        `clocks` are readings that the code is told again. `park`: keep the state at its end, to be promoted. `inputs`
        are what `CONTEXT` is.

        Past `timeout_s` the code is interrupted, then its interpreter is killed. Raises `SandboxFailed` if the sandbox
        dies, breaks the protocol or does not react.
        """
        self.last_run_number += 1
        patience = anyio.CancelScope(deadline=anyio.current_time() + timeout_s)
        current = _Execution(
            self.last_run_number, listener, patience, park and self._max_checkpoints > 0
        )
        if not self.closed.is_set():
            self._execution = current
            try:
                told = None if clock_readings is None else dict(clock_readings)
                context = list(map(dict, inputs)) or None
                self._send(
                    wire.Execute(
                        current.run_number,
                        code,
                        filename,
                        list(stale_packages),
                        seed,
                        told,
                        park,
                        context,
                    )
                )
                await self._wait_until_finished(current)
            finally:
                self._execution = None
                for scope in list(current.call_scopes):
                    scope.cancel()  # calls whose run is over have nobody to answer
        if current.done is None:
            raise SandboxFailed(await self.describe_failure())
        return current.done, current.stop_reason

    async def _wait_until_finished(self, current: _Execution) -> None:
        with current.timeout_scope:
            await current.finished.wait()
        if current.finished.is_set():
            return
        current.stop_reason = current.stop_reason or "timeout"
        for step, grace_s in ((wire.Interrupt, INTERRUPT_GRACE_S), (wire.Kill, KILL_GRACE_S)):
            self._send(step(current.run_number))
            with anyio.move_on_after(grace_s):
                await current.finished.wait()
            if current.finished.is_set():
                return
        self.fail("it did not react when its code was to be stopped")

    def stop_run(self, reason: StopReason) -> None:
        """Stop the run that is under way, if there is one: interrupt it, then kill its interpreter."""
        if self._execution is not None and self._execution.stop_reason is None:
            self._execution.stop_reason = reason
            self._execution.timeout_scope.cancel()

    def pause_timeout(self) -> None:
        """Have the time limit of the run that is under way stand still."""
        current = self._execution
        if current is not None and current.paused_time_left_s is None:
            current.paused_time_left_s = current.timeout_scope.deadline - anyio.current_time()
            current.timeout_scope.deadline = math.inf

    def resume_timeout(self) -> None:
        """End a pause."""
        current = self._execution
        if current is not None and current.paused_time_left_s is not None:
            current.timeout_scope.deadline = anyio.current_time() + current.paused_time_left_s
            current.paused_time_left_s = None

    def has_state(self, run_number: int) -> bool:
        """Return whether the end state of run `number` is here, as far as can be told."""
        return (
            run_number == self.live_run
            or run_number in self.parked_runs
            or run_number in self.parking_runs
        )

    async def promote(self, run_number: int) -> wire.Promoted:
        """Make the parked end state of run `number` the interpreter's (0: an empty one); not while a run is under way.

        Where the answer is not `ok`, it is parked no more and the interpreter is empty. What the answer says of files
        is not undone here. Raises `SandboxFailed` if the sandbox is gone, or does not answer in time.
        """
        promotion = _Promotion(run_number)
        if not self.closed.is_set():
            self._promotion = promotion
            try:
                self._send(wire.Promote(run_number))
                with anyio.move_on_after(PROMOTE_TIMEOUT_S) as patience:
                    await promotion.finished.wait()
                if patience.cancelled_caught:
                    self.fail("it did not promote a checkpoint in time")
            finally:
                self._promotion = None
        if promotion.result is None:
            raise SandboxFailed(await self.describe_failure())
        return promotion.result

    def remove_file(self, path: str) -> None:
        """Delete a workspace file, before whatever is executed next."""
        self._send(wire.RemoveFile(path))

    def write_file(self, path: str, mode: int, data: bytes) -> None:
        """Write a file into the workspace, before whatever is executed next."""
        for offset in range(0, max(len(data), 1), wire.CHUNK_BYTES):
            piece = data[offset : offset + wire.CHUNK_BYTES]
            self._send(wire.WriteFile(path, mode, offset, offset + len(piece) >= len(data), piece))

    async def wait_for_files(self) -> None:
        """Wait until the files of the last run have arrived, or the sandbox is gone."""
        await self._files_received.wait()

    def fail(self, reason: str) -> None:
        """Give this sandbox up: everything that waits for it is told `reason`."""
        if not self.closed.is_set():
            self._failure_reason = reason
            self.closed.set()
            self._files_received.set()
            self._ready.set()
            self._has_outgoing.set()
            for waiting in (self._execution, self._promotion):
                if waiting is not None:
                    waiting.finished.set()

    async def describe_failure(self) -> str:
        """Return one sentence on why this sandbox is gone."""
        return f"The sandbox is gone: {self._failure_reason or await self._channel.explain_exit()}"

    # routing --------------------------------------------------------------------------------------

    def _send(self, message: wire.Message) -> None:
        data = wire.encode_message(message)
        if self._is_writer_idle:
            data = data[self._channel.send_nowait(data) :]
        if data:
            self._outgoing.append(data)
            self._is_writer_idle = False
            self._has_outgoing.set()

    async def _write_loop(self) -> None:
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
            self._is_writer_idle = True

    async def _read_loop(self) -> None:
        decoder = wire.MessageDecoder()
        while data := await self._channel.receive():
            try:
                for message in decoder.decode_messages(data):
                    self._route(message)
            except wire.WireError as exc:
                self.has_broken_protocol = True
                self.fail(f"it broke the protocol ({exc})")
                return
        self.fail("")

    def _route(self, message: wire.Message) -> None:
        match message:
            case wire.Ready():
                self.python_version, self.platform = message.python_version, message.platform
                if not self.info.is_isolated or message.inputs_marker == self.info.id:
                    self.inputs_folder = self.info.inputs_folder
                self._ready.set()
            case wire.WorkerRestarted():
                self.restart_reasons.append(message.reason)
                self.live_run = 0
            case wire.ForkParked() | wire.ParkFailed() | wire.ForkDropped():
                self._route_parking(message)
            case wire.Promoted():
                self._route_promoted(message)
            case wire.FileData() | wire.FilesSaved():
                self._route_files(message)
            case wire.Output() | wire.Call() | wire.FilesChanged() | wire.RunDone():
                if (
                    self._execution is not None and self._execution.done is None
                ):  # else nobody waits for it any more
                    self._route_to_execution(self._execution, message)
            case _:
                raise wire.WireError(f"a sandbox does not send {type(message).__name__}")

    def _route_to_execution(
        self,
        current: _Execution,
        message: wire.Output | wire.Call | wire.FilesChanged | wire.RunDone,
    ) -> None:
        match message:
            case wire.Output():
                current.listener.on_output(message)
            case wire.Call() if current.open_call_count >= MAX_OPEN_CALLS:
                error = {
                    "kind": "unavailable",
                    "message": f"{MAX_OPEN_CALLS:,} calls are under way already",
                    "data": None,
                }
                self._send_reply(message, wire.Reply(message.call_id, None, error))
            case wire.Call():
                current.open_call_count += 1
                self._task_group.start_soon(self._answer_call, current, message)
            case wire.FilesChanged():
                self._receiving_files, self._files_received = (
                    (current.run_number, current.listener),
                    anyio.Event(),
                )
                current.listener.on_files(message)
            case wire.RunDone():
                if (
                    message.run_number != current.run_number
                ):  # code forged the end of a run, and here is the true one
                    raise wire.WireError(
                        f"the end of run {message.run_number} while run {current.run_number} is under way"
                    )
                current.done = message
                self.live_run = 0 if message.status == "died" else current.run_number
                if current.is_park_requested and self.live_run:
                    self.parking_runs.add(self.live_run)
                current.finished.set()

    def _route_parking(self, message: wire.ForkParked | wire.ParkFailed | wire.ForkDropped) -> None:
        number = message.run_number
        if not 0 < number <= self.last_run_number:
            raise wire.WireError(
                f"{type(message).__name__} of run {number}, which there has not been"
            )
        self.parking_runs.discard(number)
        match message:
            case wire.ForkParked():
                self.parked_runs.add(number)
            case wire.ParkFailed():
                self.park_failures[number] = message.reason
            case wire.ForkDropped():
                self.parked_runs.discard(number)
        if (
            len(self.parked_runs) > self._max_checkpoints + 1
        ):  # the oldest goes when the newest stands
            raise wire.WireError(f"more than {self._max_checkpoints} checkpoints")
        while len(self.park_failures) > MAX_PARK_FAILURES:
            del self.park_failures[next(iter(self.park_failures))]

    def _route_promoted(self, message: wire.Promoted) -> None:
        promotion = self._promotion
        if (
            promotion is None
            or promotion.result is not None
            or message.run_number != promotion.run_number
        ):
            raise wire.WireError(
                f"the promotion of run {message.run_number}, which nobody waits for"
            )
        self.live_run = message.run_number if message.ok else 0
        if not message.ok:
            self.parked_runs.discard(message.run_number)
            self.parking_runs.discard(message.run_number)
        promotion.result = message
        promotion.finished.set()

    def _route_files(self, message: wire.FileData | wire.FilesSaved) -> None:
        if self._receiving_files is None or self._receiving_files[0] != message.run_number:
            raise wire.WireError(f"{type(message).__name__} of a run that announced no files")
        if isinstance(message, wire.FileData):
            self._receiving_files[1].on_file_data(message)
        else:
            self._receiving_files[1].on_saved(message)
            self._receiving_files = None
            self._files_received.set()

    async def _answer_call(self, current: _Execution, call: wire.Call) -> None:
        reply = wire.Reply(call.call_id, None, wire.no_active_run_error(call.target))
        if self._execution is current:  # else it was over before this task began
            with anyio.CancelScope() as scope:
                current.call_scopes.add(scope)
                try:
                    reply = await current.listener.on_call(call)
                finally:
                    current.call_scopes.discard(scope)
        current.open_call_count -= 1
        self._send_reply(call, reply)

    def _send_reply(self, call: wire.Call, reply: wire.Reply) -> None:
        try:
            self._send(reply)
        except wire.WireError as exc:
            message = f"{call.target}: the result cannot be passed on: {exc}"
            self._send(
                wire.Reply(
                    call.call_id, None, {"kind": "too_large", "message": message, "data": None}
                )
            )


@asynccontextmanager
async def open_link(backend: Backend, setup: wire.Setup) -> AsyncIterator[SandboxLink]:
    """Start a sandbox and bring up the kernel in it; raises what `Backend.open` raises, and `SandboxFailed`."""
    async with (
        backend.open_channel(build_bundle() + wire.encode_message(setup)) as channel,
        anyio.create_task_group() as tasks,
    ):
        link = SandboxLink(channel, setup.max_checkpoints, tasks)
        tasks.start_soon(link._write_loop)
        tasks.start_soon(link._read_loop)
        try:
            with anyio.move_on_after(READY_TIMEOUT_S):
                await link._ready.wait()
            if not link.python_version:
                raise SandboxFailed(f"The kernel did not come up. {await link.describe_failure()}")
            yield link
        finally:
            link.fail("it was closed")
            tasks.cancel_scope.cancel()
