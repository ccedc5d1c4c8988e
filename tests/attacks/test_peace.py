"""Without an attack: the figures that those of the attacks can be compared with."""

from __future__ import annotations

from tests.helpers.server_connection import ServerConnection

from .bystander import observe

RUN_COUNT = 100


async def test_a_session_that_works_beside_another(server: ServerConnection) -> None:
    async with observe(server):
        for number in range(RUN_COUNT):
            assert await server.evaluate(f"{number} + 1", "worker") == number + 1
