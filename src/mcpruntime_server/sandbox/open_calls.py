"""The calls of one execution that wait for an answer.

Each is answered by a task of its own, which ends with the execution. The calls of code that does
not read its answers are not made until it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from ..protocol import wire
from ..protocol.link_states import ProtocolError
from .execution_listener import ExecutionListener
from .frame_writer import FrameWriter
from .task_pool import TaskPool

MAX_OPEN_CALLS = 1024  # each takes memory of the host while it waits
MAX_OPEN_CALL_BYTES = 4 * 1024 * 1024  # of calls that wait; the host has each about six times


SupplyReply = Callable[[wire.Call, wire.Reply], Awaitable[wire.Reply]]


class OpenCalls:
    """Answers the calls of one execution; `on_answered` is called after each answer.

    `supply` brings into the sandbox what a reply names, and returns what is sent instead.
    """

    def __init__(
        self,
        listener: ExecutionListener,
        writer: FrameWriter,
        send: Callable[[wire.Message], None],
        on_answered: Callable[[], None],
        tasks: TaskPool,
        supply: SupplyReply,
    ) -> None:
        self._listener = listener
        self._writer = writer
        self._send = send
        self._on_answered = on_answered
        self._tasks = tasks
        self._supply = supply
        self._ids: set[int] = set()
        self._bytes = 0
        self._scopes: set[anyio.CancelScope] = set()  # of the tasks that answer
        self._is_over = False

    @property
    def is_full(self) -> bool:
        """Whether no further call may be read before some are answered."""
        return self._bytes > MAX_OPEN_CALL_BYTES or not self._writer.has_room

    def add(self, call: wire.Call, size: int) -> None:
        """Answer a call whose frame has `size` bytes; raises `ProtocolError`."""
        if len(self._ids) >= MAX_OPEN_CALLS:
            text = f"{MAX_OPEN_CALLS:,} calls are waiting for an answer already"
            self._send_error(call, "unavailable", text)
            return
        if call.call_id in self._ids:
            raise ProtocolError(f"two open calls have the id {call.call_id}")
        self._ids.add(call.call_id)
        self._bytes += size
        self._tasks.start_soon(self._answer, call, size)

    def close(self) -> None:
        """Answer no more: the execution has ended, and no code waits."""
        self._is_over = True
        for scope in list(self._scopes):
            scope.cancel()

    async def _answer(self, call: wire.Call, size: int) -> None:
        reply = wire.Reply(call.call_id, None, wire.no_active_run_error(call.target))
        if not self._is_over:  # else it ended before this task started
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    await self._writer.wait_for_room()
                    answer = await self._listener.on_call(call, self._writer)
                    reply = await self._supply(call, answer)
                finally:
                    self._scopes.discard(scope)
        self._ids.discard(call.call_id)
        self._bytes -= size
        try:
            self._send(reply)
        except wire.WireError as exc:
            self._send_error(call, "too_large", f"{call.target}: the result cannot be sent: {exc}")
        self._on_answered()

    def _send_error(self, call: wire.Call, kind: str, message: str) -> None:
        error = {"kind": kind, "message": message, "data": None}
        self._send(wire.Reply(call.call_id, None, error))
