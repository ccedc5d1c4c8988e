"""A hand-written MCP server that counts its calls: `counted.py FILE [MAX_DELAY_MS]`.

It starts in a few milliseconds. Each call appends a line `tool item` to FILE. It waits a little
before and after that, so that a client killed meanwhile cannot know whether the line is there. A
call with `hold` hangs `before` or `after` that as long as the file FILE.hold exists; it first
appends a line to FILE.held.
"""

from __future__ import annotations

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
HINTS = {"add": {}, "put": {"idempotentHint": True}, "count": {"readOnlyHint": True}}
TEXT = {"type": "string"}
speaking = threading.Lock()


def say(message: Any) -> None:
    with speaking:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def dawdle(item: str, hold: bool) -> None:
    time.sleep(random.uniform(0, MAX_DELAY_S))
    if hold and FILE.with_suffix(".hold").exists():
        append(FILE.with_suffix(".held"), item)
        threading.Event().wait()


def call(number: Any, tool: str, item: str = "", hold: str = "") -> None:
    """Do what a tool does, and answer with how many things were done before."""
    dawdle(item, hold == "before")
    done = len(FILE.read_text().splitlines()) if FILE.exists() else 0
    append(FILE, f"{tool} {item}")
    dawdle(item, hold == "after")
    result = {
        "content": [{"type": "text", "text": str(done)}],
        "structuredContent": {"result": done},
    }
    say({"jsonrpc": "2.0", "id": number, "result": result})


def described(name: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"item": TEXT, "hold": {**TEXT, "default": ""}},
        "required": ["item"],
    }
    output = {
        "type": "object",
        "properties": {"result": {"type": "integer"}},
        "required": ["result"],
    }
    return {"name": name, "inputSchema": schema, "outputSchema": output, "annotations": HINTS[name]}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        info = {"name": "counted", "version": "1"}
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": info,
        }
    return {"tools": [described(name) for name in HINTS]} if method == "tools/list" else {}


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        params = message.get("params") or {}
        if message.get("method") == "tools/call":
            threading.Thread(
                target=call,
                args=(message["id"], params["name"]),
                kwargs=params["arguments"],
                daemon=True,
            ).start()
        elif message.get("method") in ("initialize", "tools/list", "ping"):
            say(
                {"jsonrpc": "2.0", "id": message["id"], "result": answer(message["method"], params)}
            )
        elif "id" in message:
            error = {"code": -32601, "message": "Method not found"}
            say({"jsonrpc": "2.0", "id": message["id"], "error": error})
    os._exit(0)  # without waiting for what is under way


main()
