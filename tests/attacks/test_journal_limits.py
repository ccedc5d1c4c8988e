"""A run and a session record no more than the settings allow, and say so."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.upstreams import own_server_entry

from .bystander import observe

LIMITS = {"run_mb": 2, "session_mb": 5}
ATTACKS = {
    "arguments": "for n in range(20): echo(text=f'{n}' * 300_000)",
    "arguments of failing calls": "for n in range(20):\n    try: echo(nothing=f'{n}' * 300_000)\n"
    "    except TypeError: echo(text=f'{n}' * 300_000)",
    "answers": "for n in range(20): echo(text='abc' * 10, times=20_000)",
    "answers in tasks": "import asyncio\n"
    "await asyncio.gather(*(echo.aio(text=f'{n}' * 300_000) for n in range(20)))",
    "output": "for n in range(60): print('x' * 99_999)",
    "many small calls": "while True: echo(text='x' * 9_000)",
    "limits that code catches": "while True:\n    try: echo(text='x' * 300_000)\n"
    "    except Exception: pass",
}


@pytest.fixture(scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server whose journal takes little."""
    upstreams = {"lively": own_server_entry("lively")}
    folder = tmp_path_factory.mktemp("limited")
    settings = write_settings(folder, mcpServers=upstreams, journal=LIMITS)
    async with connect_server(settings) as connection:
        yield connection


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_run_records_no_more_than_its_limit(limited: ServerConnection, attack: str) -> None:
    await limited.run("from tools.lively import echo\nkept = 1", attack)
    async with observe(limited):
        answer = await limited.run(ATTACKS[attack], attack, timeout_s=30)
    assert answer.status == "error", answer.text
    assert "2 MB of arguments, answers and output" in answer.text
    assert "[journal] run_mb" in answer.text
    recorded = await limited.replay("show", attack)
    assert not recorded.is_error, recorded.text
    assert await limited.evaluate("kept", attack) == 1


async def test_a_session_that_is_full_takes_no_more_runs(limited: ServerConnection) -> None:
    code = "from tools.lively import echo\nfor n in range(5): echo(text=f'{n}' * 150_000)"
    for _ in range(8):
        answer = await limited.run(code, "full")
    assert "5 MB of code, arguments, answers and output" in answer.text
    assert "[journal] session_mb" in answer.text
    assert await limited.evaluate("1+1", "another") == 2
