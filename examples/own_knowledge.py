"""Knowledge of your own: a class with two methods makes any source searchable from code.

This file is the provider, too: the settings name it, and the server imports it. A real provider
would read a wiki, a database or an API. Expect the search of one program over documentation that
exists nowhere but here, with the source of each passage.
"""

from __future__ import annotations

import anyio

from example_settings import example_settings
from mcpruntime_server import embed_runtime

TRAVEL = """\
# Travel
## Hotels
A hotel has at most three stars.
## Trains
Book first class on trips of more than two hours.
"""
RULES = {
    "travel.md": TRAVEL,
    "purchases.md": "# Purchases\nAnything above 500 EUR needs two signatures.\n",
}

PROGRAM = """
for question in ("how many stars may a hotel have", "who signs an expensive order"):
    best = knowledge.search(question, limit=1)[0]
    print(question, "->", best.text.strip().splitlines()[-1])
    print("   from", best.uri, best.title)
knowledge.describe()
"""


class Provider:
    """What the server asks for: the names of all texts with their versions, and each text."""

    def names(self) -> dict[str, str]:
        """Return all names; a text is read again when its version changes."""
        return dict.fromkeys(RULES, "version 1")

    def read(self, name: str) -> str:
        """Return a text; its suffix says how it is divided into passages."""
        return RULES[name]


async def main() -> None:
    """Search the rules from code."""
    with example_settings({"knowledge.rules.python": __file__}) as config:
        async with embed_runtime(config) as runtime:
            outcome = await runtime.session().run(PROGRAM)
            print(outcome.stdout)
            print("what is searched:", outcome.value)


if __name__ == "__main__":
    anyio.run(main)
