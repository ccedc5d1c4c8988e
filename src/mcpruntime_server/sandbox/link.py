"""The host's end of a sandbox: turns bytes into messages, and messages into runs.

Each link has one reader and one writer task (`frame_writer`). The reader only routes: each call is
answered by a task of its own (`open_calls`). It stops while too much waits for an answer, or too
many answers wait to be read: then the sandbox waits in `write`.

The sandbox is not trusted. Bytes that are not a message, or a message that the state of the link
does not allow (`protocol.link_states`), close the link and do no harm to the host.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from ..errors import SandboxFailed
from ..fair_turns import FairTurns
from ..protocol import wire
from ..protocol.link_states import HOST, RUNNING, LinkState, ProtocolError
from ..protocol.payloads import Inspection
from . import Backend, SandboxChannel, SandboxInfo
from .bundle import build_bundle
from .execution import Execution, StopReason
from .execution_listener import ExecutionListener
from .file_reception import FileReception
from .frame_writer import FrameWriter
from .interpreter_state import InterpreterState
from .link_turn import LinkTurn
from .open_calls import OpenCalls
from .sandbox_end import SandboxEnd
from .task_pool import TaskPool

if TYPE_CHECKING:
    from .certificate_authority import CertificateAuthority

READY_TIMEOUT_S = 30.0  # for the supervisor to answer `Setup`; a loaded machine is slow
INTERRUPT_GRACE_S = 3.0  # for code to clean up after KeyboardInterrupt
KILL_GRACE_S = 1.5  # to kill all processes and start an empty interpreter; usually milliseconds
PROMOTE_TIMEOUT_S = 20.0  # longer than the three timeouts of the supervisor that it includes


SupplySandbox = Callable[[SandboxChannel, wire.Call, wire.Reply], Awaitable[wire.Reply]]
ReadLargeCall = Callable[[memoryview], Awaitable[wire.Call]]  # of the body of a frame


@dataclass(frozen=True)
class LinkHelpers:
    """What a link has done elsewhere.

    `supply` brings into the sandbox what a reply names, and returns what is sent instead.
    `read_large_call` returns a call without decoding its arguments here; it raises `WireError`.
    `turns` are those of all links which share an event loop.
    """

    supply: SupplySandbox | None = None
    read_large_call: ReadLargeCall | None = None
    turns: FairTurns = field(default_factory=FairTurns)


NO_HELPERS = LinkHelpers()


@dataclass
class _Promotion:
    """The wait for the answer to `Promote`."""

    run_number: int
    finished: anyio.Event = field(default_factory=anyio.Event)
    result: wire.Promoted | None = None


def _iter_file_messages(path: str, mode: int, data: bytes) -> Iterator[wire.WriteFile]:
    for offset in range(0, max(len(data), 1), wire.CHUNK_BYTES):
        chunk = data[offset : offset + wire.CHUNK_BYTES]
        is_last = offset + len(chunk) >= len(data)
        yield wire.WriteFile(path, mode, offset, is_last, chunk)


class SandboxLink:
    """A running sandbox: executes code in it, and moves files and states in and out."""

    def __init__(
        self,
        channel: SandboxChannel,
        max_checkpoints: int,
        task_group: TaskGroup,
        authority: CertificateAuthority | None = None,
        helpers: LinkHelpers = NO_HELPERS,
    ) -> None:
        self._task_group = task_group
        self._call_tasks = TaskPool(task_group)
        self._max_checkpoints = max_checkpoints
        self._channel = channel
        self._end = SandboxEnd(channel.explain_exit)
        self._hello: wire.Ready | None = None
        self._protocol = LinkState(HOST)
        self._writer = FrameWriter(channel, self._wake_reader)
        self._reader_may_go_on = anyio.Event()
        self._ready = anyio.Event()
        self._promotion: _Promotion | None = None
        self._execution: Execution | None = None
        self._authority = authority
        self._helpers = helpers
        self._files = FileReception()
        self._interpreter = InterpreterState()

    @property
    def info(self) -> SandboxInfo:
        """What this sandbox is."""
        return self._channel.info

    @property
    def closed(self) -> anyio.Event:
        """Set when the sandbox is gone."""
        return self._end.reached

    @property
    def has_broken_protocol(self) -> bool:
        """Whether the link was closed because of what the sandbox sent."""
        return self._end.is_protocol_broken

    @property
    def python_version(self) -> str:
        """The version of the sandbox's Python; "" before it is ready."""
        return self._hello.python_version if self._hello else ""

    @property
    def platform(self) -> str:
        """The platform as the sandbox's Python names it; "" before it is ready."""
        return self._hello.platform if self._hello else ""

    @property
    def inputs_folder(self) -> Path | None:
        """The folder of inputs on this machine, if the sandbox has shown that it sees it."""
        if self._hello is None:
            return None
        is_seen = not self.info.is_isolated or self._hello.inputs_marker == self.info.id
        return self.info.inputs_folder if is_seen else None

    @property
    def last_run_number(self) -> int:
        """The number of the last execution; they count from 1."""
        return self._protocol.last_run

    @property
    def live_run(self) -> int:
        """The run whose end state the interpreter is in; 0: it is empty."""
        return self._interpreter.live_run

    @property
    def restart_reasons(self) -> list[str]:
        """Why interpreters died, the last one at the end."""
        return self._interpreter.restart_reasons

    @property
    def park_failures(self) -> dict[int, str]:
        """Why the end states of runs are not parked, by run number."""
        return self._interpreter.park_failures

    @property
    def parked_runs(self) -> set[int]:
        """The runs whose end states can be promoted."""
        return self._protocol.parked_runs

    async def copy_input(self, name: str, data: bytes) -> None:
        """Put a file into the folder of inputs; see `SandboxChannel`."""
        await self._channel.copy_input(name, data)

    async def read_memory_bytes(self) -> int | None:
        """Return the memory of the sandbox, if the backend can tell."""
        return await self._channel.read_memory_bytes()

    async def start(self, setup: wire.Setup) -> None:
        """Start the reader and the writer, and wait for the answer to `setup`, which has been sent.

        Raises `SandboxFailed` if none arrives in time.
        """
        self._protocol.send(setup)
        self._task_group.start_soon(self._writer.write_loop)
        self._task_group.start_soon(self._read_loop)
        with anyio.move_on_after(READY_TIMEOUT_S):
            await self._ready.wait()
        if self._hello is None:
            raise SandboxFailed(f"The kernel did not start. {await self.describe_failure()}")

    # requests -------------------------------------------------------------------------------------

    async def execute(
        self,
        code: str | wire.EncodedValue,
        filename: str,
        listener: ExecutionListener,
        timeout_s: float,
        stale_packages: Sequence[str] = (),
        *,
        seed: str = "",
        clock_readings: Mapping[str, list[float]] | None = None,
        park: bool = True,
        keep_previous: bool = False,
        inputs: Sequence[Mapping[str, Any]] = (),
        fetchers: Sequence[str] = (),
        inspection: Inspection | None = None,
    ) -> tuple[wire.RunDone, StopReason | None]:
        """Run `code`; return how it ended, and why it was stopped, if it was. One run at a time.

        `stale_packages` are imported again. `seed` determines all randomness; `clock_readings` are
        replayed to the code. `park` keeps the end state so that it can be promoted, or at least
        that of the last run of a burst. `keep_previous` keeps the present state, even in a burst.
        `inputs` are the items of `CONTEXT`, `fetchers` what a hint names to code that looks for a
        network. `inspection` says what is observed of the run.

        After `timeout_s` the code is interrupted; if that does not end it, its interpreter is
        killed.
        Raises `SandboxFailed` if the sandbox dies, breaks the protocol or does not react.
        """
        timeout_scope = anyio.CancelScope(deadline=anyio.current_time() + timeout_s)
        calls = OpenCalls(
            listener,
            self._writer,
            self._send,
            self._wake_reader,
            self._call_tasks,
            self._supply,
        )
        execution = Execution(self.last_run_number + 1, listener, calls, timeout_scope)
        if not self.closed.is_set():
            self._execution = execution
            try:
                self._send(
                    wire.Execute(
                        execution.run_number,
                        cast("str", code),
                        filename,
                        list(stale_packages),
                        seed,
                        None if clock_readings is None else dict(clock_readings),
                        park and self._max_checkpoints > 0,
                        keep_previous,
                        [dict(item) for item in inputs] or None,
                        list(fetchers) or None,
                        None if inspection is None else dict(inspection),
                    )
                )
                await self._wait_until_finished(execution)
            finally:
                self._execution = None
                self._wake_reader()
                execution.calls.close()
                if self._protocol.state == RUNNING:
                    self.fail("a run was abandoned")
        if execution.done is None:
            raise SandboxFailed(await self.describe_failure())
        return execution.done, execution.stop_reason

    async def _wait_until_finished(self, execution: Execution) -> None:
        with execution.timeout_scope:
            await execution.finished.wait()
        if execution.finished.is_set():
            return
        execution.stop_reason = execution.stop_reason or "timeout"
        self._wake_reader()
        steps = ((wire.Interrupt, INTERRUPT_GRACE_S), (wire.Kill, KILL_GRACE_S))
        for message_type, grace_s in steps:
            self._send(message_type(execution.run_number))
            with anyio.move_on_after(grace_s):
                await execution.finished.wait()
            if execution.finished.is_set():
                return
        self.fail("it did not react when its code was to be stopped")

    def stop_run(self, reason: StopReason) -> None:
        """Stop the active run, if any: interrupt its code, then kill its interpreter."""
        if self._execution is not None:
            self._execution.stop(reason)

    def pause_timeout(self) -> None:
        """Stop the clock of the active run's timeout."""
        if self._execution is not None:
            self._execution.pause_timeout()

    def resume_timeout(self) -> None:
        """Let the clock of the active run's timeout run again."""
        if self._execution is not None:
            self._execution.resume_timeout()

    def has_state(self, run_number: int) -> bool:
        """Return whether the end state of a run is here or is about to be parked."""
        protocol = self._protocol
        return (
            run_number == self.live_run
            or run_number in protocol.parked_runs
            or run_number in protocol.unsettled_runs
        )

    async def promote(self, run_number: int) -> wire.Promoted:
        """Make the parked end state of a run the live one (0: an empty one); not during a run.

        If the answer is not `ok`, that state no longer exists and the interpreter is empty.
        The files that the answer names are not restored here. Raises `SandboxFailed` if the sandbox
        is gone or does not answer in time.
        """
        promotion = _Promotion(run_number)
        if not self.closed.is_set():
            self._promotion = promotion
            try:
                self._send(wire.Promote(run_number))
                with anyio.move_on_after(PROMOTE_TIMEOUT_S) as timeout_scope:
                    await promotion.finished.wait()
                if timeout_scope.cancelled_caught:
                    self.fail("it did not promote a checkpoint in time")
            finally:
                self._promotion = None
        if promotion.result is None:
            raise SandboxFailed(await self.describe_failure())
        return promotion.result

    def remove_file(self, path: str) -> None:
        """Delete a workspace file, before the next run."""
        self._send(wire.RemoveFile(path))

    def write_file(self, path: str, mode: int, data: bytes) -> None:
        """Write a workspace file, before the next run."""
        for message in _iter_file_messages(path, mode, data):
            self._send(message)

    async def write_large_file(
        self, path: str, mode: int, pieces: Iterable[bytes], size: int
    ) -> None:
        """Write a file of `size` bytes in the same way, while others have their turn."""
        offset = 0
        for piece in pieces:
            is_last = offset + len(piece) >= size
            self._send(wire.WriteFile(path, mode, offset, is_last, piece))
            offset += len(piece)
            await checkpoint()

    async def wait_for_files(self) -> None:
        """Wait until the files of the last run have arrived, or the sandbox is gone."""
        await self._files.wait_until_finished()

    def fail(self, reason: str) -> None:
        """Give the sandbox up; what waits for it raises `SandboxFailed` with `reason`."""
        if self.closed.is_set():
            return
        self._end.record(reason)
        self._wake_reader()
        self._files.stop()
        self._ready.set()
        for waiting in (self._execution, self._promotion):
            if waiting is not None:
                waiting.finished.set()

    async def describe_failure(self) -> str:
        """Return one sentence on why the sandbox is gone."""
        return f"The sandbox is gone: {await self._end.explain()}"

    # sending and receiving ------------------------------------------------------------------------

    def _send(self, message: wire.Message) -> None:
        """Send `message` unless the sandbox is gone; raises `WireError` if it cannot be encoded."""
        data = wire.encode_message(message)
        if not self.closed.is_set():
            self._protocol.send(message)
            self._writer.write(data)

    async def _supply(self, call: wire.Call, reply: wire.Reply) -> wire.Reply:
        supply = self._helpers.supply
        return reply if supply is None else await supply(self._channel, call, reply)

    async def _read_loop(self) -> None:
        splitter = wire.FrameSplitter()
        while data := await self._channel.receive():
            try:
                turn = LinkTurn(self._helpers.turns)
                for code, frame in splitter.iter_frames(data):
                    message = await self._decode(code, frame)
                    self._route(message, len(frame))
                    turn.count_message(message)
                    while self._is_reader_to_wait():
                        self._reader_may_go_on = anyio.Event()
                        await self._reader_may_go_on.wait()
                    if turn.is_over:
                        await turn.let_others_work()
                        await self._let_listener_catch_up()
                        turn = LinkTurn(self._helpers.turns)
            except wire.WireError as exc:
                self._end.is_protocol_broken = True
                self.fail(f"it broke the protocol ({exc})")
                return
        self.fail("")

    async def _decode(self, type_code: int, frame: bytes) -> wire.Message:
        """Return the message in a frame; raises `WireError`."""
        read_large = self._helpers.read_large_call
        if read_large is not None and wire.is_large_call(frame):
            return await read_large(memoryview(frame)[wire.HEADER_BYTES :])
        return wire.decode_message(type_code, frame[wire.HEADER_BYTES :])

    async def _let_listener_catch_up(self) -> None:
        """Wait until what was read is stored; what code says when it is stopped is read anyway."""
        execution = self._execution
        if execution is not None and execution.stop_reason is None:
            await execution.listener.catch_up()

    def _is_reader_to_wait(self) -> bool:
        """Return whether the sandbox has to wait until calls are answered, and answers read.

        What the code says when it is stopped is always read.
        """
        execution = self._execution
        if self.closed.is_set() or execution is None or execution.stop_reason is not None:
            return False
        return execution.calls.is_full

    def _wake_reader(self) -> None:
        self._reader_may_go_on.set()

    def _route(self, message: wire.Message, size: int) -> None:
        self._protocol.receive(message)
        match message:
            case (
                wire.Output() | wire.Call() | wire.ProbeHit() | wire.FilesChanged() | wire.RunDone()
            ):
                if self._execution is not None:
                    self._route_to_execution(self._execution, message, size)
            case wire.CertificateRequest():
                if self._authority is None:
                    raise ProtocolError("a certificate is of no use here")
                certificate = self._authority.issue_certificate(message.host)
                self._send(wire.Certificate(message.host, certificate))
            case wire.FileData() | wire.FilesSaved():
                self._files.receive(message)
            case wire.ForkParked():
                if len(self.parked_runs) > self._max_checkpoints + 1:  # the oldest goes afterwards
                    raise ProtocolError(f"more than {self._max_checkpoints} checkpoints")
            case wire.ParkFailed():
                self._interpreter.fail_parking(message)
            case wire.Promoted():
                self._interpreter.promote(message)
                if self._promotion is not None:
                    self._promotion.result = message
                    self._promotion.finished.set()
            case wire.WorkerRestarted():
                self._interpreter.restart(message)
            case wire.Ready():
                self._hello = message
                self._ready.set()

    def _route_to_execution(
        self,
        execution: Execution,
        message: wire.Output | wire.Call | wire.ProbeHit | wire.FilesChanged | wire.RunDone,
        size: int,
    ) -> None:
        match message:
            case wire.Output():
                execution.listener.on_output(message)
            case wire.Call():
                execution.calls.add(message, size)
            case wire.ProbeHit():
                execution.listener.on_probe_hit(message)
            case wire.FilesChanged():
                self._files.start(execution.listener, message)
            case wire.RunDone():
                execution.done = message
                self._interpreter.finish_run(message)
                execution.finished.set()


@asynccontextmanager
async def open_link(
    backend: Backend, setup: wire.Setup, helpers: LinkHelpers = NO_HELPERS
) -> AsyncIterator[SandboxLink]:
    """Start a sandbox and wait until its supervisor answers.

    Raises what `Backend.open_channel` raises, and `SandboxFailed`.
    """
    authority = None
    if setup.web is not None:
        from .certificate_authority import CertificateAuthority  # slow, and seldom needed

        authority = CertificateAuthority()
        setup = setup.replace(web=authority.describe())
    first_bytes = build_bundle() + wire.encode_message(setup)
    async with (
        backend.open_channel(first_bytes) as channel,
        anyio.create_task_group() as task_group,
    ):
        link = SandboxLink(channel, setup.max_checkpoints, task_group, authority, helpers)
        try:
            await link.start(setup)
            yield link
        finally:
            link.fail("it was closed")
            task_group.cancel_scope.cancel()
