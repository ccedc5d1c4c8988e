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

from ...config import NetworkSettings, Verdict
from ...config.web_rules import WebAddress, parse_address, parse_rule
from ...errors import CallFailed, NotFound
from ...journal.call_scope import CallScope, Download, current_call_scope
from ...journal.events import Effect
from ...journal.store import Journal
from ...protocol.payloads import JsonObject
from ..own_credentials import OwnCredentials
from ..uploads import Uploads
from .addresses import AddressPolicy, make_tls_context
from .connections import Answer, ConnectionFailed, ConnectionPool, Destination
from .http_messages import AnswerHead, BrokenAnswer, Request
from .open_responses import OpenResponse, OpenResponses
from .response_bodies import load_body, record_body
from .web_credentials import HostCredential, HostCredentials

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


class WebRequests:
    """Answers the calls of one server's sandboxes for the web.

    `count_request` counts a request of a session, and returns how long to wait if there were too
    many.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        pool: ConnectionPool,
        responses: OpenResponses,
        journal: Journal,
        uploads: Uploads,
        count_request: Callable[[str], float],
        credentials: HostCredentials,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._responses = responses
        self._journal = journal
        self._uploads = uploads
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

    async def handle_request(self, target: str, args: JsonObject) -> JsonObject | Download:
        """Send a request and return its answer, or the first part of it; raises `CallFailed`."""
        method, address = check_address(target, args)
        headers = check_headers(args.get("headers", []))
        content = check_body(args.get("body"))
        scope = current_call_scope()
        self._responses.check_room(scope.session_id)
        if wait_s := self._count_request(scope.session_id):
            limit = self._settings.requests_per_minute
            raise CallFailed(
                "rate_limited",
                f"This session has sent more than {limit} web requests in a minute.",
                remedy=f"Wait {ceil(wait_s)} s, or ask for more at once.",
            )
        if isinstance(content, list):
            await self._uploads.check_pieces(content)
        credential = await self._credentials.find(address, scope.principal)
        if credential is not None:
            headers = credential.apply(headers)
        destination = Destination(
            scope.principal,
            credential.digest if credential else b"",
            address.scheme == "https",
            address.host,
            address.port,
        )
        request = self._build_request(method, address, headers, content)
        is_read = self.effect_of(target) == "read" and isinstance(content, bytes)
        timeout_s = self._settings.timeout_s
        with report_failures(address.host, timeout_s):
            answer = await self._pool.send(
                destination, request, may_repeat=is_read, timeout_s=timeout_s
            )
            try:
                return await self._begin_answer(scope, credential, answer, address, args)
            except BaseException:
                answer.close()
                raise

    async def _begin_answer(
        self,
        scope: CallScope,
        credential: HostCredential | None,
        answer: Answer,
        address: WebAddress,
        args: JsonObject,
    ) -> JsonObject | Download:
        """Return an answer, or its first part, as code gets it."""
        chunks = answer.iter_body()
        length = answer.head.length
        reason, headers = read_reason(answer.head), read_headers(answer.head)
        if credential is not None:
            chunks = credential.redact_body(chunks)
            headers = credential.redact_headers(headers)
            reason = credential.redactor.redact_text(reason)
            length = None
        limit = self._settings.response_mb * MB
        rest = OpenResponse(scope.session_id, answer, chunks, limit)
        piece, is_last = await rest.read_first()
        shown: JsonObject = {"status": answer.head.status, "reason": reason, "headers": headers}
        size = f"{len(piece):,} bytes"
        if not is_last:
            shown["more"] = self._responses.add(rest)
            shown["length"] = length
            size = f"more than {size}"
        summary = f"{answer.head.status} {reason}".strip()
        scope.describe_call(summarize_request(address, args.get("body")), f"{summary}, {size}")
        return await record_body(self._journal, shown, piece)

    async def handle_download(self, target: str, args: JsonObject) -> JsonObject | Download:
        """Return the next piece of a response body; raises `CallFailed`."""
        response_id, piece = args.get("response"), args.get("piece")
        if target != DOWNLOAD_TARGET or type(piece) is not int or type(response_id) is not str:
            raise CallFailed("invalid_arguments", "A piece of an answer has an id and a number.")
        session_id = current_call_scope().session_id
        with report_failures("The server", self._settings.timeout_s):
            data, is_last = await self._responses.read_piece(response_id, piece, session_id)
        return await record_body(self._journal, {"is_last": is_last}, data)

    async def load_body(self, answer: Any) -> bytes:
        """Return the bytes of the body of a recorded answer, if they are stored by themselves."""
        return await load_body(self._journal, answer)

    def _build_request(
        self,
        method: str,
        address: WebAddress,
        headers: list[tuple[bytes, bytes]],
        content: bytes | list[str],
    ) -> Request:
        own = [(b"Host", address.netloc.encode()), *headers]
        body: bytes | AsyncIterator[bytes] = b""
        if isinstance(content, list):
            own.append((b"Transfer-Encoding", b"chunked"))
            body = self._iter_pieces(content)
        elif content or method in ("POST", "PUT", "PATCH"):
            own.append((b"Content-Length", str(len(content)).encode()))
            body = content
        return Request(method, f"{address.path}{address.query}", own, body)

    async def _iter_pieces(self, digests: list[str]) -> AsyncIterator[bytes]:
        for digest in digests:
            try:
                yield await anyio.to_thread.run_sync(self._journal.blobs.get, digest)
            except NotFound:
                message = "A piece of the body is no longer stored: send the request again."
                raise CallFailed("not_found", message) from None


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


def check_body(body: Any) -> bytes | list[str]:
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


@contextmanager
def report_failures(host: str, timeout_s: float) -> Iterator[None]:
    """Convert connection errors to `CallFailed`."""
    try:
        yield
    except TimeoutError:
        message = f"{host} did not answer within {timeout_s:g} s ([network] timeout_s)."
        raise CallFailed("timeout", message) from None
    except ConnectionFailed as exc:
        raise CallFailed("unavailable", f"No connection to {host}: {exc}.") from None
    except BrokenAnswer as exc:
        message = f"{host} ended the connection, or did not speak HTTP: {exc}"
        raise CallFailed("unavailable", message) from None


def read_reason(head: AnswerHead) -> str:
    """Return the printable characters of the reason phrase of an answer."""
    reason = head.reason.decode("latin-1")
    return "".join(char for char in reason if " " <= char <= "~")[:MAX_REASON_CHARS]


def read_headers(head: AnswerHead) -> list[list[str]]:
    """Return the headers of an answer, except those about its connection."""
    decoded = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in head.headers]
    return [header for header in decoded if header[0].lower() not in CONNECTION_HEADERS]


def summarize_request(address: WebAddress, body: Any) -> JsonObject:
    """Return what the ledger shows of a request."""
    summary: JsonObject = {"url": address.url}
    if isinstance(body, dict):
        text, size = body.get("text"), body.get("size")
        summary["body"] = f"{size if isinstance(size, int) else 'binary'} bytes"
        if isinstance(text, str):
            summary["body"] = text[:MAX_SHOWN_BODY_CHARS]
    return summary


@asynccontextmanager
async def open_web_requests(
    settings: NetworkSettings,
    journal: Journal,
    uploads: Uploads,
    vault: OwnCredentials,
    count_request: Callable[[str], float],
) -> AsyncIterator[WebRequests]:
    """Yield the handler of web requests; leaving the context ends all of them."""
    policy = AddressPolicy(settings.private)
    ca_file = "" if settings.ca_file.name == "" else str(settings.ca_file)
    context = await anyio.to_thread.run_sync(make_tls_context, ca_file)
    responses = OpenResponses()
    credentials = HostCredentials(settings.credentials, vault)
    pool = ConnectionPool(policy, context)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(responses.close_idle)
        tasks.start_soon(pool.close_idle)
        yield WebRequests(settings, pool, responses, journal, uploads, count_request, credentials)
        tasks.cancel_scope.cancel()
