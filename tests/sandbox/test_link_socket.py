"""The link on a socket of the server's: one connection, then nothing is left to connect to."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.protocol.wire import INPUTS_FOLDER, LINK_FILE
from mcpruntime_server.sandbox import image
from mcpruntime_server.sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from mcpruntime_server.sandbox.docker_backend import DockerBackend
from mcpruntime_server.sandbox.link import open_link
from mcpruntime_server.sandbox.link_socket import LinkSocket

from .conftest import SMALL_LIMITS, SandboxDriver, make_setup

LIMIT_S = 90
CONNECT = f"""
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect("{INPUTS_FOLDER}/{LINK_FILE}")
link.sendall(b"connected")
while data := link.recv(65536):
    link.sendall(data)
    if data.endswith(b"end"):
        sys.exit("that was all")
"""


@pytest.fixture(scope="module", autouse=True)
async def sandbox_image() -> None:
    """The image that all these sandboxes run in; a no-op where it is built."""
    await image.build_image(SandboxSettings(), print)


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """A folder with a path that is too long for the address of a socket."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def make_backend(home: Path, argv: Sequence[str]) -> DockerBackend:
    return DockerBackend(SMALL_LIMITS, home, argv, KERNEL_ENV, "live", lambda name: name == "live")


def connect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    monkeypatch.chdir(folder)
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(LINK_FILE)
    except OSError:
        client.close()
        raise
    return client


async def test_one_connection_is_accepted_and_no_second_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = LinkSocket(folder)
    with connect(folder, monkeypatch) as first:
        async with await listening.accept() as stream:
            await stream.send(b"hello")
            assert first.recv(5) == b"hello"
            with pytest.raises(FileNotFoundError):
                connect(folder, monkeypatch)


async def test_a_socket_that_nobody_connects_to_leaves_nothing(folder: Path) -> None:
    LinkSocket(folder).close()


async def test_a_sandbox_that_connects_is_served_there(tmp_path: Path) -> None:
    sent = secrets.token_bytes(1 << 20) * 10 + b"end"
    backend = make_backend(tmp_path, ["python3", "-c", CONNECT])
    received = bytearray()
    with anyio.fail_after(LIMIT_S):
        async with backend.open_channel() as channel, anyio.create_task_group() as tasks:
            assert await channel.receive() == b"connected"
            tasks.start_soon(channel.send, sent)
            while data := await channel.receive():
                received += data
            explanation = await channel.explain_exit()
    backend.close()
    assert received == sent
    assert explanation == "exit code 1. Its last words were 'that was all'."


async def test_the_link_does_not_need_the_engine_s_stream(tmp_path: Path) -> None:
    backend = make_backend(tmp_path, KERNEL_ARGV)
    with anyio.fail_after(LIMIT_S):
        async with open_link(backend, make_setup(backend)) as link:
            await link._channel._attached.aclose()  # type: ignore[attr-defined]
            run = SandboxDriver(link)
            assert await run.evaluate("6 * 7") == "42"
    backend.close()


async def test_code_finds_no_socket_to_connect_to(tmp_path: Path) -> None:
    backend = make_backend(tmp_path, KERNEL_ARGV)
    with anyio.fail_after(LIMIT_S):
        async with open_link(backend, make_setup(backend)) as link:
            run = SandboxDriver(link)
            await run("import os", park=False)
            assert await run.evaluate(f"os.listdir({INPUTS_FOLDER!r})") == '[".here"]'
    backend.close()


async def test_a_sandbox_that_cannot_connect_keeps_the_engine_s_stream(tmp_path: Path) -> None:
    backend = make_backend(tmp_path, KERNEL_ARGV)
    setup = make_setup(backend)
    removed = list[Path]()

    async def remove_socket() -> None:
        while not removed:
            removed.extend((tmp_path / "inputs").glob(f"*/{LINK_FILE}"))
            await anyio.sleep(0.001)
        removed[0].unlink()

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(remove_socket)
            async with open_link(backend, setup) as link:
                assert link._channel._direct is None  # type: ignore[attr-defined]
                assert await SandboxDriver(link).evaluate("6 * 7") == "42"
    backend.close()
