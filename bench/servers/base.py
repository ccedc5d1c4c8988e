"""What all servers share: state in one JSON file, a log of calls, and a latency."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

from .names import (
    CALL_LOG,
    HELD_FILE,
    HOLD_FILE,
    LATENCY_VARIABLE,
    STATE_VARIABLE,
    describe_hold,
)

__all__ = ["StatefulServer", "ToolError", "find_record", "next_id"]

HOLD_POLL_S = 0.002
P = ParamSpec("P")
R = TypeVar("R")


class StatefulServer:
    """An MCP server; its tools are async functions that never wait between reading and writing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(os.environ[STATE_VARIABLE])
        self.mcp = MCPServer(name, log_level="ERROR")
        self._latency_s = float(os.environ.get(LATENCY_VARIABLE, "0")) / 1e3

    def read_state(self) -> dict[str, Any]:
        """Return the state of this server."""
        state: dict[str, Any] = json.loads((self.folder / f"{self.name}.json").read_text("utf-8"))
        return state

    @contextmanager
    def change_state(self) -> Iterator[dict[str, Any]]:
        """Yield the state, and write it unless an error is raised."""
        state = self.read_state()
        yield state
        temporary = self.folder / f".{self.name}.json"
        temporary.write_text(json.dumps(state), "utf-8")
        temporary.replace(self.folder / f"{self.name}.json")

    def tool(
        self, *, reads: bool = False
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
        """Register a tool; `reads` says that it changes nothing."""

        def register(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
            name = getattr(function, "__name__", "")

            @functools.wraps(function)
            async def call(*args: P.args, **kwargs: P.kwargs) -> R:
                await anyio.sleep(self._latency_s)
                arguments = inspect.signature(function).bind(*args, **kwargs).arguments
                is_ok = False
                try:
                    await self._hold("before", arguments)
                    value = await function(*args, **kwargs)
                    is_ok = True
                finally:
                    self._log_call(name, arguments, is_ok)
                await self._hold("after", arguments)
                return value

            self.mcp.add_tool(call, annotations=ToolAnnotations(read_only_hint=reads))
            return call

        return register

    def run(self) -> None:
        """Serve over stdio."""
        self.mcp.run()

    async def _hold(self, point: str, arguments: Mapping[str, Any]) -> None:
        """Wait before or after the effect of a call while the bench asks for it.

        Meanwhile, `HELD_FILE` has the id of this process.
        """
        place, held = self.folder / HOLD_FILE, self.folder / HELD_FILE
        if not place.exists() or place.read_text("utf-8") != describe_hold(point, arguments):
            return
        place.write_text(str(os.getpid()), "utf-8")
        place.rename(held)
        try:
            while held.exists():  # noqa: ASYNC110 - until another process removes it
                await anyio.sleep(HOLD_POLL_S)
        finally:
            held.unlink(missing_ok=True)

    def _log_call(self, tool: str, arguments: dict[str, Any], is_ok: bool) -> None:
        entry = {"server": self.name, "tool": tool, "arguments": arguments, "ok": is_ok}
        with (self.folder / CALL_LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")


def find_record(records: list[dict[str, Any]], key: str, value: Any) -> dict[str, Any]:
    """Return the record with this value; raises `ToolError` if there is none."""
    for record in records:
        if record[key] == value:
            return record
    raise ToolError(f"There is no record with {key} {value!r}.")


def next_id(records: list[dict[str, Any]]) -> int:
    """Return the id of a new record."""
    return max((record["id"] for record in records), default=0) + 1
