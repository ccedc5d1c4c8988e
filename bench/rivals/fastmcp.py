"""FastMCP: a server with the transform `CodeMode` before a proxy of an MCP server, over stdio."""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack

from fastmcp import Client, FastMCP
from fastmcp.client.transports import StdioTransport
from fastmcp.experimental.transforms.code_mode import CodeMode
from fastmcp.server import create_proxy

from .measure import Programs, Rival, serve


class FastMcp(Rival):
    """A client of the server that `serve_upstream` runs."""

    programs = Programs(
        value="return 1 + 1",
        output="print('line {n}')\nreturn 'line {n}'",
        get_variable="return kept + 1",
        calls="for n in range(COUNT):\n    await call_tool('noop', {'n': n})\nreturn 'done'",
    )

    async def open(self) -> None:
        """Start the server."""
        command = ["-m", "bench.rivals.fastmcp", "--serve", json.dumps(self.request)]
        env = dict(self.request["variables"])
        self._client = Client(StdioTransport(sys.executable, command, env=env))
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(self._client)

    async def run(self, code: str) -> str:
        """Return the text of the result."""
        result = await self._client.call_tool("execute", {"code": code})
        return "".join(getattr(each, "text", "") for each in result.content)

    async def close(self) -> None:
        """Stop the server."""
        await self._stack.aclose()


def serve_upstream(request: dict[str, list[str]]) -> None:
    """Serve an MCP server behind code mode over stdio."""
    command, *args = request["upstream"]
    proxy = create_proxy({"mcpServers": {"bare": {"command": command, "args": args}}})
    server = FastMCP("bench", transforms=[CodeMode()])
    server.mount(proxy)
    server.run(show_banner=False, log_level="ERROR")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve_upstream(json.loads(sys.argv[2]))
    else:
        serve(FastMcp)
