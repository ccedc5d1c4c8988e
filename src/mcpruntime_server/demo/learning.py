"""The act "learning": a task is done and kept as a skill; another conversation finds it, and makes more of it.

The second conversation has a client and a server of its own, and knows of the first one only what the server tells.
"""

from __future__ import annotations

import json
from typing import Any

from mcp import Client

from . import programs
from .screen import Screen
from .stage import Stage, connected, perform, text_of

FIRST, SECOND = "first conversation", "second conversation"
SEARCH = "who made the hotfixes"


async def learn_and_reuse(screen: Screen, stage: Stage) -> bool:
    """Show a skill being made, found, used and composed; return whether all went well."""
    screen.heading("learning: a new task is done, and kept as a skill")
    async with connected(screen, stage) as client:
        if not await solve(screen, client, programs.learn(stage.repository), FIRST, "hotfixes_by_author"):
            return False
    screen.heading("another conversation: the skill is found, used for more, and that is kept too")
    async with connected(screen, stage) as client:
        await call(screen, client, "list_skills", query=SEARCH)
        if not await solve(screen, client, programs.compose(stage.repository), SECOND, "busiest_by_quarter"):
            return False
        again = await perform(screen, client, programs.again(stage.repository), SECOND)
    return again.ok


async def solve(screen: Screen, client: Client, program: str, session: str, name: str) -> bool:
    """Run a program and have it kept; return whether it is in use."""
    step = await perform(screen, client, program, session)
    screen.line()
    return (
        step.ok
        and (await call(screen, client, "save_skill", run=step.result["run"], name=name)).get("state") == "active"
    )


async def call(screen: Screen, client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Use a tool, showing what is asked and answered; return the answer as data."""
    screen.line(f"{tool}({', '.join(f'{name}={json.dumps(value)}' for name, value in arguments.items())})")
    answer = await client.call_tool(tool, arguments)
    screen.block(text_of(answer), "red" if answer.is_error else "green")
    screen.line()
    return answer.structured_content or {}
