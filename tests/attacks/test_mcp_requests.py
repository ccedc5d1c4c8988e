"""Requests over MCP, valid ones among them, that are made to take long: others notice nothing."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from itertools import count

import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from ..helpers.child_processes import start_process
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, write_settings
from . import mcp_attacks
from .bystander import observe
from .mcp_attacks import ATTACKS

USERS = count()
MAX_LINE_BYTES = 100


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        llm={"broker": "caller"},
        http={"requests_per_minute": 100_000, "runs_per_minute": 10_000},
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_request_costs_its_own_answer_at_most(
    service: HttpService, bystander: ServerConnection, name: str
) -> None:
    token = service.create_token(f"mallory{next(USERS)}")
    command = [sys.executable, "-m", mcp_attacks.__name__, name, service.url, token]
    async with start_process(command, stderr=None) as attacker:
        assert attacker.stdin is not None
        assert attacker.stdout is not None
        lines = BufferedByteReceiveStream(attacker.stdout)
        assert await lines.receive_until(b"\n", MAX_LINE_BYTES) == b"connected"
        async with observe(bystander):
            await attacker.stdin.send(b"attack\n")
            assert await lines.receive_until(b"\n", MAX_LINE_BYTES) == b"done"
        await attacker.stdin.send(b"work\n")
        assert await attacker.wait() == 0
