"""Agents that code begins: through the real server, a session of their own, and HTTP to the deterministic model."""

from __future__ import annotations

import fake_llm
from tests.server.client import Connection

from .conftest import program


async def test_an_agent_writes_sees_mends_and_submits(server: Connection, model: fake_llm.Server) -> None:
    model.script(
        {"match": "Task:\nCount the words", "reply": program("words = CONTEXT.splt()")},
        {"match": "AttributeError.*splt", "reply": program("words = CONTEXT.split()\nlen(words)")},
        {"match": "Step 2 of 20: ok\n<data \\w+>\nvalue: 3", "reply": program("SUBMIT(len(words))")},
    )
    assert await server.value("sub_agent('Count the words', 'one two three')") == 3
    assert model.stats()["calls"] == 3
