"""Tasks that a client makes, asks about, cancels and leaves cost nobody else anything."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, write_settings
from ..upstreams import own_server_entry
from . import task_attacks
from .attack_process import run_attack


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        mcpServers={"lively": own_server_entry("lively")},
        policy={"tools": {"lively.echo": "ask"}},
        sandbox={"output_mb": 16},
        http={"requests_per_minute": 100_000, "runs_per_minute": 10_000},
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.mark.parametrize("name", task_attacks.ATTACKS)
async def test_tasks_cost_another_principal_nothing(
    service: HttpService, bystander: ServerConnection, name: str
) -> None:
    await run_attack(task_attacks, name, service, bystander)
