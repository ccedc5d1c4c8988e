"""A hand-written MCP server of an older protocol revision that misbehaves as argv[1] says.

fine       lists one tool, `grow`, and sends a notification when the list has grown
garbage    writes only lines that are not JSON-RPC
noisy      writes lines that are not JSON-RPC between its answers
silent     reads and never answers
dies       exits before it is ready
collapses  exits during a call
stubborn   ignores the end of stdin and SIGTERM, like its child; writes their pids to argv[2]
leaving    exits properly, but leaves a grandchild in its group; writes both pids to argv[2]
daemon     exits properly, but leaves a grandchild in a session of its own; likewise
hidden     like a daemon, without its environment, and with nothing of the command left
asks       answers a call with a question
endless    answers a call with a line that never ends
shapeless  lists tools that are not valid
gated      writes argv[3] and answers once argv[2] exists
telling    repeats its last argument in the description of its tool
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

mode = sys.argv[1]
tools: list[Any] = [{"name": "grow", "inputSchema": {"type": "object", "properties": {}}}]


def say(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def answer(method: str, params: dict[str, Any]) -> Any:
    if method == "initialize":
        capabilities = {"tools": {"listChanged": True}}
        info = {"name": "raw", "version": "1"}
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": capabilities,
            "serverInfo": info,
        }
    if method == "tools/list":
        return {"tools": ["not", "tools"] if mode == "shapeless" else tools}
    if method == "tools/call" and mode == "collapses":
        print("first\nMY_TOKEN=abcdefgh123\nthe disk is full", file=sys.stderr, flush=True)
        os._exit(3)
    while method == "tools/call" and mode == "endless":
        sys.stdout.write("x" * 1_000_000)
    if method == "tools/call" and mode == "asks":
        return {"resultType": "input_required", "inputRequests": {}, "requestState": "s"}
    if method == "tools/call":
        tools.append({"name": "grown", "inputSchema": {"type": "object", "properties": {}}})
        say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        return {"content": [{"type": "text", "text": "ok"}]}
    return None


def refuse_to_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if child:
        with open(sys.argv[2], "w") as file:
            file.write(f"{os.getpid()} {child}")


def leave_grandchild() -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    grandchild = os.fork()
    if grandchild:
        with open(sys.argv[2], "w") as file:
            file.write(f"{os.getppid()} {grandchild}")
        os._exit(0)
    if mode in ("daemon", "hidden"):
        os.setsid()
    if mode == "hidden":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.execve("/bin/sleep", ["sleep", "1000"], {})
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def main() -> None:
    if mode in ("leaving", "daemon", "hidden"):
        leave_grandchild()
    if mode == "dies":
        sys.exit("I cannot go on")
    if mode == "stubborn":
        refuse_to_end()
    if mode == "telling":
        tools[0]["description"] = f"I was given {sys.argv[-1]}."
    if mode == "gated":
        Path(sys.argv[3]).touch()
        while not Path(sys.argv[2]).exists():
            time.sleep(0.01)
    for line in sys.stdin:
        if mode in ("garbage", "noisy"):
            print("Starting up... {not json", flush=True)
        message = json.loads(line)
        if mode in ("garbage", "silent") or "id" not in message:
            continue
        result = answer(message["method"], message.get("params") or {})
        if result is None:
            error = {"code": -32601, "message": "Method not found"}
            say({"jsonrpc": "2.0", "id": message["id"], "error": error})
        else:
            say({"jsonrpc": "2.0", "id": message["id"], "result": result})
    while mode == "stubborn":
        signal.pause()


main()
