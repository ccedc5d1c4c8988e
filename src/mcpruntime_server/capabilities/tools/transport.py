"""The transports to an upstream: stdin and stdout of a child process, or streamable HTTP.

Rule 1: credentials are in plain text only here, while they are handed to the upstream.
Rule 2: a child process gets a minimal environment plus the `env` of its settings, a process group
of its own, and a file for its stderr. It never shares the streams of the server.
Rule 3: `ended` is set as soon as the stream of a child process ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.to_thread import run_sync
from mcp.client.streamable_http import streamable_http_client

from ...config import UpstreamSettings
from ..redaction import Credentials
from ..tls_context import load_tls_context
from .bounded_client import BODY_TIME_FACTOR, BoundedClient
from .credentials import reveal_secrets
from .direct_requests import DirectRequests
from .spliced_arguments import SplicedArguments
from .stashed_answers import StashedAnswers
from .stderr_log import open_stderr_log
from .stdio_client import open_stdio_client
from .unrequested_messages import MessageFilter

CONNECT_TIMEOUT_S = 10.0  # for a TCP connection, TLS included
SESSION_HEADER = "mcp-session-id"
MAX_SILENCE_S = 300.0  # of an idle event stream, in addition to the upstream's own timeout


@dataclass
class TransportState:
    """The state of one connection.

    `ended` is set when no more messages can arrive. `http_status` is that of the last refused
    request. `is_session_expired` means that an HTTP server no longer knows the session; the
    protocol then requires a new one. A child process takes `direct_requests`; over HTTP, large
    answers are in the `stash`, and large arguments are `spliced` in. `messages` has the limits of
    what the server sends.
    """

    messages: MessageFilter
    stash: StashedAnswers
    spliced: SplicedArguments = field(default_factory=SplicedArguments)
    ended: anyio.Event = field(default_factory=anyio.Event)
    http_status: int = 0
    is_session_expired: bool = False
    direct_requests: DirectRequests | None = None


@asynccontextmanager
async def open_transport(
    state: TransportState,
    settings: UpstreamSettings,
    base_dir: Path,
    log: Path,
    credentials: Credentials,
) -> AsyncIterator[tuple[Any, Any]]:
    """Yield the SDK's pair of streams to an upstream; leaving ends its process."""
    if settings.command is None:
        opened = _open_http(state, settings)
    else:
        opened = _open_stdio(state, settings, base_dir, log, credentials)
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
    requests = state.direct_requests = DirectRequests()
    async with (
        open_stderr_log(log, credentials) as errors,
        open_stdio_client(
            command,
            reveal_secrets(settings.env),
            folder,
            errors,
            state.ended,
            requests,
            state.messages,
        ) as streams,
    ):
        yield streams


@asynccontextmanager
async def _open_http(
    state: TransportState, settings: UpstreamSettings
) -> AsyncIterator[tuple[Any, Any]]:
    async def record_refusal(response: httpx2.Response) -> None:
        if not response.is_error:
            return
        state.http_status = response.status_code
        if response.status_code == 404 and SESSION_HEADER in response.request.headers:
            state.is_session_expired = True

    from .linear_h11 import make_h11_linear  # h11 is imported for HTTP alone

    make_h11_linear()
    client = BoundedClient(
        state.messages,
        state.stash,
        state.spliced,
        BODY_TIME_FACTOR * settings.timeout_s,
        headers=reveal_secrets(settings.headers),
        verify=await run_sync(load_tls_context),
        timeout=httpx2.Timeout(CONNECT_TIMEOUT_S, read=settings.timeout_s + MAX_SILENCE_S),
        limits=httpx2.Limits(
            max_connections=None, max_keepalive_connections=settings.max_concurrency
        ),
        event_hooks={"response": [record_refusal]},
    )
    opened = streamable_http_client(
        str(settings.url),
        http_client=client,
        max_sse_event_size=2 * state.messages.limits.message_bytes,  # `client` is stricter
    )
    async with client, opened as streams:
        yield streams
