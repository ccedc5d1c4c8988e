"""Plan, then commit: see every write before any is made.

A dry run makes the calls that read, and plans the others. Then you commit all, some, or changed
ones. Expect three planned messages and an empty outbox, then two messages, one with another text.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from example_settings import example_settings, small_server
from mcpruntime_server import embed_runtime

PROGRAM = """
from tools.mail import list_contacts, send_message

for person in list_contacts():
    send_message(to=person, subject="Offer", body=f"Dear {person}, everything is half price.")
"""


async def main() -> None:
    """Plan three messages, drop one, change one, and commit."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        state = {"contacts": ["ann", "ben", "cleo"], "sent": []}
        servers = {"mail": small_server("mail", folder, state)}

        def outbox() -> list[str]:
            sent = json.loads((folder / "mail.json").read_text())["sent"]
            return [f"{message['to']}: {message['body']}" for message in sent]

        with example_settings({"mcpServers": servers}) as config:
            async with embed_runtime(config) as runtime:
                planned = await runtime.session().run(PROGRAM, dry_run=True)
                print("The plan:")
                for call in planned.waiting_for:
                    print(f"  {call.id}: {call.call}")
                print("The outbox:", outbox())

                first, second, _ = planned.waiting_for
                changed = {"to": "ben", "subject": "Offer", "body": "Dear Ben, one more thing."}
                answers = {first.id: "allow", second.id: {"args": changed}}
                await runtime.answer(planned.run, answers)
                print("\nThe outbox after the commit:", *outbox(), sep="\n  ")


if __name__ == "__main__":
    anyio.run(main)
