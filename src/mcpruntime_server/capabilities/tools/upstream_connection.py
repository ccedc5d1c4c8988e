"""One live connection to an upstream, as its callers use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from mcp import Client, MCPError, types

from .direct_requests import DirectCalls
from .large_answers import LargeResult, ListPage, PageBounds, ToolContract
from .paged_lists import RESOURCES, TOOLS
from .transport import TransportState


@dataclass(frozen=True)
class UpstreamConnection:
    """One live connection and the state of its transport."""

    client: Client
    transport: TransportState
    direct_calls: DirectCalls | None  # faster than the client's, where the transport allows them
    closed: anyio.Event  # set when the process has ended and its stderr is in the log
    timeout_s: float  # of a request

    async def call_tool(
        self, tool: str, arguments: Mapping[str, Any], contract: ToolContract
    ) -> types.CallToolResult | LargeResult:
        """Return the result of a call; raises what the client raises."""
        if self.direct_calls is None:
            with self.transport.spliced.stand_in(arguments) as sent:
                result = await self.client.call_tool(tool, sent, self.timeout_s)
            found = self.transport.stash.take(result.meta)
            return found if isinstance(found, LargeResult) else result
        return await self.direct_calls.call_tool(tool, arguments, self.timeout_s, contract)

    async def fetch_page(self, key: str, cursor: str | None, bounds: PageBounds) -> ListPage:
        """Return the page of a list (`ListKind.key`); raises what the client raises."""
        if self.direct_calls is not None:
            return await self.direct_calls.fetch_page(key, cursor, bounds, self.timeout_s)
        page: ListPage
        if key == TOOLS.key:
            tools = await self.client.list_tools(cursor=cursor)
            page, meta = ListPage(tools.tools, tools.next_cursor), tools.meta
        elif key == RESOURCES.key:
            resources = await self.client.list_resources(cursor=cursor)
            page, meta = ListPage(resources.resources, resources.next_cursor), resources.meta
        else:
            listed = await self.client.list_resource_templates(cursor=cursor)
            page, meta = ListPage(listed.resource_templates, listed.next_cursor), listed.meta
        found = self.transport.stash.take(meta)
        return found if isinstance(found, ListPage) else page

    @property
    def close_reason(self) -> str:
        """Why the connection has ended, as a clause."""
        requests = self.transport.direct_requests
        return requests.close_reason if requests else "its connection closed"

    def is_session_expired(self, error: MCPError) -> bool:
        """Return whether `error` says that the server has dropped the session.

        Such a server has not processed the request, so it may be sent again.
        """
        return self.transport.is_session_expired and "session" in error.message.lower()
