"""Web requests of sandboxed code, each of which is a call.

The target names method and host ("web.GET api.github.com"), so that the ledger counts reads by host
and a person can allow a method for a run. The arguments are the address, the headers and the body.

Rule 1: what code sends is checked here, whatever the proxy in the sandbox has made of it.
Rule 2: nothing is followed, repeated or decompressed: a redirect is an answer like any other, and
the request that follows it is checked as a new one.
Rule 3: a request is sent once. Only a reading one is sent again, once, if the connection that was
kept for it had ended.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from math import ceil
from typing import Any

import anyio
import httpcore2

from ...config import NetworkSettings, Verdict
from ...config.web_rules import WebAddress, parse_address, parse_rule
from ...errors import CallFailed, NotFound
from ...journal.call_scope import current_call_scope
from ...journal.events import Effect
from ...journal.store import Journal
from ...protocol.http_bodies import encode_body
from ...protocol.payloads import JsonObject
from ..own_credentials import OwnCredentials
from .addresses import AddressPolicy, make_tls_context
from .connection_pools import ConnectionPools, open_pools
from .open_responses import OpenResponse, OpenResponses
from .web_credentials import HostCredentials

TARGET = re.compile(r"web\.(?P<method>[A-Z]{1,20}) (?P<host>[!-~]{1,300})")
DOWNLOAD_TARGET = "downloads.piece"
IDEMPOTENT_METHODS = ("PUT", "DELETE")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
HEADER_VALUE = re.compile(r"[\t -~\x80-\xff]{0,16384}")
MAX_HEADERS = 200
MAX_HEADER_CHARS = 64 * 1024
CLIENT_HEADERS = frozenset(  # that are written here, or are about one connection
    (
        "host", "content-length", "transfer-encoding", "connection", "proxy-connection",
        "upgrade", "te", "trailer", "keep-alive", "expect", "proxy-authorization",
    )
)  # fmt: skip
CONNECTION_HEADERS = frozenset(
    (
        "connection", "keep-alive", "transfer-encoding", "content-length", "upgrade", "trailer",
        "proxy-connection", "alt-svc",
    )
)  # fmt: skip
MAX_REASON_CHARS = 100
MAX_SHOWN_BODY_CHARS = 2_000
MB = 1024 * 1024
TLS_PROBLEM = re.compile(r"certificate verify failed: ([^(]{1,120})")


class WebRequests:
    """Answers the calls of one server's sandboxes for the web.

    `count_request` counts a request of a session, and returns how long to wait if there were too
    many.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        pools: ConnectionPools,
        responses: OpenResponses,
        journal: Journal,
        count_request: Callable[[str], float],
        credentials: HostCredentials,
    ) -> None:
        self._settings = settings
        self._pools = pools
        self._responses = responses
        self._journal = journal
        self._count_request = count_request
        self._allow = [parse_rule(text) for text in settings.allow]
        self._ask = [parse_rule(text) for text in settings.ask]
        self._credentials = credentials

    def effect_of(self, target: str) -> Effect:
        """Return what a request may change, by its method."""
        found = TARGET.fullmatch(target)
        method = found["method"] if found is not None else ""
        if method in self._settings.reads:
            return "read"
        return "idempotent" if method in IDEMPOTENT_METHODS else "write"

    def decide(self, target: str, args: Mapping[str, Any]) -> Verdict:
        """Return the verdict on a request; raises `CallFailed` if no rule allows it."""
        method, address = check_address(target, args)
        if any(rule.matches(method, address) for rule in self._ask):
            return "ask"
        if any(rule.matches(method, address) for rule in self._allow):
            return "allow"
        raise self._describe_refusal(method, address)

    def _describe_refusal(self, method: str, address: WebAddress) -> CallFailed:
        rules = [*self._ask, *self._allow]
        near = next((rule.text for rule in rules if rule.matches_host(address.host)), "")
        reason = f"no rule of [network] names {address.host}"
        if near:
            reason = f"the rule {near!r} of [network] does not allow it"
        base = f"{address.scheme}://{address.netloc}"
        line = f'[network] allow = ["{method} {base}"]'
        message = f"{method} {base}{address.path:.300} is refused: {reason}."
        return CallFailed("denied", message, remedy=f"The user can allow it: {line}.")

    async def handle_request(self, target: str, args: JsonObject) -> JsonObject:
        """Send a request and return its answer, or the first part of it; raises `CallFailed`."""
        method, address = check_address(target, args)
        headers = check_headers(args.get("headers", []))
        content = await self._load_body(args.get("body"))
        scope = current_call_scope()
        self._responses.check_room(scope.session_id)
        if wait_s := self._count_request(scope.session_id):
            limit = self._settings.requests_per_minute
            raise CallFailed(
                "rate_limited",
                f"This session has sent more than {limit} web requests in a minute.",
                remedy=f"Wait {ceil(wait_s)} s, or ask for more at once.",
            )
        credential = await self._credentials.find(address, scope.principal)
        if credential is not None:
            headers = credential.apply(headers)
        pool = self._pools.find(scope.principal, credential.digest if credential else b"")
        request = self._build_request(method, address, headers, content)
        with report_failures(address.host, self._settings.timeout_s):
            response = await self._send(pool, request, is_read=self.effect_of(target) == "read")
            chunks = aiter(response.aiter_stream())
            if credential is not None:
                chunks = credential.redact_body(chunks)
            limit = self._settings.response_mb * MB
            rest = OpenResponse(scope.session_id, response, chunks, limit)
            reason, shown_headers = read_reason(response), read_headers(response)
            if credential is not None:
                try:
                    shown_headers = credential.redact_headers(shown_headers)
                    reason = credential.redactor.redact_text(reason)
                except CallFailed:
                    await rest.close()
                    raise
            piece, is_last = await rest.read_first()
        answer: JsonObject = {
            "status": response.status,
            "reason": reason,
            "headers": shown_headers,
            "body": encode_body(piece),
        }
        size = f"{len(piece):,} bytes"
        if not is_last:
            answer["more"] = self._responses.add(rest)
            answer["length"] = read_length(response) if credential is None else None
            size = f"more than {size}"
        summary = f"{response.status} {reason}".strip()
        scope.describe_call(summarize_request(address, args.get("body")), f"{summary}, {size}")
        return answer

    async def handle_download(self, target: str, args: JsonObject) -> JsonObject:
        """Return the next piece of a response body; raises `CallFailed`."""
        response_id, piece = args.get("response"), args.get("piece")
        if target != DOWNLOAD_TARGET or type(piece) is not int or type(response_id) is not str:
            raise CallFailed("invalid_arguments", "A piece of an answer has an id and a number.")
        session_id = current_call_scope().session_id
        with report_failures("The server", self._settings.timeout_s):
            data, is_last = await self._responses.read_piece(response_id, piece, session_id)
        return {"body": encode_body(data), "is_last": is_last}

    async def _load_body(self, body: Any) -> bytes | list[str]:
        """Return a body, or the digests of its pieces; raises `CallFailed`."""
        if body is None:
            return b""
        try:
            match body:
                case {"text": str(text)}:
                    return text.encode()
                case {"base64": str(text)}:
                    return base64.b64decode(text, validate=True)
                case {"pieces": [*pieces]} if all(isinstance(each, str) for each in pieces):
                    return pieces
        except ValueError:
            pass
        raise CallFailed("invalid_arguments", "The body is not text, base64 or a list of pieces.")

    def _build_request(
        self,
        method: str,
        address: WebAddress,
        headers: list[tuple[bytes, bytes]],
        content: bytes | list[str],
    ) -> httpcore2.Request:
        own = [(b"Host", address.netloc.encode()), *headers]
        stream: bytes | AsyncIterator[bytes] = b""
        if isinstance(content, list):
            own.append((b"Transfer-Encoding", b"chunked"))
            stream = self._iter_pieces(content)
        elif content or method in ("POST", "PUT", "PATCH"):
            own.append((b"Content-Length", str(len(content)).encode()))
            stream = content
        url = httpcore2.URL(
            scheme=address.scheme.encode(),
            host=address.host.encode(),
            port=address.port,
            target=f"{address.path}{address.query}".encode(),
        )
        limit = self._settings.timeout_s
        timeouts = {"connect": limit, "read": limit, "write": limit, "pool": limit}
        return httpcore2.Request(
            method, url, headers=own, content=stream, extensions={"timeout": timeouts}
        )

    async def _iter_pieces(self, digests: list[str]) -> AsyncIterator[bytes]:
        for digest in digests:
            try:
                yield await anyio.to_thread.run_sync(self._journal.blobs.get, digest)
            except NotFound:
                message = "A piece of the body is no longer stored: send the request again."
                raise CallFailed("not_found", message) from None

    async def _send(
        self, pool: httpcore2.AsyncConnectionPool, request: httpcore2.Request, *, is_read: bool
    ) -> httpcore2.Response:
        try:
            return await pool.handle_async_request(request)
        except (httpcore2.RemoteProtocolError, httpcore2.ReadError, httpcore2.WriteError):
            if not is_read:  # it may have been received
                raise
            return await pool.handle_async_request(request)


def check_address(target: str, args: Mapping[str, Any]) -> tuple[str, WebAddress]:
    """Return the method and the address of a request; raises `CallFailed`."""
    found = TARGET.fullmatch(target)
    url = args.get("url")
    if found is None or not isinstance(url, str):
        raise CallFailed("invalid_arguments", "A web request has a method, a host and a url.")
    try:
        address = parse_address(url)
    except ValueError as exc:
        raise CallFailed("invalid_arguments", f"{url[:200]!r} cannot be asked for: {exc}.") from exc
    if found["host"] not in (address.netloc, f"{address.netloc}:{address.port}"):
        message = f"The target names {found['host']!r}, and the address {address.netloc!r}."
        raise CallFailed("invalid_arguments", message)
    return found["method"], address


def check_headers(headers: Any) -> list[tuple[bytes, bytes]]:
    """Return the headers that code may send; raises `CallFailed` if one is not valid."""
    if not isinstance(headers, list) or len(headers) > MAX_HEADERS:
        raise CallFailed("invalid_arguments", f"A request has at most {MAX_HEADERS} headers.")
    checked, size = [], 0
    for header in headers:
        match header:
            case [str(name), str(value)] if HEADER_NAME.fullmatch(name):
                if not HEADER_VALUE.fullmatch(value):
                    message = f"The value of the header {name} has characters that it must not."
                    raise CallFailed("invalid_arguments", message)
                size += len(name) + len(value)
                if name.lower() not in CLIENT_HEADERS:
                    checked.append((name.encode("ascii"), value.encode("latin-1")))
            case _:
                raise CallFailed("invalid_arguments", f"{header!r:.100} is not a header.")
    if size > MAX_HEADER_CHARS:
        message = f"The headers have more than {MAX_HEADER_CHARS:,} characters."
        raise CallFailed("too_large", message)
    return checked


@contextmanager
def report_failures(host: str, timeout_s: float) -> Iterator[None]:
    """Convert connection errors to `CallFailed`."""
    try:
        yield
    except httpcore2.TimeoutException:
        message = f"{host} did not answer within {timeout_s:g} s ([network] timeout_s)."
        raise CallFailed("timeout", message) from None
    except httpcore2.ConnectError as exc:
        problem = TLS_PROBLEM.search(str(exc))
        reason = f"its certificate is not trusted: {problem[1].strip()}" if problem else str(exc)
        message = f"No connection to {host}: {reason or 'it was refused'}."
        raise CallFailed("unavailable", message) from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as exc:
        message = f"{host} ended the connection, or did not speak HTTP: {str(exc)[:200]}"
        raise CallFailed("unavailable", message) from None


def read_reason(response: httpcore2.Response) -> str:
    """Return the printable characters of the reason phrase of a response."""
    reason = response.extensions.get("reason_phrase", b"").decode("latin-1")
    return "".join(char for char in reason if " " <= char <= "~")[:MAX_REASON_CHARS]


def read_headers(response: httpcore2.Response) -> list[list[str]]:
    """Return the headers of a response, except those about its connection."""
    return [
        [name.decode("latin-1"), value.decode("latin-1")]
        for name, value in response.headers
        if name.lower().decode("latin-1") not in CONNECTION_HEADERS
    ]


def read_length(response: httpcore2.Response) -> int | None:
    """Return the length of a response body in bytes; None if the server does not say."""
    for name, value in response.headers:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return None


def summarize_request(address: WebAddress, body: Any) -> JsonObject:
    """Return what the ledger shows of a request."""
    summary: JsonObject = {"url": address.url}
    if isinstance(body, dict):
        text = body.get("text")
        summary["body"] = f"{body.get('size', 'binary')} bytes"
        if isinstance(text, str):
            summary["body"] = text[:MAX_SHOWN_BODY_CHARS]
    return summary


@asynccontextmanager
async def open_web_requests(
    settings: NetworkSettings,
    journal: Journal,
    vault: OwnCredentials,
    count_request: Callable[[str], float],
) -> AsyncIterator[WebRequests]:
    """Yield the handler of web requests; leaving the context ends all of them."""
    policy = AddressPolicy(settings.private)
    ca_file = "" if settings.ca_file.name == "" else str(settings.ca_file)
    context = await anyio.to_thread.run_sync(make_tls_context, ca_file)
    responses = OpenResponses()
    credentials = HostCredentials(settings.credentials, vault)
    async with open_pools(policy, context) as pools, anyio.create_task_group() as tasks:
        tasks.start_soon(responses.close_idle)
        tasks.start_soon(pools.close_idle)
        yield WebRequests(settings, pools, responses, journal, count_request, credentials)
        tasks.cancel_scope.cancel()
