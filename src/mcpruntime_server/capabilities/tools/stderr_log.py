"""The stderr of an upstream: a log file of bounded size, with credentials replaced.

Rule 1: a thread reads, because a chatty upstream must not wake the event loop for each line.
Rule 2: the thread keeps reading even if the file cannot be written, because an upstream whose
stderr is full would block.
"""

from __future__ import annotations

import os
import re
import threading
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TextIO

import anyio

from ..redaction import REDACTED, Credentials

MAX_LOG_BYTES = 1024 * 1024  # one older file of the same size is kept
MAX_LINE_BYTES = 64 * 1024  # buffered until the line ends
MAX_TAIL_BYTES = 4096
MAX_TAIL_LINES = 4  # that an error quotes
MAX_TAIL_LINE_CHARS = 160
LIKELY_CREDENTIALS = (
    re.compile(
        r"(?i)((?:pass\w*|\w*token|\w*secret|\w*api[_-]?key|authorization|cookie)"
        r"[\"']?\s*[=:]\s*)[^,;]+"
    ),
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)\S+"),
    re.compile(r"(\w+://)[^/\s@]+(?=@)"),
    re.compile(r"()\b(?:sk|pk|ghp|gho|xox[abp])[-_][A-Za-z0-9_-]{8,}"),
)
DRAIN_TIMEOUT_S = 1.0  # for the last output; a surviving child may hold the pipe open for ever


def log_path(folder: Path, upstream: str, owner: str = "") -> Path:
    """Return the log file of `upstream`; any name is allowed, and no two share a file.

    `owner` is the file name of the principal whose own connection it is.
    """
    name = re.sub(r"[^\w-]+", "_", upstream, flags=re.ASCII)[:60]
    if name != upstream:
        name = f"{name}-{zlib.crc32(upstream.encode(errors='surrogatepass')):08x}"
    return folder / (f"upstream-{name}@{owner}.log" if owner else f"upstream-{name}.log")


@asynccontextmanager
async def open_stderr_log(path: Path, credentials: Credentials) -> AsyncIterator[TextIO]:
    """Yield the file to use as stderr of a child process; its output is written to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    thread = threading.Thread(
        target=_copy_lines,
        args=(reader, path, credentials),
        name=f"log of {path.stem}",
        daemon=True,
    )
    thread.start()
    try:
        with os.fdopen(writer, "w") as end:
            yield end
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(thread.join, DRAIN_TIMEOUT_S)


def log_size(path: Path) -> int:
    """Return the size of a log file; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class StderrTail:
    """The end of a log: what the current process of an upstream has written last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0  # where the stderr of the current process begins

    async def start(self) -> None:
        """Leave out what is in the log by now: the next process writes behind it."""
        self._start = await anyio.to_thread.run_sync(log_size, self.path)

    async def quote(self) -> str:
        """Return a sentence with the last lines, or only where the log is; "" without a log."""
        return await anyio.to_thread.run_sync(self._read_quoted)

    def _read_quoted(self) -> str:
        if not self.path.exists():
            return ""
        quoted = quote_last_lines(self.path, self._start)
        text = f" Its stderr is in {self.path}"
        return f"{text} and ends with {quoted}." if quoted else f"{text}."


def quote_last_lines(path: Path, start: int) -> str:
    """Return the last lines of a log after offset `start`, each quoted; "" if there are none.

    They are text of an upstream: bounded, without control characters, and without what looks like
    a credential.
    """
    size = log_size(path)
    first = start if start <= size else 0  # the file has been replaced since
    try:
        with path.open("rb") as file:
            if size - MAX_TAIL_BYTES > first:
                file.seek(size - MAX_TAIL_BYTES)
                file.readline()  # the rest of a line, which may be that of a credential
            else:
                file.seek(first)
            text = file.read(MAX_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(map(quote_line, lines[-MAX_TAIL_LINES:]))


def quote_line(line: str) -> str:
    """Return one line in quotation marks, shortened and without what looks like a credential."""
    shown = line
    for pattern in LIKELY_CREDENTIALS:
        shown = pattern.sub(rf"\1{REDACTED}", shown)
    shown = shown if len(shown) <= MAX_TAIL_LINE_CHARS else f"{shown[:MAX_TAIL_LINE_CHARS]}..."
    return ascii(shown) if not shown.isprintable() else repr(shown)


def _copy_lines(reader: int, path: Path, credentials: Credentials) -> None:
    """Copy lines from the pipe to the file until every writer is gone."""
    pending = b""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while data := pipe.read(MAX_LINE_BYTES):
            lines, newline, pending = (pending + data).rpartition(b"\n")
            if len(pending) > MAX_LINE_BYTES:
                # What may be the beginning of a credential waits for its end.
                pending = credentials.redact_bytes(pending)
                end = max(len(pending) - credentials.max_form_bytes, 0)
                lines, newline, pending = lines + newline + pending[:end], b"\n", pending[end:]
            if lines:
                _append_to_log(path, credentials.redact_bytes(lines + newline))
    if pending:
        _append_to_log(path, credentials.redact_bytes(pending + b"\n"))


def _append_to_log(path: Path, data: bytes) -> None:
    with suppress(OSError):  # a full disk must not stop the upstream
        if path.exists() and path.stat().st_size + len(data) > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        with open(path, "ab", opener=partial(os.open, mode=0o600)) as file:
            file.write(data)
