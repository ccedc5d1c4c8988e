"""The part "rewind and fork": a step destroys data, is undone, and two forks continue from there.

It runs in the session of the steps before, so the data that is lost and restored is theirs.
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

SAVED_STEP = 3  # the rewind and both forks go back to its end


async def rewind_and_fork(screen: DemoConsole, client: Client) -> list[DemoStep]:
    """Destroy the data, restore it, and continue in two forks; return the steps.

    The last step failed if it is not `ok`; then the rest is left out.
    """
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
    """Show how long a rewind or a fork and the run after it took."""
    moved, ran = (step.total_ms for step in steps)
    times = f"{what} {moved:.1f} ms, the run after it {ran:.1f} ms"
    screen.write_line(f"({times}, variables and files included)")


async def rerun_offline(screen: DemoConsole, folder: DemoFolder, first: DemoStep) -> bool:
    """Rerun the first step without any upstream server; return whether that succeeded."""
    screen.write_heading("rerun: step 1 once more, with every upstream server off")
    async with connect_client(screen, folder) as client:
        again = await call_replay(screen, client, "rerun", SESSION_NAME, step=1)
    if again.ok:
        calls = sum(line.get("times", 1) for line in again.result.get("calls", ()))
        times = f"{again.total_ms:,.0f} ms instead of {first.total_ms:,.0f}"
        screen.write_line(f"({calls} calls, answered from the journal: {times})")
    return again.ok
