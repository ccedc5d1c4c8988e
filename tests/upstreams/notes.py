"""A hand-written MCP server of an older protocol revision with resources.

Its first argument says which:
fine     two pages: Markdown, bytes, one with a credential, one that fails, one that is counted
endless  each page is full and names a next one
empty    has no resources, and does not announce any
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

mode = sys.argv[1]
PAGES: list[list[dict[str, Any]]] = [
    [
        {"uri": "notes://a/travel%20rules.md", "name": "a", "mimeType": "text/markdown"},
        {"uri": "notes://logo", "name": "logo", "mimeType": "image/png"},
        {"uri": "notes://bad\u001b[2J", "name": "bad"},
    ],
    [
        {"uri": "notes://secret?q=1#x", "name": "secret"},
        {"uri": "notes://gone", "name": "gone"},
        {
            "uri": "notes://count",
            "name": "count",
            "annotations": {"lastModified": "2026-01-01T00:00:00Z"},
        },
    ],
]
reads = 0


def listed(cursor: str | None) -> dict[str, Any]:
    if mode == "endless":
        number = int(cursor or 0)
        resources = [{"uri": f"notes://{number}/{each}", "name": "x"} for each in range(100)]
        return {"resources": resources, "nextCursor": str(number + 1)}
    return {"resources": PAGES[1]} if cursor else {"resources": PAGES[0], "nextCursor": "more"}


def read(uri: str) -> dict[str, Any] | None:
    global reads  # noqa: PLW0603
    if uri == "notes://count":
        reads += 1
    texts = {
        "notes://a/travel%20rules.md": "# Travel\n\n## Hotels\n\nAt most four stars.\n",
        "notes://secret?q=1#x": f"the token is {os.environ.get('API_TOKEN')}",
        "notes://count": f"counted {reads}",
    }
    if uri == "notes://logo":
        return {"contents": [{"uri": uri, "blob": "iVBORw=="}]}
    return (
        {"contents": [{"uri": uri, "text": texts.get(uri, "page")}]}
        if uri != "notes://gone"
        else None
    )


def answer(method: str, params: dict[str, Any]) -> Any:
    if method == "initialize":
        capabilities: dict[str, Any] = {} if mode == "empty" else {"resources": {}}
        info = {"name": "notes", "version": "1"}
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": capabilities,
            "serverInfo": info,
        }
    if method == "tools/list":
        return {"tools": []}
    if method == "resources/list" and mode != "empty":
        return listed(params.get("cursor"))
    return read(params["uri"]) if method == "resources/read" else None


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        result = answer(message["method"], message.get("params") or {})
        told = (
            {"result": result}
            if result is not None
            else {"error": {"code": -32601, "message": "No such thing"}}
        )
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], **told}) + "\n")
        sys.stdout.flush()


main()
