"""The HTTP API with a plain client: `urllib`, no MCP, no package of this project.

A server is started, a token is created, and code is executed. Its events arrive while it runs.
Expect three lines of output and the value, then the same events once more, from the second one on:
the id of an event stays valid after a lost connection, and even in the next server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

COMMAND = str(Path(sys.executable).with_name("mcpruntime-server"))
CODE = """
import time

for number in range(3):
    print("line", number, flush=True)
    time.sleep(0.3)
number * 21
"""


def read_events(request: Request) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream until it ends; each has its `type` and its `id`."""
    with urlopen(request) as response:
        for line in response:
            field, _, value = line.decode().partition(": ")
            if field == "data":
                yield json.loads(value)


def print_event(event: dict[str, Any]) -> None:
    """Print an event in one line."""
    shown = {name: event[name] for name in ("step", "text", "status", "value") if name in event}
    print(f"{event['type']:12}", shown)


def main() -> None:
    """Start a server, execute code over HTTP, and print its events as they arrive."""
    with TemporaryDirectory() as folder:
        server = [COMMAND, "--data-dir", folder]
        token = subprocess.check_output([*server, "token", "create", "ann"], text=True).strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        serve = [*server, "serve", "--port", "0"]
        with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                lines = (line for line in process.stderr if "MCP at " in line)
                address = next(lines).split("MCP at ")[1].split("/mcp")[0]
                body = json.dumps({"code": CODE, "session": "notes"}).encode()
                stream = Request(f"{address}/execute/stream", body, headers)
                events = []
                for event in read_events(stream):
                    print_event(event)
                    events.append(event)

                print("\nThe same run, from its second event on:")
                headers["Last-Event-ID"] = events[1]["id"]
                events_address = f"{address}/runs/{events[1]['run']}/events"
                for event in read_events(Request(events_address, headers=headers)):
                    print_event(event)
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
