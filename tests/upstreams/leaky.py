"""A hand-written MCP server that repeats what it was given wherever a server can say something.

`leaky.py --key KEY` with a variable TOKEN: both are in its listing, in its stderr, and in the
answers of its tool `tell`, which leaks as the argument `how` says.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any

SECRET = f"{os.environ['TOKEN']} {sys.argv[2]}"
SCHEMA = {
    "type": "object",
    "properties": {"how": {"type": "string", "default": SECRET, "description": SECRET}},
}


def text_result(text: str, **more: Any) -> Any:
    return {"content": [{"type": "text", "text": text}], **more}


def tell(how: str) -> Any:
    encoded = base64.b64encode(SECRET.encode()).decode()
    resource = {"uri": f"file:///{SECRET.replace(' ', '/')}", "text": SECRET}
    blob = {"uri": "file:///x", "blob": encoded}
    pieces = [SECRET[start : start + 5] for start in range(0, len(SECRET), 5)]
    match how:
        case "text":
            return text_result(SECRET)
        case "structured":
            return text_result("", structuredContent={SECRET: [SECRET, {"deep": SECRET}]})
        case "error":
            return text_result(SECRET, isError=True, structuredContent={"why": SECRET})
        case "error at the end":
            return text_result((SECRET + " ") * 1_000, isError=True)
        case "error after much":
            return text_result("x" * 1_988 + SECRET, isError=True)
        case "JSON":
            return text_result(json.dumps({"token": SECRET}))
        case "image":
            return {"content": [{"type": "image", "data": encoded, "mimeType": "image/png"}]}
        case "resource":
            return {"content": [{"type": "resource", "resource": resource}]}
        case "blob":
            return {"content": [{"type": "resource", "resource": blob}]}
        case "pieces":
            return {"content": [{"type": "text", "text": piece} for piece in pieces]}
        case "error in pieces":
            return {"content": [{"type": "text", "text": each} for each in pieces], "isError": True}
        case "stderr":
            print(SECRET, file=sys.stderr, flush=True)
            return text_result("ok")
        case "wrong content":
            return {"content": SECRET}
        case "log":
            params = {"level": "error", "logger": SECRET, "data": SECRET}
            say({"jsonrpc": "2.0", "method": "notifications/message", "params": params})
            return text_result("ok")
        case "no JSON":
            sys.stdout.write(f"{SECRET}\n")
            return text_result("ok")
        case "unknown answer":
            say({"jsonrpc": "2.0", "id": SECRET, "result": {"x": SECRET}})
            return text_result("ok")
        case "death":
            print(f"fatal: {SECRET}", file=sys.stderr, flush=True)
            os._exit(3)
    raise ValueError(SECRET)


def say(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def answer(method: str, params: dict[str, Any]) -> Any:
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}, "logging": {}},
            "serverInfo": {"name": f"leaky {SECRET}", "version": SECRET},
            "instructions": SECRET,
        }
    if method == "tools/list":
        tool = {"name": "tell", "title": SECRET, "description": SECRET, "inputSchema": SCHEMA}
        return {"tools": [tool]}
    if method == "tools/call":
        return tell(params["arguments"]["how"])
    return None


print(SECRET, file=sys.stderr, flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    head = {"jsonrpc": "2.0", "id": request["id"]}
    try:
        result = answer(request["method"], request.get("params", {}))
    except ValueError as error:
        say({**head, "error": {"code": -32603, "message": str(error), "data": {"why": str(error)}}})
        continue
    if result is None:
        say({**head, "error": {"code": -32601, "message": f"no {SECRET}"}})
    else:
        say({**head, "result": result})
