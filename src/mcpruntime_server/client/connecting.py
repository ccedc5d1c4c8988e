"""How programs get a client: of a server in their own process, or of one elsewhere.

Rule: the logging of the program is its own. It sees the server's messages when it configures it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Literal

import anyio
import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult

from ..app.composition import open_app
from ..capabilities.tls_context import load_tls_context
from ..config import Config, load_config
from ..errors import Unavailable
from ..journal.call_scope import act_for
from ..journal.principals import LOCAL_PRINCIPAL
from ..server.delivery import DeliveryCursor
from .runtime_client import RuntimeClient

READ_TIMEOUT_S = 300.0  # of a response over HTTP, longer than a request waits for a run

Approval = Literal["allow", "allow_run", "allow_session", "deny"]
ApproveCalls = Callable[[str], Awaitable[Approval]]  # decides about the calls that a text lists

logging.getLogger("mcpruntime_server").addHandler(logging.NullHandler())  # else stderr gets them


@asynccontextmanager
async def embed_runtime(
    config: Config | None = None, *, approve: ApproveCalls | None = None
) -> AsyncIterator[RuntimeClient]:
    """Start a server in this process and yield a client of it; leaving stops all sandboxes.

    Without `config`, the settings are those of the command line. `approve` decides about calls for
    which the policy asks a person; without it, such runs wait for `mcpruntime-server approvals`.

    Raises `McpRuntimeError` if the server cannot be started.
    """
    act_for(LOCAL_PRINCIPAL)
    cursor = DeliveryCursor()  # there is one client
    failure: Exception | None = None
    async with open_app(load_config() if config is None else config) as app:
        with preserve_logging():
            server = await app.open_mcp_server(LOCAL_PRINCIPAL, lambda _: cursor)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app.catalog.refresh)
            async with Client(server, elicitation_callback=build_callback(approve)) as client:
                try:
                    yield RuntimeClient(client)
                except Exception as exc:  # noqa: BLE001 - raised below, outside the task groups
                    failure = exc
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def connect_runtime(
    target: Any, *, token: str = "", approve: ApproveCalls | None = None
) -> AsyncIterator[RuntimeClient]:
    """Yield a client of a running server, or of one that is started for it.

    `target` is the address that `mcpruntime-server serve` prints, with the access token `token`, or
    anything else that the client of the MCP SDK connects to, such as `StdioServerParameters`.

    Raises `Unavailable` if the server does not answer.
    """
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        if isinstance(target, str) and token:
            http = httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {token}"},
                verify=await anyio.to_thread.run_sync(load_tls_context),
                timeout=httpx2.Timeout(READ_TIMEOUT_S, connect=10.0),
            )
            await stack.enter_async_context(http)
            target = streamable_http_client(target, http_client=http)
        client = Client(target, elicitation_callback=build_callback(approve))
        try:
            await stack.enter_async_context(client)
        except (MCPError, ExceptionGroup, httpx2.HTTPError) as exc:
            raise Unavailable(
                f"The server could not be reached: {exc}.", remedy="Is it running?"
            ) from exc
        try:
            yield RuntimeClient(client)
        except Exception as exc:  # noqa: BLE001 - raised below, outside the task groups
            failure = exc
    if failure is not None:
        raise failure


@contextmanager
def preserve_logging() -> Iterator[None]:
    """Undo what the SDK's server does to the root logger, which belongs to the program."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def build_callback(approve: ApproveCalls | None) -> Any:
    """Return how the client of the SDK shows a form; None if it shows none."""
    if approve is None:
        return None

    async def show_form(context: Any, request: ElicitRequestParams) -> ElicitResult:
        if not isinstance(request, ElicitRequestFormParams):
            return ElicitResult(action="cancel")
        decision = await approve(request.message)
        fields = request.requested_schema["properties"]
        return ElicitResult(action="accept", content=dict.fromkeys(fields, decision))

    return show_form
