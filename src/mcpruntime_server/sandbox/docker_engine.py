"""A Docker engine: API calls in worker threads, and a container's attach stream.

This module does not know what a sandbox is.

Rule 1: nothing here blocks the event loop. Each API call runs in a worker thread, with a client
that no other thread uses meanwhile, because a client is not thread-safe.
Rule 2: if the engine does not answer, `Unavailable` is raised, with a remedy. If it refuses,
docker-py's `APIError` is raised, and the caller turns it into a sentence about what it wanted.
"""

from __future__ import annotations

import importlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.abc
import anyio.to_thread

from ..errors import SandboxFailed, Unavailable
from ..protocol.payloads import JsonObject
from . import engine_socket

if TYPE_CHECKING:
    from docker import APIClient
    from docker.tls import TLSConfig

ResultT = TypeVar("ResultT")

API_TIMEOUT_S = 60  # an engine under load takes seconds
CONNECT_TIMEOUT_S = 10
MIN_API_VERSION = "1.41"  # engine 20.10: private cgroup namespaces, one-shot statistics
PARALLEL_CALLS = 8  # more worker threads do not make the engine faster
IMPORT_LOCK = threading.Lock()
MAX_HEAD_BYTES = 16 * 1024  # of an HTTP response

NOT_RUNNING_REMEDY = (
    "Start it (`sudo systemctl start docker`), or run `scripts/docker-engine`, "
    "which installs and starts one."
)
PERMISSION_REMEDY = (
    "Add your user to the group `docker` (`sudo usermod -aG docker $USER`) and log in again."
)


@dataclass(frozen=True)
class EngineAddress:
    """Where an engine listens: `scheme` is unix, http or https."""

    scheme: str
    path: str  # of the socket
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> EngineAddress:
        """Parse docker-py's normalised `url`; raises `Unavailable` for ssh and named pipes."""
        scheme, _, rest = url.partition("://")
        if scheme == "http+unix":
            return cls("unix", "/" + rest.lstrip("/"), "localhost", 0)
        if scheme in ("http", "https"):
            parts = urlsplit(url)
            return cls(scheme, "", parts.hostname or "localhost", parts.port or 0)
        raise Unavailable(
            f"The Docker engine at {url} is reached by {scheme}, which this server does not speak.",
            remedy="Set DOCKER_HOST to a unix:// or tcp:// address; "
            "`ssh -L` forwards a remote engine's socket.",
        )


def import_docker() -> None:
    """Import all of docker-py at once: concurrent imports of its modules see incomplete ones."""
    with IMPORT_LOCK:
        importlib.import_module("docker.context")


class DockerEngine:
    """The engine that DOCKER_HOST, or else the current Docker context, names.

    `environ` (default: `os.environ`) has that variable.
    """

    def __init__(
        self, timeout_s: int = API_TIMEOUT_S, environ: Mapping[str, str] | None = None
    ) -> None:
        self._timeout_s = timeout_s  # seconds without a byte from the engine
        self._environ = os.environ if environ is None else environ
        self._idle_clients: list[APIClient] = []
        self._limiter = anyio.CapacityLimiter(PARALLEL_CALLS)
        self._version = ""  # negotiated by the first client
        self._address: EngineAddress | None = None
        self._tls: TLSConfig | None = None

    async def call_api(
        self, function: Callable[[APIClient], ResultT], *, abandon_on_cancel: bool = False
    ) -> ResultT:
        """Return `function(client)`, run in a worker thread.

        A cancelled call is waited for, unless `abandon_on_cancel` is set. Raises `Unavailable` if
        the engine does not answer, and docker-py's `APIError` if it refuses.
        """
        return await anyio.to_thread.run_sync(
            self.call_api_blocking,
            function,
            abandon_on_cancel=abandon_on_cancel,
            limiter=self._limiter,
        )

    async def inspect_image(self, tag: str) -> JsonObject:
        """Return what the engine says of an image; nothing if it has none, or does not answer."""
        path = engine_socket.find_socket(self._environ, Path.home())
        if path:
            inspect = partial(engine_socket.inspect_image, path, tag)
        else:
            inspect = partial(self.call_api_blocking, partial(inspect_image, tag=tag))
        try:
            return await anyio.to_thread.run_sync(inspect, abandon_on_cancel=True)
        except (OSError, HTTPException, ValueError, Unavailable):
            return {}

    def call_api_blocking(self, function: Callable[[APIClient], ResultT]) -> ResultT:
        """Do the same in the calling thread, which must not be that of the event loop."""
        import_docker()
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        not_there = (OSError, DockerException, RequestException)
        try:
            client = self._take_client()
        except not_there as exc:
            raise self._unavailable_error(exc) from exc
        try:
            return function(client)
        except RequestException as exc:
            if getattr(exc, "response", None) is not None:
                raise
            raise self._unavailable_error(exc) from exc
        finally:
            self._idle_clients.append(client)

    def _take_client(self) -> APIClient:
        if not self._idle_clients:
            return self._connect_client()
        client = self._idle_clients.pop()
        try:
            self._check_socket()
        except OSError:
            client.close()
            raise
        return client

    def _check_socket(self) -> None:
        """Raise `OSError` unless the engine listens on its socket.

        docker-py would hide the reason and leak a socket.
        """
        if self._address and self._address.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as unix:
                unix.settimeout(CONNECT_TIMEOUT_S)
                unix.connect(self._address.path)

    def _connect_client(self) -> APIClient:
        from docker.context import ContextAPI
        from docker.utils import kwargs_from_env, parse_host

        options: dict[str, Any] = {**kwargs_from_env(environment=dict(self._environ))}
        if "base_url" not in options:
            options = {**ContextAPI.kwargs_from_context(), **options}
        self._tls = options.get("tls")
        self._address = EngineAddress.parse(
            parse_host(options.get("base_url"), tls=bool(self._tls))
        )
        self._check_socket()
        if not self._version:
            self._version = self._negotiate_version(options)
        return self._make_client(options, self._version)

    def _make_client(self, options: Mapping[str, Any], version: str) -> APIClient:
        from docker import APIClient

        client = APIClient(version=version, timeout=self._timeout_s, **options)
        client.trust_env = False  # else REQUESTS_CA_BUNDLE would replace the engine's own authority
        return client

    def _negotiate_version(self, options: Mapping[str, Any]) -> str:
        client = self._make_client(options, MIN_API_VERSION)
        try:
            found = str(client.version(api_version=False)["ApiVersion"])
        finally:
            client.close()
        if parse_api_version(found) < parse_api_version(MIN_API_VERSION):
            raise Unavailable(
                f"The Docker engine speaks API version {found}, not {MIN_API_VERSION} or newer.",
                remedy="Update Docker to 20.10 or newer.",
            )
        return found

    def _unavailable_error(self, exc: Exception) -> Unavailable:
        where = f" at {self._address.path or self._address.host}" if self._address else ""
        denied = "Permission denied" in str(exc)
        why = (
            "may not be used by this user" if denied else f"does not answer: {find_root_cause(exc)}"
        )
        return Unavailable(
            f"The Docker engine{where} {why}.",
            remedy=PERMISSION_REMEDY if denied else NOT_RUNNING_REMEDY,
        )

    @property
    def is_remote(self) -> bool:
        """Whether it is reached over a network; one behind a Unix socket may be remote, too."""
        return self._address is not None and self._address.scheme != "unix"

    async def attach_container(self, container: str) -> anyio.abc.ByteStream:
        """Return the raw stream of stdin and framed output of a container that has not started.

        Raises `Unavailable` where the engine does not answer, `SandboxFailed` where it says no.
        """
        if self._address is None:
            await self.call_api(lambda client: client.ping())
        assert self._address is not None
        try:
            stream = await self._open_stream(self._address)
        except OSError as exc:
            raise self._unavailable_error(exc) from exc
        try:
            await self._upgrade_connection(
                stream, f"/v{self._version}/containers/{container}/attach"
            )
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        return stream

    async def _open_stream(self, address: EngineAddress) -> anyio.abc.ByteStream:
        if address.scheme == "unix":
            return await anyio.connect_unix(address.path)
        if address.scheme == "http":
            return await anyio.connect_tcp(address.host, address.port)
        context = await anyio.to_thread.run_sync(make_engine_tls_context, self._tls)
        return await anyio.connect_tcp(
            address.host, address.port, tls=True, ssl_context=context, tls_standard_compatible=False
        )

    async def _upgrade_connection(self, stream: anyio.abc.ByteStream, path: str) -> None:
        lines = (
            f"POST {path}?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1",
            *("Host: docker", "Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0"),
        )
        await stream.send("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        head = b""
        try:
            while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
                head += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            raise SandboxFailed(
                "The Docker engine closed the connection instead of attaching."
            ) from exc
        status, _, rest = head.partition(b"\r\n")
        # 101 is the answer to `Upgrade`; engines behind some proxies answer 200 and stream as well.
        if status.split()[1:2] not in ([b"101"], [b"200"]):
            reason = rest.partition(b"\r\n\r\n")[2] or status
            raise SandboxFailed(
                f"The Docker engine refused to attach: {reason.decode(errors='replace').strip()}"
            )

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle_clients:
            self._idle_clients.pop().close()


def inspect_image(client: APIClient, tag: str) -> JsonObject:
    """Return what the engine says of an image; nothing if it refuses."""
    from docker.errors import APIError

    try:
        return dict(client.inspect_image(tag))
    except APIError:
        return {}


def parse_api_version(version: str) -> tuple[int, ...]:
    """Return the numbers of an API version, which can be compared."""
    return tuple(map(int, version.split(".")))


def make_engine_tls_context(tls: TLSConfig | None) -> ssl.SSLContext:
    """Return the context for docker-py's TLS settings."""
    context = ssl.create_default_context(cafile=tls.ca_cert if tls else None)
    if tls and tls.cert:
        context.load_cert_chain(*tls.cert)
    if tls and not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def find_root_cause(exc: BaseException) -> str:
    """Return the innermost reason of `exc`; HTTP libraries wrap it in layers that say no more."""
    while inner := exc.__cause__ or exc.__context__:
        exc = inner
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
