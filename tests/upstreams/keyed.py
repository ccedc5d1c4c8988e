"""A hand-written MCP server that is used with a credential: `keyed.py [--http] [KEY]`.

Over stdio the credential is the variable TOKEN, or KEY; over HTTP it is in a header, or in the URL.
`whoami` says which one it got, as a digest, and which process it is. `tell` repeats everything that
it got: environment, arguments, headers and address. Who has a credential that begins with "admin"
has another tool, `rule`. `wait` answers when the file that it gets exists. Over HTTP, the address
of the server is printed to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMES = {
    "whoami": {"readOnlyHint": True},
    "tell": {"readOnlyHint": True},
    "wait": {"readOnlyHint": True},
    "put": {},
    "rule": {"readOnlyHint": True},
}
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}


def list_tools(credential: str) -> list[dict[str, Any]]:
    names = [name for name in NAMES if name != "rule" or credential.startswith("admin")]
    return [{"name": name, "inputSchema": SCHEMA, "annotations": NAMES[name]} for name in names]


def call_tool(name: str, text: str, credential: str, received: Mapping[str, Any]) -> Any:
    match name:
        case "whoami":
            digest = sha256(credential.encode()).hexdigest()[:12]
            value: dict[str, Any] = {"digest": digest, "pid": os.getpid()}
        case "tell":
            value = dict(received)
            if text:  # a large answer
                value = {"all": [value] * int(text)}
        case "put":
            with Path(os.environ.get("KEYED_FILE", os.devnull)).open("a") as file:
                file.write(f"{sha256(credential.encode()).hexdigest()[:12]} {text}\n")
            value = {"put": text}
        case "wait":
            deadline = time.monotonic() + 60
            while not Path(text).exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            value = {"done": True}
        case _:
            value = {"ruled": text}
    return {"content": [{"type": "text", "text": json.dumps(value)}], "structuredContent": value}


def answer(message: Mapping[str, Any], credential: str, received: Mapping[str, Any]) -> Any:
    """Return the answer to a message; None for a notification."""
    params = message.get("params") or {}
    if "id" not in message:
        return None
    head = {"jsonrpc": "2.0", "id": message["id"]}
    match message["method"]:
        case "initialize":
            result: Any = {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "keyed", "version": "1"},
            }
        case "tools/list":
            result = {"tools": list_tools(credential)}
        case "tools/call":
            text = params.get("arguments", {}).get("text", "")
            result = call_tool(params["name"], text, credential, received)
        case "ping":
            result = {}
        case _:
            return {**head, "error": {"code": -32601, "message": "Method not found"}}
    return {**head, "result": result}


class Handler(BaseHTTPRequestHandler):
    """Answers each POST with JSON."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        credential = self.headers.get("X-Key", "") or self.path.rpartition("/")[2]
        received = {"path": self.path, "headers": dict(self.headers.items())}
        if "broken" in self.path:
            self.send_error(500, "Internal Server Error")
            return
        if "elsewhere" in self.path:
            self.send_response(307)
            self.send_header("Location", f"http://localhost:{server.server_port}/x/mcp")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        reply = answer(json.loads(body), credential, received)
        data = b"" if reply is None else json.dumps(reply).encode()
        self.send_response(202 if reply is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send_error(405)

    def do_DELETE(self) -> None:
        self.send_error(405)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


def serve_stdio() -> None:
    credential = os.environ.get("TOKEN", "") or sys.argv[-1]
    print(f"started with {credential}", file=sys.stderr, flush=True)
    received = {"env": dict(os.environ), "args": sys.argv[1:]}
    for line in sys.stdin:
        reply = answer(json.loads(line), credential, received)
        if reply is not None:
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()


if "--http" in sys.argv:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
else:
    serve_stdio()
