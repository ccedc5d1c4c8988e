"""Embedding: your program runs the code of its users, and is none the worse for it.

`embed_runtime` starts the server inside this process and yields a typed client. Each user has a
session, all run at once, and whatever happens is an outcome: the value, the output, the error with
its line, or a timeout that is undone. Expect one of each, and a session that goes on after it.
"""

from __future__ import annotations

import anyio

from example_settings import example_settings
from mcpruntime_server import RuntimeClient, embed_runtime

SCRIPTS = {
    "ann": "prices = [12, 30, 7]\nprint('adding', len(prices), 'prices')\nsum(prices)",
    "ben": "prices = [12, 'thirty', 7]\nsum(prices)",
    "cleo": "while True:\n    pass",
    "dan": "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=2)",
    "eve": "open('/etc/shadow').read()",
}


async def run_script(runtime: RuntimeClient, user: str, script: str) -> None:
    """Run the script of a user, and say what came of it."""
    outcome = await runtime.session(user).run(script, timeout_s=3)
    match outcome.status, outcome.error:
        case "ok", _:
            print(f"{user:5} value {outcome.value}, output {outcome.stdout!r}")
        case "timeout", _:
            print(f"{user:5} stopped after 3 s; what it did is undone")
        case status, error:
            assert error is not None
            print(f"{user:5} {status} in line {error.line}: {error.type}: {error.message}")


async def main() -> None:
    """Run all scripts at once, and then one more in a session that has had an error."""
    with example_settings() as config:
        async with embed_runtime(config) as runtime:
            async with anyio.create_task_group() as tasks:
                for user, script in SCRIPTS.items():
                    tasks.start_soon(run_script, runtime, user, script)
            print("\nBen tries again; his variables are still there:")
            await run_script(runtime, "ben", "prices[1] = 30\nsum(prices)")


if __name__ == "__main__":
    anyio.run(main)
