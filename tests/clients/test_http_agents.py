"""Real coding agents over HTTP with a token, whose server is replaced while they work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import TaskStatus

from tests.helpers.http_service import HttpService, open_http_service
from tests.helpers.server_connection import TEST_TIMEOUT_S, write_settings
from tests.helpers.sizes import choose_cases
from tests.upstreams import own_server_entry

from .agents import AGENTS, CodingAgent, RemoteServer, run_agent
from .conftest import require_agent
from .scripted_model import FINAL_TEXT, ToolResult, serve_model

CHOSEN = choose_cases(AGENTS[::-1], short=2)  # in a short run, those that play over nothing else
MODERN = ("claude",)  # these have no connection, and so name their session
RESTARTED_TURN = 2  # before which the server is replaced
TURNS: dict[str, dict[str, Any]] = {
    "value": {"code": "x = 41\nprint('hello')\nx"},
    "a tool": {"code": "from tools.ledger import add, count\nadd(item='x')\nint(count())"},
    "after the restart": {"code": "x + 1"},
    "a tool after it": {"code": "add(item='y')\nint(count())"},
    "a question": {"code": "from tools.ledger import put\nput(item='z')", "wait_s": 5},
}


@dataclass(frozen=True)
class Played:
    """The result that the model was sent for each turn, and what the agent printed."""

    results: dict[str, ToolResult]
    printed: str
    calls: list[str]


class ReplacedServer:
    """A server over HTTP, and the one that takes its place."""

    def __init__(self, settings: Path) -> None:
        self._settings = settings
        self._is_requested = anyio.Event()
        self._is_replaced = anyio.Event()

    async def serve(self, *, task_status: TaskStatus[HttpService]) -> None:
        """Run the first server until it is to be replaced, then the next one."""
        async with open_http_service(self._settings) as first:
            task_status.started(first)
            await self._is_requested.wait()
            first.stop()
            with anyio.fail_after(TEST_TIMEOUT_S):
                await first.process.wait()
        async with open_http_service(self._settings, port=urlsplit(first.url).port or 0):
            self._is_replaced.set()
            await anyio.sleep_forever()

    async def replace_before(self, turn: int) -> None:
        """Replace the server if it is the turn for that."""
        if turn == RESTARTED_TURN:
            self._is_requested.set()
            with anyio.fail_after(TEST_TIMEOUT_S):
                await self._is_replaced.wait()


async def play(agent: CodingAgent, folder: Path) -> Played:
    """Let an agent play the script against a server that is replaced."""
    upstream = own_server_entry("counted", str(folder / "calls"))
    settings = write_settings(
        folder / "server",
        mcpServers={"ledger": upstream},
        policy={"tools": {"ledger.put": "ask"}},
    )
    session = {"session": "work"} if agent.name in MODERN else {}
    script = [{**turn, **session} for turn in TURNS.values()]
    replaced = ReplacedServer(settings)
    async with anyio.create_task_group() as tasks:
        service: HttpService = await tasks.start(replaced.serve)
        server = RemoteServer(service.url, service.create_token("agent"))
        async with serve_model(script, replaced.replace_before) as model:
            printed = await run_agent(agent, folder, server, model)
        tasks.cancel_scope.cancel()
    results = dict(zip(TURNS, model.results, strict=False))
    assert len(results) == len(TURNS), printed
    return Played(results, printed, (folder / "calls").read_text().splitlines())


@pytest.fixture(scope="module", params=CHOSEN, ids=lambda agent: agent.name)
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The conversation of an agent; without the agent the tests are skipped."""
    agent: CodingAgent = request.param
    require_agent(agent)
    return anyio.run(play, agent, tmp_path_factory.mktemp(f"http-{agent.name}"))


def test_code_runs_and_calls_tools(played: Played) -> None:
    assert FINAL_TEXT in played.printed
    assert "41" in played.results["value"].text
    assert "hello" in played.results["value"].text
    assert "ok" in played.results["a tool"].text


def test_the_session_continues_in_the_next_server(played: Played) -> None:
    assert "42" in played.results["after the restart"].text
    assert "ok" in played.results["a tool after it"].text
    assert [call for call in played.calls if "add" in call] == ["add x", "add y"]


def test_a_call_that_needs_approval_is_not_made(played: Played) -> None:
    assert "put z" not in played.calls
