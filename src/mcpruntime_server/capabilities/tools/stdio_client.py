"""An MCP server in a child process, reached over its stdin and stdout.

The SDK's own stdio client passes every message through two tasks and two memory streams. These
streams read and write the pipes directly, which saves four task switches in each call.

Rule 1: a message is written whole, even if its sender is cancelled.
Rule 2: leaving asks the process to exit, waits, then terminates and at last kills its process
group. Each wait is bounded.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import anyio
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

READ_CHUNK_BYTES = 64 * 1024
EXIT_GRACE_S = 2.0  # for a process to exit by itself, then again after SIGTERM and after SIGKILL
EXIT_POLL_S = 0.01  # `Popen.wait` would block, and pidfds do not exist on all platforms
DRAIN_CHUNKS = (
    64  # read at once from a process that is to exit; a full pipe would keep it from that
)


class MessageReader:
    """The messages that a process writes to its stdout; sets `ended` when no more can come.

    A line that is not a message is yielded as the error that says why.
    """

    def __init__(self, stdout: int, ended: anyio.Event) -> None:
        self._stdout = stdout
        self._ended = ended
        self._lines: deque[bytes] = deque()
        self._unfinished: list[bytes] = []  # chunks of a line whose end has not arrived

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while not self._lines:
            chunk = await self._read_chunk()
            if not chunk:
                self._ended.set()
                raise StopAsyncIteration
            self._add_chunk(chunk)
        return _parse_line(self._lines.popleft())

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message; raises `anyio.EndOfStream` after the last one."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    async def _read_chunk(self) -> bytes:
        """Return the next bytes of the pipe, or b"" at its end."""
        while True:
            await anyio.wait_readable(self._stdout)
            try:
                return os.read(self._stdout, READ_CHUNK_BYTES)
            except BlockingIOError:  # a spurious wake-up
                continue
            except OSError:
                return b""

    def _add_chunk(self, chunk: bytes) -> None:
        first, *more = chunk.split(b"\n")
        self._unfinished.append(first)
        if more:
            complete = [b"".join(self._unfinished), *more[:-1]]
            self._lines.extend(line for line in complete if line.strip())
            self._unfinished = [more[-1]]

    async def aclose(self) -> None:
        """Do nothing: the pipe belongs to `open_stdio_client`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        cls: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class MessageWriter:
    """Writes messages to the stdin of a process."""

    def __init__(self, stdin: int) -> None:
        self._stdin = stdin
        self._unsent: deque[memoryview] = deque()
        self._flushing = anyio.Lock(fast_acquire=True)
        self._is_closed = False

    async def send(self, message: SessionMessage) -> None:
        """Write `message`; raises `anyio.BrokenResourceError` if the process no longer reads.

        If the sender is cancelled while the pipe is full, the next sender writes the rest.
        """
        if self._is_closed:
            raise anyio.ClosedResourceError
        text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
        self._unsent.append(memoryview(text.encode("utf-8", "replace") + b"\n"))
        if len(self._unsent) == 1 and self._write_now():
            return
        async with self._flushing:
            while not self._write_now():
                await anyio.wait_writable(self._stdin)

    def _write_now(self) -> bool:
        """Write what fits into the pipe; return whether nothing is left."""
        while self._unsent:
            try:
                rest = self._unsent[0][os.write(self._stdin, self._unsent[0]) :]
            except BlockingIOError:
                return False
            except OSError as exc:
                self._unsent.clear()
                raise anyio.BrokenResourceError from exc
            if rest:
                self._unsent[0] = rest
            else:
                self._unsent.popleft()
        return True

    async def aclose(self) -> None:
        """Refuse further messages; the pipe itself belongs to `open_stdio_client`."""
        self._is_closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        cls: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def _parse_line(line: bytes) -> SessionMessage | Exception:
    try:
        message = jsonrpc_message_adapter.validate_json(
            line.decode("utf-8", "replace"), by_name=False
        )
    except ValueError as exc:
        return exc
    return SessionMessage(message)


@asynccontextmanager
async def open_stdio_client(
    command: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    errors: IO[str],
    ended: anyio.Event,
) -> AsyncIterator[tuple[MessageReader, MessageWriter]]:
    """Start `command` in `folder` and yield its streams; leaving stops the process.

    `env` is added to the SDK's minimal environment. The stderr of the process goes to `errors`.
    Raises `OSError` if the process cannot be started.
    """
    process = _start_process(command, get_default_environment() | dict(env), folder, errors)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield MessageReader(process.stdout.fileno(), ended), MessageWriter(process.stdin.fileno())
    finally:
        with anyio.CancelScope(shield=True):
            await stop_process(process)


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
    )
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
    return process


async def stop_process(process: subprocess.Popen[bytes]) -> None:
    """Close the stdin of `process`, wait for its exit, then terminate and kill its group."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(OSError):
        process.stdin.close()
    if not await _wait_for_exit(process):
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
