"""Connections that do nothing, that leave, or that send what no client sends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream

from mcpruntime_server.service import http_connections
from mcpruntime_server.service.http_connections import MAX_CONNECTIONS
from mcpruntime_server.service.request_checks import MAX_BODY_VALUES, MAX_HEADER_BYTES

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, write_local_settings
from .test_http import ACCEPT, post

IDLE_CONNECTIONS = 1_000
HEAD = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UNFINISHED = (b"", b"POST", HEAD, HEAD + b"Content-Length: 9\r\n\r\n{")


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("connections")
    settings = write_local_settings(folder)
    async with open_http_service(settings) as opened, opened.http() as http:
        assert (await post(http, opened.url)).status_code == 401  # it is up
        yield opened


@pytest.fixture(scope="module")
def ann(service: HttpService) -> str:
    return service.create_token("ann")


async def connect(service: HttpService) -> SocketStream:
    url = httpx2.URL(service.url)
    return await anyio.connect_tcp(url.host, url.port or 80)


async def answer_to(service: HttpService, request: bytes) -> bytes:
    """Return all that the server sends before it closes the connection, or for a while."""
    answer = b""
    async with await connect(service) as stream:
        try:
            await stream.send(request)
            with anyio.fail_after(TEST_TIMEOUT_S):
                while b"\r\n\r\n" not in answer:
                    answer += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
    return answer


async def test_idle_connections_keep_nobody_out(service: HttpService, ann: str) -> None:
    http_connections.allow_many_files()
    before = service.count_open_files()
    async with AsyncExitStack() as idle:
        for number in range(IDLE_CONNECTIONS + 50):
            stream = await idle.enter_async_context(await connect(service))
            await stream.send(UNFINISHED[number % len(UNFINISHED)] or b"\r\n")
        for _ in range(3):
            async with service.connect(ann) as client:
                assert (await client.run("1 + 1")).value == 2
        assert service.count_open_files() < before + MAX_CONNECTIONS + 100
    with anyio.fail_after(TEST_TIMEOUT_S):
        while service.count_open_files() > before + 20:  # noqa: ASYNC110
            await anyio.sleep(0.05)


async def test_clients_that_leave_take_everything_with_them(service: HttpService, ann: str) -> None:
    before = service.count_open_files()
    for number in range(200):
        stream = await connect(service)
        await stream.send(UNFINISHED[number % len(UNFINISHED)] or b"\r\n")
        await stream.aclose()
    async with service.http(ann) as http:
        assert (await post(http, service.url)).status_code == 200
    with anyio.fail_after(TEST_TIMEOUT_S):
        while service.count_open_files() > before + 20:  # noqa: ASYNC110
            await anyio.sleep(0.05)


@pytest.mark.parametrize(
    "request_text",
    [
        HEAD + b"X: " + b"x" * (MAX_HEADER_BYTES + 1) + b"\r\n\r\n",
        HEAD + b"X: x\r\n" * 200 + b"\r\n",
        HEAD + b"X: x\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"x" * (MAX_HEADER_BYTES + 1) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /?" + b"x" * (MAX_HEADER_BYTES + 1) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        HEAD + b"X: " + b"x" * 5_000_000,
        HEAD + b"X:" + b" " * 200_000 + b"\0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;" + b" " * 200_000 + b"\nx\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX:" + b" " * 200_000 + b"\0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 5_000_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
        b"x" * 300_000,
        b"POST /mcp HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\n\r\n",
        b"POST /mcp HTTP/1.0\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: " + b"9" * 500 + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\nx",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\nx",
        HEAD + b"Authorization: Bearer " + b"x" * 20_000 + b"\r\n\r\n",
        HEAD + b"Authorization: Bearer x\r\nAuthorization: Bearer y\r\n\r\n",
        HEAD + b"Authorization: Bearer \xff\xfe\r\n\r\n",
        HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"GET http://example.org/mcp HTTP/1.1\r\nHost: example.org\r\n\r\n",
    ],
)
async def test_what_no_client_sends_is_refused(
    service: HttpService, ann: str, request_text: bytes
) -> None:
    answer = await answer_to(service, request_text)
    assert answer == b"" or answer.split(b" ", 2)[1][:1] == b"4", answer
    assert b"Traceback" not in service.log
    async with service.http(ann) as http:
        assert (await post(http, service.url)).status_code == 200


@pytest.mark.parametrize("path", ["/mcp", "/sessions", "/healthz", "/metrics", "/no/such/path"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_every_route_refuses_web_pages_that_rebind_a_name(
    service: HttpService, ann: str, path: str, headers: dict[str, str], status: int
) -> None:
    async with service.http(ann, **headers) as http:
        for method in ("GET", "POST", "OPTIONS"):
            url = service.url.removesuffix("/mcp") + path
            assert (await http.request(method, url)).status_code == status


@pytest.mark.parametrize("length", [None, str(1 << 40)])
async def test_a_body_that_is_too_large_is_refused_while_it_comes(
    service: HttpService, ann: str, length: str | None
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536

    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    if length is not None:
        headers["Content-Length"] = length
    async with service.http(ann) as http:
        with anyio.fail_after(TEST_TIMEOUT_S):
            try:
                response = await http.post(service.url, content=endless(), headers=headers)
                assert response.status_code == 413
            except httpx2.TransportError:  # the server has hung up, because the client never reads
                pass
        assert (await post(http, service.url)).status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_with_too_many_values_is_refused(
    service: HttpService, ann: str, is_chunked: bool
) -> None:
    async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
        yield body[:9]
        yield body[9:]

    headers = {"Content-Type": "application/json", "Accept": ACCEPT}
    async with service.http(ann) as http:
        for count, status in ((MAX_BODY_VALUES - 10, 400), (MAX_BODY_VALUES, 413)):
            body = json.dumps({"x": [0] * count}).encode()
            content = in_chunks(body) if is_chunked else body
            response = await http.post(service.url, content=content, headers=headers)
            assert response.status_code == status, response.text


async def test_blanks_around_the_value_of_a_header_do_not_belong_to_it(
    service: HttpService, ann: str
) -> None:
    head = f"GET /sessions HTTP/1.1\r\nHost:  127.0.0.1 \t \r\nAuthorization: \tBearer {ann}  \r\n"
    assert (await answer_to(service, f"{head}\r\n".encode())).startswith(b"HTTP/1.1 200 ")


async def test_a_stranger_s_body_is_not_read(service: HttpService) -> None:
    async with await connect(service) as stream:
        await stream.send(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        with anyio.fail_after(TEST_TIMEOUT_S):
            assert (await stream.receive()).startswith(b"HTTP/1.1 401")


async def test_no_token_reaches_a_log(service: HttpService, ann: str) -> None:
    secrets = {ann, "mcprt_0badc0de_unknown", "eyJhbGciOiJSUzI1NiJ9.e30.c2VjcmV0"}
    for secret in secrets:
        async with service.http(secret) as http:
            origin = service.url.removesuffix("/mcp")
            for path in ("/mcp", f"/mcp?token={secret}", f"/{secret}", f"/runs/{secret}"):
                for method in ("GET", "POST", "DELETE"):
                    await http.request(method, origin + path, content=secret)
            headers = {"Mcp-Session-Id": "x", "MCP-Protocol-Version": "2026-07-28"}
            await http.post(service.url, json={"token": secret}, headers=headers)
            await http.get(service.url, headers={"Host": "evil.example", "Cookie": secret})
        await answer_to(service, f"GET / {secret}\r\n\r\n".encode())
    logged = bytes(service.log)
    for file in (service.data_dir / "logs").iterdir():
        logged += file.read_bytes()
    assert b"Invalid Host header" in logged  # something is logged
    for secret in secrets:
        assert secret.encode() not in logged
        assert secret.split("_", 2)[-1].encode() not in logged
