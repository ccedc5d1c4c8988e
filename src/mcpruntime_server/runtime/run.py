"""One execution of code: it listens to the sandbox, writes the journal, and knows its result.

A run belongs to its session. Whoever asked for it only watches: `news` waits for something new.
"""

from __future__ import annotations

import codecs
import json
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio

from ..errors import JournalFailed, McpRuntimeError, SandboxFailed
from ..journal.events import ClocksRead, FileEntry, FilesChanged, Output, RunFinished, RunStarted
from ..journal.store import Journal
from ..kernel import wire
from ..kernel.present import NotJson, json_text, shorten
from ..sandbox.link import Link
from .calls import CallLog, LedgerEntry, Router
from .overflow import Overflow

Status = Literal["running", "ok", "error", "timeout", "crashed", "cancelled"]

FILE_OVERHEAD = 64 * 1024 * 1024  # bytes of file content that a sandbox may send beyond its workspace's size
OUTPUT_OVERHEAD = 1024 * 1024  # bytes that a sandbox may send beyond the limit that its own kernel keeps
USAGE = ("wall_ms", "cpu_ms", "peak_mb")
MAX_FIGURE = 1e15  # of usage; more is not a measurement
REASON_CHARS = 300  # of what a sandbox says about the end of an interpreter
TEXT_CHARS = 16_000  # of an error's message or traceback; the kernel sends half of that at most

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a run may leave behind: bytes of files and of output; characters and items of what a client is shown."""

    files: int
    output: int
    shown: int
    items: int


def new_run_id() -> str:
    """Return an id that nobody can guess."""
    return f"r_{secrets.token_urlsafe(9)}"


@dataclass
class Report:
    """What is known of a run so far; the same for a run under way and one read back from the journal."""

    run: str
    session: str
    step: int
    status: Status = "running"
    value: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    stdout: str = ""
    stderr: str = ""
    calls: list[LedgerEntry] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    usage: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # field that is too long to show -> file that holds it whole


class Run:
    """Code on its way through a sandbox."""

    def __init__(
        self,
        start: RunStarted,
        session: str,
        journal: Journal,
        router: Router,
        limits: Limits,
        overflow: Overflow,
        stale: Collection[str] = (),
    ) -> None:
        self.start = start
        self._stale = sorted(stale)
        self.report = Report(start.run, session, start.step)
        self.failure: McpRuntimeError | None = None  # why there is nothing to report
        self.finished = anyio.Event()  # its report is whole
        self._recording: Callable[[], Awaitable[Any]] | None = None
        self._news: anyio.Event | None = None  # set at the next piece of output, if somebody waits for it
        self._session = session
        self._journal = journal
        self._router = router
        self._log = CallLog(journal, session, start.run)
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")("backslashreplace") for name in ("stdout", "stderr")
        }
        self._texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._limits = limits
        self._overflow = overflow
        self._output_room = 2 * (limits.output + OUTPUT_OVERHEAD)  # of both streams
        self._link: Link | None = None
        self._cancelled = False
        self._asked = time.perf_counter()
        self._files = Files(limits.files + FILE_OVERHEAD)

    # what a request may do ------------------------------------------------------------------------

    def cancel(self) -> None:
        """Interrupt the code, or keep it from starting; the session stays."""
        self._cancelled = True
        if self._link is not None:
            self._link.stop("cancelled")

    def output_since(self, seen: dict[str, int]) -> dict[str, str]:
        """Return what each stream printed since `seen` (stream to pieces), and bring `seen` up to date."""
        news = {}
        for name, pieces in self._texts.items():
            news[name] = "".join(pieces[seen.get(name, 0) :])
            seen[name] = len(pieces)
        return news

    def elapsed_s(self) -> float:
        """Return the seconds since it was asked for."""
        return time.perf_counter() - self._asked

    async def news(self) -> None:
        """Wait until it has printed something more, or is finished."""
        if not self.finished.is_set():
            self._news = self._news or anyio.Event()
            await self._news.wait()

    def _notify(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    # its way through a sandbox --------------------------------------------------------------------

    async def execute(self, get_link: Callable[[], Awaitable[Link]]) -> None:
        """Run the code to its end; whatever happens, the run is finished, journaled and told afterwards."""
        try:
            self._journal.append(self._session, self.start, self.start.run)
            if not self._cancelled:
                self._link = await get_link()
            if self._link is None or self._cancelled:
                self.report.status = "cancelled"
            else:
                await self._execute_in(self._link)
        except McpRuntimeError as exc:
            self._fail(exc)
        except BaseException:
            self.report.status = "cancelled"
            raise
        finally:
            self._finish()

    async def _execute_in(self, link: Link) -> None:
        report = self.report
        report.usage["setup_ms"] = (time.perf_counter() - self._asked) * 1e3
        try:
            start = self.start
            done, stopped = await link.execute(start.code, start.name, self, start.timeout_s, self._stale)
            self._conclude(done, stopped, link)
        except SandboxFailed as exc:
            report.status = "cancelled" if self._cancelled else "crashed"
            report.error = {"type": "SandboxFailed", "message": str(exc), "traceback": "", "line": None}
            report.notes.append("The session goes on in a new sandbox: variables are gone, saved files are kept.")
        except JournalFailed as exc:
            self._fail(exc)
        except Exception:  # a mistake of ours must not take the other sessions with it
            logger.exception("run %s failed inside the server", self.start.run)
            link.fail("the server made a mistake, which its log describes")
            self._fail(McpRuntimeError("The run failed inside the server; its log says why."))

    def _fail(self, failure: McpRuntimeError) -> None:
        self.failure = failure
        self.report.status = "crashed"
        self.report.error = {"type": type(failure).__name__, "message": str(failure), "traceback": "", "line": None}

    def _conclude(self, done: wire.Done, stopped: str | None, link: Link) -> None:
        report = self.report
        report.value, report.error = _checked_value(done.value), _checked_error(done.error)
        report.usage |= _checked_usage(done.usage)
        if done.clocks:
            self._journal.append(self._session, ClocksRead(_checked_readings(done.clocks)), self.start.run)
        if stopped is not None:
            report.status = "timeout" if stopped == "timeout" else "cancelled"
        elif done.status == "ok":
            report.status = "ok"
        else:
            report.status = "crashed" if done.status == "died" else "error"
        if stopped == "timeout":
            report.notes.append(f"Stopped after {self.start.timeout_s:g} s; pass a larger timeout_s if it needs more.")
        if link.restarts:  # in this run or since the last one
            reason = shorten(link.restarts[-1], REASON_CHARS)[0]
            report.notes.append(f"{reason} Variables are gone; workspace files are kept.")
            link.restarts.clear()
        elif stopped is not None:
            report.notes.append("Variables and files are kept as they were when the code stopped.")

    def _finish(self) -> None:
        report = self.report
        report.calls = self._log.ledger
        report.usage["total_ms"] = (time.perf_counter() - self._asked) * 1e3
        report.usage = {name: round(value, 3) for name, value in report.usage.items()}
        flags = ["state_lost"] if report.status == "crashed" else []
        try:
            for name, decoder in self._decoders.items():
                self._print(name, decoder.decode(b"", final=True), 0)
            event = RunFinished(report.status, report.value, report.error, report.usage, flags)
            self._journal.append(self._session, event, self.start.run)
            self._recording = self._journal.begin_flush()
        except (JournalFailed, ValueError) as exc:
            report.notes.append(f"The end of this run could not be journaled: {exc}")
        report.stdout, report.stderr = "".join(self._texts["stdout"]), "".join(self._texts["stderr"])
        self._keep_what_is_cut()
        self._link = None
        self.finished.set()
        self._notify()

    def _keep_what_is_cut(self) -> None:
        """Have the code find what is too long to be shown whole."""
        report, link, limits = self.report, self._link, self._limits
        long = {name: text for name in ("stdout", "stderr") if len(text := getattr(report, name)) > limits.shown}
        if report.value is not None and shown_value(report.value, limits.shown, limits.items)[1]:
            long["value"] = report.value["text"]
        if link is not None and not link.closed.is_set():
            kept = {name: self._overflow.keep(link, f"{report.run}.{name}", text) for name, text in long.items()}
            report.kept = {name: path for name, path in kept.items() if path}

    async def recorded(self) -> str:
        """Wait until a crash of the server would not lose this run; return what to tell the client if it would."""
        try:
            if self._recording is not None:
                await self._recording()
        except JournalFailed as exc:
            return f"This run could not be recorded: {exc}"
        return ""

    # what the sandbox sends -----------------------------------------------------------------------

    def on_output(self, message: wire.Output) -> None:
        """Take printed bytes; a character that is split between two messages is put together."""
        decoder = self._decoders.get(message.stream)
        if decoder is None:
            return  # a stream that no kernel of ours has
        self._output_room -= len(message.data)
        if self._output_room < 0:
            raise wire.WireError("more output than its kernel lets through")
        if message.dropped > 0:
            self._print(
                message.stream, f"\n[{message.dropped:,} bytes of output dropped: limit reached]\n", message.dropped
            )
        self._print(message.stream, decoder.decode(message.data), 0)
        self._notify()

    def _print(self, stream: str, text: str, dropped: int) -> None:
        if text:
            self._texts[stream].append(text)
            self._journal.append(self._session, Output(stream, text, dropped), self.start.run)

    def on_files(self, message: wire.Files) -> None:
        """Note which files changed; their content follows."""
        self.report.changed, self.report.removed = message.changed, message.removed
        if message.passed_over > 0:
            self.report.notes.append(
                f"{message.passed_over:,} files in the workspace are not kept: too many, or their names are not UTF-8."
            )

    def on_file_data(self, message: wire.FileData) -> None:
        """Take a piece of a changed file."""
        self._files.take(message)

    def on_saved(self, message: wire.Saved) -> None:
        """All files are here; whoever wants them has waited for the link."""

    async def on_call(self, message: wire.Call) -> wire.Reply:
        """Answer what the code asks for."""
        return await self._router.answer(message, self._log)

    async def store_files(self) -> dict[str, FileEntry]:
        """Keep the content of the changed files that has come; return what changed, by path."""
        changed = {}
        for path, (mode, data) in self._files.complete.items():
            digest = await self._journal.put_blob(data)
            changed[path] = FileEntry(digest=digest, size=len(data), mode=mode)
        self._files.complete.clear()
        if changed or self.report.removed:
            self._journal.append(self._session, FilesChanged(changed, self.report.removed), self.start.run)
        return changed


class Files:
    """Puts the pieces of files together; a sandbox that sends too much breaks the protocol."""

    def __init__(self, limit: int) -> None:
        self.complete: dict[str, tuple[int, bytes]] = {}
        self._room = limit
        self._pieces: list[bytes] = []

    def take(self, message: wire.FileData) -> None:
        """Take one piece; raises `WireError` beyond the limit."""
        if "\0" in message.path or not {"", ".", ".."}.isdisjoint(message.path.split("/")):
            raise wire.WireError(f"not a path in the workspace: {message.path!r:.80}")
        self._room -= len(message.data)
        if self._room < 0:
            raise wire.WireError("more file content than the workspace can hold")
        self._pieces.append(message.data)
        if message.last:
            self.complete[message.path] = (message.mode & 0o777, b"".join(self._pieces))
            self._pieces = []


def shown_value(value: Mapping[str, Any], limit: int, items: int) -> tuple[Any, bool]:
    """Return a run's value as a client gets it, and whether these limits cut it.

    JSON data is given as itself, with at most `items` items a list or object, everything else as text.
    """
    text = value["text"]
    if value["kind"] == "json":
        data = wire.spelled_out(json.loads(text))
        if len(text) <= limit and text.count(",") < items:
            return data, False
        text, cut = json_text(data, limit, items)
        return json.loads(text), cut
    return shorten(text, limit)


def _checked_value(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a sandbox says is the value, made sure to be what `present` returns."""
    if value is None:
        return None
    text = str(value.get("text"))
    kind = "json" if value.get("kind") == "json" and _is_json(text) else "repr"
    return {"kind": kind, "text": text, "type": str(value.get("type"))[:200], "cut": bool(value.get("cut"))}


def _is_json(text: str) -> bool:
    try:
        json_text(json.loads(text), len(text))
    except (NotJson, ValueError, RecursionError):
        return False
    return True


def _checked_usage(usage: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what a sandbox says it used, made sure to be figures that can be written down."""
    found = ((name, (usage or {}).get(name)) for name in USAGE)
    return {name: value for name, value in found if isinstance(value, (int, float)) and 0 <= value <= MAX_FIGURE}


def _checked_readings(clocks: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return what a sandbox says its clocks told the code, made sure to be lists of numbers."""
    lists = {str(name): values for name, values in clocks.items() if isinstance(values, list)}
    return {name: [value for value in values if _is_figure(value)] for name, values in lists.items()}


def _is_figure(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _checked_error(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a sandbox says is the error, made sure to be what `describe_error` returns."""
    if error is None:
        return None
    line = error.get("line")
    texts = {name: shorten(str(error.get(name, "")), TEXT_CHARS)[0] for name in ("type", "message", "traceback")}
    return {**texts, "line": line if type(line) is int else None}
