"""The act "rewind and fork": a step goes wrong and is gone back behind; two ways are tried apart; a step is repeated.

It plays in the session of the steps before, so the data that is lost and had back is what they have collected.
"""

from __future__ import annotations

from mcp import Client

from . import programs
from .screen import Screen
from .stage import SESSION, Stage, Step, connected, perform, replay

SAVED = 3  # the step that all this goes back to


async def rewind_and_fork(screen: Screen, client: Client) -> list[Step]:
    """Spoil the data, have it back, and go on in two ways; return the steps, the last of which may have failed."""
    steps: list[Step] = []
    screen.heading("rewind and fork: step 4 destroys what was collected")
    for program in (programs.SAVE, programs.SPOIL):
        steps.append(await perform(screen, client, program))
        screen.line()
        if not steps[-1].ok:
            return steps
    steps.append(await replay(screen, client, "rewind", SESSION, step=SAVED))
    screen.line()
    steps.append(await perform(screen, client, programs.LOOK))
    tell(screen, "rewind", steps[-2:])
    for name, program in (("by hour", programs.BY_HOUR), ("by author", programs.BY_AUTHOR)):
        if not all(step.ok for step in steps):
            break
        screen.line()
        steps.append(await replay(screen, client, "fork", SESSION, step=SAVED, name=name))
        screen.line()
        steps.append(await perform(screen, client, program, name))
        tell(screen, "fork", steps[-2:])
    return steps


def tell(screen: Screen, what: str, steps: list[Step]) -> None:
    """Say how long moving and the run after it have taken."""
    moved, ran = (step.total_ms for step in steps)
    screen.line(f"({what} {moved:.1f} ms, the run after it {ran:.1f} ms, variables and files included)")


async def rerun(screen: Screen, stage: Stage, first: Step) -> bool:
    """Execute the first step again, when there is no upstream server any more; return whether that went well."""
    screen.heading("rerun: step 1 once more, with every upstream server off")
    async with connected(screen, stage) as client:
        again = await replay(screen, client, "rerun", SESSION, step=1)
    if again.ok:
        calls = sum(line.get("times", 1) for line in again.result.get("calls", ()))
        screen.line(
            f"({calls} calls, answered by the journal: {again.total_ms:,.0f} ms instead of {first.total_ms:,.0f})"
        )
    return again.ok
