"""What is fuzzed. A target returns what came of an input, in few words; any exception is a find.

Each target handles the typed errors of its reader and returns their text. Assertions say what else
must be true of any input.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import tempfile
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx2
from starlette.requests import Request
from starlette.types import Message

from mcpruntime_server.capabilities.agent.conversation import NoProgramFound, extract_program
from mcpruntime_server.capabilities.call_worker import read_call
from mcpruntime_server.capabilities.json_worker import split_json
from mcpruntime_server.capabilities.large_calls import MAX_GROWTH, MAX_SHOWN_CHARS
from mcpruntime_server.capabilities.large_json import open_large_json, read_reply
from mcpruntime_server.capabilities.llm.structured_answers import read_answer
from mcpruntime_server.capabilities.packages.requirements import (
    find_refused,
    parse_installed,
    parse_requirements,
)
from mcpruntime_server.capabilities.skills.guides import parse_front_matter
from mcpruntime_server.capabilities.skills.skill_packages import find_packages
from mcpruntime_server.capabilities.tools.spliced_arguments import PieceStream, SplicedArguments
from mcpruntime_server.capabilities.web.web_requests import (
    check_address,
    check_body,
    check_headers,
    summarize_request,
)
from mcpruntime_server.config import Config
from mcpruntime_server.config.web_rules import parse_rule
from mcpruntime_server.errors import CallFailed, Conflict, InvalidRequest, SkillRefused
from mcpruntime_server.exports.csv_table import FORMULA_STARTS, write_csv
from mcpruntime_server.exports.frame_table import NUMBER, copy_guarded
from mcpruntime_server.journal.archive import import_session
from mcpruntime_server.journal.encoded_text import (
    iter_text_pieces,
    measure_encoded_text,
    measure_text,
)
from mcpruntime_server.journal.events import (
    EncodedArguments,
    RunValue,
    canonical_json,
    decode_json,
    encode_json,
)
from mcpruntime_server.journal.store import Journal, open_journal
from mcpruntime_server.protocol import wire
from mcpruntime_server.protocol.json_limits import ValueCounter
from mcpruntime_server.protocol.wire import escape_json_surrogates
from mcpruntime_server.runtime.call_ledger import LedgerEntry
from mcpruntime_server.runtime.output_buffer import OutputBuffer
from mcpruntime_server.runtime.run_history import load_recorded_run
from mcpruntime_server.runtime.run_report import RunReport, validate_value
from mcpruntime_server.sandboxed.kernel import web_proxy
from mcpruntime_server.sandboxed.library.packages import find_script_dependencies
from mcpruntime_server.server.result_format import (
    build_run_result,
    format_run_result,
    run_call_result,
)
from mcpruntime_server.server.stdio_transport import (
    ClientMessageReader,
    ClientMessageWriter,
    encode_client_message,
)
from mcpruntime_server.service import api_models, inspection_models
from mcpruntime_server.service.api_models import RequestModel
from mcpruntime_server.service.credential_pages import read_form
from mcpruntime_server.service.problems import problem_response
from mcpruntime_server.service.request_checks import MAX_BODY_VALUES, TOO_MANY
from mcpruntime_server.service.requests import BadRequest, read_body, read_query
from mcpruntime_server.viewer.terminal_output import CONTROL, PLAIN, render_line, skip_styles

from .mutation import MAX_BYTES, Mutator, mutate_bytes, mutate_json_text

SEEDS = Path(__file__).parent / "seeds"
MAX_ANSWER_BYTES = 2_000  # to a line that is no message
MAX_FRONT_MATTER_BYTES = 100_000
MAX_RESULT_CHARS = 200_000
MAX_QUERY_BYTES = 60_000  # more is refused before it is read
MAX_PROBLEM_BYTES = 20_000
MAX_OUTCOME_CHARS = 1_000
MAX_SUMMARY_CHARS = 70_000
MAX_PROXY_BYTES = 400_000  # sent to a proxy at once
MAX_LINES = 2_000  # of a page that shows output
MAX_MARKUP_CHARS = 30_000  # of a line, without elements
IMPORTS_PER_JOURNAL = 300
CONFIG = Config()
LABELS = (
    *("note", "value", "value (submitted)", "stdout", "stderr", "error", "hint", "calls"),
    *("files", "usage", "waiting for"),
)

Run = Callable[[bytes], Awaitable[str]]


@dataclass(frozen=True)
class Target:
    """A reader: inputs that it accepts, how they are changed, and what it makes of one."""

    seeds: Sequence[bytes]
    mutate: Mutator
    run: Run
    max_cpu_s: float = 2.0  # for up to 1 MB, on a busy machine


# the link -----------------------------------------------------------------------------------------

VALUE = {"kind": "json", "text": '[1,{"a":"b"}]', "type": "list", "cut": False}
ERROR = {"type": "E", "message": "m", "traceback": "File 1\nE: m", "line": 1, "hint": "do it"}
MEDIA = [{"mime_type": "image/png", "data": "iVBORw0KGgo="}]
MESSAGES: tuple[wire.Message, ...] = (
    wire.Ready(wire.PROTOCOL_VERSION, "3.11.7", "linux", "marker"),
    wire.Output(1, "stdout", 0, b"printed\ntext"),
    wire.Output(1, "stderr", 7, b"\xff\xfe"),
    wire.Call(1, 1, "tools.lively.echo", {"text": "a"}, 3, {"time": [1.5]}, b"data"),
    wire.Call(2, 1, "skills.used", {"name": "x", "ok": True}),
    wire.FilesChanged(1, ["a", "b/c"], ["d"], 2),
    wire.RunDone(1, "ok", VALUE, None, {"wall_ms": 1.0, "cpu_ms": 2.0, "peak_mb": 3.0}),
    wire.RunDone(1, "error", None, ERROR, None, {"time": [1.5, 2]}, MEDIA),
    wire.WorkerRestarted("it was killed"),
    wire.FileData(1, "a", 0o644, True, b"content"),
    wire.FilesSaved(1, ["b"]),
    wire.ForkParked(1),
    wire.ParkFailed(1, "a thread is running"),
    wire.ForkDropped(1),
    wire.Promoted(1, True, ["a"], []),
)
FRAMES = [wire.encode_message(message) for message in MESSAGES]


def mutate_frames(random: Random, data: bytes) -> bytes:
    """Return frames one of which is changed, mostly in its JSON; else change any bytes."""
    try:
        frames = wire.FrameSplitter().feed(data)
    except wire.WireError:
        frames = []
    if not frames or random.random() < 0.1:
        return mutate_bytes(random, data)
    index = random.randrange(len(frames))
    code, body = frames[index]
    head, newline, payload = body.partition(b"\n")
    if random.random() < 0.9:
        head = mutate_json_text(random, head)
    elif newline:
        payload = mutate_bytes(random, payload)
    else:
        code = random.randrange(len(wire.MESSAGE_TYPES) + 2)
    frames[index] = code, head + newline + payload
    frames += [random.choice(frames)] * random.randrange(2)
    if random.random() < 0.5:
        frames += wire.FrameSplitter().feed(random.choice(FRAMES))
    return b"".join(
        (len(body) + 1).to_bytes(4, "big") + bytes((code,)) + body for code, body in frames[-20:]
    )[:MAX_BYTES]


async def decode_link(data: bytes) -> str:
    """Decode frames, whole and in pieces, which must make no difference."""
    whole, pieces = wire.MessageDecoder(), wire.MessageDecoder()
    outcomes = []
    middle = len(data) // 2
    for decoder, chunks in ((whole, [data]), (pieces, [data[:middle], data[middle:]])):
        messages: list[wire.Message] = []
        try:
            for chunk in chunks:
                messages += decoder.iter_messages(chunk)
            outcomes.append((messages, ""))
        except wire.WireError as exc:
            outcomes.append((messages, str(exc)))
    assert outcomes[0] == outcomes[1]
    messages, problem = outcomes[0]
    for message in messages:
        json.dumps(
            {name: value for name, value in vars(message).items() if name != "data"},
            ensure_ascii=False,
        ).encode()
    return " ".join(sorted({type(message).__name__ for message in messages})) + problem


# results ------------------------------------------------------------------------------------------


async def render_result(data: bytes) -> str:
    """Show what a sandbox says of a run, as a client gets it."""
    report = RunReport("r_1", "s_1", 1)
    output = OutputBuffer(lambda _: None, CONFIG.sandbox.output_mb * 1_000_000, {})
    try:
        for message in wire.MessageDecoder().iter_messages(data):
            apply_message(report, output, message)
    except wire.WireError as exc:
        return str(exc)
    output.close()
    report.stdout, report.stderr = output.stream_text("stdout"), output.stream_text("stderr")
    result = build_run_result(report, "s_1", CONFIG)
    text = format_run_result(result)
    assert len(text) <= MAX_RESULT_CHARS, f"the text has {len(text):,} characters"
    check_margin(text)
    answer = run_call_result(result).model_dump_json(by_alias=True)
    assert len(answer) <= 4 * MAX_RESULT_CHARS + sum(len(media["data"]) for media in report.media)
    return " ".join(line.partition(":")[0] for line in text.split("\n") if line[:1].isalpha())


def apply_message(report: RunReport, output: OutputBuffer, message: wire.Message) -> None:
    """Apply a message to the report of a run."""
    match message:
        case wire.Output() if message.stream in ("stdout", "stderr"):
            output.receive_output(message)
        case wire.Call():
            entry = LedgerEntry(message.target, message.args, "error", 1.0, str(message.args))
            entry.forget_large_args()
            report.calls.append(entry)
        case wire.FilesChanged():
            report.changed_files, report.removed_files = message.changed, message.removed
        case wire.RunDone():
            report.apply_done(message, validate_value(message.value), None)


def check_margin(text: str) -> None:
    """Assert that each line at the margin has a label of the server's, and none is there twice."""
    _, *lines = text.splitlines()
    own = [line.partition(":")[0] for line in lines if line and not line.startswith("  ")]
    assert set(own) <= set(LABELS), f"a line at the margin: {set(own) - set(LABELS)}"
    assert len(own) == len(set(own)), f"a label is there twice: {own}"


# the client ---------------------------------------------------------------------------------------

CALL = {"name": "run_code", "arguments": {"code": "1", "session": "x", "timeout_s": 1}}
REQUESTS = (
    {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {**CALL, "_meta": {"a": 1}}},
    {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": {"capabilities": {}}},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "result": {"roots": []}},
    {"jsonrpc": "2.0", "id": 3, "error": {"code": -32000, "message": "no", "data": {}}},
    {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 1, "reason": "Request timed out"},
    },
)


def mutate_lines(random: Random, data: bytes) -> bytes:
    """Return lines one of which is changed."""
    lines = data.split(b"\n")
    index = random.randrange(len(lines))
    lines[index] = mutate_json_text(random, lines[index])
    lines += [random.choice(lines)] * random.randrange(2)
    return b"\n".join(lines[-20:])[:MAX_BYTES]


async def read_lines(data: bytes) -> str:
    """Read lines as a client sends them; what is no message gets a bounded answer."""
    source, sink = os.memfd_create("source"), os.memfd_create("sink")
    try:
        os.write(source, data)
        os.lseek(source, 0, os.SEEK_SET)
        timed_out: list[str] = []
        kinds = set()
        async with open_large_json() as large_json:
            writer = ClientMessageWriter(sink)
            async for message in ClientMessageReader(source, writer, large_json, timed_out.append):
                assert not isinstance(message, Exception)
                kinds.add(type(message.message).__name__)
                encode_client_message(message.message)
        answers = os.pread(sink, 1 << 30, 0).splitlines()
        for answer in answers:
            assert len(answer) <= MAX_ANSWER_BYTES
            kinds.add(json.loads(answer)["error"]["message"])
        return " ".join(sorted(kinds))
    finally:
        os.close(source)
        os.close(sink)


# archives -----------------------------------------------------------------------------------------


def mutate_archive(random: Random, data: bytes) -> bytes:
    """Return an archive with a changed member whose digest is right again, or any changed bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = {name: file.read(name) for name in file.namelist()}
    except Exception:  # noqa: BLE001 - what the mutation of bytes has made of it
        return mutate_bytes(random, data)
    if not members or random.random() < 0.15:
        return mutate_bytes(random, data)
    name = random.choice(list(members))
    if name == "events.jsonl":
        members[name] = mutate_lines(random, members[name])
    else:
        members = replace_member(members, name, mutate_json_text(random, members[name]))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", random.choice((0, 8))) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()[:MAX_BYTES]


def replace_member(members: dict[str, bytes], name: str, content: bytes) -> dict[str, bytes]:
    """Return members with one replaced; one that is named by its digest is renamed everywhere."""
    folder, _, digest = name.rpartition("/")
    if not folder:
        return {**members, name: content}
    new = sha256(content).hexdigest()
    return {
        each.replace(digest, new): content
        if each == name
        else old.replace(digest.encode(), new.encode())
        for each, old in members.items()
    }


class ArchiveImporter:
    """Imports archives into journals that are replaced now and then, and shows their runs."""

    def __init__(self) -> None:
        self._count = 0
        self._journal: Journal | None = None
        self._opened = AsyncExitStack()

    async def run(self, data: bytes) -> str:
        """Import an archive; what is imported can be shown."""
        if self._count % IMPORTS_PER_JOURNAL == 0:
            await self._opened.aclose()
            folder = self._opened.enter_context(tempfile.TemporaryDirectory())
            self._journal = await self._opened.enter_async_context(open_journal(Path(folder)))
        self._count += 1
        assert self._journal is not None
        path = self._journal.data_dir / "archive.zip"
        path.write_bytes(data)
        try:
            session = await import_session(self._journal, path, "me")
        except InvalidRequest as exc:
            return str(exc)
        for row in await self._journal.load_lineage(session.tip):
            run = await load_recorded_run(self._journal, row)
            check_margin(format_run_result(build_run_result(run.report, session.id, CONFIG)))
        return "imported"


# guides -------------------------------------------------------------------------------------------

GUIDES = (
    "---\nname: a-guide\ndescription: Says how.\n---\nText",
    "---\nname: a\ndescription: >\n  Several\n  lines\nmetadata:\n  tags: [a, 'b', \"c\"]\n---\n",
    "---\n{name: a, description: {b: [c, {d: e}]}}\n---\n",
    "---\n? key\n: - a\n  - |\n   text\n---\n",
)


async def read_front_matter(data: bytes) -> str:
    """Read front matter."""
    try:
        found = parse_front_matter(data.decode("utf-8", "replace"))
    except SkillRefused as exc:
        return str(exc)
    assert len(json.dumps(found, ensure_ascii=False).encode()) <= MAX_FRONT_MATTER_BYTES
    return " ".join(sorted({type(value).__name__ for value in found.values()}))


# HTTP -------------------------------------------------------------------------------------------

BODIES = (
    b'{"code": "1 + 1", "session": "x", "timeout_s": 1.5, "background": true}',
    b'{"line": 3, "expression": "n", "max_hits": 5}',
    b'{"step": 1, "answers": [{"call": 1, "value": {"a": 1}}], "following": true}',
    b"token=mcprt_0_x&next=%2Fs%2Fx&code=abc",
    b"csrf=a%20b&decision=allow&answer=%7B%22a%22%3A1%7D",
    b"q=a+b&offset=20&limit=5&after=r_1:3.1",
)
FORM_TYPE = "application/x-www-form-urlencoded"
MODELS = sorted(
    {
        each
        for module in (api_models, inspection_models)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, RequestModel) and each is not RequestModel
    },
    key=lambda model: model.__name__,
)


def make_request(data: bytes, content_type: str) -> Request:
    """Return a request with a body, which is its query, too, as far as that is valid."""
    sent = iter((data[: len(data) // 2], data[len(data) // 2 :]))

    async def receive() -> Message:
        part = next(sent, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"content-type", content_type.encode())],
        "query_string": data[:MAX_QUERY_BYTES],
    }
    return Request(scope, receive)


async def read_requests(data: bytes) -> str:
    """Read a form, and the body and the query of each route."""
    if ValueCounter().feed(data) > MAX_BODY_VALUES:
        return TOO_MANY  # as the server says it before anything is read
    outcomes = set()
    try:
        form = await read_form(make_request(data, FORM_TYPE))
        assert all(isinstance(value, str) for value in form.values())
        outcomes.add(f"form of {min(len(form), 5)}")
    except InvalidRequest as exc:
        outcomes.add(str(exc))
    for model in MODELS:
        try:
            (await read_body(make_request(data, "application/json"), model)).model_dump_json()
            outcomes.add(model.__name__)
        except BadRequest as exc:
            check_problem(exc)
            outcomes.add(exc.problem.detail)
        try:
            read_query(make_request(data, FORM_TYPE), model).model_dump_json()
            outcomes.add(f"query of {model.__name__}")
        except BadRequest as exc:
            check_problem(exc)
    return " ".join(sorted(outcomes))[:MAX_OUTCOME_CHARS]


def check_problem(exc: BadRequest) -> None:
    """Assert that the answer to an invalid request is bounded."""
    answer = problem_response(exc.problem).body
    assert len(answer) <= MAX_PROBLEM_BYTES, f"a problem has {len(answer):,} bytes"


# packages ---------------------------------------------------------------------------------------

SCRIPTS = (
    b'# /// script\n# dependencies = ["scipy>=1.14", '
    b"'a.b_c[x,y]~=2; python_version>\"3\"']\n# ///\n",
    b'# /// script\n# dependencies = [\n#   "a==1",\n# ]\n# [tool.mcpruntime.packages]\n'
    b'# a = { version = "1", sha256 = "' + b"a" * 64 + b'" }\n# ///\nx = 1\n',
    b"# /// script\n# /// script\n#\n# ///\n# ///\n",
)


async def read_packages(data: bytes) -> str:
    """Read the block of a script, in a sandbox and on the host, and the names in it."""
    code = data.decode("utf-8", "replace")
    listed = find_packages(code)
    texts = find_script_dependencies(code)
    outcome = f"{min(len(listed), 3)} listed, {min(len(texts), 3)} found: "
    try:
        requirements = parse_requirements(texts)
    except CallFailed as exc:
        return outcome + str(exc)
    refused = find_refused(requirements, ["scipy*", "a-b*", "a"])
    for each in requirements:
        assert each.url is None
        assert re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", each.name)
        assert "\n" not in str(each)
    parse_installed(dict.fromkeys(texts, "1.0"))
    return outcome + ("refused" if refused else "allowed")


# web requests -----------------------------------------------------------------------------------

WEB_RULES = (
    "GET,HEAD https://api.example.com/v1/*/items/*",
    "https://*.example.org",
    "POST http://localhost:8080/a*b*c",
    "https://[::1]:8443",
)
WEB_CALLS = (
    {
        "target": "web.GET api.example.com",
        "args": {
            "url": "https://api.example.com/v1/a%20b/items/3?x=1#y",
            "headers": [["Accept", "*/*"], ["X-A", "b"]],
        },
    },
    {
        "target": "web.POST localhost:8080",
        "args": {"url": "http://localhost:8080/axbyc", "body": {"base64": "YWJj"}},
    },
    {
        "target": "web.POST localhost:8080",
        "args": {
            "url": "http://localhost:8080/axbyc",
            "body": {"pieces": ["a" * 64, "b" * 64], "size": 300_000},
        },
    },
    {"target": "web.GET [::1]:8443", "args": {"url": "https://[::1]:8443/", "body": None}},
    {"target": "web.PUT a.b.example.org", "args": {"url": "https://a.b.example.org/?q=%2e%2e"}},
)


async def ask_for_address(data: bytes) -> str:
    """Decide about a request as code words it; what is allowed goes where the rule says."""
    try:
        call = json.loads(data)
        target, args = call["target"], call["args"]
        wire.Call(1, 1, target, args).check()
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        return f"no call: {type(exc).__name__}"
    if not isinstance(target, str) or not isinstance(args, dict):
        return "no call"
    rules = [parse_rule(text) for text in WEB_RULES]
    with suppress(ValueError):
        rules.append(parse_rule(str(args.get("url"))))
    try:
        method, address = check_address(target, args)
        headers = check_headers(args.get("headers", []))
    except CallFailed as exc:
        return str(exc)
    assert not re.search(rb"[\r\n\0]", b"".join(part for header in headers for part in header))
    assert not re.search("[\r\n\0 ]", address.url)
    assert (urlsplit(address.url).hostname or "") == address.host
    with suppress(CallFailed):
        check_body(args.get("body"))
    assert len(json.dumps(summarize_request(address, args.get("body")))) <= MAX_SUMMARY_CHARS
    matching = [rule.host for rule in rules[: len(WEB_RULES)] if rule.matches(method, address)]
    for host in matching:
        assert address.host == host or address.host.endswith(host.lstrip("*"))
    return f"{method} {matching}"


PROXY_REQUESTS = (
    b"GET http://localhost:8080/a?b=c HTTP/1.1\r\nHost: localhost:8080\r\nX-A: b\r\n\r\n",
    b"POST http://api.example.com/v1 HTTP/1.1\r\nContent-Length: 5\r\n"
    b"Expect: 100-continue\r\n\r\nabc\xffe",
    b"PUT http://[::1]:8080/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: X-A, close\r\n"
    b"X-A: b\r\n\r\n3;x=y\r\nabc\r\n400\r\n" + b"d" * 1024 + b"\r\n0\r\nTrailer: 1\r\n\r\n",
    b"HEAD HTTP://A.B.Example.ORG:80 HTTP/1.1\r\nhost:a.b.example.org\r\n\r\n"
    b"GET http://a.b.example.org/ HTTP/1.1\r\n\r\n",
    b"CONNECT api.example.com:443 HTTP/1.1\r\n\r\n",
    b"RELEASE * HTTP/1.1\r\n\r\n",
)


class HostSide:
    """Reads the calls of a web proxy as the host does; each answer repeats the headers."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def start_call(
        self, waiter: Any, target: str, args: dict[str, Any], data: bytes = b"", order: int = 0
    ) -> int:
        """Answer a call at once."""
        sent = wire.Call(1, 0, target, args, data=data, order=order)
        [call] = wire.MessageDecoder().decode_messages(wire.encode_message(sent))
        assert call == sent
        waiter.wake(self._answer(sent))
        return 1

    def _answer(self, call: wire.Call) -> wire.Reply:
        target, args = call.target, call.args
        if target == web_proxy.UPLOAD_TARGET:
            assert 0 < len(call.data) <= web_proxy.MAX_INLINE_BYTES
            return wire.Reply(1, sha256(call.data).hexdigest())
        assert isinstance(args["url"], str)
        try:
            method, address = check_address(target, args)
            headers = check_headers(args["headers"])
            check_body(args.get("body"))
        except CallFailed as exc:
            self.outcomes.append(str(exc))
            return wire.Reply(1, None, {"kind": exc.kind, "message": str(exc), "data": None})
        assert not re.search(rb"[\r\n\0]", b"".join(part for header in headers for part in header))
        assert len(json.dumps(summarize_request(address, args.get("body")))) <= MAX_SUMMARY_CHARS
        self.outcomes.append(f"{method} {sorted(args)}")
        shown = [[name.decode(), value.decode("latin-1")] for name, value in headers]
        body = {"text": ""} if "pieces" in args.get("body", {}) else args.get("body")
        return wire.Reply(1, {"status": 200, "reason": "OK", "headers": shown, "body": body})

    def request_certificate(self, waiter: Any, host: str) -> str:
        """Return that there is none."""
        self.outcomes.append("a tunnel")
        return ""


async def serve_connection(data: bytes) -> str:
    """Send what is no request, or several, to the proxy of a sandbox."""
    ours, theirs = socket.socketpair()
    host: Any = HostSide()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_PROXY_BYTES)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * MAX_PROXY_BYTES)
        ours.sendall(data[:MAX_PROXY_BYTES])
        ours.shutdown(socket.SHUT_WR)
        kept = web_proxy.KeptConnections()
        contexts = web_proxy.TlsContexts(host, "", "")
        web_proxy.ClientConnection(theirs, ("127.0.0.3", 1), host, contexts, kept).serve()
        assert theirs.fileno() == -1
        answer = b""
        with suppress(ConnectionResetError):  # not all that was sent has been read
            answer = b"".join(iter(lambda: ours.recv(1 << 20), b""))
    assert not answer or answer.startswith((b"HTTP/1.1 ", b"127.0.0."))
    return " ".join([*host.outcomes, answer.partition(b"\r\n")[0].decode("latin-1")])


# printed output ---------------------------------------------------------------------------------

PRINTED = (
    b"plain <b>text</b> & more\n\x1b[1;31mred\x1b[0m\r50 %\r100 %\n",
    b"\x1b[38;5;196mx\x1b[48;2;1;2;3my\x1b]0;title\x07z\x1b[2K\x1b[m\n",
    b"\x1bPq#0\x1b\\\x1b(B\x9b31m\xe2\x80\xae'\"`\n",
)
CLASS_NAMES = re.compile('class="([^"]*)"')
OWN_MARKUP = re.compile(r'<span class="(?:ansi-[a-z0-9]+(?: ansi-[a-z0-9]+)*|cut)">|</span>')


async def render_printed(data: bytes) -> str:
    """Render printed lines as markup, which is text and elements of the server's own."""
    style, classes = PLAIN, set()
    for line in data.decode("utf-8", "replace").split("\n")[:MAX_LINES]:
        markup, after = render_line(line, style)
        skip_styles(line, style)
        style = after
        text = OWN_MARKUP.sub("", markup)
        assert not set(text) & set("<>\"'"), "markup that is not the server's own"
        assert not CONTROL.search(text.replace("\t", ""))
        assert len(text) <= MAX_MARKUP_CHARS, f"a line has {len(text):,} characters"
        classes.update(CLASS_NAMES.findall(markup))
    return " ".join(sorted(classes))[:MAX_OUTCOME_CHARS]


# large arguments ---------------------------------------------------------------------------------

LARGE_CALLS = tuple(
    wire.encode_message(message)[wire.HEADER_BYTES :]
    for message in (
        wire.Call(1, 1, "tools.lively.echo", {"text": "a" * 300, "n": [1.5, None]}, 3),
        wire.Call(2, 1, "tools.x.y", {"\u2028": {"b": ["\\", '"', "\u00e9"]}}, None, {"time": [1]}),
        wire.Call(3, 1, "x.y", {}, 1, None, b"data"),
    )
)


async def read_large_call(data: bytes) -> str:
    """Read a call in the way of large ones, which must be that of all others."""
    head, found = read_call({"max_shown_chars": MAX_SHOWN_CHARS}, data)
    try:
        call, problem = wire.decode_message(wire.TYPE_CODES[wire.Call], data), ""
    except wire.WireError as exc:
        call, problem = None, str(exc)
    # Which of two reasons is found first depends on the depth of the stack.
    assert bool(head.get("invalid")) == bool(problem)
    if call is None:
        return problem
    assert isinstance(call, wire.Call)
    if not head:
        return "read by the server itself"
    text, journaled = found[: head["args_bytes"]], found[head["args_bytes"] :]
    assert len(found) <= MAX_GROWTH * len(data)
    assert text.decode("ascii") == canonical_json(call.args)
    assert json.loads(journaled) == text.decode("ascii")
    assert head["digest"] == sha256(text).hexdigest()
    assert head["names"] == sorted(call.args)
    assert wire.Call(args=call.args, **head["fields"]) == call
    assert len(head["shown"]) <= 2 * MAX_SHOWN_CHARS + len(call.target)  # names and values are cut
    arguments = EncodedArguments(
        data=text,
        names=tuple(head["names"]),
        digest=head["digest"],
        journaled=journaled,
        shown=head["shown"],
    )
    assert await send_spliced(arguments) == {"arguments": call.args}
    return f"{len(head['names'])} arguments"


async def send_spliced(arguments: EncodedArguments) -> Any:
    """Return the body of a request in which large arguments take the place of a name."""
    spliced = SplicedArguments()
    with spliced.stand_in(arguments) as sent:
        body = json.dumps({"arguments": sent}, separators=(",", ":"))
        request = spliced.fill_in(httpx2.Request("POST", "http://localhost", content=body))
    assert isinstance(request.stream, PieceStream)
    filled = b"".join([part async for part in request.stream])
    assert request.headers["content-length"] == str(len(filled))
    return json.loads(filled)


LONG_TEXTS = tuple(
    json.dumps({"jsonrpc": "2.0", "params": {"arguments": each, "_meta": each}}).encode()
    for each in ({"code": 'x = "a"\n' * 300}, [["\u20ac\U0001f600" * 700, 1.5]], "\ud800" * 1_001)
)


async def split_json_text(data: bytes) -> str:
    """Take the long texts out of JSON and put them in again, which must be what it was."""
    try:
        expected: Any = json.loads(data)
    except (ValueError, RecursionError):
        expected = None
    outcomes = []
    for within in ([], ["arguments"]):
        head, found = split_json({"within": within}, data)
        split = await read_reply(head, memoryview(found))
        assert len(found) <= MAX_GROWTH * len(data)
        if not split.rest:
            assert expected is None or within, "JSON that was refused"
            return "invalid"
        filled = split.fill_in(json.loads(split.rest))
        try:
            found_text = json.dumps(escape_json_surrogates(filled))
            assert found_text == json.dumps(escape_json_surrogates(expected))
        except RecursionError:
            return "deep"
        outcomes.append(("none", "one", "some")[min(len(split.texts), 2)])
    return ", ".join(outcomes)


# texts of the journal -----------------------------------------------------------------------------

ENCODED_TEXTS = tuple(
    encode_json(each).encode()
    for each in (
        "printed\ntext\n",
        "\x1b[31mred\x1b[0m\n\\n \\u001b \\\\",
        '\u00e9\U0001f600"\ud800\x00\u2028' * 3,
        "",
    )
)


async def look_into_text(data: bytes) -> str:
    """Measure and cut a text as a blob holds it, which must be what decoding it finds."""
    try:
        extent = measure_encoded_text(data)
        pieces = list(iter_text_pieces(io.BytesIO(data), 8))
    except ValueError as exc:
        return str(exc)
    try:
        text = decode_json(data.decode("ascii"))
    except ValueError as exc:  # whoever shows such a text says that it is damaged
        return str(exc)
    if not isinstance(text, str) or encode_json(text).encode() != data:
        return "not as it is written"
    assert extent == measure_text(text)
    assert all(isinstance(decode_json(f'"{each.decode("ascii")}"'), str) for each in pieces)
    whole = b"".join(iter_text_pieces(io.BytesIO(data), 0))
    assert whole == data[1:-1]
    return f"{min(extent.newline_count, 3)} lines, {'styled' if extent.styled else 'plain'}"


# tables -------------------------------------------------------------------------------------------

TABLES = (
    b'a,-1.5\n"=1\n2",+1e9\n-x,@y\n',
    b'"x""y",,\r\n\t=1, =2,1e5\r\n',
    b'[{"a":1,"=b":"x"},{"c":[1]}]',
    b'{"a":[1,2],"@b":["-x",null]}',
    b'[["=1",[2]],[]]',
)


async def write_tables(data: bytes) -> str:
    """Write CSV and JSON of sandboxed code as a table, in which no cell is a formula."""
    outcomes = []
    value: RunValue = {
        "kind": "json",
        "text": data.decode("utf-8", "replace"),
        "type": "list",
        "cut": False,
    }
    for is_frame in (True, False):
        out = io.StringIO()
        try:
            if is_frame:
                copy_guarded(out, io.BytesIO(data))
            else:
                write_csv(out, value)
        except Conflict as exc:
            outcomes.append(str(exc))
            continue
        except (ValueError, RecursionError) as exc:  # of a value that is not JSON, as is_table says
            outcomes.append(type(exc).__name__)
            continue
        try:
            rows = list(csv.reader(io.StringIO(out.getvalue(), newline="")))
        except csv.Error as exc:  # a cell is longer than this module reads
            outcomes.append(str(exc))
            continue
        cells = [cell for row in rows for cell in row]
        for cell in cells:
            assert NUMBER.fullmatch(cell) or not cell.lstrip(" ").startswith(FORMULA_STARTS)
        quoted = "guarded " if any(cell.startswith("'") for cell in cells) else ""
        outcomes.append(f"{quoted}{'many' if len(rows) > 3 else 'few'} rows")
    return "; ".join(outcomes)[:MAX_OUTCOME_CHARS]


# answers of models --------------------------------------------------------------------------------

MODEL_ANSWERS = (
    b'I do it.\n```python\nx = 1\n```\nThen\n~~~py\ny = """\n~~~\n"""\n~~~\n',
    b'Here:\n```json\n{"value": [1, {"a": "b"}]}\n```\n',
    b'{"value": "text"} and {"a": 1}',
    b"   ```{python} title=x\n   SUBMIT(1)",
)
WRAPPED_TEXT = {
    "type": "object",
    "properties": {"value": {"type": "string"}},
    "required": ["value"],
}


async def read_model_answer(data: bytes) -> str:
    """Look for a program and for a value in what a model has said."""
    answer = data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")
    outcomes = []
    for is_truncated in (False, True):
        try:
            assert extract_program(answer, is_truncated=is_truncated).strip()
            outcomes.append("a program")
        except NoProgramFound as exc:
            outcomes.append(str(exc))
    try:
        value = read_answer(answer, WRAPPED_TEXT)
        assert "value" in value
        json.dumps(value)
        outcomes.append("a value")
    except ValueError as exc:
        outcomes.append(str(exc))
    return "; ".join(outcomes)[:MAX_OUTCOME_CHARS]


def name_outcome(text: str) -> str:
    """Return an outcome without what differs from input to input."""
    return re.sub(r"'.*'|\".*\"|\d+|/\S+", "·", text, flags=re.DOTALL)[:100]


TARGETS = {
    "link": Target(FRAMES, mutate_frames, decode_link),
    "lines": Target(
        [json.dumps(each).encode() for each in REQUESTS],
        mutate_lines,
        read_lines,
    ),
    "archive": Target(
        [path.read_bytes() for path in sorted(SEEDS.glob("*.zip"))],
        mutate_archive,
        ArchiveImporter().run,
    ),
    "guide": Target([each.encode() for each in GUIDES], mutate_bytes, read_front_matter),
    "result": Target(FRAMES, mutate_frames, render_result),
    "request": Target(BODIES, mutate_json_text, read_requests),
    "package": Target(SCRIPTS, mutate_bytes, read_packages),
    "web": Target(
        [json.dumps(each).encode() for each in WEB_CALLS], mutate_json_text, ask_for_address
    ),
    "proxy": Target(PROXY_REQUESTS, mutate_bytes, serve_connection),
    "printed": Target(PRINTED, mutate_bytes, render_printed),
    "large call": Target(LARGE_CALLS, mutate_json_text, read_large_call),
    "large JSON": Target(LONG_TEXTS, mutate_json_text, split_json_text),
    "text": Target(ENCODED_TEXTS, mutate_bytes, look_into_text),
    "table": Target(TABLES, mutate_bytes, write_tables),
    "answer": Target(MODEL_ANSWERS, mutate_bytes, read_model_answer),
}
