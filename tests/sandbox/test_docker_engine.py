"""Engines that are reached in other ways than the local socket, and engines that go away."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSListener
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.errors import SandboxFailed, Unavailable
from mcpruntime_server.sandbox import image
from mcpruntime_server.sandbox.docker_backend import DockerBackend
from mcpruntime_server.sandbox.docker_engine import DockerEngine, EngineAddress

SOCKET = "/var/run/docker.sock"
LIMIT_S = 60
ECHO = "import os\nwhile data := os.read(0, 65536): os.write(1, data)"


@pytest.fixture(scope="module", autouse=True)
async def sandbox_image(anyio_backend: str) -> None:
    await image.build_image(SandboxSettings(), print)


class Relay:
    """Passes every connection on to the real engine, until it is cut."""

    def __init__(self, listener: anyio.abc.Listener[anyio.abc.ByteStream]) -> None:
        self._listener = listener
        self._scope = anyio.CancelScope()
        self._over = anyio.Event()

    async def serve(self) -> None:
        with self._scope:
            await self._listener.serve(self._relay)
        await self._listener.aclose()
        self._over.set()

    async def _relay(self, theirs: anyio.abc.ByteStream) -> None:
        async with (
            await anyio.connect_unix(SOCKET) as engine,
            theirs,
            anyio.create_task_group() as pumps,
        ):
            pumps.start_soon(self._pump, theirs, engine, pumps.cancel_scope)
            pumps.start_soon(self._pump, engine, theirs, pumps.cancel_scope)

    @staticmethod
    async def _pump(
        source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream, both: anyio.CancelScope
    ) -> None:
        try:
            async for data in source:
                await sink.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the other side is gone, which ends the connection like an end of file
        both.cancel()

    async def cut(self) -> None:
        """Close every connection, and take no new ones: what a stopped engine looks like."""
        self._scope.cancel()
        await self._over.wait()


@asynccontextmanager
async def relay(listener: anyio.abc.Listener[anyio.abc.ByteStream]) -> AsyncIterator[Relay]:
    made = Relay(listener)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.serve)
        yield made
        await made.cut()


def backend(home: Path) -> DockerBackend:
    return DockerBackend(
        SandboxSettings(), home, ["python3", "-c", ECHO], {}, "live", lambda owner: owner == "live"
    )


async def echoes(made: DockerBackend) -> None:
    with anyio.fail_after(LIMIT_S):
        async with made.open_channel() as channel:
            await channel.send(b"hello")
            assert await channel.receive() == b"hello"


async def test_an_engine_is_reached_over_plain_tcp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners[0]
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
    made = backend(tmp_path)
    async with relay(listener):
        await echoes(made)
        made.close()


async def test_an_engine_is_reached_over_tls_with_certificates_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates(tmp_path)
    monkeypatch.setenv(
        "REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt"
    )  # of the web, not of the engine
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / "ca.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    plain = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners[0]
    port = plain.extra(anyio.abc.SocketAttribute.local_port)
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    made = backend(tmp_path)
    async with relay(TLSListener(plain, context, standard_compatible=False)):
        await echoes(made)
        made.close()


def certificates(folder: Path) -> None:
    """Write one certificate for 127.0.0.1 that is authority, server and client in one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mcpruntime test engine")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    for file in ("ca.pem", "cert.pem"):
        (folder / file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)


async def test_an_engine_that_stops_ends_its_sandboxes_without_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "engine.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    made = backend(tmp_path)
    with anyio.fail_after(LIMIT_S):
        async with (
            relay(await anyio.create_unix_listener(path)) as engine,
            made.open_channel() as channel,
        ):
            await engine.cut()
            assert await channel.receive() == b""
            with pytest.raises(SandboxFailed):
                await channel.send(b"x" * 10_000_000)
            assert await channel.read_memory_bytes() is None
            assert (await channel.explain_exit()).startswith("the engine does not tell why")
    made.close()
    monkeypatch.delenv("DOCKER_HOST")
    later = DockerBackend(
        SandboxSettings(), tmp_path, ["true"], {}, "next", lambda owner: owner == "next"
    )
    assert await later.remove_orphans() == 1
    later.close()


async def test_an_old_engine_is_refused_with_the_version_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    body = b'{"ApiVersion": "1.40"}'
    lines = ("HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Content-Type: application/json")
    head = "".join(f"{line}\r\n" for line in (*lines, "")).encode()

    async def answer(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            try:
                await stream.receive()
            except anyio.EndOfStream:
                return  # only looking whether anybody listens
            await stream.send(head + body)

    async with (
        await anyio.create_unix_listener(path) as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, answer)
        with pytest.raises(Unavailable, match=r"1\.40.*20\.10"):
            await DockerEngine().call_api(lambda client: client.info())
        tasks.cancel_scope.cancel()


def test_addresses_are_parsed_and_ssh_is_refused_with_a_remedy() -> None:
    assert EngineAddress.parse("http+unix:///run/docker.sock") == EngineAddress(
        "unix", "/run/docker.sock", "localhost", 0
    )
    assert EngineAddress.parse("https://box:2376") == EngineAddress("https", "", "box", 2376)
    with pytest.raises(Unavailable, match="ssh -L"):
        EngineAddress.parse("ssh://box:22")
