"""Clients over HTTP, with a token and without, that try to keep others from the server."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import anyio
import pytest

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.loop_watch import IS_MEASURED
from ..helpers.server_connection import ServerConnection, write_settings
from . import http_attacks
from .bystander import observe
from .http_attacks import ATTACKS, PRINCIPAL

SIZE = 600 if IS_MEASURED else 100
ATTACK_S = 5.0 if IS_MEASURED else 1.0


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    # On a fast machine the bystander starts more runs in a long attack than one user usually may.
    settings = write_settings(tmp_path_factory.mktemp("server"), http={"runs_per_minute": 10_000})
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def token(service: HttpService) -> str:
    return service.create_token(PRINCIPAL)


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_hostile_client_costs_others_nothing(
    service: HttpService, bystander: ServerConnection, token: str, name: str
) -> None:
    command = [sys.executable, "-m", http_attacks.__name__, name, service.url, token]
    async with observe(bystander):
        done = await anyio.run_process([*command, str(SIZE), str(ATTACK_S)], check=False)
    assert done.returncode == 0, done.stderr.decode()
