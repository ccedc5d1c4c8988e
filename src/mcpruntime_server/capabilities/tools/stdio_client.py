"""An MCP server in a child process, reached over its stdin and stdout.

The SDK's own stdio client passes every message through two tasks and two memory streams. These
streams (`message_reader` and the writer here) use the pipes directly, which saves four task
switches in each call. They carry the messages of the SDK, and those of `DirectRequests`.

Rule 1: a message is written whole, even if its sender is cancelled.
Rule 2: leaving asks the process to exit, waits, then terminates and at last kills its process
group. Each wait is bounded. The guardian ends what has left the group, and all if the server is
killed before.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import AsyncResource
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCRequest

from ...config.file_modes import user_umask
from .direct_requests import DirectRequests
from .message_reader import READ_CHUNK_BYTES, UpstreamMessageReader
from .process_cgroup import create_cgroup, enter_cgroup
from .process_guardian import ProcessGuardian, make_mark
from .unrequested_messages import MessageFilter

MAX_TURN_BYTES = 256 * 1024  # written before others have their turn
EXIT_GRACE_S = 2.0  # for a process to exit by itself, then again after SIGTERM and after SIGKILL
EXIT_POLL_S = 0.01  # `Popen.wait` would block, and pidfds do not exist on all platforms
DRAIN_CHUNKS = (
    64  # read at once from a process that is to exit; a full pipe would keep it from that
)


class UpstreamMessageWriter(AsyncResource):
    """Writes messages to the stdin of a process."""

    def __init__(self, stdin: int, messages: MessageFilter) -> None:
        self._stdin = stdin
        self.messages = messages
        self._unsent: deque[memoryview] = deque()
        self._flushing = anyio.Lock(fast_acquire=True)
        self._is_closed = False

    async def send(self, message: SessionMessage) -> None:
        """Write `message`; raises what `send_line` raises."""
        if isinstance(message.message, JSONRPCRequest):
            self.messages.expect_answer(message.message.id)
        text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
        await self.send_line(text.encode("utf-8", "replace") + b"\n")

    async def send_line(self, *pieces: bytes) -> None:
        """Write a line in `pieces`; raises `anyio.BrokenResourceError` if the process is gone.

        If the sender is cancelled while the pipe is full, the next sender writes the rest.
        """
        if self._is_closed:
            raise anyio.ClosedResourceError
        is_first = not self._unsent
        self._unsent.extend(map(memoryview, pieces))
        if is_first and self._write_now():
            return
        async with self._flushing:
            while not self._write_now():
                await anyio.wait_writable(self._stdin)

    def _write_now(self) -> bool:
        """Write what fits into the pipe and into one turn; return whether nothing is left."""
        room = MAX_TURN_BYTES  # the pipe to a process that reads quickly is never full
        while self._unsent:
            if room <= 0:
                return False
            try:
                written = os.write(self._stdin, self._unsent[0][:room])
            except BlockingIOError:
                return False
            except OSError as exc:
                self._unsent.clear()
                raise anyio.BrokenResourceError from exc
            room -= written
            if rest := self._unsent[0][written:]:
                self._unsent[0] = rest
            else:
                self._unsent.popleft()
        return True

    async def aclose(self) -> None:
        """Refuse further messages; the pipe itself belongs to `open_stdio_client`."""
        self._is_closed = True


@asynccontextmanager
async def open_stdio_client(
    command: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    errors: IO[str],
    ended: anyio.Event,
    requests: DirectRequests,
    messages: MessageFilter,
) -> AsyncIterator[tuple[UpstreamMessageReader, UpstreamMessageWriter]]:
    """Start `command` in `folder` and yield its streams; leaving stops the process.

    `env` is added to the SDK's minimal environment. The stderr of the process goes to `errors`.
    `requests` use the streams as well. `messages` has the limits, and what else arrives.
    Raises `OSError` if the process cannot be started.
    """
    mark = make_mark()
    environment = get_default_environment() | dict(env) | mark
    cgroup = create_cgroup() if all(map(str.isidentifier, environment)) else None
    if cgroup is not None:
        try:
            command = enter_cgroup(cgroup, command, environment, folder)
        except OSError:
            cgroup.rmdir()
            raise
    process = _start_process(command, environment, folder, errors)
    guardian = ProcessGuardian(process.pid, mark, cgroup)
    assert process.stdin is not None
    assert process.stdout is not None
    writer = UpstreamMessageWriter(process.stdin.fileno(), messages)
    reader = UpstreamMessageReader(process.stdout.fileno(), ended, requests, messages)
    try:
        requests.open(writer.send_line)
        reader.start()
        yield reader, writer
    finally:
        requests.close("it was stopped")
        reader.stop()
        with anyio.CancelScope(shield=True):
            await stop_upstream_process(process)
            await guardian.dismiss()


def _start_process(
    command: Sequence[str], env: Mapping[str, str], folder: Path, errors: IO[str]
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd=folder,
        env=env,
        bufsize=0,
        start_new_session=True,
        umask=user_umask(),
    )
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
    return process


async def stop_upstream_process(process: subprocess.Popen[bytes]) -> None:
    """Close the stdin of `process`, wait for its exit, then terminate and kill its group."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(OSError):
        process.stdin.close()
    if not await _wait_for_exit(process) or _is_group_alive(process):
        _signal_group(process, signal.SIGTERM)
        if not await _wait_for_exit(process, whole_group=True):
            _signal_group(process, signal.SIGKILL)
            await _wait_for_exit(process)
    process.stdout.close()


async def _wait_for_exit(process: subprocess.Popen[bytes], *, whole_group: bool = False) -> bool:
    """Return whether `process`, or its `whole_group`, exits within the grace period."""
    with anyio.move_on_after(EXIT_GRACE_S):
        while process.poll() is None or (whole_group and _is_group_alive(process)):
            _discard_output(process)
            await anyio.sleep(EXIT_POLL_S)
        return True
    return False


def _discard_output(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    with suppress(OSError):
        for _ in range(DRAIN_CHUNKS):
            if not os.read(process.stdout.fileno(), READ_CHUNK_BYTES):
                return


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _is_group_alive(process: subprocess.Popen[bytes]) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
