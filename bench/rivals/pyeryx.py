"""pyeryx: a session in WebAssembly, with an MCP server by its own manager of connections."""

from __future__ import annotations

import eryx

from .measure import Programs, Rival, serve


class Pyeryx(Rival):
    """A session, which keeps variables."""

    programs = Programs(
        value="print(1 + 1)",
        get_variable="print(kept + 1)",
        calls='for n in range(COUNT):\n    await mcp["bare"].noop(n=n)\nprint("done")',
    )

    async def open(self) -> None:
        """Connect the MCP server and start the session."""
        command, *args = self.request["upstream"]
        self._manager = eryx.MCPManager()
        self._manager.connect("bare", command, args, dict(self.request["variables"]))
        self._session = eryx.Session(mcp=self._manager)

    async def run(self, code: str) -> str:
        """Return the output."""
        return str(self._session.execute(code).stdout_text)

    async def close(self) -> None:
        """Stop the MCP server."""
        self._manager.close()


if __name__ == "__main__":
    serve(Pyeryx)
