"""Time travel: rewind a session, fork it, compare, and execute it again from the journal.

Expect a mistake that is undone, a fork in which another idea is tried, the difference between both,
and a replay that proves that the recorded steps still give the same.
"""

from __future__ import annotations

import anyio

from example_settings import example_settings
from mcpruntime_server import embed_runtime

STEPS = (
    "import random\nprices = [random.randint(1, 99) for _ in range(5)]",
    "prices.sort()\nprices",
    "prices.clear()  # a mistake\nprices",
)


async def main() -> None:
    """Make a mistake, go back, try something in a fork, and compare."""
    with example_settings() as config:
        async with embed_runtime(config) as runtime:
            session = runtime.session("prices")
            for code in STEPS:
                print(f"> {code.splitlines()[-1]:30}", (await session.run(code)).value)

            await session.rewind(2)
            print("rewound to step 2:             ", (await session.run("prices")).value)

            fork = await session.fork(2, "discount")
            halved = await fork.run("prices = [price / 2 for price in prices]\nprices")
            print("in a fork:                     ", halved.value)

            difference = await session.diff(fork)
            values = {name: each["text"] for name, each in difference["steps"][0]["value"].items()}
            print("\nThe difference after step 2:")
            print(difference["steps"][0]["code"], values, sep="\n")

            replay = await session.rerun()
            print("\nAll steps again, in another sandbox:", replay.value, replay.note, sep="\n")

            print("\nWhat the journal has:")
            for step in await session.list_steps():
                mark = "abandoned" if step.is_abandoned else ""
                print(f"step {step.step}  {step.status:4} {step.run}  {mark:9}  {step.code}")


if __name__ == "__main__":
    anyio.run(main)
