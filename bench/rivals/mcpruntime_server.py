"""This server over stdio, with a warm pool, as clients start it."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from ..harness import TestServer, start_server
from .measure import Programs, Rival, serve


class OurServer(Rival):
    """A server with one session; its settings are the defaults."""

    programs = Programs(
        calls="from tools.bare import noop\nfor n in range(COUNT):\n    noop(n=n)\n'done'"
    )

    async def open(self) -> None:
        """Start the server."""
        self._stack = AsyncExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        self._server: TestServer = await self._stack.enter_async_context(start_server(Path(folder)))

    async def run(self, code: str) -> str:
        """Return the value and the output."""
        result = await self._server.run_code(code, "rival")
        return f"{result.get('value')}\n{result.get('stdout', result.get('output', ''))}"

    async def close(self) -> None:
        """Stop the server."""
        await self._stack.aclose()


if __name__ == "__main__":
    serve(OurServer)
