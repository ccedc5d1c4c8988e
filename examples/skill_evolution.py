"""Skills: what worked in one session is a tested function in the next, and grows there.

Expect a run that becomes the skill `count_items` with a parameter of its own, its use in another
session, an input that it cannot read, and a better version, which is a draft until a run has tried
it. The first version stays importable.
"""

from __future__ import annotations

import anyio

from example_settings import example_settings
from mcpruntime_server import RuntimeClient, RuntimeSession, embed_runtime

FIRST = """
text = "apples:3, pears:5, apples:4"
totals = {}
for part in text.split(", "):
    name, count = part.split(":")
    totals[name] = totals.get(name, 0) + int(count)
totals
"""
BETTER = '''
def run(text: str) -> dict[str, int]:
    """Add up the counts of a text such as `apples:3, pears:5`; semicolons work, too."""
    totals = {}
    for part in text.replace(";", ",").split(","):
        name, count = part.split(":")
        totals[name.strip()] = totals.get(name.strip(), 0) + int(count)
    return totals
'''


async def show(session: RuntimeSession, code: str) -> str:
    """Run code, print it with its value or its error, and return the run."""
    outcome = await session.run(code)
    error = outcome.error and f"{outcome.error.type}: {outcome.error.message}"
    print(f"[{session.name}] {code.strip().splitlines()[-1]}\n    {error or outcome.value}")
    return outcome.run


async def save(runtime: RuntimeClient, **what: str) -> None:
    """Save a skill, and print what became of it."""
    skill = await runtime.save_skill(name="count_items", **what)
    print(f"-> {skill.state}: {skill.name}@{skill.version}{skill.signature}", *skill.reasons)


async def main() -> None:
    """Make a skill on Monday, and a better version of it on Tuesday."""
    with example_settings() as config:
        async with embed_runtime(config) as runtime:
            monday, tuesday = runtime.session("monday"), runtime.session("tuesday")
            await save(runtime, run=await show(monday, FIRST))

            print("\nfound:", await runtime.list_skills("add up counts"), end="\n\n")
            await show(tuesday, "from skills.count_items import run\nrun('figs:1, plums:2')")
            await show(tuesday, "run('figs:1; plums:2')")

            await save(runtime, code=BETTER)
            exact = "from skills.count_items.v2 import run\nrun(text='figs:1; plums:2')"
            await save(runtime, run=await show(tuesday, exact))

            wednesday = runtime.session("wednesday")
            await show(wednesday, "from skills.count_items import run\nrun('figs:1; figs:8')")
            await show(wednesday, "skills.count_items.v1('figs:1, figs:8')")


if __name__ == "__main__":
    anyio.run(main)
