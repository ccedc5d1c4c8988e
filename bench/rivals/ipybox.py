"""ipybox: its MCP server over stdio, with an MCP server that it has generated functions of."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from .measure import Programs, Rival, serve

CALLS = """
from mcptools.bare import noop
for n in range(COUNT):
    noop.run(noop.Params(n=n))
print("done")
"""


class Ipybox(Rival):
    """A client of the server; `mcptools` is written into its workspace."""

    programs = Programs(calls=CALLS)

    async def open(self) -> None:
        """Start the server and register the MCP server."""
        self._stack = AsyncExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        command = str(Path(sys.executable).with_name("ipybox"))
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        self._log = Path(folder) / "log"
        log = self._stack.enter_context(self._log.open("w"))
        parameters = StdioServerParameters(
            command=command,
            args=["--workspace", folder],
            env={**self.request["variables"], "PATH": path},
        )
        streams = await self._stack.enter_async_context(stdio_client(parameters, errlog=log))
        self._session = await self._stack.enter_async_context(ClientSession(*streams))
        try:
            await self._session.initialize()
        except Exception as exc:
            lines = self._log.read_text("utf-8").strip().splitlines() or [""]
            raise RuntimeError(f"{exc}: {lines[-1]}") from exc
        command, *args = self.request["upstream"]
        server = {"command": command, "args": args}
        await self._call("register_mcp_server", server_name="bare", server_params=server)

    async def run(self, code: str) -> str:
        """Return the text of the result."""
        return await self._call("execute_ipython_cell", code=code)

    async def _call(self, tool: str, **arguments: object) -> str:
        result = await self._session.call_tool(tool, arguments)
        text = "".join(getattr(each, "text", "") for each in result.content)
        if getattr(result, "isError", False):  # the name in the SDK that ipybox needs
            raise RuntimeError(text)
        return text

    async def close(self) -> None:
        """Stop the server."""
        await self._stack.aclose()


if __name__ == "__main__":
    serve(Ipybox)
