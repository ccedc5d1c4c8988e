"""A hand-written MCP server that answers calls with what JSON readers choke on: `unwritable.py`.

The argument `text` of its tool `say` is written into the answer as it is, without being encoded.
"""

from __future__ import annotations

import json
import sys
from typing import Any

TEXT_SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}


def write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "surrogatepass") + b"\n")
    sys.stdout.flush()


def answer(request: Any) -> str:
    """Return the result of a request as JSON, more or less."""
    params = request.get("params") or {}
    if request["method"] == "initialize":
        info = {"name": "unwritable", "version": "1"}
        version = params["protocolVersion"]
        result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        return json.dumps(result)
    if request["method"] == "tools/list":
        return json.dumps({"tools": [{"name": "say", "inputSchema": TEXT_SCHEMA}]})
    if request["method"] == "tools/call":
        return str(params["arguments"]["text"])
    return ""


for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    body = answer(request)
    error = '"error":{"code":-32601,"message":"Method not found"}'
    content = f'"result":{body}' if body else error
    write(f'{{"jsonrpc":"2.0","id":{request["id"]},{content}}}')
