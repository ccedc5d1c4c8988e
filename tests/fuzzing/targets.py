"""What is fuzzed. A target returns what came of an input, in few words; any exception is a find.

Each target handles the typed errors of its reader and returns their text. Assertions say what else
must be true of any input.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

from mcpruntime_server.capabilities.skills.guides import parse_front_matter
from mcpruntime_server.config import Config
from mcpruntime_server.errors import InvalidRequest, SkillRefused
from mcpruntime_server.journal import Journal, open_journal
from mcpruntime_server.journal.archive import import_session
from mcpruntime_server.protocol import wire
from mcpruntime_server.runtime.call_ledger import LedgerEntry
from mcpruntime_server.runtime.output_buffer import OutputBuffer
from mcpruntime_server.runtime.run_history import load_recorded_run
from mcpruntime_server.runtime.run_report import RunReport, validate_value
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

from .mutation import MAX_BYTES, Mutator, mutate_bytes, mutate_json_text

SEEDS = Path(__file__).parent / "seeds"
MAX_ANSWER_BYTES = 2_000  # to a line that is no message
MAX_FRONT_MATTER_BYTES = 100_000
MAX_RESULT_CHARS = 200_000
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
        reader = ClientMessageReader(source, ClientMessageWriter(sink), timed_out.append)
        kinds = set()
        async for message in reader:
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
}
