"""Approval: a person decides before code sends anything.

The policy says `ask` for one tool. The run waits, its clock stands still, and the person sees the
exact arguments. Here the program itself plays the person: it allows mail to `ann` and nobody else.
In a client, a form appears; without one, `mcpruntime-server approvals` does the same.
Expect one message that is sent, and one that the code was not allowed to send.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from example_settings import example_settings, small_server
from mcpruntime_server import Approval, embed_runtime

PROGRAM = """
from tools import ToolDeniedError
from tools.mail import send_message

results = {}
for person in ("ann", "everybody"):
    try:
        results[person] = f"sent as number {send_message(person, 'Hello', 'How are you?')['id']}"
    except ToolDeniedError as denial:
        results[person] = str(denial)
results
"""


async def decide(question: str) -> Approval:
    """Show the question to the person at the terminal, and answer in their place."""
    decision: Approval = "allow" if '"to": "ann"' in question else "deny"
    print(f"A person is asked:\n{question}\n-> {decision}\n")
    return decision


async def main() -> None:
    """Run code that sends two messages."""
    with TemporaryDirectory() as name:
        state = {"contacts": ["ann", "everybody"], "sent": []}
        settings = {
            "mcpServers": {"mail": small_server("mail", Path(name), state)},
            "policy.tools": {"mail.send_message": "ask"},
        }
        with example_settings(settings) as config:
            async with embed_runtime(config, approve=decide) as runtime:
                outcome = await runtime.session().run(PROGRAM)
                print(outcome.text)


if __name__ == "__main__":
    anyio.run(main)
