"""What hostile web servers send costs an error and nothing else."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from mcpruntime_server.capabilities.credential_keys import CredentialKeys
from mcpruntime_server.capabilities.credential_store import CredentialStore
from mcpruntime_server.capabilities.own_credentials import OwnCredentials
from mcpruntime_server.capabilities.uploads import Uploads
from mcpruntime_server.capabilities.web.web_requests import WebRequests, open_web_requests
from mcpruntime_server.config import NetworkSettings
from mcpruntime_server.errors import CallFailed
from mcpruntime_server.journal.call_scope import CallScope, Download, enter_call_scope
from mcpruntime_server.journal.server_lease import ServerLease
from mcpruntime_server.journal.store import open_journal

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\n"
HOSTILE_ANSWERS = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an old version": b"<html>hello</html>",
    "a status of its own": b"HTTP/1.1 99999 OK\r\n\r\n",
    "a line without end": b"HTTP/1.1 200 " + b"x" * 500_000,
    "100,000 headers": HEAD + b"X: y\r\n" * 100_000 + b"\r\n",
    "a header of 1 MB": HEAD + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "a header without a name": HEAD + b": y\r\n\r\n",
    "a NUL in a header": HEAD + b"X: \0\r\n\r\n",
    "a header of spaces": HEAD + b"X:" + b" " * 60_000 + b"\0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length in words": HEAD + b"Content-Length: many\r\n\r\n",
    "too little": HEAD + b"Content-Length: 100\r\n\r\nabc",
    "a chunk without a size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n",
    "a chunk that is cut": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "a chunk that is longer than it says": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "a chunk size before spaces": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n5;"
    + b" " * 60_000
    + b"\nx\r\n",
    "a chunk size without end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 500_000,
    "a trailer of spaces": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX:"
    + b" " * 60_000
    + b"\0\r\n\r\n",
    "a trailer without end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 500_000,
    "100,000 trailers": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    + b"X: y\r\n" * 100_000
    + b"\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx",
    "another version": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "lines that end in another way": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "a header of two lines": HEAD + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "an unknown coding": HEAD + b"Transfer-Encoding: zip\r\n\r\nab",
    "hints without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100_000,
}


@asynccontextmanager
async def serve_bytes(answer: bytes, *, repeat: bytes = b"") -> AsyncIterator[int]:
    """Run a server that sends `answer`, then `repeat` for ever; yield its port."""

    async def answer_client(stream: SocketStream) -> None:
        async with stream:
            try:
                await stream.receive()
                await stream.send(answer)
                while repeat:
                    await stream.send(repeat)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer_client)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


def ignore_summary(args: dict[str, Any], outcome: str) -> None:
    """Do nothing: there is no ledger."""


def unused_keys() -> CredentialKeys:
    """Fail: no principal has a credential here."""
    raise AssertionError("no credential is to be decrypted")


@asynccontextmanager
async def open_requests(folder: Path, **settings: Any) -> AsyncIterator[WebRequests]:
    """Yield what answers web requests, in the scope of a call."""
    network = NetworkSettings.from_mapping(settings)
    vault = OwnCredentials(CredentialStore(folder), unused_keys, " ".join)
    with ServerLease(folder) as lease:
        async with (
            open_journal(folder, lease) as journal,
            open_web_requests(
                network, journal, Uploads(journal, 0), vault, lambda _: 0.0
            ) as requests,
        ):
            unused: Any = None
            enter_call_scope(CallScope("s", "r", "me", unused, unused, unused, ignore_summary))
            yield requests


async def ask(requests: WebRequests, url: str, method: str = "GET", **args: Any) -> dict[str, Any]:
    """Send a request, if a rule allows it."""
    host = url.partition("://")[2].partition("/")[0]
    target = f"web.{method} {host}"
    arguments = {"url": url, "headers": [], **args}
    requests.decide(target, arguments)
    answer = await requests.handle_request(target, arguments)
    return answer.value if isinstance(answer, Download) else answer


async def load_piece(requests: WebRequests, answer: dict[str, Any], piece: int) -> None:
    """Load a further piece of an answer."""
    args = {"response": answer["more"], "piece": piece}
    await requests.handle_download("downloads.piece", args)


async def load_pieces(requests: WebRequests, answer: dict[str, Any], pieces: Iterable[int]) -> None:
    """Load further pieces of an answer."""
    for piece in pieces:
        await load_piece(requests, answer, piece)


@pytest.mark.parametrize("name", HOSTILE_ANSWERS)
async def test_a_hostile_answer_is_an_error(tmp_path: Path, name: str) -> None:
    async with serve_bytes(HOSTILE_ANSWERS[name]) as port:
        rule = f"http://127.0.0.1:{port}"
        async with open_requests(tmp_path, allow=[rule], timeout_s=3.0) as requests:
            with pytest.raises(CallFailed) as caught:
                await ask(requests, f"{rule}/")
    assert caught.value.kind in ("unavailable", "timeout"), caught.value


async def test_an_answer_without_end_is_cut_at_the_limit(tmp_path: Path) -> None:
    async with serve_bytes(HEAD + b"\r\n", repeat=b"x" * 65536) as port:
        rule = f"http://127.0.0.1:{port}"
        async with open_requests(tmp_path, allow=[rule], response_mb=2) as requests:
            answer = await ask(requests, f"{rule}/")
            await load_pieces(requests, answer, range(2))  # of 512 kB, after the first
            with pytest.raises(CallFailed, match="response_mb"):
                await load_pieces(requests, answer, (2, 3))


async def test_a_silent_server_costs_the_time_limit(tmp_path: Path) -> None:
    async with serve_bytes(HEAD + b"Content-Length: 5\r\n\r\nab", repeat=b"") as port:
        rule = f"http://127.0.0.1:{port}"
        async with open_requests(tmp_path, allow=[rule], timeout_s=0.3) as requests:
            with pytest.raises(CallFailed) as caught:
                await ask(requests, f"{rule}/")
    assert caught.value.kind in ("unavailable", "timeout")


async def test_compressed_answers_are_passed_on_as_they_are(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with serve_bytes(head + bomb) as port:
        rule = f"http://127.0.0.1:{port}"
        async with open_requests(tmp_path, allow=[rule]) as requests:
            answer = await ask(requests, f"{rule}/")
    assert ["Content-Encoding", "gzip"] in answer["headers"]
    assert len(bomb) < 100_000


@pytest.mark.parametrize(
    "headers",
    [
        [["X", "a\r\nHost: evil.example"]],
        [["X", "a\nb"]],
        [["X", "a\0"]],
        [["X\r\nY", "a"]],
        [["X Y", "a"]],
        [["", "a"]],
        [["X", "\u20ac"]],
        [["X", 5]],
        [["X"]],
        "X: y",
        [["X", "y"]] * 201,
        [["X", "y" * 20_000]],
    ],
)
async def test_headers_that_could_be_misread_are_refused(tmp_path: Path, headers: Any) -> None:
    async with open_requests(tmp_path, allow=["a.example"]) as requests:
        with pytest.raises(CallFailed) as caught:
            await ask(requests, "http://a.example/", headers=headers)
    assert caught.value.kind == "invalid_arguments"


async def test_headers_about_the_connection_are_not_passed_on(tmp_path: Path) -> None:
    async with serve_bytes(HEAD + b"Content-Length: 2\r\n\r\nok") as port:
        rule = f"http://127.0.0.1:{port}"
        async with open_requests(tmp_path, allow=[rule]) as requests:
            names = ("Host", "Transfer-Encoding", "content-length", "Connection", "Upgrade", "TE")
            headers = [[name, "evil"] for name in names]
            answer = await ask(requests, f"{rule}/", headers=headers)
    assert (answer["status"], answer["body"]) == (200, {"text": "ok"})


async def test_a_name_that_leads_to_this_machine_is_refused_unless_it_may(tmp_path: Path) -> None:
    async with serve_bytes(HEAD + b"Content-Length: 2\r\n\r\nok") as port:
        rule = f"http://localhost:{port}"
        async with open_requests(tmp_path, allow=[rule]) as requests:
            with pytest.raises(CallFailed, match="not on the internet") as caught:
                await ask(requests, f"{rule}/")
        assert caught.value.kind == "denied"
        private = ["127.0.0.0/8", "::1"]
        async with open_requests(tmp_path, allow=[rule], private=private) as requests:
            assert (await ask(requests, f"{rule}/"))["status"] == 200


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("web.GET a.example", "http://b.example/"),
        ("web.GET a.example:8080", "http://a.example/"),
        ("web.get a.example", "http://a.example/"),
        ("web.GET", "http://a.example/"),
        ("web.GET a.example b", "http://a.example/"),
    ],
)
async def test_a_target_names_what_is_asked_for(tmp_path: Path, target: str, url: str) -> None:
    async with open_requests(tmp_path, allow=["*"]) as requests:
        with pytest.raises(CallFailed) as caught:
            requests.decide(target, {"url": url})
    assert caught.value.kind == "invalid_arguments"


async def test_a_rule_for_an_address_lets_no_name_lead_there(tmp_path: Path) -> None:
    async with serve_bytes(HEAD + b"Content-Length: 2\r\n\r\nok") as port:
        rules = [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]
        async with open_requests(tmp_path, allow=rules) as requests:
            assert (await ask(requests, f"{rules[0]}/"))["status"] == 200
            with pytest.raises(CallFailed, match="not on the internet"):
                await ask(requests, f"{rules[1]}/")
