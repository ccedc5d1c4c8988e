"""The web proxy of a sandbox: it turns the requests of any HTTP library into calls to the host.

It listens on the sandbox's own loopback interface, where libraries find it through the usual
variables, and ends TLS with certificates that the host issues for this sandbox alone. So the host
never reads HTTP or TLS that code has written: it gets method, address, headers and body as the
arguments of a call, and decides there what may be asked for.

Rule 1: a process of its own, which the supervisor forks when code connects for the first time. It
talks to code and to the supervisor, and to nobody else.
Rule 2: a connection serves further requests only if they have numbers (see `connection_order`), and
idle ones end with the run, so that no copy of the interpreter shares one that is in use.
Rule 3: whatever fails is an HTTP answer whose text says why. A request that code no longer waits
for is abandoned, like any other call.
"""

from __future__ import annotations

import os
import re
import select
import socket
import ssl
import threading

from ...protocol import wire
from ...protocol.http_bodies import decode_body, encode_body
from . import connection_order

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, NoReturn, Optional, Set, Tuple

    from ...protocol.payloads import JsonObject
    from .connection_order import Address

MAX_CONNECTIONS = 64  # at once; others wait in the backlog
MAX_KEPT = 32  # of those, idle until their code asks again
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
MAX_INLINE_BYTES = 256 * 1024  # of a body that is an argument; a larger one is sent in pieces
MAX_SHOWN_CHARS = 200  # of a failure in the status line; the body has the whole text
READ_BYTES = 64 * 1024
CHANNEL_READ_BYTES = 256 * 1024
REQUEST_TIMEOUT_S = 300.0  # for code to send a request: with a thousand at once, each takes long
ANSWER_TIMEOUT_S = 30.0  # for code to take a part of the answer, or to ask again
LINGER_S = 1.0  # for code to read a refusal before its unread request resets the connection
MAX_LINGER_BYTES = 1024 * 1024
UPLOAD_TARGET = "uploads.piece"
DOWNLOAD_TARGET = "downloads.piece"
TLS_HANDSHAKE = b"\x16"
RELEASE_METHOD = connection_order.RELEASE_REQUEST.split()[0].decode()
LAST_CHUNK = b"0\r\n\r\n"
TLS_ALERT = b"\x15"

REQUEST_LINE = re.compile(rb"([A-Za-z]{1,20}) ([!-~]{1,8000}) HTTP/1\.([01])")
HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}):([^\0\r\n]*)")
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\0\r\n]*)?")
CONTENT_LENGTH = re.compile("[0-9]{1,15}")
# of one connection, or written again here or on the host
CONNECTION_HEADERS = frozenset(
    (
        "connection", "proxy-connection", "keep-alive", "te", "trailer", "transfer-encoding",
        "upgrade", "proxy-authorization", "proxy-authenticate", "host", "content-length", "expect",
        connection_order.ORDER_HEADER,
    )
)  # fmt: skip
BODILESS_STATUSES = (204, 304)
DEFAULT_PORTS = {"http": "80", "https": "443"}
STATUS_BY_KIND = {
    "planned": (202, "Accepted"),
    "invalid_arguments": (400, "Bad Request"),
    "credential_missing": (401, "Unauthorized"),
    "credential_unusable": (401, "Unauthorized"),
    "denied": (403, "Forbidden"),
    "too_large": (413, "Content Too Large"),
    "rate_limited": (429, "Too Many Requests"),
    "cancelled": (503, "Service Unavailable"),
    "timeout": (504, "Gateway Timeout"),
}
OTHER_FAILURE = (502, "Bad Gateway")
ONLY_WEB_TEXT = (
    "Only HTTP and HTTPS requests leave the sandbox, with HTTP/1.1: no WebSockets, no HTTP/2 and "
    "no other protocols."
)


class RequestRefused(Exception):
    """A request that is not made; the client gets `status` and the text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class CallRefused(Exception):
    """The host did not answer a call with a value."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class ClientGone(Exception):
    """The code no longer waits for an answer."""


class Waiter:
    """A thread that waits for an answer of the host; a byte in its pipe wakes it."""

    def __init__(self) -> None:
        self.answer: Optional[wire.Message] = None
        self._read_end, self._write_end = os.pipe()

    def wake(self, answer: wire.Message) -> None:
        """Hand over an answer."""
        self.answer = answer
        os.write(self._write_end, b".")

    def wait(self, client: Optional[socket.socket]) -> wire.Message:
        """Return the answer; raises `ClientGone` if `client` closes its connection before."""
        watched: List[Any] = [self._read_end]
        if client is not None:
            watched.append(client)
        while True:
            readable = select.select(watched, [], [])[0]
            if self._read_end in readable:
                os.read(self._read_end, 1)
                answer, self.answer = self.answer, None
                assert answer is not None
                return answer
            assert client is not None
            if has_left(client):
                raise ClientGone
            watched.remove(client)  # it sends what nobody reads

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read_end)
        os.close(self._write_end)


def has_left(client: socket.socket) -> bool:
    """Return whether a client with something to read has closed its end, or is closing it."""
    try:
        first = socket.socket.recv(client, 1, socket.MSG_PEEK)
    except OSError:
        return True
    return first in (b"", TLS_ALERT)


class ProxyChannel:
    """Makes calls to the host through the supervisor. Safe in any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._last_call_id = wire.FIRST_PROXY_CALL_ID
        self._calls: Dict[int, Waiter] = {}
        self._certificates: Dict[str, List[Waiter]] = {}

    def start_call(
        self, waiter: Waiter, target: str, args: JsonObject, data: bytes = b"", order: int = 0
    ) -> int:
        """Send a call, whose reply wakes `waiter`; return its id. Raises `WireError`."""
        with self._lock:
            self._last_call_id += 1
            call_id = self._last_call_id
            call = wire.Call(call_id, 0, target, args, data=data, order=order)
            frame = wire.encode_message(call)
            self._calls[call_id] = waiter
            self._sock.sendall(frame)
        return call_id

    def abandon_call(self, abandoned_id: int) -> None:
        """Let a call wake nobody, and tell the host so if it has not been answered."""
        with self._lock:
            if self._calls.pop(abandoned_id, None) is None:
                return
            self._last_call_id += 1
            args = {"call": abandoned_id}
            abandon = wire.Call(self._last_call_id, 0, wire.ABANDON_TARGET, args)
            self._sock.sendall(wire.encode_message(abandon))

    def request_certificate(self, waiter: Waiter, host: str) -> str:
        """Return a certificate for `host` in PEM; "" if there is none."""
        with self._lock:
            self._certificates.setdefault(host, []).append(waiter)
            self._sock.sendall(wire.encode_message(wire.CertificateRequest(host)))
        answer = waiter.wait(None)
        assert isinstance(answer, wire.Certificate)
        return answer.certificate

    def read_answers(self) -> NoReturn:
        """Hand answers to the threads that wait for them, until the supervisor is gone."""
        decoder = wire.MessageDecoder()
        while True:
            data = self._sock.recv(CHANNEL_READ_BYTES)
            if not data:
                os._exit(0)
            for message in decoder.iter_messages(data):
                with self._lock:  # nobody closes a waiter meanwhile
                    waiter = self._take_waiter(message)
                    if waiter is not None:
                        waiter.wake(message)

    def _take_waiter(self, message: wire.Message) -> Optional[Waiter]:
        if isinstance(message, wire.Reply):
            return self._calls.pop(message.call_id, None)
        if isinstance(message, wire.Certificate) and self._certificates.get(message.host):
            return self._certificates[message.host].pop(0)
        return None


class TlsContexts:
    """The contexts that end TLS, one for each host that code connects to."""

    def __init__(self, channel: ProxyChannel, key: str, folder: str) -> None:
        self._channel = channel
        self._key = key
        self._folder = folder
        self._by_host: Dict[str, ssl.SSLContext] = {}

    def find_context(self, waiter: Waiter, host: str) -> ssl.SSLContext:
        """Return the context for a host; raises `RequestRefused` if it is not a host."""
        context = self._by_host.get(host)
        if context is None:
            certificate = self._channel.request_certificate(waiter, host)
            if not certificate:
                raise RequestRefused(400, f"{host[:100]!r} cannot be the host of a request.")
            context = self._by_host[host] = self._make_context(certificate)
        return context

    def _make_context(self, certificate: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # no client comes back with one
        context.set_alpn_protocols(["http/1.1"])
        path = os.path.join(self._folder, f".{os.urandom(16).hex()}")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(certificate + self._key)
            context.load_cert_chain(path)
        finally:
            os.unlink(path)
        return context


class KeptConnections:
    """The connections that wait for another request. Safe in any thread.

    Code that has read an answer may release it before its thread here knows that it was sent: so
    the thread says when it begins to send the last part.
    """

    def __init__(self) -> None:
        self._update = threading.Condition()
        self._ending: Set[Address] = set()  # those whose last part is being sent
        self._idle: Dict[Address, socket.socket] = {}  # by the address of the client's end
        self.generation = 0  # those that began before the last release are not kept

    def has_room(self, generation: int) -> bool:
        """Return whether a connection of a generation may be kept."""
        return generation == self.generation and len(self._idle) < MAX_KEPT

    def begin_last_part(self, address: Address) -> None:
        """Note that code may have the whole answer from now on."""
        with self._update:
            self._ending.add(address)

    def add(self, address: Address, sock: socket.socket, generation: int) -> bool:
        """Note that a connection is idle; return whether it is kept."""
        with self._update:
            self._ending.discard(address)
            self._update.notify_all()
            if generation == self.generation:
                self._idle[address] = sock
            return generation == self.generation

    def remove(self, address: Address) -> bool:
        """Note that a connection is not idle; return whether it may be used."""
        with self._update:
            self._ending.discard(address)
            self._update.notify_all()
            return self._idle.pop(address, None) is not None

    def release(self) -> bytes:
        """Close all idle connections; return the addresses of their clients, one a line."""
        with self._update:
            self._update.wait_for(lambda: not self._ending, LINGER_S)
            self.generation += 1
            released, self._idle = self._idle, {}
        for sock in released.values():
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # the client has closed it
        return "".join(f"{host} {port}\n" for host, port in released).encode()


class RequestHead:
    """The request line and the headers of a request; HTTP/1.0 does not read chunks."""

    def __init__(
        self, method: str, target: str, headers: List[Tuple[str, str]], reads_chunks: bool
    ) -> None:
        self.method = method
        self.target = target
        self.reads_chunks = reads_chunks
        self.headers = headers

    def find_values(self, name: str) -> List[str]:
        """Return the values of all headers with a name in lower case."""
        return [value for each, value in self.headers if each.lower() == name]

    def find_value(self, name: str) -> str:
        """Return the value of a header, "" if there is none; raises `RequestRefused` for two."""
        values = self.find_values(name)
        if len(values) > 1:
            raise RequestRefused(400, f"The request has two headers {name!r}.")
        return values[0] if values else ""

    def forwarded_headers(self) -> List[List[str]]:
        """Return the headers that go to the server."""
        dropped = set(CONNECTION_HEADERS)
        for value in self.find_values("connection"):
            dropped.update(each.strip().lower() for each in value.split(","))
        return [[name, value] for name, value in self.headers if name.lower() not in dropped]


def parse_head(data: bytes) -> RequestHead:
    """Return the head of a request; raises `RequestRefused` if it is not one."""
    first, *lines = data.split(b"\r\n")
    if first.startswith(b"PRI "):
        raise RequestRefused(505, ONLY_WEB_TEXT)
    found = REQUEST_LINE.fullmatch(first)
    if found is None:
        raise RequestRefused(400, "The first line is not that of an HTTP/1.1 request.")
    if len(lines) > MAX_HEADERS:
        raise RequestRefused(431, f"The request has more than {MAX_HEADERS} headers.")
    headers = []
    for line in lines:
        header = HEADER_LINE.fullmatch(line)
        if header is None:
            raise RequestRefused(400, f"This is not a header: {line[:80]!r}")
        headers.append((header[1].decode("ascii"), header[2].strip(b" \t").decode("latin-1")))
    method, target = found[1].decode("ascii").upper(), found[2].decode("ascii")
    return RequestHead(method, target, headers, found[3] == b"1")


def build_url(head: RequestHead, tunnel: str) -> str:
    """Return the address of a request; raises `RequestRefused`.

    Inside a `tunnel` ("host:port"), the target is a path; outside, it is a whole address.
    """
    if head.find_value("upgrade"):
        raise RequestRefused(501, ONLY_WEB_TEXT)
    if tunnel:
        if not head.target.startswith("/"):
            raise RequestRefused(400, "The target of a request over TLS begins with a slash.")
        scheme, netloc, target = "https", tunnel, head.target
    else:
        scheme, mark, rest = head.target.partition("://")
        scheme = scheme.lower()
        if not mark or scheme not in DEFAULT_PORTS:
            raise RequestRefused(400, "This is a proxy for http:// and https:// addresses.")
        cut = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
        netloc, target = rest[:cut], rest[cut:]
    host = head.find_value("host")
    if host and drop_default_port(host, scheme) != drop_default_port(netloc, scheme):
        text = f"The header Host names {host[:100]!r}, and the address {netloc[:100]!r}."
        raise RequestRefused(400, text)
    return f"{scheme}://{drop_default_port(netloc, scheme)}{target}"


def drop_default_port(netloc: str, scheme: str) -> str:
    """Return a host in lower case, with its port unless that is the usual one."""
    host, _, port = netloc.lower().rpartition(":")
    return host if host and port == DEFAULT_PORTS[scheme] else netloc.lower()


def split_host(netloc: str) -> str:
    """Return the host of "host:port", without the brackets of an IPv6 address."""
    return netloc.rpartition(":")[0].strip("[]").lower()


class ClientConnection:
    """One connection of code to the proxy: a request and its answer, or several if it is kept.

    The number in the client's address tells it apart from others at the same time.
    """

    def __init__(
        self,
        sock: socket.socket,
        address: Address,
        channel: ProxyChannel,
        contexts: TlsContexts,
        kept: KeptConnections,
    ) -> None:
        self._sock = sock
        self._address = address
        self._number = connection_order.read_order(address[0])
        self._order = self._number  # of the present request
        self._is_numbered = False  # the present request has a number of its own
        self._kept = kept
        self._generation = kept.generation
        self._tunnel = ""
        self._channel = channel
        self._contexts = contexts
        self._buffer = bytearray()
        self._waiter = Waiter()
        self._open_call = 0  # the id of the call whose reply is awaited
        self._has_answered = False  # the head of an answer has been sent

    def serve(self) -> None:
        """Answer the requests; never raises."""
        try:
            while self._answer_request() and self._wait_for_request():
                pass
        except RequestRefused as exc:
            self._send_failure(exc.status, "Refused", str(exc))
        except CallRefused as exc:
            status, reason = STATUS_BY_KIND.get(exc.kind, OTHER_FAILURE)
            self._send_failure(status, reason, str(exc), exc.kind)
        except wire.WireError as exc:  # such as a host of thousands of characters
            self._send_failure(400, "Bad Request", str(exc))
        except (ClientGone, OSError, EOFError):
            pass
        finally:
            self._kept.remove(self._address)
            if self._open_call:
                self._channel.abandon_call(self._open_call)
            self._waiter.close()
            self._sock.close()

    def _answer_request(self) -> bool:
        """Answer a request; return whether another one may follow."""
        self._has_answered = False
        self._sock.settimeout(REQUEST_TIMEOUT_S)
        head = self._read_head()
        if head.method == RELEASE_METHOD:
            self._sock.sendall(self._kept.release())
            return False
        if head.method == "CONNECT" and not self._tunnel:
            self._tunnel = head.target
            self._start_tls(self._tunnel)
            head = self._read_head()
        number = connection_order.parse_order(head.find_value(connection_order.ORDER_HEADER))
        self._is_numbered, self._order = bool(number), number or self._number
        url = build_url(head, self._tunnel)
        args: JsonObject = {"url": url, "headers": head.forwarded_headers()}
        body = self._read_whole_body(head)
        if body:
            args["body"] = body
        host = url.partition("://")[2].partition("/")[0].partition("?")[0].lower()
        return self._send_answer(head, self._call(f"web.{head.method} {host}", args))

    def _wait_for_request(self) -> bool:
        """Wait for another request on a connection that is kept; return whether there is one."""
        if self._buffer:
            return False  # it was sent before the answer: no library of ours does that
        if not self._kept.add(self._address, self._sock, self._generation):
            return self._finish()
        self._read_more()
        return self._kept.remove(self._address)

    def _may_keep(self, head: RequestHead) -> bool:
        return (
            self._is_numbered
            and self._number > 0
            and head.reads_chunks
            and head.find_value("connection").lower() in ("", "keep-alive")
            and self._kept.has_room(self._generation)
        )

    def _call(self, target: str, args: JsonObject, data: bytes = b"") -> wire.Reply:
        self._start_call(target, args, data)
        return self._finish_call()

    def _start_call(self, target: str, args: JsonObject, data: bytes = b"") -> None:
        self._open_call = self._channel.start_call(self._waiter, target, args, data, self._order)

    def _finish_call(self) -> wire.Reply:
        """Return the reply to the open call; raises `CallRefused`, or `ClientGone`."""
        reply = self._waiter.wait(self._sock)
        self._open_call = 0
        assert isinstance(reply, wire.Reply)
        if reply.error is not None:
            raise CallRefused(str(reply.error.get("kind")), str(reply.error.get("message")))
        return reply

    # reading --------------------------------------------------------------------------------------

    def _read_more(self) -> None:
        data = self._sock.recv(READ_BYTES)
        if not data:
            raise EOFError
        self._buffer += data

    def _read_until(self, end: bytes, limit: int) -> bytes:
        while end not in self._buffer:
            if len(self._buffer) > limit:
                raise RequestRefused(431, f"A part of the request has more than {limit:,} bytes.")
            self._read_more()
        found, _, rest = bytes(self._buffer).partition(end)
        self._buffer = bytearray(rest)
        return found

    def _read_head(self) -> RequestHead:
        return parse_head(self._read_until(b"\r\n\r\n", MAX_HEAD_BYTES))

    def _start_tls(self, tunnel: str) -> None:
        if AUTHORITY.fullmatch(tunnel) is None or self._buffer:
            raise RequestRefused(400, "CONNECT names a host and a port, and nothing follows.")
        context = self._contexts.find_context(self._waiter, split_host(tunnel))
        self._sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        first = self._sock.recv(1, socket.MSG_PEEK)
        if first and first != TLS_HANDSHAKE:
            raise RequestRefused(501, ONLY_WEB_TEXT)
        self._sock = context.wrap_socket(self._sock, server_side=True)

    def _read_whole_body(self, head: RequestHead) -> JsonObject:
        """Return the body as an argument: text, base64, or the digests of its pieces."""
        body, pieces, size = bytearray(), [], 0
        for data in self._iter_body(head):
            body += data
            size += len(data)
            while len(body) > MAX_INLINE_BYTES:
                piece = bytes(body[:MAX_INLINE_BYTES])
                pieces.append(self._call(UPLOAD_TARGET, {}, piece).value)
                del body[:MAX_INLINE_BYTES]
        if not pieces:
            return encode_body(bytes(body)) if body else {}
        if body:
            pieces.append(self._call(UPLOAD_TARGET, {}, bytes(body)).value)
        return {"pieces": pieces, "size": size}

    def _iter_body(self, head: RequestHead) -> Iterator[bytes]:
        coding, length = head.find_value("transfer-encoding"), head.find_value("content-length")
        if coding and (length or coding.lower() != "chunked"):
            raise RequestRefused(400, "The request does not say in one way how long its body is.")
        if length and not CONTENT_LENGTH.fullmatch(length):
            raise RequestRefused(400, f"{length[:80]!r} is not the length of a body.")
        if (coding or length) and head.find_value("expect").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if coding:
            return self._iter_chunks()
        return self._iter_bytes(int(length or 0))

    def _iter_bytes(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._buffer:
                self._read_more()
            data = bytes(self._buffer[:size])
            del self._buffer[:size]
            size -= len(data)
            yield data

    def _iter_chunks(self) -> Iterator[bytes]:
        while True:
            found = CHUNK_SIZE.fullmatch(self._read_until(b"\r\n", MAX_HEAD_BYTES))
            if found is None:
                raise RequestRefused(400, "The size of a chunk of the body is not a number.")
            size = int(found[1], 16)
            if not size:
                break
            yield from self._iter_bytes(size)
            if self._read_until(b"\r\n", 2):
                raise RequestRefused(400, "A chunk of the body is longer than it says.")
        while self._read_until(b"\r\n", MAX_HEAD_BYTES):
            pass  # trailers

    # answering ------------------------------------------------------------------------------------

    def _send_answer(self, head: RequestHead, reply: wire.Reply) -> bool:
        """Send an answer; return whether another request may follow."""
        self._sock.settimeout(ANSWER_TIMEOUT_S)
        answer = reply.value
        keeps = self._may_keep(head)
        status, more = answer["status"], answer.get("more")
        body = decode_body(answer.get("body") or {}, reply.data)
        headers = [(name, value) for name, value in answer["headers"]]
        if head.method == "HEAD" or status in BODILESS_STATUSES:
            self._begin_last_part(keeps)
            self._send_head(status, answer["reason"], headers, keeps=keeps)
            return keeps or self._finish()
        length = len(body) if more is None else answer.get("length")
        # Many clients take the end of a connection for the end of a body that has neither a length
        # nor chunks, so that they would not notice one that is cut short.
        is_chunked = length is None and head.reads_chunks
        if is_chunked:
            headers.append(("Transfer-Encoding", "chunked"))
            body = encode_chunk(body)
        elif length is not None:
            headers.append(("Content-Length", str(length)))
        if more is None:
            self._begin_last_part(keeps)
            body += LAST_CHUNK if is_chunked else b""
        else:
            self._start_call(DOWNLOAD_TARGET, {"response": more, "piece": 0})
        self._send_head(status, answer["reason"], headers, body, keeps=keeps)
        if more is not None:
            self._send_rest(more, keeps=keeps, is_chunked=is_chunked)
        return keeps or self._finish()

    def _send_rest(self, response: str, *, keeps: bool, is_chunked: bool) -> None:
        """Send the further pieces of a body; each is on its way while code takes the one before."""
        piece, is_last = 0, False
        while not is_last:
            reply = self._finish_call()
            is_last = reply.value["is_last"]
            if not is_last:
                piece += 1
                self._start_call(DOWNLOAD_TARGET, {"response": response, "piece": piece})
            body = decode_body(reply.value["body"], reply.data)
            if is_chunked:
                body = encode_chunk(body) + (LAST_CHUNK if is_last else b"")
            if is_last:
                self._begin_last_part(keeps)
            self._sock.sendall(body)

    def _begin_last_part(self, keeps: bool) -> None:
        if keeps:
            self._kept.begin_last_part(self._address)

    def _send_head(
        self,
        status: int,
        reason: str,
        headers: List[Tuple[str, str]],
        body: bytes = b"",
        *,
        keeps: bool = False,
    ) -> None:
        """Send the head of an answer with the beginning of its body, in one piece."""
        lines = [f"HTTP/1.1 {status} {reason}"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines += ["Connection: keep-alive" if keeps else "Connection: close", "", ""]
        self._has_answered = True
        self._sock.sendall("\r\n".join(lines).encode("latin-1", "replace") + body)

    def _send_failure(self, status: int, reason: str, text: str, kind: str = "refused") -> None:
        if self._has_answered:
            return  # the client sees that the body is not complete
        body = b"{}" if kind == "planned" else text.encode("utf-8", "replace") + b"\n"
        media_type = "application/json" if kind == "planned" else "text/plain; charset=utf-8"
        shown = "".join(char if " " <= char <= "~" else " " for char in text)[:MAX_SHOWN_CHARS]
        headers = [
            ("Content-Type", media_type),
            ("Content-Length", str(len(body))),
            ("X-Sandbox-Failure", kind),
        ]
        try:
            self._sock.settimeout(ANSWER_TIMEOUT_S)
            self._send_head(status, f"{reason}: {shown}", headers, body)
            self._finish()
        except OSError:
            pass

    def _finish(self) -> bool:
        """Close this end, and give the client time to read: unread bytes would reset it.

        Return that no request may follow.
        """
        self._sock.settimeout(LINGER_S)
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock = self._sock.unwrap()
        self._sock.shutdown(socket.SHUT_WR)
        left = MAX_LINGER_BYTES
        while left > 0:
            data = self._sock.recv(READ_BYTES)
            if not data:
                break
            left -= len(data)
        return False


def encode_chunk(data: bytes) -> bytes:
    """Return bytes as a chunk of a body; nothing for no bytes, because an empty chunk ends it."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


def serve_proxy(listener: socket.socket, sock: socket.socket, key: str, folder: str) -> NoReturn:
    """Serve code that connects to `listener`, until the supervisor at `sock` is gone."""
    channel = ProxyChannel(sock)
    contexts = TlsContexts(channel, key, folder)
    kept = KeptConnections()
    room = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def serve_client(client: socket.socket, address: Address) -> None:
        try:
            ClientConnection(client, address, channel, contexts, kept).serve()
        finally:
            room.release()

    def accept_clients() -> None:
        while True:
            room.acquire()
            client, address = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve_client, args=(client, address), daemon=True).start()

    threading.Thread(target=accept_clients, daemon=True).start()
    channel.read_answers()
