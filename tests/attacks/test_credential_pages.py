"""The pages on which people store credentials, for servers and hosts, cost nobody else anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

import anyio
import httpx2
import pytest

from mcpruntime_server.capabilities.credential_keys import create_key
from tests.upstreams import own_server_entry

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.loop_watch import IS_MEASURED
from ..helpers.server_connection import ServerConnection, write_settings
from .bystander import observe

SIZE = 300 if IS_MEASURED else 30
HELD_S = 3.0 if IS_MEASURED else 0.5
HOST = "api.example.com"
SECRET = "a-secret-of-mallory"
PAGES = {
    "a long name": "x" * 30_000,
    "a name that is almost right": "keye" + "d" * 30_000,
    "control characters": quote("\x1b[2J\u2028\u202e", safe=""),
    "zeros": "%00" * 5_000,
    "a path": quote("../../settings", safe="") + "/../x",
    "markup": quote('"><script>alert(1)</script>', safe=""),
    "bytes that are no text": "%ff%fe" * 3_000,
    "another scheme": quote("https://" + "h" * 20_000, safe=""),
}
BODIES = {
    "many fields": b"a=1&" * 15_000,
    "one field often": b"credential=a&" * 4_000,
    "a long body": b"credential=" + b"x" * 3_900_000,
    "a long credential": b"credential=" + b"x" * 60_000,
    "escapes": b"credential=" + b"%00" * 20_000,
    "bytes that are no text": b"\xff" * 60_000,
    "a long name": b"credential=secret-1&name=" + b"n" * 50_000,
    "line breaks": b"credential=a%0d%0aX-Other:%201",
    "nothing": b"",
}


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    async with open_http_service(prepare(tmp_path_factory.mktemp("server"))) as opened:
        yield opened


def prepare(folder: Path) -> Path:
    """Write settings with a server and a host whose credentials are those of each principal."""
    key_file = folder / "key"
    key_file.write_text(create_key())
    key_file.chmod(0o600)
    keyed = {**own_server_entry("keyed"), "env": {"TOKEN": "${credential}"}}
    own = {"value": "Bearer ${credential}", "credentials": "per-principal"}
    return write_settings(
        folder,
        mcpServers={"keyed": {**keyed, "credentials": "per-principal"}},
        network={"allow": [f"https://{HOST}"], "credentials": {HOST: own}},
        credentials={"key_file": str(key_file)},
        http={"requests_per_minute": 100_000, "failures_per_minute": 100_000},
    )


@pytest.fixture(scope="module")
def token(service: HttpService) -> str:
    return service.create_token("mallory")


def page_of(service: HttpService, server: str) -> str:
    return f"{service.url.removesuffix('/mcp')}/credentials/{server}"


async def send(
    service: HttpService, http: httpx2.AsyncClient, body: bytes, server: str
) -> httpx2.Response:
    """Send a form as a browser does."""
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Origin": service.url.removesuffix("/mcp"),
    }
    return await http.post(page_of(service, server), content=body, headers=headers)


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_of_any_name_says_nothing(
    service: HttpService, bystander: ServerConnection, token: str, name: str
) -> None:
    async with observe(bystander), service.http(token) as http:
        for _ in range(20):
            shown = await http.get(page_of(service, PAGES[name]))
            assert shown.status_code < 500
            stored = await send(service, http, b"credential=secret-1", PAGES[name])
            assert 400 <= stored.status_code < 500
            for page in (shown, stored):
                assert len(page.content) < 30_000
                assert "<script" not in page.text


@pytest.mark.parametrize("server", ["keyed", HOST])
@pytest.mark.parametrize("name", BODIES)
async def test_a_form_with_anything_is_refused_or_stored(
    service: HttpService, bystander: ServerConnection, token: str, name: str, server: str
) -> None:
    async with observe(bystander), service.http(token) as http:
        for _ in range(8):
            answer = await send(service, http, BODIES[name], server)
            assert answer.status_code < 500
            assert len(answer.content) < 30_000


@pytest.mark.parametrize("server", ["keyed", HOST])
async def test_credentials_that_are_changed_all_the_time(
    service: HttpService, bystander: ServerConnection, token: str, server: str
) -> None:
    async def store(number: int) -> None:
        async with service.http(token) as http:
            for _ in range(SIZE // 30):
                body = f"credential={SECRET}-{number}".encode()
                assert (await send(service, http, body, server)).status_code in (200, 429)

    async with observe(bystander), anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(store, number)


async def test_forms_with_tokens_that_are_guessed(
    service: HttpService, bystander: ServerConnection
) -> None:
    async with observe(bystander), service.http() as http:
        for number in range(SIZE):
            body = f"token=mcprt_{number:08x}_guess&credential={SECRET}".encode()
            assert (await send(service, http, body, "keyed")).status_code in (401, 429)


async def test_pages_that_nobody_reads(service: HttpService, bystander: ServerConnection) -> None:
    address = urlsplit(service.url)
    head = f"GET /credentials/keyed HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
    async with observe(bystander), AsyncExitStack() as stack:
        for _ in range(SIZE):
            stream = await anyio.connect_tcp(address.hostname or "", address.port or 0)
            await stack.enter_async_context(stream)
            await stream.send(head * 20)
        await anyio.sleep(HELD_S)
