"""The part "learning": a solution becomes a skill; another conversation finds it and builds on it.

The second conversation has a client and a server of its own. It knows of the first one only what
the server tells.
"""

from __future__ import annotations

import json
from typing import Any

from mcp import Client

from ...protocol.payloads import JsonObject
from . import programs
from .demo_client import DemoFolder, connect_client, join_text, run_program
from .demo_console import DemoConsole

FIRST_SESSION, SECOND_SESSION = "first conversation", "second conversation"
SKILL_QUERY = "who made the hotfixes"


async def learn_and_reuse(screen: DemoConsole, folder: DemoFolder) -> bool:
    """Show a skill being saved, found, used and composed; return whether everything succeeded."""
    screen.write_heading("learning: a new task is done and saved as a skill")
    async with connect_client(screen, folder) as client:
        program = programs.skill_task_program(folder.repository)
        name = "hotfixes_by_author"
        if not await solve_and_save(screen, client, program, FIRST_SESSION, name):
            return False
    screen.write_heading("another conversation: it finds the skill and builds a larger one on it")
    async with connect_client(screen, folder) as client:
        await call_tool(screen, client, "list_skills", query=SKILL_QUERY)
        program = programs.composed_task_program(folder.repository)
        name = "busiest_by_quarter"
        if not await solve_and_save(screen, client, program, SECOND_SESSION, name):
            return False
        program = programs.composed_skill_program(folder.repository)
        used = await run_program(screen, client, program, SECOND_SESSION)
    return used.ok


async def solve_and_save(
    screen: DemoConsole, client: Client, program: str, session: str, name: str
) -> bool:
    """Run a program and save it as a skill; return whether the skill is in use."""
    step = await run_program(screen, client, program, session)
    screen.write_line()
    if not step.ok:
        return False
    saved = await call_tool(screen, client, "save_skill", run=step.result["run"], name=name)
    return saved.get("state") == "active"


async def call_tool(screen: DemoConsole, client: Client, tool: str, **arguments: Any) -> JsonObject:
    """Call a tool and show the call and its answer; return the answer as data."""
    listed = ", ".join(f"{name}={json.dumps(value)}" for name, value in arguments.items())
    screen.write_line(f"{tool}({listed})")
    answer = await client.call_tool(tool, arguments)
    screen.write_block(join_text(answer), "red" if answer.is_error else "green")
    screen.write_line()
    return answer.structured_content or {}
