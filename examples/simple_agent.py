"""An agent in ten lines: it does a task, or lets you watch.

A model writes Python, a sandbox runs it, and only what the program prints or submits goes back to
the model. Expect two answers: 75025 for a task of its own, and Ann for a task about given material.
"""

from __future__ import annotations

import anyio

from example_settings import example_settings, program
from mcpruntime_server import ProgramFinished, ProgramStarted, TaskFinished, create_agent

FIBONACCI = "What is the 25th Fibonacci number, if the first two are 1?"
BEST_SELLER = "Who sold most in total?"
SALES = [["Ann", 700], ["Ben", 900], ["Ann", 400]]

ADD_UP = """
a, b = 1, 1
for _ in range(24):
    a, b = b, a + b
SUBMIT(a)"""
COUNT = """
from collections import Counter

totals = Counter()
for seller, eur in CONTEXT:
    totals[seller] += eur
totals.most_common()"""
SUBMIT = "SUBMIT(totals.most_common(1)[0][0])"

SCRIPT = [  # for the scripted model, which you do not need if you have configured one
    {"match": "Fibonacci", "reply": program(ADD_UP)},
    {"match": "Who sold most", "reply": program(COUNT)},
    {"match": "Step 1 of", "reply": program(SUBMIT)},
]


async def main() -> None:
    """Execute one task, then stream another."""
    with example_settings(answers=SCRIPT) as config:
        async with create_agent(config, recursive=True) as agent:
            finished = await agent.execute_task(FIBONACCI)
            print(f"{FIBONACCI}\n-> {finished.value}\n\n{BEST_SELLER}")

            async for event in agent.stream(BEST_SELLER, SALES):
                match event:
                    case ProgramStarted():
                        print(f"\nprogram {event.step}:\n{event.code}")
                    case ProgramFinished():
                        print(f"\n[{event.result['status']}] {event.result.get('value')}")
                    case TaskFinished():
                        print(f"-> {event.value}, after {event.steps} programs")


if __name__ == "__main__":
    anyio.run(main)
