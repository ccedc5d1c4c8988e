"""mcp-run-python: its sandbox in Deno, which installs Pyodide first."""

from __future__ import annotations

from contextlib import AsyncExitStack

from mcp_run_python import code_sandbox

from .measure import Rival, serve


class McpRunPython(Rival):
    """The documented context manager; each run starts from nothing."""

    async def open(self) -> None:
        """Install and start Deno's server."""
        self._stack = AsyncExitStack()
        self._log: list[str] = []
        box = code_sandbox(log_handler=lambda level, text: self._log.append(text))
        self._sandbox = await self._stack.enter_async_context(box)

    async def run(self, code: str) -> str:
        """Return the answer."""
        return str(await self._sandbox.eval(code))

    async def close(self) -> None:
        """Stop the server."""
        await self._stack.aclose()


if __name__ == "__main__":
    serve(McpRunPython)
