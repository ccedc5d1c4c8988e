"""Servers killed at random during upstream calls: nothing is done twice, lost or left behind."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.config import Config
from mcpruntime_server.journal.events import RunResumed
from mcpruntime_server.journal.store import open_journal
from mcpruntime_server.runtime.run_history import load_report
from mcpruntime_server.server.result_format import build_run_result

from ..helpers.server_connection import write_settings
from ..helpers.server_killing import STABLE_FIELDS, KillingClient, start_ready_server
from ..helpers.sizes import choose_size
from .conftest import upstream_entry
from .test_lifecycle import containers

pytestmark = pytest.mark.alone

KILLS = choose_size("KILLS", short=24, long=200)
SEED = os.environ.get("KILL_SEED") or secrets.token_hex(4)
AT_ONCE = 3  # data folders, each with a server of its own


async def test_killed_servers_repeat_no_call_and_lose_no_delivered_result(
    tmp_path: Path,
) -> None:
    print(f"KILL_SEED={SEED}")  # shown where it fails
    clients = [make_client(tmp_path / f"c{number}", number) for number in range(AT_ONCE)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(kill_and_check, client, -(-KILLS // AT_ONCE))
    ends = sum((client.endings for client in clients), Counter())
    moments = sum((client.kill_moments for client in clients), Counter())
    calls = sum(len(client.read_ledger()) for client in clients)
    resumed = sum(client.resumed for client in clients)
    doubts = sum(client.in_doubt_calls for client in clients)
    kills = sum(client.kills for client in clients)
    print(f"{kills} kills {dict(moments)}, {calls} calls, {doubts} in doubt")
    print(f"{resumed} times a run went on, steps {dict(ends)}")


def make_client(folder: Path, number: int) -> KillingClient:
    upstream = folder / "done"
    settings = write_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(upstream), "6")},
        sandbox={"pool_size": int(number == 0)},
    )
    return KillingClient(settings, upstream, f"{SEED} {number}")


async def kill_and_check(client: KillingClient, kills: int) -> None:
    while client.kills < kills:
        await client.run_until_killed()
    async with start_ready_server(client.settings) as server:
        await client.finish_sessions(server)
        await server.close()
    assert containers(client.settings) == []
    client.check_calls()
    async with open_journal(client.settings.parent / "data") as journal:
        for session in await journal.list_sessions():
            client.resumed += len(await journal.load_events(session.id, event_type=RunResumed))
        for run, told in client.reported.items():
            found = build_run_result(await load_report(journal, run), "", Config())
            journaled = found.model_dump(mode="json", exclude_defaults=True)
            assert {name: journaled.get(name) for name in STABLE_FIELDS} == told
