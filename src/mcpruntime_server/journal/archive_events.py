"""The events of an archive: write them as lines, and check and rename them when they are imported.

Rule 1: a run is started before anything refers to it, so that checked lineages have no cycles and
no gaps.
Rule 2: an event refers only to blobs, runs and sessions of its own archive.
Rule 3: kinds and fields that only a newer version knows are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, NoReturn

from .archive_file import EVENTS_MEMBER, MANIFEST_MEMBER, ArchiveReader
from .events import (
    EVENT_CLASSES,
    EVENT_FIELDS,
    EVENT_VERSION,
    CallFinished,
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
ELSEWHERE_SUFFIX = " (where it was recorded)"  # after what a call did outside the journal
INLINE_FIELDS = {  # the tables have these, so that they cannot be blobs
    "run_id",
    "parent_id",
    "step",
    "name",
    "replayed_run",
    "tip",
    "previous_tip",
    "origin",
    "principal",
    "flags",
    "status",
    "blobs",
}
LINE_TYPES: Mapping[str, Any] = {
    "session": int,
    "sequence": int,
    "run_id": str | None,
    "recorded_at": float,
    "kind": str,
    "version": int,
    "body": dict,
}


def encode_event_line(session_number: int, row: RawEventRow) -> bytes:
    """Return the line of an event; raises `ValueError` if its row is damaged."""
    body = json.loads(row.body)
    if row.kind == "session_opened":
        body["principal"] = ""  # private to this server
    line = {
        "session": session_number,
        "sequence": row.sequence,
        "run_id": row.run_id,
        "recorded_at": row.recorded_at,
        "kind": row.kind,
        "version": row.version,
        "body": body,
    }
    if row.large_fields:
        line["large_fields"] = json.loads(row.large_fields)
    return encode_json(line).encode("ascii") + b"\n"


@dataclass(frozen=True)
class EventLine:
    """A line of an archive whose fields have the right types; `where` names it in messages."""

    where: str
    session_number: int
    sequence: int
    run_id: str | None
    recorded_at: float
    kind: str
    body: dict[str, Any]
    large_fields: dict[str, str]


@dataclass(frozen=True)
class ImportNames:
    """The ids of sessions (by number) and runs where they are imported, and their principal."""

    session_ids: list[str]
    map_run_id: Callable[[str], str]
    principal: str


@dataclass(frozen=True)
class ImportedEvent:
    """A checked event, as it will be inserted."""

    stored: StoredEvent
    body: str
    large_fields: str | None


@dataclass
class ArchivedEventReader:
    """Iterates over the events of an archive; the other attributes are complete at the end.

    Sessions are identified by their numbers in the archive, runs by their ids there.
    """

    archive: ArchiveReader
    names: ImportNames
    run_sessions: dict[str, int] = field(default_factory=dict)
    run_steps: dict[str, int] = field(default_factory=dict)
    parent_ids: set[str | None] = field(default_factory=set)
    unfinished_runs: dict[str, int] = field(default_factory=dict)  # with the session
    last_sequences: dict[int, int] = field(default_factory=dict)  # of each session
    moved_sessions: set[int] = field(default_factory=set)  # their tip follows from their events
    used_blobs: set[str] = field(default_factory=set)
    event_count: int = 0

    def __iter__(self) -> Iterator[ImportedEvent]:
        """Check and yield all events; raises `InvalidRequest`."""
        for where, data in self.archive.iter_lines():
            yield self._read_event(self._parse_line(where, data))
            self.event_count += 1
        manifest = self.archive.manifest
        if (self.event_count, len(self.run_sessions)) != (manifest.event_count, manifest.run_count):
            self._reject(
                EVENTS_MEMBER,
                f"has {self.event_count} events of {len(self.run_sessions)} runs, "
                "which the manifest contradicts",
            )
        for session in manifest.sessions:
            if session.origin is not None and session.origin not in self.run_sessions:
                self._reject(MANIFEST_MEMBER, f"names an unknown run {session.origin!r:.80}")

    def _parse_line(self, where: str, data: Any) -> EventLine:
        if not isinstance(data, dict) or not all(
            name in data and _matches_line_type(data[name], kind)
            for name, kind in LINE_TYPES.items()
        ):
            self._reject(where, "is not an event")
        if not KIND_PATTERN.fullmatch(data["kind"]):
            self._reject(where, f"has an invalid kind {data['kind']!r:.80}")
        if data["version"] > EVENT_VERSION:
            self._reject(
                where, "was written by a newer version", "Use that version of mcpruntime-server."
            )
        return EventLine(
            where=where,
            session_number=data["session"],
            sequence=data["sequence"],
            run_id=data["run_id"],
            recorded_at=float(data["recorded_at"]),
            kind=data["kind"],
            body=data["body"],
            large_fields=self._parse_large_fields(where, data),
        )

    def _parse_large_fields(self, where: str, data: Mapping[str, Any]) -> dict[str, str]:
        large_fields = data.get("large_fields", {})
        if not isinstance(large_fields, dict) or not all(
            isinstance(digest, str) for digest in large_fields.values()
        ):
            self._reject(where, "is not an event")
        misplaced = large_fields.keys() & (INLINE_FIELDS | data["body"].keys())
        if misplaced:
            self._reject(where, f"has {min(misplaced)!r:.80} as a blob, which is not allowed")
        return large_fields

    def _read_event(self, line: EventLine) -> ImportedEvent:
        """Check an event against those before it, and rename what it refers to."""
        number = line.session_number
        if (
            not 0 <= number < len(self.names.session_ids)
            or not self.last_sequences.get(number, 0) < line.sequence <= MAX_SAFE_INTEGER
        ):
            self._reject(line.where, "is out of order")
        self.last_sequences[number] = line.sequence
        event = self._build_event(line)
        self._check_order(line, event)
        body, large_fields = self._rename_references(event, line)
        stored = StoredEvent(
            session_id=self.names.session_ids[number],
            sequence=line.sequence,
            run_id=None if line.run_id is None else self.names.map_run_id(line.run_id),
            recorded_at=line.recorded_at,
            event=self._rebuild_event(event, body),
        )
        try:
            return ImportedEvent(
                stored, encode_json(body), encode_json(large_fields) if large_fields else None
            )
        except ValueError as exc:  # nested more deeply than can be written
            self._reject(line.where, f"is not an event ({exc!s:.80})")

    def _build_event(self, line: EventLine) -> Event:
        """Return the event; a field whose blob was skipped is an empty value of its type."""
        found = dict(line.body)
        event_class = EVENT_CLASSES.get(line.kind)
        for name, digest in line.large_fields.items():
            self._require_blob(line.where, digest)
            if digest in self.archive.blob_digests:
                found[name] = self.archive.load_field(digest)
            elif event_class is not None and name in EVENT_FIELDS[event_class]:
                candidates: list[Any] = ["", {}, []]
                found[name] = next(
                    each for each in candidates if matches_field_type(each, event_class, name)
                )
        try:
            event = event_from_fields(line.kind, found)
        except ValueError as exc:
            self._reject(line.where, f"is not an event ({exc!s:.80})")
        for name in EVENT_FIELDS.get(type(event), ()):
            if not matches_field_type(getattr(event, name), type(event), name):
                self._reject(line.where, f"has an invalid {name!r}")
        return event

    def _require_blob(self, where: str, digest: str, size: int | None = None) -> None:
        if digest in self.archive.blob_digests:
            self.used_blobs.add(digest)
            if size is not None and size != self.archive.blob_sizes[digest]:
                self._reject(where, f"has a wrong size for blob {digest}")
        elif digest not in self.archive.manifest.skipped_blobs:
            self._reject(where, f"needs blob {digest!r:.80}, which is missing")

    def _check_order(self, line: EventLine, event: Event) -> None:
        """Check that an event may follow those before it, and note what it changes."""
        where, run_id = line.where, line.run_id
        is_first = isinstance(event, RunStarted | RunQueued)
        is_ours = run_id is None or self.run_sessions.get(run_id) == line.session_number
        if not is_first and not is_ours:
            self._reject(where, f"belongs to run {run_id!r:.80}, which the session has not started")
        match event:
            case RunQueued():
                self._reject(where, "queues a run, which is not allowed in an archive")
            case RunStarted():
                self._check_run_started(line, event)
                self.moved_sessions.add(line.session_number)
            case QuestionAsked() if run_id is None:
                self._reject(where, "asks a question without a run")
            case RunFinished():
                if self.unfinished_runs.pop(run_id or "", None) is None:
                    self._reject(where, "finishes a run that is not unfinished")
            case TipMoved():
                for tip in (event.tip, event.previous_tip):
                    if tip is not None and tip not in self.run_sessions:
                        self._reject(where, "moves the tip from or to an unknown run")
                self.moved_sessions.add(line.session_number)
            case FilesChanged():
                self._check_files(where, event)
            case CallFinished():
                for digest in event.blobs:
                    self._require_blob(where, digest)

    def _check_run_started(self, line: EventLine, event: RunStarted) -> None:
        where, parent_id = line.where, event.parent_id
        if event.run_id != line.run_id or event.run_id in self.run_sessions:
            self._reject(where, f"starts run {event.run_id!r:.80} again or under two ids")
        if parent_id is not None and parent_id not in self.run_sessions:
            self._reject(
                where, f"starts a run whose parent {parent_id!r:.80} is missing or comes later"
            )
        if not self.run_steps.get(parent_id or "", 0) < event.step <= MAX_RUNS:
            self._reject(where, f"starts a run whose step {event.step} contradicts its parent's")
        if len(self.run_sessions) == MAX_RUNS:
            self._reject(where, f"starts more than {MAX_RUNS:,} runs")
        for entry in event.context:
            if entry["digest"]:
                self._require_blob(where, entry["digest"], entry["size"])
        self.run_sessions[event.run_id] = line.session_number
        self.run_steps[event.run_id] = event.step
        self.unfinished_runs[event.run_id] = line.session_number
        self.parent_ids.add(parent_id)

    def _check_files(self, where: str, event: FilesChanged) -> None:
        for path in (*event.changed, *event.removed):
            if not _is_workspace_path(path):
                self._reject(where, f"names a file {path!r:.80} outside the workspace")
        for entry in event.changed.values():
            self._require_blob(where, entry["digest"], entry["size"])
            if not 0 <= entry["mode"] <= 0o7777:
                self._reject(where, f"has an invalid file mode {entry['mode']}")

    def _rename_references(
        self, event: Event, line: EventLine
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the fields with the ids and the principal of this journal.

        What is valid only in the journal of the exporter is reset.
        """
        replaced: dict[str, Any] = {}
        match event:
            case RunStarted():
                replaced = {
                    "run_id": self._map_known_run(event.run_id),
                    "parent_id": self._map_known_run(event.parent_id),
                    "replayed_run": self._map_known_run(event.replayed_run),
                    "idempotency_key": None,
                    "approved_calls": [],
                }
                if any(map(self._is_skipped, event.context)):
                    replaced["context"] = list(map(self._rename_skipped, event.context))
            case FilesChanged() if any(map(self._is_skipped, event.changed.values())):
                replaced = {
                    "changed": {
                        path: self._rename_skipped(entry) for path, entry in event.changed.items()
                    }
                }
            case QuestionAnswered():
                replaced = {"scope": "once"}  # an approval does not extend to further calls here
            case CallFinished(summary=summary):
                if event.blobs:
                    replaced["blobs"] = list(map(self._map_blob, event.blobs))
                if summary and summary["outcome"]:
                    outcome = summary["outcome"].removesuffix(ELSEWHERE_SUFFIX) + ELSEWHERE_SUFFIX
                    replaced["summary"] = {**summary, "outcome": outcome}
            case TipMoved():
                replaced = {
                    "tip": self._map_known_run(event.tip),
                    "previous_tip": self._map_known_run(event.previous_tip),
                }
            case SessionOpened():
                replaced = {
                    "origin": self._map_known_run(event.origin),
                    "principal": self.names.principal,
                }
        large_fields = {
            name: self._map_blob(digest)
            for name, digest in line.large_fields.items()
            if name not in replaced
        }
        return {**line.body, **replaced}, large_fields

    def _is_skipped(self, entry: Mapping[str, Any]) -> bool:
        return bool(entry["digest"]) and entry["digest"] not in self.archive.blob_digests

    def _rename_skipped(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**entry, "digest": self._map_blob(entry["digest"])} if entry["digest"] else entry

    def _map_blob(self, digest: str) -> str:
        """Return the digest under which a blob is known here.

        A blob that is not in the archive stays missing. This journal may have a blob with its
        digest, which may be somebody else's.
        """
        if digest in self.archive.blob_digests:
            return digest
        return sha256(f"skipped {digest}".encode("utf-8", "surrogatepass")).hexdigest()

    def _map_known_run(self, run_id: str | None) -> str | None:
        if run_id is None or run_id not in self.run_sessions:
            return None
        return self.names.map_run_id(run_id)

    @staticmethod
    def _rebuild_event(event: Event, body: Mapping[str, Any]) -> Event:
        known = EVENT_FIELDS.get(type(event), {})
        changed = {name: value for name, value in body.items() if name in known}
        rebuilt: Event = type(event)(**{**vars(event), **changed})
        return rebuilt

    def _reject(self, where: str, reason: str, remedy: str = "") -> NoReturn:
        raise self.archive.rejection(where, reason, remedy)


def _matches_line_type(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= MAX_SAFE_INTEGER
    return isinstance(value, kind)


def _is_workspace_path(path: str) -> bool:
    """Say whether a workspace can have `path`: it is relative and normalised."""
    if not path or "\0" in path or str(PurePosixPath(path)) != path:
        return False
    return not path.startswith("/") and path != "." and ".." not in PurePosixPath(path).parts
