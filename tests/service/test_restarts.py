"""A server over HTTP that stops, dies or is replaced: connected clients do not notice."""

from __future__ import annotations

import copy
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from mcp.types import ElicitRequestParams, ElicitResult

from mcpruntime_server.service.mcp_connections import (
    MAX_CONNECTIONS,
    MAX_ID_CHARS,
    decode_connection_id,
    encode_connection_id,
    principal_digest,
)

from ..helpers.http_service import ERAS, HttpService, open_http_service
from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    ServerConnection,
    write_local_settings,
    write_settings,
)
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK, choose
from ..server.test_lifecycle import containers
from .test_http import ACCEPT, INITIALIZE, post

ANNS = f"{'0' * 32}{principal_digest('ann', '0' * 32)}."
END_SIGNALS = {"stopped": signal.SIGTERM, "killed": signal.SIGKILL}
SLOW = "import time\nfor n in range(99): print(n, flush=True); time.sleep(0.05)\n'end'"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_local_settings(tmp_path)


def port_of(service: HttpService) -> int:
    return urlsplit(service.url).port or 0


@asynccontextmanager
async def open_next(settings: Path, first: HttpService) -> AsyncIterator[HttpService]:
    """Start the server that takes the place of one that is gone."""
    async with open_http_service(settings, port=port_of(first)) as service:
        yield service


async def wait_until_gone(service: HttpService) -> None:
    with anyio.fail_after(TEST_TIMEOUT_S):
        await service.process.wait()


def session_for(era: str) -> str | None:
    """Name a session, or none: only the older revisions have a default one per connection."""
    return None if era == "legacy" else "work"


@pytest.mark.parametrize("end", END_SIGNALS)
@pytest.mark.parametrize("era", ERAS)
async def test_a_connected_client_continues_with_the_next_server(
    settings: Path, era: str, end: str
) -> None:
    async with open_http_service(settings) as first:
        token = first.create_token("ann")
        async with first.connect(token, era) as client:
            before = await client.run("x = 1", session_for(era))
            first.signal(END_SIGNALS[end])
            await wait_until_gone(first)
            async with open_next(settings, first):
                after = await client.run("x + 1", session_for(era))
                assert (after.value, after.step, after.session) == (2, 2, before.session)
                assert (await client.run("x + 2", session_for(era))).value == 3


async def test_a_connection_that_is_opened_again_can_still_ask_its_person(tmp_path: Path) -> None:
    settings = write_local_settings(
        tmp_path,
        mcpServers={"counted": upstream_entry("counted", str(tmp_path / "done"))},
        policy=ASK,
    )
    async with open_http_service(settings) as first:
        token = first.create_token("ann")
        async with first.connect(token, "legacy", elicitation_callback=choose("allow")) as client:
            await client.run("1")
            first.stop()
            await wait_until_gone(first)
            async with open_next(settings, first):
                answer = await client.run("from tools.counted import add\nadd(item='x')")
    assert answer.status == "ok", answer.text
    assert "add x" in (tmp_path / "done").read_text()


@pytest.mark.parametrize("end", END_SIGNALS)
async def test_a_form_that_is_open_during_a_restart_can_be_answered(
    tmp_path: Path, end: str
) -> None:
    settings = write_local_settings(
        tmp_path,
        mcpServers={"counted": upstream_entry("counted", str(tmp_path / "done"))},
        policy=ASK,
    )
    asked, restarted, answered = anyio.Event(), anyio.Event(), anyio.Event()
    answers = []

    async def allow_later(context: Any, params: ElicitRequestParams) -> ElicitResult:
        asked.set()
        await restarted.wait()
        return await choose("allow")(context, params)

    async def run_add(client: ServerConnection) -> None:
        answers.append(await client.run("from tools.counted import add\nadd(item='x')", wait_s=60))
        answered.set()

    async with open_http_service(settings) as first:
        token = first.create_token("ann")
        async with (
            first.connect(token, elicitation_callback=allow_later) as client,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(run_add, client)
            await asked.wait()
            first.signal(END_SIGNALS[end])
            await wait_until_gone(first)
            async with open_next(settings, first):
                restarted.set()
                with anyio.fail_after(TEST_TIMEOUT_S):
                    await answered.wait()
    assert answers[0].status == "ok", answers[0].text
    assert (tmp_path / "done").read_text().split("\n").count("add x") == 1


@pytest.mark.parametrize("era", ERAS)
async def test_requests_return_when_the_server_stops_and_the_next_one_finishes_their_runs(
    tmp_path: Path, era: str
) -> None:
    settings = write_settings(tmp_path, sandbox={"pool_size": 0})
    sessions = ("a", "b", "c")
    started = {}
    printing = set()

    async def run_slowly(client: ServerConnection, session: str) -> None:
        async def stop_at_output(done: float, total: float | None, message: str | None) -> None:
            if "2" in (message or "") and session not in printing:
                printing.add(session)
                if printing == set(sessions):
                    first.stop()

        started[session] = await client.run(SLOW, session, progress_callback=stop_at_output)

    async with open_http_service(settings) as first:
        token = first.create_token("ann")
        async with first.connect(token, era) as client:
            await client.client.list_tools()  # else the client asks for schemas after a result
            async with anyio.create_task_group() as tasks:
                for session in sessions:
                    tasks.start_soon(run_slowly, client, session)
            await wait_until_gone(first)
            for answer in started.values():
                assert answer.status in ("queued", "running"), answer.text
                assert "the next one continues the run" in answer.text
            async with open_next(settings, first) as second:
                for answer in started.values():
                    result = await client.run_request(answer.run)
                    assert (result.status, result.value) == ("ok", "end"), result.text
                second.stop()
                await wait_until_gone(second)
    assert containers(settings) == []


async def test_two_servers_on_one_data_folder_see_each_others_runs(settings: Path) -> None:
    async with open_http_service(settings) as first, open_http_service(settings) as second:
        token = first.create_token("ann")
        async with first.connect(token) as one, second.connect(token) as other:
            started = await one.run(SLOW, "work", background=True)
            assert (await other.run_request(started.run)).value == "end"
            assert "work" in (await other.replay("list")).text
            refused = await other.run("1", "work")
            assert "[unavailable]" in refused.text
            assert (await other.run("1", "own")).value == 1


async def test_a_connection_can_be_used_at_another_server(settings: Path) -> None:
    async with open_http_service(settings) as first, open_http_service(settings) as second:
        token = first.create_token("ann")
        async with first.http(token) as http:
            connection = (await post(http, first.url)).headers["Mcp-Session-Id"]
            headers = {"Accept": ACCEPT, "Mcp-Session-Id": connection}
            ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
            for service in (second, first):
                answer = await http.post(service.url, json=ping, headers=headers)
                assert answer.status_code == 200


# ids ----------------------------------------------------------------------------------------------


def test_an_id_repeats_what_the_client_has_said() -> None:
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": {"elicitation": {}},
        "clientInfo": {"name": "é", "version": "1"},
    }
    first, second = (encode_connection_id("ann", params) for _ in range(2))
    assert first is not None
    assert first != second
    assert decode_connection_id("bob", first) is None
    assert decode_connection_id("ann", first) == params
    info = {"name": "a", "version": "1", "icons": ["x" * 9_000]}
    short = encode_connection_id("ann", {**params, "clientInfo": info})
    assert short is not None
    assert decode_connection_id("ann", short) == {
        **params,
        "clientInfo": {"name": "a", "version": "1"},
    }
    assert (
        encode_connection_id("ann", {**params, "capabilities": {"x": "y" * MAX_ID_CHARS}}) is None
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 32,
        "0" * 48 + ".e30",  # somebody else's
        ANNS,
        f"{ANNS}!!",
        f"{ANNS}e30=",
        f"{ANNS}bnVsbA",  # null
        f"{ANNS}W10",  # []
        ANNS + "W1tb" * 480,  # [[[[
        ANNS + "A" * MAX_ID_CHARS,
    ],
)
async def test_an_id_that_no_server_gave_is_unknown(
    settings: Path, text: str, shared_service: HttpService
) -> None:
    assert decode_connection_id("ann", text) is None
    async with shared_service.http(shared_service.create_token("ann")) as http:
        if text:
            refused = await post(http, shared_service.url, **{"Mcp-Session-Id": text})
            assert refused.status_code == 404


@pytest.fixture(scope="module")
async def shared_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("http")
    settings = write_local_settings(folder)
    async with open_http_service(settings) as service:
        yield service


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"protocolVersion": 7},
        {"protocolVersion": "2025-06-18", "capabilities": [], "clientInfo": {}},
    ],
)
async def test_an_id_with_a_bad_opening_opens_nothing(
    shared_service: HttpService, params: dict[str, object]
) -> None:
    forged = encode_connection_id("ann", params)
    assert forged is not None
    async with shared_service.http(shared_service.create_token("ann")) as http:
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        headers = {"Accept": ACCEPT, "Mcp-Session-Id": forged}
        refused = await http.post(shared_service.url, json=ping, headers=headers)
        assert refused.status_code == 404


async def test_a_connection_that_its_client_has_ended_stays_ended(
    shared_service: HttpService,
) -> None:
    async with shared_service.http(shared_service.create_token("ann")) as http:
        connection = (await post(http, shared_service.url)).headers["Mcp-Session-Id"]
        headers = {"Accept": ACCEPT, "Mcp-Session-Id": connection}
        assert (await http.delete(shared_service.url, headers=headers)).status_code == 200
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        for _ in range(2):
            gone = await http.post(shared_service.url, json=ping, headers=headers)
            assert gone.status_code == 404


async def test_a_long_opening_is_refused(shared_service: HttpService) -> None:
    opening = copy.deepcopy(INITIALIZE)
    opening["params"]["more"] = "x" * 100_000
    async with shared_service.http(shared_service.create_token("ann")) as http:
        refused = await http.post(shared_service.url, json=opening, headers={"Accept": ACCEPT})
        assert refused.status_code == 413


async def test_many_connections_replace_idle_ones_which_can_be_used_again(
    shared_service: HttpService,
) -> None:
    ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
    async with shared_service.http(shared_service.create_token("many")) as http:
        first = (await post(http, shared_service.url)).headers["Mcp-Session-Id"]
        for _ in range(MAX_CONNECTIONS + 5):
            assert (await post(http, shared_service.url)).status_code == 200
        headers = {"Accept": ACCEPT, "Mcp-Session-Id": first}
        again = await http.post(shared_service.url, json=ping, headers=headers)
        assert again.status_code == 200
