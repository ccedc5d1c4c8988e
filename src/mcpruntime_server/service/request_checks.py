"""What every request must fulfil, whatever its route: Host, Origin, and the size of its body.

A web page can make a browser send requests to this machine, under a name that it controls (DNS
rebinding). The headers Host and Origin say so.

A body that is not small is counted, parsed and acted on in milliseconds, during which nobody else
is served. So of all such requests one works in each pass of the event loop, whatever their number.
"""

from __future__ import annotations

from itertools import chain
from urllib.parse import urlsplit

from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import HttpSettings
from ..fair_turns import FairTurns
from ..protocol.json_limits import ValueCounter

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY_BYTES = 4 << 20  # as the MCP SDK has it
MAX_BODY_VALUES = 20_000  # JSON values: the SDK parses and checks them in one turn of the loop
SMALL_BODY_BYTES = 4 * 1024  # a shorter body has a few hundred values at most
MAX_HEADER_BYTES = 32 * 1024  # of the first line and the headers; the token may take half of it
MAX_HEADERS = 100
TOO_LARGE = f"A body has at most {MAX_BODY_BYTES:,} bytes."
TOO_MANY = f"A body has at most {MAX_BODY_VALUES:,} JSON values; write large data as one text."


def allowed_headers(settings: HttpSettings) -> TransportSecuritySettings:
    """Return what the headers Host and Origin may be, against rebinding of names."""
    hosts = [f"{host}:*" for host in LOOPBACK_HOSTS]
    public = [host for host in (urlsplit(settings.oauth.resource).netloc,) if host]
    return TransportSecuritySettings(
        allowed_hosts=[*hosts, *LOOPBACK_HOSTS, *public, *settings.allowed_hosts],
        allowed_origins=[
            *(f"http://{host}" for host in hosts),
            *(f"https://{host}" for host in (*public, *settings.allowed_hosts)),
            *settings.allowed_origins,
        ],
    )


class RequestChecks:
    """Refuses requests that no route should see."""

    def __init__(self, app: ASGIApp, security: TransportSecuritySettings) -> None:
        self._app = app
        self._headers = TransportSecurityMiddleware(security)
        self._turns = FairTurns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            raise RuntimeError(f"There are no routes for {scope['type']}.")
        request = Request(scope)
        if not has_usual_headers(scope):
            await Response("The headers are too large", 431)(scope, receive, send)
            return
        refusal = await self._headers.validate_request(request)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        size = declared_bytes(scope)
        if size > SMALL_BODY_BYTES:
            receive = BoundedBody(receive, size, self._turns).receive
        await self._app(scope, receive, send)


def has_usual_headers(scope: Scope) -> bool:
    """Return whether the first line and the headers of a request are not too large, or too many."""
    headers = scope["headers"]
    size = len(scope.get("raw_path", b"")) + len(scope["query_string"])
    size += sum(map(len, chain.from_iterable(headers)))
    return len(headers) <= MAX_HEADERS and size <= MAX_HEADER_BYTES


def declared_bytes(scope: Scope) -> int:
    """Return how long the body of a request may be, which may be more than is received."""
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers:
        return MAX_BODY_BYTES
    declared = headers.get("content-length", "")
    return int(declared[:20]) if declared.isdecimal() else 0


class BoundedBody:
    """The body of a request, which ends in an error when it is too large or has too many values."""

    def __init__(self, receive: Receive, declared_bytes: int, turns: FairTurns) -> None:
        self._receive = receive
        self._turns = turns
        self._problem = TOO_LARGE if declared_bytes > MAX_BODY_BYTES else ""
        self._received = 0
        self._values = ValueCounter()

    async def receive(self) -> Message:
        """Return the next part of the body; raises `HTTPException`."""
        if not self._problem:  # else the client need not send it
            message = await self._receive()
            if message["type"] == "http.request":  # what follows it is the end of its connection
                await self._turns.wait()
                self._count(message["body"])
        if self._problem:
            raise HTTPException(413, self._problem)
        return message

    def _count(self, part: bytes) -> None:
        self._received += len(part)
        if self._received > MAX_BODY_BYTES:
            self._problem = TOO_LARGE
        elif self._values.feed(part) > MAX_BODY_VALUES:
            self._problem = TOO_MANY
