"""The example for nginx, with a real nginx: TLS, and events that arrive when they happen."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from ..helpers.child_processes import start_process
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, ServerConnection, write_settings

EXAMPLE = Path(__file__).parents[2] / "deploy" / "nginx.conf"
NAME = "runtime.example.org"
ERAS = ("auto", "legacy")
WAITING_CODE = """
import pathlib, time
print('started', flush=True)
while not pathlib.Path({path!r}).exists(): time.sleep(0.05)
'seen'
"""

nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(nginx is None, reason="nginx is not installed")


@dataclass(frozen=True)
class Proxy:
    """A server behind nginx, and what a client needs to trust it."""

    service: HttpService
    url: str
    token: str
    folder: Path

    @asynccontextmanager
    async def http(self, host: str = NAME) -> AsyncIterator[httpx2.AsyncClient]:
        context = ssl.create_default_context(cafile=str(self.folder / "tls.pem"))
        headers = {"Authorization": f"Bearer {self.token}", "Host": host}
        async with httpx2.AsyncClient(
            headers=headers, verify=context, timeout=TEST_TIMEOUT_S
        ) as client:
            yield client

    @asynccontextmanager
    async def connect(self, era: str) -> AsyncIterator[ServerConnection]:
        async with self.http() as http:
            transport = streamable_http_client(f"{self.url}/mcp", http_client=http)
            async with Client(transport, mode=era) as client:
                yield ServerConnection(client, self.service.data_dir)


def write_certificate(folder: Path) -> None:
    """Write a certificate for this machine, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_configuration(folder: Path, backend: str, port: int) -> Path:
    """Write the example with other addresses and files, inside a main configuration."""
    text = EXAMPLE.read_text()
    text = text.replace("127.0.0.1:8321", backend)
    text = text.replace("listen 443", f"listen 127.0.0.1:{port}")
    text = re.sub(r"\n *listen \[::\]:443[^\n]*", "", text)
    text = text.replace("/etc/ssl/certs/runtime.example.org.pem", str(folder / "tls.pem"))
    text = text.replace("/etc/ssl/private/runtime.example.org.key", str(folder / "tls.key"))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/tmp;\n" for kind in kinds)
    main = f"""
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
access_log off;
{temporary}
{text}
}}
"""
    file = folder / "main.conf"
    file.write_text(main)
    return file


@pytest.fixture(scope="module")
async def proxy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    folder = tmp_path_factory.mktemp("nginx")
    settings = write_settings(
        folder,
        sandbox={"backend": "local", "pool_size": 0},
        http={"allowed_hosts": [NAME]},
    )
    async with open_http_service(settings) as service:
        write_certificate(folder)
        address, port = service.url.split("/")[2], free_port()
        file = write_configuration(folder, address, port)
        command = [str(nginx), "-p", str(folder), "-c", str(file), "-e", str(folder / "error.log")]
        tested = await anyio.run_process([*command, "-t"], check=False)
        assert tested.returncode == 0, tested.stderr
        async with start_process(command, stdout=None, stderr=None):
            with anyio.fail_after(TEST_TIMEOUT_S):
                while not (folder / "nginx.pid").exists():  # noqa: ASYNC110 - another process
                    await anyio.sleep(0.05)
            token = service.create_token("ann")
            yield Proxy(service, f"https://localhost:{port}", token, folder)


@pytest.mark.parametrize("era", ERAS)
async def test_progress_passes_while_a_run_waits(proxy: Proxy, era: str, tmp_path: Path) -> None:
    path = tmp_path / "go"

    async def listen(done: float, total: float | None, message: str | None) -> None:
        if "started" in (message or ""):
            await anyio.Path(path).touch()

    with anyio.fail_after(TEST_TIMEOUT_S):
        async with proxy.connect(era) as client:
            code = WAITING_CODE.format(path=str(path))
            answer = await client.run(code, f"nginx-{era}", progress_callback=listen)
    assert (answer.status, answer.value) == ("ok", "seen")


async def test_each_event_of_a_stream_passes_at_once(proxy: Proxy, tmp_path: Path) -> None:
    path = tmp_path / "go"
    body = {"code": WAITING_CODE.format(path=str(path))}
    seen = []
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with (
            proxy.http() as http,
            http.stream("POST", f"{proxy.url}/execute/stream", json=body) as response,
        ):
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                seen.append(line)
                if line.startswith("data:") and "started" in line:
                    await anyio.Path(path).touch()
    assert any("run_finished" in line for line in seen)
    assert any("seen" in line for line in seen)


async def test_other_names_are_refused_and_figures_stay_inside(proxy: Proxy) -> None:
    async with proxy.http() as http:
        assert (await http.get(f"{proxy.url}/healthz")).status_code == 200
        assert (await http.get(f"{proxy.url}/metrics")).status_code == 404
        assert (await http.get(f"{proxy.url}/readyz")).status_code == 404
    async with proxy.http("rebound.example.com") as http:
        assert (await http.get(f"{proxy.url}/healthz")).status_code == 421
    assert (proxy.folder / "error.log").read_text() == ""
