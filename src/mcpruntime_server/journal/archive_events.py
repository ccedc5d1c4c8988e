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
    EVENT_CLASSES,
    EVENT_FIELDS,
    EVENT_VERSION,
    Event,
    FilesChanged,
    QuestionAnswered,
    QuestionAsked,
    RunFinished,
    RunQueued,
    RunStarted,
    SessionOpened,
    TipMoved,
    encode_json,
    event_from_fields,
)
from .rows import RawEventRow, StoredEvent
from .type_checks import MAX_SAFE_INTEGER, matches_field_type

KIND_PATTERN = re.compile(r"[a-z0-9_]{1,64}")
MAX_RUNS = 100_000  # kept in memory while an archive is checked
INLINE_FIELDS = {
    "run",
    "parent",
    "step",
    "name",
    "replays",
    "tip",
    "left",
    "origin",
    "principal",
    "flags",
    "status",
}
LINE_TYPES = {
    "session": int,
    "n": int,
    "run": str | None,
    "at": float,
    "kind": str,
    "version": int,
    "body": dict,
}


def encode_event_line(session: int, row: RawEventRow) -> bytes:
    """Return the line for an event of session number `session`; raises `ValueError` if its row is damaged."""
    n, run, at, kind, version, body, large = row
    fields = json.loads(body)
    if kind == "session_opened":
        fields["principal"] = ""  # nobody else's business
    told = {
        "session": session,
        "n": n,
        "run": run,
        "at": at,
        "kind": kind,
        "version": version,
        "body": fields,
    }
    if large:
        told["large"] = json.loads(large)
    return encode_json(told).encode("ascii") + b"\n"


@dataclass(frozen=True)
class ImportNames:
    """How sessions (by number) and runs are called where they are imported, and whose they are."""

    session_ids: list[str]
    map_run_id: Callable[[str], str]
    principal: str


@dataclass(frozen=True)
class ImportedEvent:
    """An event that has been checked, as it is to be recorded."""

    stored: StoredEvent
    body: str
    large: str | None


@dataclass
class ArchivedEventReader:
    """The events of an archive, in order; what they amount to is known when all have been taken."""

    archive: ArchiveReader
    names: ImportNames
    run_sessions: dict[str, int] = field(
        default_factory=dict
    )  # by the name in the archive; the session's number
    run_steps: dict[str, int] = field(default_factory=dict)
    parent_ids: set[str | None] = field(default_factory=set)
    unfinished_runs: dict[str, int] = field(default_factory=dict)
    last_sequences: dict[int, int] = field(
        default_factory=dict
    )  # session's number: ordinal of its last event
    moved_sessions: set[int] = field(
        default_factory=set
    )  # sessions whose tip follows from their events
    used_blobs: set[str] = field(default_factory=set)
    event_count: int = 0

    def __iter__(self) -> Iterator[ImportedEvent]:
        """Check and yield all events; raises `InvalidRequest`."""
        for where, told in self.archive.iter_lines():
            yield self._read_event(where, told)
            self.event_count += 1
        manifest = self.archive.manifest
        if (self.event_count, len(self.run_sessions)) != (manifest.event_count, manifest.run_count):
            self._reject(
                "events.jsonl",
                f"has {self.event_count} events of {len(self.run_sessions)} runs, which is not what was sent",
            )
        for session in manifest.sessions:
            if session.origin is not None and session.origin not in self.run_sessions:
                self._reject("manifest.json", f"names an unknown run {session.origin!r:.80}")

    def _read_event(self, where: str, told: Any) -> ImportedEvent:
        if not isinstance(told, dict) or any(
            key not in told or not _matches_line_type(told[key], kind)
            for key, kind in LINE_TYPES.items()
        ):
            self._reject(where, "is not an event")
        if not KIND_PATTERN.fullmatch(told["kind"]):
            self._reject(where, f"has no right kind {told['kind']!r:.80}")
        if told["version"] > EVENT_VERSION:
            self._reject(
                where, "was written by a newer version", "Use that version of mcpruntime-server."
            )
        number, n = told["session"], told["n"]
        if (
            not 0 <= number < len(self.names.session_ids)
            or not self.last_sequences.get(number, 0) < n <= MAX_SAFE_INTEGER
        ):
            self._reject(where, "is out of order")
        self.last_sequences[number] = n
        body, large = dict(told["body"]), self._read_large_fields(where, told)
        event = self._build_event(where, told["kind"], body, large)
        self._check_sequence(where, number, told["run"], event)
        self._rename_references(event, body, large)
        run = None if told["run"] is None else self.names.map_run_id(told["run"])
        stored = StoredEvent(
            self.names.session_ids[number],
            n,
            run,
            float(told["at"]),
            self._rebuild_event(event, body),
        )
        try:
            return ImportedEvent(stored, encode_json(body), encode_json(large) if large else None)
        except ValueError as exc:  # nested more deeply than can be written
            self._reject(where, f"is not an event ({exc!s:.80})")

    def _read_large_fields(self, where: str, told: Mapping[str, Any]) -> dict[str, str]:
        large = told.get("large", {})
        if not isinstance(large, dict) or not all(
            isinstance(digest, str) for digest in large.values()
        ):
            self._reject(where, "is not an event")
        wrong = large.keys() & (INLINE_FIELDS | told["body"].keys())
        if wrong:
            self._reject(where, f"has {min(wrong)!r:.80} where it does not belong")
        return large

    def _build_event(
        self, where: str, kind: str, body: Mapping[str, Any], large: Mapping[str, str]
    ) -> Event:
        """Return the event; of a field that was lost to damage only its type is known."""
        found = dict(body)
        for name, digest in large.items():
            self._require_blob(where, digest)
            if digest in self.archive.blob_digests:
                found[name] = self.archive.load_field(digest)
            elif kind in EVENT_CLASSES and name in EVENT_FIELDS[EVENT_CLASSES[kind]]:
                empty: list[Any] = ["", {}, []]
                found[name] = next(
                    each for each in empty if matches_field_type(each, EVENT_CLASSES[kind], name)
                )
        try:
            event = event_from_fields(kind, found)
        except ValueError as exc:
            self._reject(where, f"is not an event ({exc!s:.80})")
        for name in EVENT_FIELDS.get(type(event), ()):
            if not matches_field_type(getattr(event, name), type(event), name):
                self._reject(where, f"has no right {name!r}")
        return event

    def _require_blob(self, where: str, digest: str, size: int | None = None) -> None:
        if digest in self.archive.blob_digests:
            self.used_blobs.add(digest)
            if size is not None and size != self.archive.blob_sizes[digest]:
                self._reject(where, f"has a wrong size for blob {digest}")
        elif digest not in self.archive.manifest.skipped_blobs:
            self._reject(where, f"needs blob {digest!r:.80}, which is missing")

    def _check_sequence(self, where: str, number: int, run_id: str | None, event: Event) -> None:
        if isinstance(event, RunQueued):
            self._reject(where, "queues a run, which an archive cannot")
        if isinstance(event, RunStarted):
            self._check_run_started(where, number, run_id, event)
        elif run_id is not None and self.run_sessions.get(run_id) != number:
            self._reject(where, f"belongs to run {run_id!r:.80}, which the session has not started")
        if isinstance(event, QuestionAsked) and run_id is None:
            self._reject(where, "asks a question for no run")
        if isinstance(event, RunFinished) and self.unfinished_runs.pop(run_id or "", None) is None:
            self._reject(where, "ends a run that is not under way")
        if isinstance(event, TipMoved) and any(
            each is not None and each not in self.run_sessions
            for each in (event.tip, event.previous_tip)
        ):
            self._reject(where, "moves the tip from or to an unknown run")
        if isinstance(event, TipMoved | RunStarted):
            self.moved_sessions.add(number)
        if isinstance(event, FilesChanged):
            self._check_files(where, event)

    def _check_run_started(
        self, where: str, number: int, run_id: str | None, event: RunStarted
    ) -> None:
        if event.run_id != run_id or event.run_id in self.run_sessions:
            self._reject(where, f"starts run {event.run_id!r:.80} a second time or under two names")
        if event.parent_id is not None and event.parent_id not in self.run_sessions:
            self._reject(
                where,
                f"starts a run whose parent {event.parent_id!r:.80} is missing or comes later",
            )
        if not self.run_steps.get(event.parent_id or "", 0) < event.step <= MAX_RUNS:
            self._reject(
                where, f"starts a run whose step {event.step} does not follow from its parent's"
            )
        if len(self.run_sessions) == MAX_RUNS:
            self._reject(where, f"starts one run more than {MAX_RUNS:,}")
        for each in event.context:
            if each["digest"]:
                self._require_blob(where, each["digest"], each["size"])
        self.run_sessions[event.run_id], self.run_steps[event.run_id] = number, event.step
        self.unfinished_runs[event.run_id] = number
        self.parent_ids.add(event.parent_id)

    def _check_files(self, where: str, event: FilesChanged) -> None:
        for path in (*event.changed, *event.removed):
            if not _is_workspace_path(path):
                self._reject(where, f"names a file {path!r:.80} outside the workspace")
        for entry in event.changed.values():
            self._require_blob(where, entry["digest"], entry["size"])
            if not 0 <= entry["mode"] <= 0o7777:
                self._reject(where, f"has a wrong file mode {entry['mode']}")

    def _rename_references(self, event: Event, body: dict[str, Any], large: dict[str, str]) -> None:
        """Put names that hold here into the fields that refer to runs and people; leave out what holds there only."""
        match event:
            case RunStarted():
                body |= {
                    name: self._map_known_run(body.get(name))
                    for name in ("run", "parent", "replays")
                }
                body["idempotency_key"] = None  # of a client of another server
                body["approved"] = []  # what people have allowed there is not allowed here
                for name in ("idempotency_key", "approved"):
                    large.pop(name, None)
            case QuestionAnswered():
                body["scope"] = "once"  # the same for other calls of the run or the session
                large.pop("scope", None)
            case TipMoved():
                body |= {name: self._map_known_run(body.get(name)) for name in ("tip", "left")}
            case SessionOpened():
                body |= {
                    "origin": self._map_known_run(body.get("origin")),
                    "principal": self.names.principal,
                }

    def _map_known_run(self, run_id: str | None) -> str | None:
        return self.names.map_run_id(run_id) if run_id in self.run_sessions else None

    @staticmethod
    def _rebuild_event(event: Event, body: Mapping[str, Any]) -> Event:
        known = EVENT_FIELDS.get(type(event), {})
        made: Event = type(event)(
            **{**vars(event), **{name: body[name] for name in body if name in known}}
        )
        return made

    def _reject(self, where: str, reason: str, remedy: str = "") -> NoReturn:
        raise self.archive.rejection(where, reason, remedy)


def _matches_line_type(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= MAX_SAFE_INTEGER
    return isinstance(value, kind)


def _is_workspace_path(path: str) -> bool:
    """Say whether `path` is one that a workspace can have: relative, and without detours."""
    return (
        bool(path)
        and "\0" not in path
        and str(PurePosixPath(path)) == path
        and not (path.startswith("/") or path == "." or ".." in PurePosixPath(path).parts)
    )
