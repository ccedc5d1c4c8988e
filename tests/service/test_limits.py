"""How much one principal, or a stranger, can ask of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from anyio.abc import TaskStatus

from mcpruntime_server.config import HttpSettings
from mcpruntime_server.errors import RateLimited
from mcpruntime_server.runtime.rates import Rate, RunStarts
from mcpruntime_server.service.rate_limits import RateLimits, client_address

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, ServerConnection, write_settings
from .test_http import post


@asynccontextmanager
async def serve(
    folder: Path, more: Mapping[str, Any] | None = None, **http: Any
) -> AsyncIterator[HttpService]:
    sandbox = {"backend": "local", "pool_size": 0}
    settings = write_settings(folder, sandbox=sandbox, http=http, **(more or {}))
    async with open_http_service(settings) as service:
        yield service


async def test_a_principal_that_sends_too_much_waits_and_others_do_not(tmp_path: Path) -> None:
    async with serve(tmp_path, requests_per_minute=20) as service:
        ann, again, bob = map(service.create_token, ("ann", "ann", "bob"))
        async with service.http(ann) as first, service.http(again) as second:
            clients = cycle([first, second])
            count = 0  # on a slow machine, more than 20: one more is allowed every 3 seconds
            while (response := await post(next(clients), service.url)).status_code == 200:
                count += 1
        assert count >= 20
        assert response.status_code == 429
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        assert response.json()["code"] == "rate_limited"
        async with service.http(bob) as http:
            assert (await post(http, service.url)).status_code == 200


async def test_a_principal_that_starts_too_many_runs_is_told_when_to_go_on(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, runs_per_minute=3) as service,
        service.connect(service.create_token("ann")) as client,
    ):
        for number in range(3):
            assert (await client.run(str(number), "s")).status == "ok"
        refused = await client.run("'too many'", "s")
        assert "[rate_limited] More than 3 runs" in refused.text
        assert "Try again in" in refused.text
        rerun = await client.replay("rerun", session="s", step=1)
        assert "[rate_limited]" in rerun.text
        async with service.connect(service.create_token("bob")) as other:
            assert (await other.run("1")).status == "ok"


async def test_a_program_that_starts_too_many_runs_is_told_when_to_go_on(tmp_path: Path) -> None:
    async with (
        serve(tmp_path, runs_per_minute=2) as service,
        service.http(service.create_token("ann")) as http,
    ):
        url = service.url.removesuffix("/mcp") + "/execute"
        for code in "12":
            assert (await http.post(url, json={"code": code})).status_code == 200
        refused = await http.post(url, json={"code": "3"})
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60


async def test_an_address_that_guesses_is_refused_and_those_known_there_are_not(
    tmp_path: Path,
) -> None:
    async with serve(tmp_path, failures_per_minute=5) as service:
        known, new = service.create_token("ann"), service.create_token("bob")
        async with service.http(known) as http:
            assert (await post(http, service.url)).status_code == 200
        async with service.http() as http:
            for _ in range(8):  # a client that has no token guesses none
                assert (await post(http, service.url)).status_code == 401
        for _ in range(5):
            async with service.http("mcprt_00000000_guess") as http:
                assert (await post(http, service.url)).status_code == 401
        for token in ("mcprt_00000000_guess", new):
            async with service.http(token) as http:
                response = await post(http, service.url)
            assert response.status_code == 429
            assert response.headers["Retry-After"] == "60"
        async with service.http(known) as http:
            assert (await post(http, service.url)).status_code == 200


async def test_behind_a_proxy_each_address_counts_for_itself(tmp_path: Path) -> None:
    async with serve(tmp_path, failures_per_minute=2, proxies=["127.0.0.1"]) as service:
        good = service.create_token("ann")
        for _ in range(3):
            async with service.http("x", **{"X-Forwarded-For": "192.0.2.1"}) as http:
                last = await post(http, service.url)
        assert last.status_code == 429
        async with service.http(good, **{"X-Forwarded-For": "192.0.2.2"}) as http:
            assert (await post(http, service.url)).status_code == 200


async def test_nobody_chooses_the_address_that_counts(tmp_path: Path) -> None:
    async with serve(tmp_path, failures_per_minute=2) as service:
        for number in range(3):
            async with service.http("x", **{"X-Forwarded-For": f"192.0.2.{number}"}) as http:
                last = await post(http, service.url)
        assert last.status_code == 429


async def test_a_principal_leaves_connections_to_others(tmp_path: Path) -> None:
    async with serve(tmp_path, concurrent_requests=3) as service:
        ann, bob = service.create_token("ann"), service.create_token("bob")
        async with service.http(ann) as http:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    await tasks.start(hold_request, service, ann)
                response = await post(http, service.url)
                assert response.status_code == 429
                assert "3 requests are under way" in response.json()["detail"]
                async with service.http(bob) as other:
                    assert (await post(other, service.url)).status_code == 200
                tasks.cancel_scope.cancel()
            with anyio.fail_after(TEST_TIMEOUT_S):  # those that have ended do not count
                while (await post(http, service.url)).status_code != 200:  # noqa: ASYNC110
                    await anyio.sleep(0.05)


async def hold_request(service: HttpService, token: str, *, task_status: TaskStatus[None]) -> None:
    """Send the headers of a request, and wait once the server asks for the body."""
    url = httpx2.URL(service.url)
    async with await anyio.connect_tcp(url.host, url.port or 80) as stream:
        await stream.send(
            b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Accept: application/json, text/event-stream\r\n"
            b"Content-Length: 9\r\nExpect: 100-continue\r\n"
            + f"Authorization: Bearer {token}\r\n\r\n".encode()
        )
        assert b"100" in await stream.receive()
        task_status.started()
        await anyio.sleep_forever()


async def test_a_principal_leaves_sessions_to_others(tmp_path: Path) -> None:
    limits = {"server": {"max_sessions": 3, "max_sessions_per_principal": 2}}
    async with serve(tmp_path, limits) as service:
        ann, bob = service.create_token("ann"), service.create_token("bob")
        async with service.connect(ann) as client, service.connect(bob) as other:
            for name in ("one", "two"):
                await client.run("import time; time.sleep(600)", name, background=True)
            refused = await client.run("1", "three")
            assert "[unavailable] All 2 sessions are busy." in refused.text
            assert "max_sessions_per_principal" in refused.text
            assert (await other.run("1 + 1")).value == 2
            for name in ("one", "two"):
                await client.replay("rewind", session=name, step=0, cancel=True)
            assert (await client.run("1 + 2", "three")).value == 3  # an idle one makes room
            assert (await other.run("1 + 1")).value == 2


async def test_a_principal_that_fills_the_journal_records_no_more(tmp_path: Path) -> None:
    limits = {"journal": {"principal_mb": 2}}
    write = "import os; open('f', 'wb').write(os.urandom(3_000_000))"
    async with serve(tmp_path, limits) as service:
        ann, bob = service.create_token("ann"), service.create_token("bob")
        async with service.connect(ann) as client, service.connect(bob) as other:
            assert (await client.run(write, "full")).status == "ok"
            assert await is_full(client, "full")
            assert (await other.run("1 + 1")).value == 2
    async with (  # the next server measures what there is
        serve(tmp_path, limits) as service,
        service.connect(ann) as client,
        service.connect(bob) as other,
    ):
        assert await is_full(client, "full")
        assert await is_full(client, "new")
        assert (await other.run("1 + 1")).value == 2


async def is_full(client: ServerConnection, session: str) -> bool:
    """Return whether a session is refused because its principal has recorded too much."""
    with anyio.fail_after(TEST_TIMEOUT_S):  # files are recorded after the result is sent
        while "[journal_limit] Your sessions" not in (await client.run("1", session)).text:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    return True


# the parts ----------------------------------------------------------------------------------------


def test_a_rate_recovers_steadily_and_keys_do_not_share_it() -> None:
    rate = Rate(60)
    assert [rate.count("a") for _ in range(60)] == [0.0] * 60
    assert rate.is_used_up("a")
    assert 0 < rate.count("a") <= 1
    assert not rate.is_used_up("b")
    assert rate.count("b") == 0


def test_zero_is_no_limit() -> None:
    rate = Rate(0)
    assert not any(rate.count("a") for _ in range(1_000))
    assert not rate.is_used_up("a")
    limits = RateLimits(HttpSettings(concurrent_requests=0))
    with limits.serve("a"), limits.serve("a"):
        pass


def test_the_local_user_has_no_limit() -> None:
    starts = RunStarts(1)
    for _ in range(100):
        starts.count("local")
    starts.count("ann")
    with pytest.raises(RateLimited, match="More than 1 runs"):
        starts.count("ann")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("strange", "strange"),
    ],
)
def test_an_address_of_a_large_network_counts_as_the_network(address: str, expected: str) -> None:
    assert client_address({"type": "http", "client": (address, 1)}) == expected
    assert client_address({"type": "http", "client": None}) == ""
