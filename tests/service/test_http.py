"""The server over HTTP: everything works as over stdio, and each principal is alone."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import MCPError

from mcpruntime_server.cli.serve import bind_listener
from mcpruntime_server.config import HttpSettings

from ..helpers.commands import run_command
from ..helpers.http_service import ERAS, HttpService, open_http_service
from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    parse_answer,
    write_local_settings,
    write_settings,
)
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK, World, choose

INITIALIZE: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "plain", "version": "1"},
    },
}
ACCEPT = "application/json, text/event-stream"


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("http")
    settings = write_local_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        policy=ASK,
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def ann(service: HttpService) -> str:
    return service.create_token("ann")


@pytest.fixture(scope="module")
async def bob(service: HttpService) -> str:
    return service.create_token("bob")


async def post(http: httpx2.AsyncClient, url: str, **headers: str) -> httpx2.Response:
    return await http.post(url, json=INITIALIZE, headers={"Accept": ACCEPT, **headers})


# what works ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
async def test_code_runs_and_reports_progress(service: HttpService, ann: str, era: str) -> None:
    lines: list[str] = []

    async def listen(done: float, total: float | None, message: str | None) -> None:
        lines.append(message or "")

    code = "import time\nfor n in range(3): print('line', n, flush=True); time.sleep(0.3)\nn"
    async with service.connect(ann, era) as client:
        answer = await client.run(code, progress_callback=listen)
    assert (answer.status, answer.value) == ("ok", 2)
    assert any("line 1" in line for line in lines)


async def test_a_connection_has_a_default_session_of_its_own(
    service: HttpService, ann: str
) -> None:
    async with service.connect(ann, "legacy") as one, service.connect(ann, "legacy") as other:
        await one.run("x = 1")
        await other.run("x = 2")
        assert (await one.run("x")).value == 1
        assert (await other.run("x")).value == 2


async def test_a_request_without_a_connection_names_its_session(
    service: HttpService, ann: str
) -> None:
    async with service.connect(ann) as client:
        first = await client.run("x = 1")
        assert (await client.run("x", first.session)).value == 1
        assert (await client.run("1")).session != first.session


@pytest.mark.parametrize("era", ERAS)
async def test_a_person_is_asked_in_the_client(service: HttpService, ann: str, era: str) -> None:
    async with service.connect(ann, era, elicitation_callback=choose("allow")) as client:
        answer = await client.run(f"from tools.counted import add\nadd(item='{era}')")
    assert answer.status == "ok", answer.text
    assert f"add {era}" in (service.settings.parent / "done").read_text()


@pytest.mark.parametrize("era", ERAS)
async def test_a_restarted_server_finds_the_session_again(tmp_path: Path, era: str) -> None:
    world = World(tmp_path)
    async with open_http_service(world.settings) as first:
        token, port = first.create_token("ann"), int(first.url.split(":")[2].split("/")[0])
        async with first.connect(token, era) as client:
            await client.run("x = 1", "work")
    async with (
        open_http_service(world.settings, port=port) as second,
        second.connect(token, era) as client,
    ):
        assert (await client.run("x + 1", "work")).value == 2


async def test_a_stopped_server_ends_soon_and_the_next_continues_the_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with open_http_service(world.settings) as first:
        token = first.create_token("ann")
        async with first.connect(token) as client:
            started = await client.run(
                "import time\nfor _ in range(30): time.sleep(0.1)\n'end'", "w", background=True
            )
        first.stop()
        with anyio.fail_after(TEST_TIMEOUT_S):
            await first.process.wait()
    async with open_http_service(world.settings) as second, second.connect(token) as client:
        answer = parse_answer(await client.client.call_tool("run_code", {"run": started.run}))
    assert (answer.status, answer.value) == ("ok", "end")


# who may ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer x",
        "Bearer mcprt_00000000_x",
        "Basic YW5uOng=",
        "Bearer {}x",
        "bearer\t{}",
    ],
)
async def test_without_a_valid_token_nothing_is_answered(
    service: HttpService, ann: str, header: str
) -> None:
    async with service.http() as http:
        headers = {"Authorization": header.format(ann)} if header else {}
        refused = await post(http, service.url, **headers)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert ann not in refused.text


def test_the_first_token_is_made_once(tmp_path: Path) -> None:
    settings = write_settings(tmp_path)
    options = ("--config", settings, "token", "create", "admin", "--if-none")
    first, second = run_command(*options), run_command(*options)
    assert first.stdout.startswith("mcprt_")
    assert (second.returncode, second.stdout) == (0, "")


async def test_a_token_ends_when_it_expires_and_when_it_is_revoked(service: HttpService) -> None:
    settings = ("--config", service.settings)
    short, other = service.create_token("eve", "--days", "0.00002"), service.create_token("eve")
    await anyio.sleep(1.8)
    async with service.http(short) as http:
        assert (await post(http, service.url)).status_code == 401
    async with service.http(other) as http:
        assert (await post(http, service.url)).status_code == 200
        rows = json.loads(run_command(*settings, "token", "list", "--json").stdout)
        ids = [row["id"] for row in rows if row["name"] == "eve"]
        for each in ids:
            assert run_command(*settings, "token", "revoke", each).returncode == 0
        assert (await post(http, service.url)).status_code == 401
    assert run_command(*settings, "token", "revoke", ids[0]).returncode == 2


async def test_tokens_are_not_kept(service: HttpService, ann: str) -> None:
    secret = ann.split("_", 2)[2]  # it may have the character, too
    files = [path for path in service.data_dir.rglob("*") if path.is_file()]
    assert files
    assert not any(secret.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 65, "\x1b[2J", "-x", "é"])
async def test_a_principal_has_a_plain_name(service: HttpService, name: str) -> None:
    done = run_command("--config", service.settings, "token", "create", "--", name)
    assert (done.returncode, done.stdout) == (2, "")


async def test_what_is_anothers_does_not_exist(service: HttpService, ann: str, bob: str) -> None:
    async with service.connect(ann) as client:
        made = await client.run("open('f', 'w').write('secret')\nsecret = 1", "mine")
        row = (await client.replay("list")).data["sessions"]
        assert [each["session"] for each in row if each["session"] == "mine"]
    async with service.connect(bob) as client:
        assert "mine" not in (await client.replay("list")).text
        own = await client.run("'secret' in globals()", "mine")  # a name of bob's own
        assert (own.value, own.step) == (False, 1)
        refusals = [
            await client.replay(action, run=made.run)
            for action in ("show", "rewind", "fork", "rerun")
        ]
        attempts = (
            {"run": made.run},
            {"run": made.run, "cancel": True},
            {"run": made.run, "answers": {"q1": "allow"}},
            {"code": "1", "session": made.session if made.session != "mine" else "s_none"},
        )
        refusals += [
            parse_answer(await client.client.call_tool("run_code", arguments))
            for arguments in attempts
        ]
        saved = await client.client.call_tool("save_skill", {"run": made.run, "name": "theirs"})
        refusals.append(parse_answer(saved))
        for refusal in refusals:
            assert "[not_found]" in refusal.text, refusal.text
            assert "secret" not in refusal.text
        with pytest.raises(MCPError):
            await client.client.read_resource(f"workspace://{made.session}/f")


async def test_a_connection_belongs_to_its_principal(
    service: HttpService, ann: str, bob: str
) -> None:
    async with service.http(ann) as http:
        connection = (await post(http, service.url)).headers["Mcp-Session-Id"]
    async with service.http(bob) as http:
        refused = await post(http, service.url, **{"Mcp-Session-Id": connection})
    assert refused.status_code == 404


# what a stranger sends ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 400),
    ],
)
async def test_web_pages_cannot_use_the_server(
    service: HttpService, ann: str, headers: dict[str, str], status: int
) -> None:
    async with service.http(ann) as http:
        assert (await post(http, service.url, **headers)).status_code == status


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000, b"x" * (5 << 20)]
)
async def test_bodies_that_are_no_requests_are_refused(
    service: HttpService, ann: str, body: bytes
) -> None:
    headers = {"Accept": ACCEPT, "Content-Type": "application/json"}
    async with service.http(ann) as http:
        for more in ({}, {"MCP-Protocol-Version": "2026-07-28"}):
            refused = await http.post(service.url, content=body, headers={**headers, **more})
            assert 400 <= refused.status_code < 500
        assert (await post(http, service.url)).status_code == 200


async def test_clients_that_leave_and_clients_that_wait_harm_nobody(
    service: HttpService, ann: str
) -> None:
    url = httpx2.URL(service.url)
    idle = [await anyio.connect_tcp(url.host, url.port or 80) for _ in range(200)]
    for _ in range(200):
        stream = await anyio.connect_tcp(url.host, url.port or 80)
        await stream.send(b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
        await stream.aclose()
    async with service.connect(ann) as client:
        assert (await client.run("1 + 1")).value == 2
    for stream in idle:
        await stream.aclose()


def test_small_parts_are_sent_at_once() -> None:
    with bind_listener(HttpSettings(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's algorithm on


# who may start it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (("--no-auth", "--host", host), message)
            for host, message in (
                ("0.0.0.0", "does not listen on 0.0.0.0"),
                ("0", "does not listen on 0.0.0.0"),
                ("", "does not listen on 0.0.0.0"),
                ("::", "listen on ::"),
                ("::ffff:0.0.0.0", "listen on ::ffff:0.0.0.0"),
            )
        ),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1"),
        (("--host", "no.such.name.invalid"), "cannot listen"),
    ],
)
def test_it_does_not_start_open_to_everybody_or_nowhere(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = run_command("--config", World(tmp_path).settings, "serve", "--port", "0", *options)
    assert done.returncode == 2
    assert message in done.stderr


async def test_without_tokens_the_local_user_is_asked_for_none(tmp_path: Path) -> None:
    async with (
        open_http_service(World(tmp_path).settings, "--no-auth") as service,
        service.connect() as client,
    ):
        assert (await client.run("1 + 1")).value == 2
