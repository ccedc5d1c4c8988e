"""Calls and answers that a sandbox or the host does not keep up with wait; nothing piles up."""

from __future__ import annotations

import socket
from typing import cast

import anyio
from anyio.abc import UNIXSocketStream

from mcpruntime_server.protocol import wire
from mcpruntime_server.sandbox.frame_writer import MAX_UNREAD_BYTES, FrameWriter
from mcpruntime_server.sandbox.open_calls import MAX_OPEN_CALL_BYTES
from mcpruntime_server.sandbox.stream import SandboxStream
from tests.helpers.forged_messages import FORGE

from .conftest import RunRecorder, SandboxDriver

MB = 1024 * 1024
FLOOD = f"""{FORGE}
fields = {{'run_number': 1, 'target': 'test.large', 'args': {{}}}}
for number in range(90): say(frame('Call', {{'call_id': number, **fields}}))
time.sleep(600)
"""
CALL_IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
from mcpruntime_sandbox.sandboxed.library.tools import host
def call(number): return host.call('test.hold', {'number': number, 'text': 'x' * 1_000_000})
with ThreadPoolExecutor(12) as pool: answers = list(pool.map(call, range(12)))
answers
"""


class LargeAnswers(RunRecorder):
    """Answers each call with a megabyte."""

    async def on_call(self, message: wire.Call, writer: FrameWriter) -> wire.Reply:
        return wire.Reply(message.call_id, "x" * MB)


class HeldCalls(RunRecorder):
    """Answers no call before no further one arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.held_bytes = 0
        self.most_held_bytes = 0
        self.latest = anyio.Event()

    async def on_call(self, message: wire.Call, writer: FrameWriter) -> wire.Reply:
        size = len(message.args["text"])
        self.held_bytes += size
        self.most_held_bytes = max(self.most_held_bytes, self.held_bytes)
        self.latest.set()
        self.latest = latest = anyio.Event()
        with anyio.move_on_after(0.5):
            await latest.wait()
        self.held_bytes -= size
        return wire.Reply(message.call_id, message.args["number"])


async def test_a_worker_that_reads_no_answers_is_replaced(run: SandboxDriver) -> None:
    done = await run(FLOOD, recorder=LargeAnswers())
    assert done.status == "died"
    assert done.error is not None
    assert "did not read the answers" in done.error["message"]
    assert await run.evaluate("'new'") == '"new"'


async def test_calls_with_large_arguments_are_taken_a_few_at_a_time(run: SandboxDriver) -> None:
    recorder = HeldCalls()
    done = await run(CALL_IN_THREADS, recorder=recorder)
    assert done.value is not None, done.error
    assert done.value["text"] == str(list(range(12)))
    assert recorder.most_held_bytes <= MAX_OPEN_CALL_BYTES + MB


async def test_there_is_room_for_answers_again_when_they_have_been_read() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    written: list[int] = []
    stream = SandboxStream(await UNIXSocketStream.from_socket(ours))
    writer = FrameWriter(stream, lambda: written.append(writer.unread_bytes))

    async def read() -> None:
        while True:
            await anyio.wait_readable(theirs)
            theirs.recv(MB)

    with theirs:
        async with stream, anyio.create_task_group() as tasks:
            tasks.start_soon(writer.write_loop)
            frames = [bytearray(MB) for _ in range(10)]
            for frame in frames:
                writer.write(cast("bytes", frame))  # bytes do not tell who refers to them
            assert not writer.has_room
            tasks.start_soon(read)
            with anyio.fail_after(30):
                await writer.wait_for_room()
                assert writer.unread_bytes <= MAX_UNREAD_BYTES
                assert written
                while writer.unread_bytes:  # noqa: ASYNC110 - it says no more than this
                    await anyio.sleep(0.01)
            for frame in frames:
                frame.clear()  # an error while something still refers to its memory
            tasks.cancel_scope.cancel()
