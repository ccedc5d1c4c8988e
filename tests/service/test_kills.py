"""Servers over HTTP killed at random during upstream calls: nothing is done twice or lost.

The clients, and what they check, are those of `tests/server/test_kills.py`.
"""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from ..helpers.commands import run_command
from ..helpers.http_killing import start_with_token
from ..helpers.server_connection import write_settings
from ..helpers.server_killing import KillingClient
from ..helpers.sizes import choose_size
from ..server.conftest import upstream_entry
from ..server.test_kills import AT_ONCE, SEED, kill_and_check, print_accounts

pytestmark = pytest.mark.alone

KILLS = choose_size("HTTP_KILLS", short=6, long=200)


async def test_killed_servers_over_http_repeat_no_call_and_lose_no_delivered_result(
    tmp_path: Path,
) -> None:
    print(f"KILL_SEED={SEED}")  # shown where it fails
    clients = [make_client(tmp_path / f"c{number}", number) for number in range(AT_ONCE)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(kill_and_check, client, -(-KILLS // AT_ONCE))
    print_accounts(clients)


def make_client(folder: Path, number: int) -> KillingClient:
    upstream = folder / "done"
    settings = write_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(upstream), "6")},
        sandbox={"pool_size": int(number == 0)},
    )
    token = run_command("--config", settings, "token", "create", "killer").stdout.strip()
    return KillingClient(settings, upstream, f"{SEED} http {number}", start_with_token(token))
