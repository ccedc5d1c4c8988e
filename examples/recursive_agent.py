"""A recursive agent over a large file: agents that start agents, each over a part of it.

No model reads the whole log. The agent's program finds the outages by a search and gives the part
of each to a sub-agent, whose program asks a model about a few lines. Expect three causes, and how
little all models together have read.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from example_settings import Answer, example_settings, program
from mcpruntime_server import ProgramFinished, ProgramStarted, TaskFinished, create_agent

TASK = "What caused each outage in this log, by hour?"
CAUSES = {
    "03": "volume /data is full",
    "11": "certificate of the proxy has expired",
    "19": "database refuses more connections",
}

LOOK = "CONTEXT.peek(120), CONTEXT.line_count(), len(CONTEXT.grep('ERROR'))"
DIVIDE = """
from itertools import groupby

outages = {}
for hour, lines in groupby(CONTEXT.grep("ERROR"), lambda line: line.text[:2]):
    first, *_, last = lines
    outages[hour] = CONTEXT.slice(first.start, last.end)
slots = sub_agent_batch("Say what caused the outage in these lines", outages.values())
SUBMIT({hour: slot.value if slot.ok else str(slot.error) for hour, slot in zip(outages, slots)})
"""
READ = """
errors = CONTEXT.grep("ERROR").first(3)
SUBMIT(ask_llm("What do these errors say? Answer in a few words.", [line.text for line in errors]))
"""

SCRIPT: list[Answer] = [  # for the scripted model, which you do not need if you have configured one
    {"match": TASK, "reply": program(LOOK)},
    {"match": "Step 1 of", "reply": program(DIVIDE)},
    {"match": "Say what caused the outage", "reply": program(READ), "times": 3},
    *[{"match": f"What do these.*{cause}", "reply": f"The {cause}."} for cause in CAUSES.values()],
]


def write_log(path: Path) -> None:
    """Write a line for each second of a day, with an outage in three hours."""
    with path.open("w") as file:
        for second in range(0, 86_400):
            hour, minute = f"{second // 3600:02}", second // 60 % 60
            state = f"ERROR {CAUSES[hour]}" if hour in CAUSES and 20 <= minute < 25 else "ok"
            time = f"{hour}:{minute:02}:{second % 60:02}"
            order = f"GET /orders/{second * 7919 % 1_000_000:06}/items?page={second % 9}"
            file.write(f"{time} worker-{second % 7} {order} in {second % 50:2} ms, {state}\n")


async def main() -> None:
    """Let an agent work on the log, and watch it."""
    with TemporaryDirectory() as name, example_settings(answers=SCRIPT) as config:
        log = Path(name) / "day.log"
        write_log(log)
        print(f"{TASK} ({log.stat().st_size:,} bytes)")
        async with create_agent(config, recursive=True, roots=[log.parent]) as agent:
            async for event in agent.stream(TASK, log):
                match event:
                    case ProgramStarted():
                        print(f"\nprogram {event.step}:\n{event.code}")
                    case ProgramFinished():
                        print(f"[{event.result['status']}] {event.result.get('value')}")
                    case TaskFinished():
                        agents, tokens = event.cost.agents_started, event.cost.total.tokens_in
                        print(f"\n{agents} sub-agents; all models together read {tokens:,} tokens")


if __name__ == "__main__":
    anyio.run(main)
