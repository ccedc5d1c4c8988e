"""The act "skill": a solution becomes a skill, and another conversation finds and uses it.

The second conversation has a client and a server of its own. It knows of the first one only what
the server tells.
"""

from __future__ import annotations

import json
from typing import Any

from mcp import Client

from ...protocol.payloads import JsonObject
from . import programs
from .demo_client import connect_client, join_text, run_program
from .demo_console import DemoConsole
from .stage import DemoStage

FIRST_SESSION, SECOND_SESSION = "first conversation", "second conversation"
SKILL_NAME = "hotfixes_by_author"
SKILL_QUERY = "who made the hotfixes"


async def learn_and_reuse(stage: DemoStage) -> bool:
    """Show a skill being saved, found and used; return whether everything succeeded."""
    screen, folder = stage.screen, stage.folder
    program = programs.skill_task_program(folder.repository)
    step = await run_program(screen, stage.client, program, FIRST_SESSION)
    screen.write_line()
    if not step.ok:
        return False
    saved = await call_tool(
        screen, stage.client, "save_skill", run=step.result["run"], name=SKILL_NAME
    )
    if saved.get("state") != "active":
        return False
    screen.write_line(("another conversation, with a server of its own:", "italic"))
    screen.write_line()
    async with connect_client(screen, folder) as client:
        await call_tool(screen, client, "list_skills", query=SKILL_QUERY)
        used = await run_program(
            screen, client, programs.skill_use_program(folder.repository), SECOND_SESSION
        )
    return used.ok


async def call_tool(screen: DemoConsole, client: Client, tool: str, **arguments: Any) -> JsonObject:
    """Call a tool and show the call and its answer; return the answer as data."""
    listed = ", ".join(f"{name}={json.dumps(value)}" for name, value in arguments.items())
    screen.write_line(f"{tool}({listed})")
    with screen.show_wait("waiting for the answer"):
        answer = await client.call_tool(tool, arguments)
    screen.write_block(join_text(answer), "red" if answer.is_error else "green")
    screen.write_line()
    return answer.structured_content or {}
