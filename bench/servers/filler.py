"""A server with many tools that no task needs: the rest of a large catalogue."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from itertools import islice, product

from mcp.server import MCPServer

VERBS = (
    *("list", "read", "create", "update", "delete"),
    *("export", "import", "archive", "restore", "share"),
)
NOUNS = (
    *("invoice", "ticket", "branch", "deployment", "incident", "contact", "lead", "campaign"),
    *("ledger", "payment", "shipment", "parcel", "warehouse", "asset", "licence", "policy"),
    *("role", "secret", "cluster", "pipeline", "dashboard", "report", "survey", "course"),
)
SCOPES = ("draft", "team", "region", "tenant", "project")


def make_tool(text: str) -> Callable[[str, int], Awaitable[str]]:
    """Return a tool that answers with its own name."""

    async def tool(identifier: str, limit: int = 20) -> str:
        return f"{text}: {identifier}, {limit}"

    return tool


def build_server(count: int) -> MCPServer:
    """Return a server with so many tools."""
    server = MCPServer("filler", log_level="ERROR")
    for verb, scope, noun in islice(product(VERBS, SCOPES, NOUNS), count):
        server.add_tool(
            make_tool(f"{verb} {noun}"),
            name=f"{verb}_{scope}_{noun}",
            description=f"{verb.capitalize()} the {noun} of a {scope} and say what changed.",
        )
    return server


if __name__ == "__main__":
    build_server(int(sys.argv[1])).run()
