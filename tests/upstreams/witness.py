"""A hand-written MCP server whose answers never come twice: `witness.py FILE [MAX_DELAY_MS]`.

Each call appends a line `[tool, item, answer]` to FILE. The answer depends on how many calls came
before, so that a read that is asked again answers otherwise. `find` and `put` have a hint, `look`
and `add` have none. The process holds a lock on FILE.lock as long as it lives: whoever gets the
lock knows that FILE is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

FILE = Path(sys.argv[1])
MAX_DELAY_S = float(sys.argv[2]) / 1e3 if len(sys.argv) > 2 else 0.0
HINTS = {"find": {"readOnlyHint": True}, "look": {}, "put": {"idempotentHint": True}, "add": {}}
working = threading.Lock()  # FILE and stdout are written by one call at a time


def send(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def call(number: Any, tool: str, item: str) -> None:
    """Note the call, wait a little before and after that, and answer."""
    time.sleep(random.uniform(0, MAX_DELAY_S))
    with working, FILE.open("a+") as file:
        file.seek(0)
        answer = 7919 * (1 + len(file.readlines())) % 1_000_003
        file.write(json.dumps([tool, item, answer]) + "\n")
    time.sleep(random.uniform(0, MAX_DELAY_S))
    result = {"content": [{"type": "text", "text": str(answer)}]}
    with working:
        send({"jsonrpc": "2.0", "id": number, "result": result})


def describe_tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}
    return {"name": name, "inputSchema": schema, "annotations": HINTS[name]}


def answer_request(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method != "initialize":
        return {"tools": [describe_tool(name) for name in HINTS]} if method == "tools/list" else {}
    return {
        "protocolVersion": params["protocolVersion"],
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "witness", "version": "1"},
    }


def main() -> None:
    alive = FILE.with_suffix(".lock").open("w")
    fcntl.flock(alive, fcntl.LOCK_EX)
    for line in sys.stdin:
        message = json.loads(line)
        params = message.get("params") or {}
        if message.get("method") == "tools/call":
            made = (message["id"], params["name"], params["arguments"]["item"])
            threading.Thread(target=call, args=made, daemon=True).start()
        elif message.get("method") in ("initialize", "tools/list", "ping"):
            result = answer_request(message["method"], params)
            with working:
                send({"jsonrpc": "2.0", "id": message["id"], "result": result})
        elif "id" in message:
            error = {"code": -32601, "message": "Method not found"}
            with working:
                send({"jsonrpc": "2.0", "id": message["id"], "error": error})
    os._exit(0)  # without waiting for what is under way


main()
