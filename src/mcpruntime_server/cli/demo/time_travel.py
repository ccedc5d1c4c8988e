"""The acts "undo" and "replay": a step is undone, a fork continues, and a run repeats itself.

The act "undo" works on the data of the main programs, so what is lost and restored is theirs.
"""

from __future__ import annotations

from . import programs
from .demo_client import SESSION_NAME, DemoStep, call_replay, connect_client, run_program
from .demo_console import DemoConsole
from .stage import DemoStage

SAVED_STEP = 3  # the rewind and the fork go back to its end
FORK_NAME = "by hour"


async def rewind_and_fork(stage: DemoStage) -> bool:
    """Destroy the data, restore it, and continue in a fork; return whether everything succeeded."""
    screen, client = stage.screen, stage.client
    if not await stage.collect():
        return False
    for program in (programs.SAVE, programs.SPOIL):
        if not (await run_program(screen, client, program)).ok:
            return False
        screen.write_line()
    moves: tuple[tuple[str, str, str, dict[str, str]], ...] = (
        ("rewind", SESSION_NAME, programs.LOOK, {}),
        ("fork", FORK_NAME, programs.BY_HOUR, {"name": FORK_NAME}),
    )
    for action, session, program, options in moves:
        moved = await call_replay(screen, client, action, SESSION_NAME, step=SAVED_STEP, **options)
        screen.write_line()
        if not moved.ok:
            return False
        ran = await run_program(screen, client, program, session)
        if not ran.ok:
            return False
        show_timing(screen, action, moved, ran)
        screen.write_line()
    return True


def show_timing(screen: DemoConsole, what: str, moved: DemoStep, ran: DemoStep) -> None:
    """Show how long a rewind or a fork and the run after it took."""
    times = f"{what} {moved.total_ms:.1f} ms, the run after it {ran.total_ms:.1f} ms"
    screen.write_line(f"({times}, variables and files included)")


async def rerun_offline(stage: DemoStage) -> bool:
    """Rerun the first step without any upstream server; return whether that succeeded."""
    if not await stage.collect():
        return False
    first = stage.collected[0]
    screen, folder = stage.screen, stage.folder
    async with connect_client(screen, folder, folder.offline_settings) as client:
        again = await call_replay(screen, client, "rerun", SESSION_NAME, step=1)
    if again.ok:
        calls = sum(line.get("times", 1) for line in again.result.get("calls", ()))
        times = f"{again.total_ms:,.0f} ms instead of {first.total_ms:,.0f}"
        screen.write_line(f"({calls} calls, answered from the journal: {times})")
    return again.ok
