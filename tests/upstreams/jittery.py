"""A hand-written MCP server with random latency: `jittery.py FILE MAX_DELAY_MS`.

It starts in a few milliseconds and answers calls concurrently. No two answers are the same, and
`flaky` fails at random. Each call appends a line `tool item` to FILE halfway through its latency.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from itertools import count
from typing import Any

FILE = sys.argv[1]
MAX_DELAY_S = float(sys.argv[2]) / 1e3
FAILURE_RATE = 0.35
HINTS = {
    "fetch": {"readOnlyHint": True},
    "flaky": {"readOnlyHint": True},
    "record": {},
}
serials = count(1)
speaking = threading.Lock()


def say(message: Any) -> None:
    with speaking:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def call(number: Any, tool: str, item: str) -> None:
    """Answer after a while."""
    time.sleep(random.uniform(0, MAX_DELAY_S) / 2)
    descriptor = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{tool} {item}\n".encode())
    os.close(descriptor)
    time.sleep(random.uniform(0, MAX_DELAY_S) / 2)
    result: dict[str, Any] = {"item": item, "serial": next(serials)}
    content = [{"type": "text", "text": json.dumps(result)}]
    if tool == "flaky" and random.random() < FAILURE_RATE:
        content[0]["text"] = f"{item} failed, number {result['serial']}"
        say({"id": number, "result": {"content": content, "isError": True}})
    else:
        say({"id": number, "result": {"content": content, "structuredContent": result}})


def described(name: str) -> dict[str, Any]:
    parameters = {"item": {"type": "string"}}
    fields = {"item": {"type": "string"}, "serial": {"type": "integer"}}
    return {
        "name": name,
        "inputSchema": {"type": "object", "properties": parameters, "required": ["item"]},
        "outputSchema": {"type": "object", "properties": fields, "required": ["item", "serial"]},
        "annotations": HINTS[name],
    }


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "jittery", "version": "1"},
        }
    return {"tools": [described(name) for name in HINTS]} if method == "tools/list" else {}


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        params = message.get("params") or {}
        if message.get("method") == "tools/call":
            arguments = (message["id"], params["name"], params["arguments"]["item"])
            threading.Thread(target=call, args=arguments, daemon=True).start()
        elif message.get("method") in ("initialize", "tools/list", "ping"):
            say({"id": message["id"], "result": answer(message["method"], params)})
        elif "id" in message:
            say({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})
    os._exit(0)  # without waiting for what is under way


main()
