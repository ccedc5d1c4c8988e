"""Lists the tools of a connected upstream again whenever it says that they have changed.

Rule: an upstream that announces changes all the time costs a bounded share of the server's time.
"""

from __future__ import annotations

import anyio
from mcp import MCPError
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost

from .tool_list import UpstreamToolList
from .upstream_connection import UpstreamConnection

MIN_LISTING_INTERVAL_S = 1.0  # between two listings that the upstream has caused
IDLE_PER_LISTING = 4.0  # times as long as a listing and its uses take, it is not caused again
MIN_RENEWAL_DELAY_S = 0.2  # before a subscription that has ended is opened again
MAX_RENEWAL_DELAY_S = 30.0


class ToolListWatch:
    """Keeps the tool list of one upstream up to date, at a bounded cost."""

    def __init__(self, tool_list: UpstreamToolList) -> None:
        self._tool_list = tool_list
        self._cost_s = 0.0  # of what has been made of the last list

    def add_cost(self, seconds: float) -> None:
        """Count work that the last listing has caused: the next one has to wait the longer."""
        self._cost_s += seconds

    async def follow(self, connection: UpstreamConnection) -> None:
        """List the tools after each change that the upstream announces, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_notifications, connection)
            tasks.start_soon(self._follow_subscription, connection)

    async def refresh(self, connection: UpstreamConnection) -> None:
        """List the tools again; what was listed before stays if that fails."""
        try:
            await self._tool_list.fetch(connection.client, connection.fetch_page)
        except (MCPError, RuntimeError, ValueError):
            return  # a lost connection is reported by its transport

    async def _list_changed_tools(self, connection: UpstreamConnection) -> None:
        """Fetch a list that has changed, and wait before the upstream may cause it again."""
        started_at = anyio.current_time()
        await self.refresh(connection)
        taken_s, self._cost_s = anyio.current_time() - started_at, 0.0
        await anyio.sleep(max(MIN_LISTING_INTERVAL_S, IDLE_PER_LISTING * taken_s))
        while self._cost_s:
            taken_s, self._cost_s = self._cost_s, 0.0
            await anyio.sleep(IDLE_PER_LISTING * taken_s)

    async def _follow_notifications(self, connection: UpstreamConnection) -> None:
        """List the tools again after each notification, as older protocol revisions send them."""
        while True:
            await connection.transport.messages.tools_changed.wait()
            await self._list_changed_tools(connection)

    async def _follow_subscription(self, connection: UpstreamConnection) -> None:
        """Subscribe to changes of the tool list, as protocol revision 2026-07-28 offers it.

        A subscription that ends is opened again.
        """
        client = connection.client
        capability = client.server_capabilities.tools
        if capability is None or not capability.list_changed:
            return
        delay = MIN_RENEWAL_DELAY_S
        while True:
            try:
                async with client.listen(tools_list_changed=True) as events:
                    delay = MIN_RENEWAL_DELAY_S
                    await self.refresh(connection)  # it may have changed before
                    async for _ in events:
                        await self._list_changed_tools(connection)
            except ListenNotSupportedError:
                return
            except (SubscriptionLost, MCPError, TimeoutError):
                pass
            await anyio.sleep(delay)
            delay = min(delay * 2, MAX_RENEWAL_DELAY_S)
