"""The MCP servers of the principals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
from mcp.server import MCPServer

from mcpruntime_server.server.delivery import FindCursor
from mcpruntime_server.service.mcp_endpoint import PrincipalServers


async def test_the_server_that_is_unused_longest_makes_room_for_another() -> None:
    opened: Counter[str] = Counter()

    async def open_server(principal: str, find_cursor: FindCursor) -> MCPServer[Any]:
        opened[principal] += 1
        return MCPServer(principal)

    async with anyio.create_task_group() as tasks:
        servers = PrincipalServers(open_server, tasks, 2)
        async with servers.use_server("ann") as anns:
            for principal in ("bob", "eve", "dan"):  # each needs the place of the one before
                async with servers.use_server(principal):
                    pass
            async with servers.use_server("ann") as again:
                assert again is anns
        async with servers.use_server("bob"):
            pass
        assert opened == {"ann": 1, "bob": 2, "eve": 1, "dan": 1}
        tasks.cancel_scope.cancel()
