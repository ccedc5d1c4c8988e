"""The lines of events in an archive: making them of rows, and checking and renaming them on the way back.

Rule 1: a run is started before anything refers to it, so lines that have been checked have no cycles and no gaps.
Rule 2: a line refers to blobs of its own archive only, and to no run or session outside it.
Rule 3: what a newer version has written is kept, as long as it is a kind or a field that this one does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NoReturn

from .archive_file import ArchiveReader
from .events import (
    FIELDS,
    KINDS,
    VERSION,
    Answered,
    Asked,
    Event,
    FilesChanged,
    RunFinished,
    RunQueued,
    RunStarted,
    SessionOpened,
    TipMoved,
    from_fields,
    text_of,
)
from .rows import Row, Stored
from .shapes import MAX_INT, fits

KIND = re.compile(r"[a-z0-9_]{1,64}")
MAX_RUNS = 100_000  # kept in memory while an archive is checked
SUMMED = {"run", "parent", "step", "name", "replays", "tip", "left", "origin", "principal", "flags", "status"}
LINE = {"session": int, "n": int, "run": str | None, "at": float, "kind": str, "version": int, "body": dict}


def line_of(session: int, row: Row) -> bytes:
    """Return the line for an event of session number `session`; raises `ValueError` if its row is damaged."""
    n, run, at, kind, version, body, large = row
    fields = json.loads(body)
    if kind == "session_opened":
        fields["principal"] = ""  # nobody else's business
    told = {"session": session, "n": n, "run": run, "at": at, "kind": kind, "version": version, "body": fields}
    if large:
        told["large"] = json.loads(large)
    return text_of(told).encode("ascii") + b"\n"


@dataclass(frozen=True)
class Names:
    """How sessions (by number) and runs are called where they are imported, and whose they are."""

    sessions: list[str]
    run: Callable[[str], str]
    principal: str


@dataclass(frozen=True)
class Arrival:
    """An event that has been checked, as it is to be recorded."""

    stored: Stored
    body: str
    large: str | None


@dataclass
class Lines:
    """The events of an archive, in order; what they amount to is known when all have been taken."""

    archive: ArchiveReader
    names: Names
    runs: dict[str, int] = field(default_factory=dict)  # by the name in the archive; the session's number
    steps: dict[str, int] = field(default_factory=dict)
    parents: set[str | None] = field(default_factory=set)
    unfinished: dict[str, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)  # session's number: ordinal of its last event
    moved: set[int] = field(default_factory=set)  # sessions whose tip follows from their events
    blobs: set[str] = field(default_factory=set)
    count: int = 0

    def __iter__(self) -> Iterator[Arrival]:
        """Check and yield all events; raises `InvalidRequest`."""
        for where, told in self.archive.lines():
            yield self._arrival(where, told)
            self.count += 1
        manifest = self.archive.manifest
        if (self.count, len(self.runs)) != (manifest.events, manifest.runs):
            self._refuse(
                "events.jsonl", f"has {self.count} events of {len(self.runs)} runs, which is not what was sent"
            )
        for session in manifest.sessions:
            if session.origin is not None and session.origin not in self.runs:
                self._refuse("manifest.json", f"names an unknown run {session.origin!r:.80}")

    def _arrival(self, where: str, told: Any) -> Arrival:
        if not isinstance(told, dict) or any(
            key not in told or not _fits_line(told[key], kind) for key, kind in LINE.items()
        ):
            self._refuse(where, "is not an event")
        if not KIND.fullmatch(told["kind"]):
            self._refuse(where, f"has no right kind {told['kind']!r:.80}")
        if told["version"] > VERSION:
            self._refuse(where, "was written by a newer version", "Use that version of mcpruntime-server.")
        number, n = told["session"], told["n"]
        if not 0 <= number < len(self.names.sessions) or not self.last.get(number, 0) < n <= MAX_INT:
            self._refuse(where, "is out of order")
        self.last[number] = n
        body, large = dict(told["body"]), self._large(where, told)
        event = self._event(where, told["kind"], body, large)
        self._follow(where, number, told["run"], event)
        self._rename(event, body, large)
        run = None if told["run"] is None else self.names.run(told["run"])
        stored = Stored(self.names.sessions[number], n, run, float(told["at"]), self._renamed(event, body))
        try:
            return Arrival(stored, text_of(body), text_of(large) if large else None)
        except ValueError as exc:  # nested more deeply than can be written
            self._refuse(where, f"is not an event ({exc!s:.80})")

    def _large(self, where: str, told: Mapping[str, Any]) -> dict[str, str]:
        large = told.get("large", {})
        if not isinstance(large, dict) or not all(isinstance(digest, str) for digest in large.values()):
            self._refuse(where, "is not an event")
        wrong = large.keys() & (SUMMED | told["body"].keys())
        if wrong:
            self._refuse(where, f"has {min(wrong)!r:.80} where it does not belong")
        return large

    def _event(self, where: str, kind: str, body: Mapping[str, Any], large: Mapping[str, str]) -> Event:
        """Return the event; of a field that was lost to damage only its type is known."""
        found = dict(body)
        for name, digest in large.items():
            self._use(where, digest)
            if digest in self.archive.blobs:
                found[name] = self.archive.field(digest)
            elif kind in KINDS and name in FIELDS[KINDS[kind]]:
                empty: list[Any] = ["", {}, []]
                found[name] = next(each for each in empty if fits(each, KINDS[kind], name))
        try:
            event = from_fields(kind, found)
        except ValueError as exc:
            self._refuse(where, f"is not an event ({exc!s:.80})")
        for name in FIELDS.get(type(event), ()):
            if not fits(getattr(event, name), type(event), name):
                self._refuse(where, f"has no right {name!r}")
        return event

    def _use(self, where: str, digest: str, size: int | None = None) -> None:
        if digest in self.archive.blobs:
            self.blobs.add(digest)
            if size is not None and size != self.archive.sizes[digest]:
                self._refuse(where, f"has a wrong size for blob {digest}")
        elif digest not in self.archive.manifest.skipped:
            self._refuse(where, f"needs blob {digest!r:.80}, which is missing")

    def _follow(self, where: str, number: int, run: str | None, event: Event) -> None:
        if isinstance(event, RunQueued):
            self._refuse(where, "queues a run, which an archive cannot")
        if isinstance(event, RunStarted):
            self._start(where, number, run, event)
        elif run is not None and self.runs.get(run) != number:
            self._refuse(where, f"belongs to run {run!r:.80}, which the session has not started")
        if isinstance(event, Asked) and run is None:
            self._refuse(where, "asks a question for no run")
        if isinstance(event, RunFinished) and self.unfinished.pop(run or "", None) is None:
            self._refuse(where, "ends a run that is not under way")
        if isinstance(event, TipMoved) and any(
            each is not None and each not in self.runs for each in (event.tip, event.left)
        ):
            self._refuse(where, "moves the tip from or to an unknown run")
        if isinstance(event, TipMoved | RunStarted):
            self.moved.add(number)
        if isinstance(event, FilesChanged):
            self._check_files(where, event)

    def _start(self, where: str, number: int, run: str | None, event: RunStarted) -> None:
        if event.run != run or event.run in self.runs:
            self._refuse(where, f"starts run {event.run!r:.80} a second time or under two names")
        if event.parent is not None and event.parent not in self.runs:
            self._refuse(where, f"starts a run whose parent {event.parent!r:.80} is missing or comes later")
        if not self.steps.get(event.parent or "", 0) < event.step <= MAX_RUNS:
            self._refuse(where, f"starts a run whose step {event.step} does not follow from its parent's")
        if len(self.runs) == MAX_RUNS:
            self._refuse(where, f"starts one run more than {MAX_RUNS:,}")
        for each in event.context:
            if each["digest"]:
                self._use(where, each["digest"], each["size"])
        self.runs[event.run], self.steps[event.run] = number, event.step
        self.unfinished[event.run] = number
        self.parents.add(event.parent)

    def _check_files(self, where: str, event: FilesChanged) -> None:
        for path in (*event.changed, *event.removed):
            if not _is_inside(path):
                self._refuse(where, f"names a file {path!r:.80} outside the workspace")
        for entry in event.changed.values():
            self._use(where, entry["digest"], entry["size"])
            if not 0 <= entry["mode"] <= 0o7777:
                self._refuse(where, f"has a wrong file mode {entry['mode']}")

    def _rename(self, event: Event, body: dict[str, Any], large: dict[str, str]) -> None:
        """Put names that hold here into the fields that refer to runs and people; leave out what holds there only."""
        match event:
            case RunStarted():
                body |= {name: self._here(body.get(name)) for name in ("run", "parent", "replays")}
                body["idempotency_key"] = None  # of a client of another server
                body["approved"] = []  # what people have allowed there is not allowed here
                for name in ("idempotency_key", "approved"):
                    large.pop(name, None)
            case Answered():
                body["scope"] = "once"  # the same for other calls of the run or the session
                large.pop("scope", None)
            case TipMoved():
                body |= {name: self._here(body.get(name)) for name in ("tip", "left")}
            case SessionOpened():
                body |= {"origin": self._here(body.get("origin")), "principal": self.names.principal}

    def _here(self, run: str | None) -> str | None:
        return self.names.run(run) if run in self.runs else None

    @staticmethod
    def _renamed(event: Event, body: Mapping[str, Any]) -> Event:
        known = FIELDS.get(type(event), {})
        made: Event = type(event)(**{**vars(event), **{name: body[name] for name in body if name in known}})
        return made

    def _refuse(self, where: str, reason: str, remedy: str = "") -> NoReturn:
        raise self.archive.refusal(where, reason, remedy)


def _fits_line(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= MAX_INT
    return isinstance(value, kind)


def _is_inside(path: str) -> bool:
    """Say whether `path` is one that a workspace can have: relative, and without detours."""
    return (
        bool(path)
        and "\0" not in path
        and str(PurePosixPath(path)) == path
        and not (path.startswith("/") or path == "." or ".." in PurePosixPath(path).parts)
    )
