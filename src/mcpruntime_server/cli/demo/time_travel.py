"""The act "rewind and fork": a step goes wrong and is gone back behind; two ways are tried apart; a step is repeated.

It plays in the session of the steps before, so the data that is lost and had back is what they have collected.
"""

from __future__ import annotations

from mcp import Client

from . import programs
from .demo_client import (
    SESSION_NAME,
    DemoFolder,
    DemoStep,
    call_replay,
    connect_client,
    run_program,
)
from .demo_console import DemoConsole

SAVED_STEP = 3  # the step that all this goes back to


async def rewind_and_fork(screen: DemoConsole, client: Client) -> list[DemoStep]:
    """Spoil the data, have it back, and go on in two ways; return the steps, the last of which may have failed."""
    steps: list[DemoStep] = []
    screen.write_heading("rewind and fork: step 4 destroys what was collected")
    for program in (programs.SAVE, programs.SPOIL):
        steps.append(await run_program(screen, client, program))
        screen.write_line()
        if not steps[-1].ok:
            return steps
    steps.append(await call_replay(screen, client, "rewind", SESSION_NAME, step=SAVED_STEP))
    screen.write_line()
    steps.append(await run_program(screen, client, programs.LOOK))
    show_timing(screen, "rewind", steps[-2:])
    for name, program in (("by hour", programs.BY_HOUR), ("by author", programs.BY_AUTHOR)):
        if not all(step.ok for step in steps):
            break
        screen.write_line()
        steps.append(
            await call_replay(screen, client, "fork", SESSION_NAME, step=SAVED_STEP, name=name)
        )
        screen.write_line()
        steps.append(await run_program(screen, client, program, name))
        show_timing(screen, "fork", steps[-2:])
    return steps


def show_timing(screen: DemoConsole, what: str, steps: list[DemoStep]) -> None:
    """Say how long moving and the run after it have taken."""
    moved, ran = (step.total_ms for step in steps)
    screen.write_line(
        f"({what} {moved:.1f} ms, the run after it {ran:.1f} ms, variables and files included)"
    )


async def rerun_offline(screen: DemoConsole, stage: DemoFolder, first: DemoStep) -> bool:
    """Execute the first step again, when there is no upstream server any more; return whether that went well."""
    screen.write_heading("rerun: step 1 once more, with every upstream server off")
    async with connect_client(screen, stage) as client:
        again = await call_replay(screen, client, "rerun", SESSION_NAME, step=1)
    if again.ok:
        calls = sum(line.get("times", 1) for line in again.result.get("calls", ()))
        screen.write_line(
            f"({calls} calls, answered by the journal: {again.total_ms:,.0f} ms instead of {first.total_ms:,.0f})"
        )
    return again.ok
