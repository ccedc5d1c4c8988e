"""The file format of an archive: a zip with a manifest, events as lines of JSON, and blobs.

Rule 1: the file is not trusted. What it claims is checked, every amount is bounded while it is
read, and nothing in it names a path to write to. A small file does not expand to a large one: what
is written here never does, because content that compresses too well is stored as it is.
Rule 2: every problem is an `InvalidRequest` that names the member and the reason.
This module knows bytes and JSON, neither events nor the journal.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from io import BufferedReader
from math import isfinite
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, TypeVar, cast

from ..errors import InvalidRequest
from .events import decode_json
from .type_checks import matches_field_type

ARCHIVE_FORMAT = "mcpruntime-server session archive"
ARCHIVE_VERSION = 1
MANIFEST_MEMBER = "manifest.json"
EVENTS_MEMBER = "events.jsonl"
BLOB_MEMBER_PATTERN = re.compile(r"blobs/([0-9a-f]{64})")
MB = 1024 * 1024
MAX_MEMBERS = 200_000  # several times as many as 4 GB of ordinary files
MAX_DIRECTORY_BYTES = 40 * MB  # of the zip, which is read at once: 200 bytes for each member
MAX_TOTAL_BYTES = 4096 * MB  # uncompressed: the default size of a whole journal
MAX_EXPANSION = 100  # times the size of the file that it may have uncompressed, and these bytes:
FREE_BYTES = 64 * MB
MAX_BLOB_EXPANSION = 50  # a blob that compresses better is stored as it is
MAX_BLOB_BYTES = 1024 * MB  # uncompressed: several times a workspace
MAX_MANIFEST_BYTES = 16 * MB
MAX_LINE_BYTES = 4 * MB  # one event, whose large fields are blobs
MAX_FIELD_BYTES = 68 * MB  # a blob that is a field, read at once: more than the longest message
MAX_VALUES = 1_000_000  # of a field or line, those in arrays and objects included
MAX_DEPTH = 100  # of a field or line; the same limit as for the messages of a sandbox
CHUNK_BYTES = 256 * 1024
JSON_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)  # each byte is read once
END_RECORD = struct.Struct("<4s4H2LH")  # the end of a zip without a comment, as written here
ZIP64_END_RECORD = struct.Struct("<4sQ2H2L4Q")
ZIP64_LOCATOR = struct.Struct("<4sLQL")
DAMAGE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    ValueError,
    OSError,
)


@dataclass(frozen=True)
class ArchivedSession:
    """What the events of a session do not say; times are seconds since the epoch."""

    id: str
    name: str | None
    created_at: float
    origin: str | None


@dataclass(frozen=True)
class ArchiveManifest:
    """What an archive holds; `sessions[0]` was exported, the others have ancestors of its runs."""

    sessions: list[ArchivedSession]
    run_count: int
    event_count: int
    skipped_blobs: list[str]  # digests of blobs that were damaged when it was exported


ArchivePart = TypeVar("ArchivePart", ArchivedSession, ArchiveManifest)


class ArchiveWriter:
    """An archive that is being written."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file

    @contextmanager
    def open_events(self) -> Iterator[IO[bytes]]:
        """Open the member for the lines of events."""
        with self._file.open(_zip_member(EVENTS_MEMBER), "w", force_zip64=True) as lines:
            yield lines

    def add_blob(self, digest: str, data: bytes) -> None:
        """Add a blob."""
        member = _zip_member(f"blobs/{digest}")
        if len(data) > MB and len(zlib.compress(data, 1)) * MAX_BLOB_EXPANSION < len(data):
            member.compress_type = zipfile.ZIP_STORED
        self._file.writestr(member, data)

    def write_manifest(self, manifest: ArchiveManifest) -> None:
        """Write the manifest."""
        content = {"format": ARCHIVE_FORMAT, "version": ARCHIVE_VERSION, **asdict(manifest)}
        self._file.writestr(_zip_member(MANIFEST_MEMBER), json.dumps(content, indent=1))


@contextmanager
def write_archive(path: Path, force: bool) -> Iterator[ArchiveWriter]:
    """Write an archive that appears at `path` when it is complete; raises as `open_draft` does."""
    with (
        open_draft(path, force) as draft,
        zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        yield ArchiveWriter(file)


@contextmanager
def open_draft(path: Path, force: bool) -> Iterator[IO[bytes]]:
    """Write a file that appears at `path` when it is complete; `force` replaces a file.

    Raises `InvalidRequest` if there is a file already, or if it cannot be written.
    """
    if not force and os.path.lexists(path):
        raise _already_exists(path)
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
            try:
                yield cast("IO[bytes]", draft)
                draft.flush()
                _publish_file(draft.name, path, force)
            finally:
                Path(draft.name).unlink(missing_ok=True)
    except OSError as exc:
        raise InvalidRequest(f"The file {path} cannot be written: {exc.strerror}.") from exc


def _publish_file(draft: str, path: Path, force: bool) -> None:
    if not force:
        try:
            os.link(draft, path)  # unlike a rename, it never replaces a file
        except FileExistsError:
            raise _already_exists(path) from None
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise _already_exists(path) from None
        else:
            return
    os.replace(draft, path)


def _already_exists(path: Path) -> InvalidRequest:
    return InvalidRequest(
        f"There is already a file {path}.",
        remedy="Choose another name, or replace it with --force.",
    )


def _zip_member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)  # without a date: equal sessions give equal files
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o600 << 16
    return member


class ArchiveReader:
    """An archive that is being read; made by `read_archive`."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self._max_total = min(MAX_TOTAL_BYTES, FREE_BYTES + MAX_EXPANSION * path.stat().st_size)
        self._total = 0
        self._members = self._list_members()
        self.blob_digests = {
            found[1] for found in map(BLOB_MEMBER_PATTERN.fullmatch, self._members) if found
        }
        self.blob_sizes: dict[str, int] = {}  # of the blobs that have been checked
        self.manifest = self._read_manifest()

    def rejection(self, member: str, reason: str, remedy: str = "") -> InvalidRequest:
        """Return the error that says why this archive is rejected."""
        return InvalidRequest(
            f"The archive {self.path} is rejected: {member!r:.120} {reason}.", remedy=remedy
        )

    def verify_blobs(self) -> Iterator[str]:
        """Read all blobs and yield their digests; raises if the content of one does not match."""
        self.start_pass()
        for digest in sorted(self.blob_digests):
            content_hash, size = sha256(), 0
            for chunk in self.iter_chunks(digest):
                content_hash.update(chunk)
                size += len(chunk)
            if content_hash.hexdigest() != digest:
                raise self.rejection(f"blobs/{digest}", "has content with another digest")
            self.blob_sizes[digest] = size
            yield digest

    def start_pass(self) -> None:
        """Start to count again what is read: the archive is read several times."""
        self._total = 0

    def iter_chunks(self, digest: str, limit: int = MAX_BLOB_BYTES) -> Iterator[bytes]:
        """Yield the content of a blob in chunks."""
        member = f"blobs/{digest}"
        if digest not in self.blob_digests:
            raise self.rejection(member, "is missing")
        with self._open_member(member) as file:
            size = 0
            while chunk := file.read(CHUNK_BYTES):
                size += len(chunk)
                if size > limit:
                    raise self.rejection(member, f"is larger than {limit // MB} MB")
                self._count_bytes(member, len(chunk))
                yield chunk

    def load_field(self, digest: str) -> Any:
        """Return the content of a blob as JSON data."""
        content = b"".join(self.iter_chunks(digest, MAX_FIELD_BYTES))
        return self.parse_json(f"blobs/{digest}", content)

    def iter_lines(self) -> Iterator[tuple[str, Any]]:
        """Yield the place and the JSON data of each line of events."""
        self.start_pass()
        with self._open_member(EVENTS_MEMBER) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{EVENTS_MEMBER}, line {number}"
                if len(line) > MAX_LINE_BYTES:
                    raise self.rejection(where, f"is longer than {MAX_LINE_BYTES // MB} MB")
                self._count_bytes(EVENTS_MEMBER, len(line))
                yield where, self.parse_json(where, line)

    def parse_json(self, where: str, text: bytes) -> Any:
        """Return `text` as JSON data."""
        if _has_too_many_values(text):
            raise self.rejection(where, f"holds more than {MAX_VALUES:,} values")
        try:
            data = decode_json(
                text.decode("ascii"), parse_constant=_reject_constant, parse_float=_parse_finite
            )
        except RecursionError:
            raise self._too_deep(where) from None
        except ValueError as exc:
            raise self.rejection(where, f"is not JSON ({exc!s:.80})") from None
        if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _is_too_deep(data):
            raise self._too_deep(where)
        return data

    def _too_deep(self, where: str) -> InvalidRequest:
        return self.rejection(where, f"is nested more than {MAX_DEPTH} levels deep")

    def _count_bytes(self, member: str, size: int) -> None:
        self._total += size
        if self._total > self._max_total:
            raise self.rejection(
                member, f"makes it larger than {self._max_total // MB} MB, which its size allows"
            )

    @contextmanager
    def _open_member(self, member: str) -> Iterator[IO[bytes]]:
        if member not in self._members:
            raise self.rejection(member, "is missing")
        try:
            with (
                self._file.open(self._members[member]) as raw,
                BufferedReader(raw, CHUNK_BYTES) as file,  # type: ignore[type-var]
            ):
                yield file
        except DAMAGE_ERRORS as exc:
            raise self.rejection(member, f"is damaged ({exc!s:.80})") from exc

    def _list_members(self) -> Mapping[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in self._file.infolist():
            name = member.filename
            if name in members:
                raise self.rejection(name, "occurs twice")
            is_blob = BLOB_MEMBER_PATTERN.fullmatch(name) is not None
            if not is_blob and name not in (MANIFEST_MEMBER, EVENTS_MEMBER):
                raise self.rejection(name, "does not belong in an archive of a session")
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                raise self.rejection(name, "is not a regular file")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.rejection(name, "uses a compression other than deflate")
            members[name] = member
            if len(members) > MAX_MEMBERS:
                raise self.rejection(name, f"exceeds the limit of {MAX_MEMBERS:,} members")
        return members

    def _read_manifest(self) -> ArchiveManifest:
        with self._open_member(MANIFEST_MEMBER) as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
        if len(text) > MAX_MANIFEST_BYTES:
            raise self.rejection(MANIFEST_MEMBER, f"is larger than {MAX_MANIFEST_BYTES // MB} MB")
        found = self.parse_json(MANIFEST_MEMBER, text)
        if not isinstance(found, dict):
            raise self.rejection(MANIFEST_MEMBER, "is not a JSON object")
        self._check_format(found.get("format"), found.get("version"))
        sessions = found.get("sessions")
        if not isinstance(sessions, list) or not sessions:
            raise self.rejection(MANIFEST_MEMBER, "names no session")
        if not all(isinstance(each, dict) for each in sessions):
            raise self.rejection(MANIFEST_MEMBER, "has an invalid 'sessions'")
        archived = [self._build(ArchivedSession, each) for each in sessions]
        return self._build(ArchiveManifest, {**found, "sessions": archived})

    def _check_format(self, format_name: Any, version: Any) -> None:
        if format_name != ARCHIVE_FORMAT or type(version) is not int or version < 1:
            raise self.rejection(
                MANIFEST_MEMBER,
                f"has the format {format_name!r:.80}, version {version!r:.80}; this program reads "
                f"{ARCHIVE_FORMAT!r}, version {ARCHIVE_VERSION}",
                remedy="Export the session again with a current mcpruntime-server.",
            )
        if version > ARCHIVE_VERSION:
            raise self.rejection(
                MANIFEST_MEMBER,
                f"has version {version}; this program knows up to {ARCHIVE_VERSION}",
                remedy="Use the newer mcpruntime-server that wrote it.",
            )

    def _build(self, cls: type[ArchivePart], found: Mapping[str, Any]) -> ArchivePart:
        names = [item.name for item in fields(cls)]
        for name in names:
            if name not in found or not matches_field_type(found[name], cls, name):
                raise self.rejection(MANIFEST_MEMBER, f"has an invalid {name!r}")
        return cls(**{name: found[name] for name in names})


@contextmanager
def read_archive(path: Path) -> Iterator[ArchiveReader]:
    """Open an archive, and check its directory and manifest; raises `InvalidRequest`."""
    with _open_file(path) as raw:
        try:
            _check_directory(raw)
            file = zipfile.ZipFile(raw)
        except DAMAGE_ERRORS as exc:
            raise InvalidRequest(
                f"The archive {path} is rejected: it is not a complete archive ({exc!s:.80}).",
                remedy="Export the session again, and copy the file unchanged.",
            ) from exc
        with file:
            yield ArchiveReader(path, file)


def _open_file(path: Path) -> IO[bytes]:
    try:
        # without blocking, so that a pipe is rejected and not waited for
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise InvalidRequest(
            f"The archive {path} cannot be read: {exc.strerror}.",
            remedy="Name a file that `replay export` has written.",
        ) from exc
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InvalidRequest(f"The archive {path} is not a regular file.")
    return os.fdopen(handle, "rb")


def _check_directory(raw: IO[bytes]) -> None:
    """Raise `ValueError` if the directory would fill the memory, before it is read.

    The end of the file must be as this module writes it.
    """
    size = raw.seek(0, os.SEEK_END)
    tail_size = END_RECORD.size + ZIP64_LOCATOR.size + ZIP64_END_RECORD.size
    raw.seek(max(size - tail_size, 0))
    tail = raw.read().rjust(tail_size, b"\0")
    mark, *_, length, _, comment = END_RECORD.unpack(tail[-END_RECORD.size :])
    if mark != b"PK\5\6" or comment:
        raise ValueError("its end is missing")
    locator, _, at, _ = ZIP64_LOCATOR.unpack(tail[ZIP64_END_RECORD.size : -END_RECORD.size])
    if locator == b"PK\6\7":
        mark, *_, length, _ = ZIP64_END_RECORD.unpack(tail[: ZIP64_END_RECORD.size])
        if mark != b"PK\6\6" or at != size - tail_size:
            raise ValueError("its end is not where the file says")
    if length > MAX_DIRECTORY_BYTES:
        raise ValueError(f"its directory is larger than {MAX_DIRECTORY_BYTES // MB} MB")


def _has_too_many_values(text: bytes) -> bool:
    """Return whether JSON has more than `MAX_VALUES` values, before anything is made of them.

    Commas and brackets in texts do not count, but a key and its value may be two texts.
    """
    if _count_marks(text, 0, len(text)) <= MAX_VALUES:
        return False
    marks = start = 0
    for number, found in enumerate(JSON_TEXT.finditer(text)):
        marks += _count_marks(text, start, found.start())
        start = found.end()
        if marks > MAX_VALUES or number > 2 * MAX_VALUES:
            return True
    return marks + _count_marks(text, start, len(text)) > MAX_VALUES


def _count_marks(text: bytes, start: int, end: int) -> int:
    return sum(text.count(mark, start, end) for mark in (b",", b"[", b"{"))


def _is_too_deep(data: Any) -> bool:
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        containers = [each for each in level if isinstance(each, dict | list)]
        if not containers:
            return False
        level = [
            item
            for each in containers
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return True


def _parse_finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
