"""The sandbox image: built from the settings and the host's index, without a trace of the host."""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import ssl
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.errors import Unavailable
from mcpruntime_server.sandbox import image
from mcpruntime_server.sandbox.docker_engine import DockerEngine

PASSWORD = "s3cret-of-the-index"
WHEEL = "sandboxprobe-1.0-py3-none-any.whl"
STALLING_PATH = "/simple/stalling/"
LIMIT_S = 300  # a first build downloads a base image


@pytest.fixture(scope="module")
def client() -> Iterator[docker.APIClient]:
    client = docker.APIClient(version="auto")
    yield client
    client.close()


@pytest.fixture(scope="module")
async def base(anyio_backend: str, client: docker.APIClient) -> str:
    """The name of a local base image: the one that the default image was built from."""
    made = await image.build_image(SandboxSettings(), print)
    return str(client.inspect_image(made.tag)["Config"]["Labels"][image.BASE_LABEL])


def wheel() -> bytes:
    """A package of one module, in the form that pip installs."""
    files = {
        "sandboxprobe.py": "ANSWER = 42\n",
        "sandboxprobe-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: sandboxprobe\n"
        "Version: 1.0\n",
        "sandboxprobe-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}\n"
        for name, text in files.items()
    )
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in {**files, "sandboxprobe-1.0.dist-info/RECORD": record}.items():
            archive.writestr(name, text)
    return made.getvalue()


@dataclass
class Index:
    """A package index of the host's own: TLS by a private authority, and a password."""

    environ: dict[str, str]
    certificate: bytes
    asked: list[str] = field(default_factory=list)
    is_stalled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)  # answers what stalls


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("index")
    certificate, chain = self_signed(folder)
    served = {
        "/simple/sandboxprobe/": f'<a href="/{WHEEL}">{WHEEL}</a>'.encode(),
        f"/{WHEEL}": wheel(),
    }
    credentials = "Basic " + base64.b64encode(f"builder:{PASSWORD}".encode()).decode()
    made = Index({}, certificate)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            if self.path == STALLING_PATH:
                made.is_stalled.set()
                made.release.wait(LIMIT_S)
            allowed = self.headers.get("Authorization") == credentials
            body = served.get(self.path, b"") if allowed else b""
            self.send_response(401 if not allowed else 200 if body else 404)
            self.send_header("WWW-Authenticate", "Basic")
            self.send_header(
                "Content-Type", "text/html" if self.path.endswith("/") else "application/zip"
            )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made.environ = {
        "PIP_INDEX_URL": f"https://builder:{PASSWORD}@127.0.0.1:{server.server_port}/simple",
        "PIP_CONFIG_FILE": "/dev/null",
        "SSL_CERT_FILE": str(folder / "ca.pem"),
    }
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    made.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def self_signed(folder: Path) -> tuple[bytes, Path]:
    """Write a certificate for 127.0.0.1 and its key; return its file and the file with both."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mcpruntime test authority")])
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
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.pem").write_bytes(certificate)
    (folder / "chain.pem").write_bytes(certificate + private)
    return certificate, folder / "chain.pem"


def python(client: docker.APIClient, tag: str, code: str) -> str:
    """Return what `code` prints in a container of the image, as a user unknown to the image."""
    container = client.create_container(
        tag, ["python3", "-c", code], user="1234567:1234567", network_disabled=True
    )
    try:
        client.start(container)
        client.wait(container)
        return str(client.logs(container).decode())
    finally:
        client.remove_container(container, force=True)


def everything_in(client: docker.APIClient, tag: str) -> bytes:
    """The image as the engine would hand it to anybody: all layers, history and configuration."""
    return b"".join(client.get_image(tag))


async def test_packages_come_from_the_hosts_index_and_leave_no_trace_of_it(
    base: str, index: Index, client: docker.APIClient
) -> None:
    settings = SandboxSettings(base_image=base, packages=("sandboxprobe",))
    lines: list[str] = []
    with anyio.fail_after(LIMIT_S):
        made = await image.build_image(settings, lines.append, force=True, environ=index.environ)
    try:
        assert f"/{WHEEL}" in index.asked
        assert python(
            client, made.tag, "import sandboxprobe as p; print(p.ANSWER, p.__cached__)"
        ).startswith("42 /")
        content = everything_in(client, made.tag)
        assert b"sandboxprobe" in content
        address = index.environ["PIP_INDEX_URL"].partition("@")[2]
        for secret in (PASSWORD.encode(), address.encode(), index.certificate[30:90]):
            assert secret not in content
        assert PASSWORD not in "\n".join(lines)
        assert any("Collecting sandboxprobe" in line for line in lines)
        found = client.inspect_image(made.tag)["Config"]["Labels"]
        assert found[image.RECIPE_LABEL] == image.compute_recipe_digest(settings)
        version = python(client, made.tag, "import platform; print(platform.python_version())")
        assert found[image.PYTHON_LABEL] == version.strip()
    finally:
        client.remove_image(made.tag, force=True)


def find_containers(client: docker.APIClient, settings: SandboxSettings) -> list[dict[str, Any]]:
    """Return the containers in which images for these settings are built."""
    label = f"{image.RECIPE_LABEL}={image.compute_recipe_digest(settings)}"
    found: list[dict[str, Any]] = client.containers(all=True, filters={"label": label})
    return found


async def test_a_missing_package_is_reported_in_pips_words_and_leaves_nothing(
    base: str, index: Index, client: docker.APIClient
) -> None:
    settings = SandboxSettings(base_image=base, packages=("no-such-thing-anywhere",))
    with pytest.raises(
        Unavailable, match="No matching distribution found for no-such-thing-anywhere"
    ) as caught:
        await image.build_image(settings, print, environ=index.environ)
    assert PASSWORD not in str(caught.value)
    assert "`[sandbox] packages`" in caught.value.remedy
    assert find_containers(client, settings) == []


async def test_a_cancelled_build_removes_its_container_and_its_volume(
    base: str, index: Index, client: docker.APIClient
) -> None:
    settings = SandboxSettings(base_image=base, packages=("stalling",))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(image.build_image, settings, print, False, index.environ)
        assert await anyio.to_thread.run_sync(index.is_stalled.wait, LIMIT_S)
        [container] = find_containers(client, settings)
        [volume] = [mount["Name"] for mount in container["Mounts"]]
        tasks.cancel_scope.cancel()
    assert find_containers(client, settings) == []
    with pytest.raises(docker.errors.NotFound):
        client.inspect_volume(volume)


def test_a_build_that_is_cancelled_early_creates_no_container(
    base: str, index: Index, client: docker.APIClient
) -> None:
    settings = SandboxSettings(base_image=base, packages=("early",))
    build = image.ImageBuild(settings, print, index.environ)
    build.cancel()
    with pytest.raises(Unavailable, match="was cancelled"):
        build.run(force=False)
    assert find_containers(client, settings) == []


async def test_no_packages_at_all_make_an_image_of_bare_python(
    base: str, client: docker.APIClient
) -> None:
    settings = SandboxSettings(base_image=base, packages=())
    made = await image.build_image(settings, print)
    try:
        code = (
            "import json, os, sys; print(json.__cached__ is not None and "
            "os.path.exists(json.__cached__))"
        )
        assert python(client, made.tag, code) == "True\n"
        assert (
            python(client, made.tag, "import os; print(os.stat('/workspace').st_mode & 0o777)")
            == f"{0o700}\n"
        )
    finally:
        client.remove_image(made.tag, force=True)


async def test_an_image_that_is_up_to_date_is_not_built_again(base: str) -> None:
    first = await image.build_image(SandboxSettings(), print)
    lines: list[str] = []
    assert await image.build_image(SandboxSettings(), lines.append) == first
    assert lines == [f"The sandbox image {first.tag} is up to date"]
    engine = DockerEngine()
    assert await image.find_current_image(SandboxSettings(), engine) == first
    engine.close()


async def test_the_default_packages_can_be_imported_by_any_user(
    base: str, client: docker.APIClient
) -> None:
    tag = image.choose_tag(SandboxSettings())
    code = (
        "import os; os.environ['HOME'] = '/tmp'; import numpy, pandas, matplotlib; "
        "print(numpy.arange(3).sum())"
    )
    assert python(client, tag, code).endswith("3\n")


async def test_a_base_image_that_no_registry_has_is_unavailable(client: docker.APIClient) -> None:
    settings = SandboxSettings(image="localhost:1/nothing:here")
    with pytest.raises(Unavailable, match="localhost:1/nothing:here cannot be pulled"):
        await image.build_image(settings, print)


@pytest.mark.parametrize(
    "change",
    [{"packages": ("numpy",)}, {"packages": ()}, {"base_image": "python:3.13-slim"}],
    ids=str,
)
def test_the_name_depends_on_all_that_determines_the_content(change: dict[str, Any]) -> None:
    settings = SandboxSettings()
    changed = replace(settings, **change)
    assert image.choose_tag(changed) != image.choose_tag(settings)


def test_what_does_not_determine_the_content_does_not_change_the_name() -> None:
    assert image.choose_tag(SandboxSettings(memory_mb=64)) == image.choose_tag(SandboxSettings())


def test_a_custom_image_keeps_its_name() -> None:
    assert (
        image.choose_tag(SandboxSettings(image="registry.example/mine:1"))
        == "registry.example/mine:1"
    )


def test_configuration_is_quoted_so_that_nothing_is_expanded() -> None:
    config = {"Env": ["PATH=/usr/bin", 'ODD=a "$b" \\c']}
    assert image.format_image_changes(config, {"l": "v"}) == [
        'ENV PATH="/usr/bin"',
        'ENV ODD="a \\"\\$b\\" \\\\c"',
        'LABEL l="v"',
        'CMD ["python3"]',
    ]
