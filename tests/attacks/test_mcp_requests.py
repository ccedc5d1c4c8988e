"""Requests over MCP, valid ones among them, that are made to take long: others notice nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, write_settings
from . import mcp_attacks
from .attack_process import run_attack


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        llm={"broker": "caller"},
        http={"requests_per_minute": 100_000, "runs_per_minute": 10_000},
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.mark.parametrize("name", mcp_attacks.ATTACKS)
async def test_a_request_costs_its_own_answer_at_most(
    service: HttpService, bystander: ServerConnection, name: str
) -> None:
    await run_attack(mcp_attacks, name, service, bystander)
