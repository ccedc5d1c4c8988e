"""One execution of code: it listens to the sandbox, writes the journal, and knows its result.

A run belongs to its session. Whoever asked for it only watches: `changed` is set whenever there is something new.
"""

from __future__ import annotations

import codecs
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio

from ..errors import JournalFailed, SandboxFailed
from ..journal.events import ClocksRead, FileEntry, FilesChanged, Output, RunFinished, RunStarted, canonical_json
from ..journal.store import Journal
from ..kernel import wire
from ..sandbox.link import Link
from .calls import CallLog, LedgerEntry, Router

Status = Literal["running", "ok", "error", "timeout", "crashed", "cancelled"]

FILE_OVERHEAD = 64 * 1024 * 1024  # bytes of file content that a sandbox may send beyond its workspace's size


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


class Run:
    """Code on its way through a sandbox."""

    def __init__(self, start: RunStarted, session: str, journal: Journal, router: Router, file_limit: int) -> None:
        self.start = start
        self.report = Report(start.run, session, start.step)
        self.finished = anyio.Event()
        self.changed = anyio.Event()
        self._session = session
        self._journal = journal
        self._router = router
        self._log = CallLog(journal, session, start.run)
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")("backslashreplace") for name in ("stdout", "stderr")
        }
        self._texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._printed = {"stdout": 0, "stderr": 0}
        self._link: Link | None = None
        self._cancelled = False
        self._asked = time.perf_counter()
        self._files = Files(file_limit + FILE_OVERHEAD)
        self.saved = anyio.Event()

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

    def _notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    # its way through a sandbox --------------------------------------------------------------------

    async def execute(self, get_link: Callable[[], Awaitable[Link]]) -> None:
        """Run the code to its end; whatever happens, the run is finished, journaled and told afterwards."""
        report = self.report
        self._journal.append(self._session, self.start, self.start.run)
        try:
            if self._cancelled:
                report.status = "cancelled"
                return
            link = self._link = await get_link()
            report.usage["setup_ms"] = (time.perf_counter() - self._asked) * 1e3
            restarts = len(link.restarts)
            done, stopped = await link.execute(self.start.code, self.start.name, self, self.start.timeout_s)
            self._conclude(done, stopped, link.restarts[restarts:])
        except SandboxFailed as exc:
            report.status = "cancelled" if self._cancelled else "crashed"
            report.error = {"type": "SandboxFailed", "message": str(exc), "traceback": "", "line": None}
            report.notes.append("The session goes on in a new sandbox: variables are gone, saved files are kept.")
        except BaseException:
            report.status = "cancelled"
            raise
        finally:
            self._link = None
            self._finish()

    def _conclude(self, done: wire.Done, stopped: str | None, restarts: list[str]) -> None:
        report = self.report
        report.value, report.error = _checked_value(done.value), _checked_error(done.error)
        used = done.usage or {}
        report.usage |= {name: used[name] for name in ("wall_ms", "cpu_ms", "peak_mb") if name in used}
        if done.clocks:
            self._journal.append(self._session, ClocksRead(_checked_readings(done.clocks)), self.start.run)
        if stopped is not None:
            report.status = "timeout" if stopped == "timeout" else "cancelled"
        elif done.status == "ok":
            report.status = "ok"
        else:
            report.status = "crashed" if done.status == "died" else "error"
        if restarts:
            report.notes.append(f"{restarts[-1]} Variables are gone; workspace files are kept.")

    def _finish(self) -> None:
        report = self.report
        for name, decoder in self._decoders.items():
            self._print(name, decoder.decode(b"", final=True), 0)
        report.stdout, report.stderr = "".join(self._texts["stdout"]), "".join(self._texts["stderr"])
        report.calls = self._log.ledger
        report.usage["total_ms"] = (time.perf_counter() - self._asked) * 1e3
        report.usage = {name: round(value, 3) for name, value in report.usage.items()}
        flags = ["state_lost"] if report.status == "crashed" else []
        try:
            event = RunFinished(report.status, report.value, report.error, report.usage, flags)
            self._journal.append(self._session, event, self.start.run)
        except (JournalFailed, ValueError) as exc:
            report.notes.append(f"The end of this run could not be journaled: {exc}")
        if not report.changed:
            self.saved.set()
        self.finished.set()
        self._notify()

    # what the sandbox sends -----------------------------------------------------------------------

    def on_output(self, message: wire.Output) -> None:
        """Take printed bytes; a character that is split between two messages is put together."""
        decoder = self._decoders.get(message.stream)
        if decoder is None:
            return  # a stream that no kernel of ours has
        if message.dropped:
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

    def on_file_data(self, message: wire.FileData) -> None:
        """Take a piece of a changed file."""
        self._files.take(message)

    def on_saved(self, message: wire.Saved) -> None:
        """All files are here."""
        self.saved.set()

    async def on_call(self, message: wire.Call) -> wire.Reply:
        """Answer what the code asks for."""
        return await self._router.answer(message, self._log)

    async def store_files(self) -> dict[str, FileEntry]:
        """Keep the content of the changed files, once it is here; return what changed, by path."""
        await self.saved.wait()
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
        if message.path.startswith("/") or ".." in message.path.split("/"):
            raise wire.WireError(f"a path outside the workspace: {message.path!r:.80}")
        self._room -= len(message.data)
        if self._room < 0:
            raise wire.WireError("more file content than the workspace can hold")
        self._pieces.append(message.data)
        if message.last:
            self.complete[message.path] = (message.mode & 0o777, b"".join(self._pieces))
            self._pieces = []


def shown_value(value: Mapping[str, Any] | None) -> Any:
    """Return a run's value as a client gets it: JSON data as itself, everything else as its text."""
    if value is None:
        return None
    return wire.spelled_out(json.loads(value["text"])) if value["kind"] == "json" else value["text"]


def _checked_value(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a sandbox says is the value, made sure to be what `present` returns."""
    if value is None:
        return None
    text = str(value.get("text"))
    kind = "json" if value.get("kind") == "json" and _is_json(text) else "repr"
    return {"kind": kind, "text": text, "type": str(value.get("type")), "cut": bool(value.get("cut"))}


def _is_json(text: str) -> bool:
    try:
        canonical_json(json.loads(text))
    except (ValueError, RecursionError):
        return False
    return True


def _checked_readings(clocks: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return what a sandbox says its clocks told the code, made sure to be lists of numbers."""
    lists = {str(name): values for name, values in clocks.items() if isinstance(values, list)}
    return {name: [value for value in values if type(value) in (int, float)] for name, values in lists.items()}


def _checked_error(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a sandbox says is the error, made sure to be what `describe_error` returns."""
    if error is None:
        return None
    line = error.get("line")
    texts = {name: str(error.get(name, "")) for name in ("type", "message", "traceback")}
    return {**texts, "line": line if isinstance(line, int) else None}
