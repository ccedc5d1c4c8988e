"""The act "learning": a task is done and kept as a skill; another conversation finds it, and makes more of it.

The second conversation has a client and a server of its own, and knows of the first one only what the server tells.
"""

from __future__ import annotations

import json
from typing import Any

from mcp import Client

from . import programs
from .demo_client import DemoFolder, connect_client, join_text, run_program
from .demo_console import DemoConsole

FIRST_SESSION, SECOND_SESSION = "first conversation", "second conversation"
SKILL_QUERY = "who made the hotfixes"


async def learn_and_reuse(screen: DemoConsole, stage: DemoFolder) -> bool:
    """Show a skill being made, found, used and composed; return whether all went well."""
    screen.write_heading("learning: a new task is done, and kept as a skill")
    async with connect_client(screen, stage) as client:
        if not await solve_and_save(
            screen,
            client,
            programs.skill_task_program(stage.repository),
            FIRST_SESSION,
            "hotfixes_by_author",
        ):
            return False
    screen.write_heading(
        "another conversation: the skill is found, used for more, and that is kept too"
    )
    async with connect_client(screen, stage) as client:
        await call_tool(screen, client, "list_skills", query=SKILL_QUERY)
        if not await solve_and_save(
            screen,
            client,
            programs.composed_task_program(stage.repository),
            SECOND_SESSION,
            "busiest_by_quarter",
        ):
            return False
        again = await run_program(
            screen, client, programs.composed_skill_program(stage.repository), SECOND_SESSION
        )
    return again.ok


async def solve_and_save(
    screen: DemoConsole, client: Client, program: str, session: str, name: str
) -> bool:
    """Run a program and have it kept; return whether it is in use."""
    step = await run_program(screen, client, program, session)
    screen.write_line()
    return (
        step.ok
        and (await call_tool(screen, client, "save_skill", run=step.result["run"], name=name)).get(
            "state"
        )
        == "active"
    )


async def call_tool(
    screen: DemoConsole, client: Client, tool: str, **arguments: Any
) -> dict[str, Any]:
    """Use a tool, showing what is asked and answered; return the answer as data."""
    screen.write_line(
        f"{tool}({', '.join(f'{name}={json.dumps(value)}' for name, value in arguments.items())})"
    )
    answer = await client.call_tool(tool, arguments)
    screen.write_block(join_text(answer), "red" if answer.is_error else "green")
    screen.write_line()
    return answer.structured_content or {}
