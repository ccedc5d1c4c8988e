"""How bytes get to an upstream and back: a child process's stdin and stdout, or streamable HTTP.

Rule 1: this is the one place where credentials are in the clear, for as long as it takes to hand them over.
Rule 2: a child process gets a minimal environment plus the `env` of its settings, a process group of its own, and a
file for its stderr; it never shares the server's own streams.
Rule 3: the end of a stream is seen at once, by whoever waits for `ended`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp.client.streamable_http import streamable_http_client

from ...config import UpstreamSettings
from .stderr_log import open_stderr_log
from .stdio_client import open_stdio_client
from .tool_results import Credentials, reveal_secrets

CONNECT_TIMEOUT_S = 10.0  # for a TCP connection, TLS included
SESSION_HEADER = "mcp-session-id"
MAX_SILENCE_S = (
    300.0  # of an event stream on which nothing need happen, on top of the upstream's own time-out
)


@dataclass
class TransportState:
    """One connection's line: `ended` is set when nothing more can come; `http_status` is the last refusal's.

    `forgotten` says that an HTTP server no longer knows the session; the protocol then asks for a new one.
    """

    ended: anyio.Event = field(default_factory=anyio.Event)
    http_status: int = 0
    is_session_expired: bool = False


@asynccontextmanager
async def open_transport(
    state: TransportState,
    settings: UpstreamSettings,
    base_dir: Path,
    log: Path,
    credentials: Credentials,
) -> AsyncIterator[tuple[Any, Any]]:
    """Yield the SDK's pair of streams to the upstream that `settings` describe; leaving ends its process."""
    opened = (
        _open_http(state, settings)
        if settings.command is None
        else _open_stdio(state, settings, base_dir, log, credentials)
    )
    async with opened as streams:
        yield streams


@asynccontextmanager
async def _open_stdio(
    state: TransportState,
    settings: UpstreamSettings,
    base_dir: Path,
    log: Path,
    credentials: Credentials,
) -> AsyncIterator[tuple[Any, Any]]:
    command = [str(settings.command), *settings.args]
    folder = base_dir / (settings.cwd or "")
    async with (
        open_stderr_log(log, credentials) as errors,
        open_stdio_client(
            command, reveal_secrets(settings.env), folder, errors, state.ended
        ) as streams,
    ):
        yield streams


@asynccontextmanager
async def _open_http(
    state: TransportState, settings: UpstreamSettings
) -> AsyncIterator[tuple[Any, Any]]:
    async def note_refusal(response: httpx2.Response) -> None:
        if response.is_error:
            state.http_status = response.status_code
            state.is_session_expired |= (
                response.status_code == 404 and SESSION_HEADER in response.request.headers
            )

    client = httpx2.AsyncClient(
        headers=reveal_secrets(settings.headers),
        timeout=httpx2.Timeout(CONNECT_TIMEOUT_S, read=settings.timeout_s + MAX_SILENCE_S),
        limits=httpx2.Limits(
            max_connections=None, max_keepalive_connections=settings.max_concurrency
        ),
        event_hooks={"response": [note_refusal]},
    )
    async with client, streamable_http_client(str(settings.url), http_client=client) as streams:
        yield streams
