"""The file that a session travels in: a zip with a manifest, its events as lines of JSON, and the blobs they refer to.

Rule 1: the file is a stranger's. What it says of itself is checked, every amount is bounded while it is read, and
nothing in it names a place to write to.
Rule 2: what is wrong is an `InvalidRequest` that names the member and the reason.
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
from typing import IO, Any

from ..errors import InvalidRequest
from .shapes import fits

FORMAT = "mcpruntime-server session"
VERSION = 1
MANIFEST = "manifest.json"
EVENTS = "events.jsonl"
BLOB = re.compile(r"blobs/([0-9a-f]{64})")
MB = 1024 * 1024
MAX_MEMBERS = 200_000  # several times what 4 GB of ordinary files make
MAX_DIRECTORY = 40 * MB  # of the zip, which is read as a whole: 200 bytes for each member
MAX_TOTAL = 4096 * MB  # uncompressed: as much as a whole journal is allowed unless set otherwise
MAX_BLOB = 1024 * MB  # uncompressed: several times a workspace
MAX_MANIFEST = 16 * MB
MAX_LINE = 4 * MB  # one event: its longer fields are blobs
MAX_FIELD = 128 * MB  # a blob that is a part of an event, which memory holds: twice the longest message
CHUNK = 256 * 1024
END = struct.Struct("<4s4H2LH")  # the end of a zip without a comment, as this module writes it
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
BROKEN = (
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
class Travelling:
    """A session in an archive: what its events do not say; times are seconds since the epoch."""

    id: str
    name: str | None
    created: float
    origin: str | None


@dataclass(frozen=True)
class Manifest:
    """What an archive says of itself; `sessions[0]` is the one that was exported, the others are its ancestors'."""

    sessions: list[Travelling]
    runs: int
    events: int
    skipped: list[str]  # digests of blobs that were damaged where it was made


class ArchiveWriter:
    """An archive in the making."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file

    @contextmanager
    def events(self) -> Iterator[IO[bytes]]:
        """Write the lines of events."""
        with self._file.open(_member(EVENTS), "w", force_zip64=True) as lines:
            yield lines

    def blob(self, digest: str, data: bytes) -> None:
        """Add a blob."""
        self._file.writestr(_member(f"blobs/{digest}"), data)

    def manifest(self, manifest: Manifest) -> None:
        """Say what the archive holds."""
        told = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
        self._file.writestr(_member(MANIFEST), json.dumps(told, indent=1))


@contextmanager
def write_archive(path: Path, force: bool) -> Iterator[ArchiveWriter]:
    """Write an archive that appears at `path` when it is whole, in place of another file only with `force`.

    Raises `InvalidRequest` if there is one, or if it cannot be written.
    """
    if not force and os.path.lexists(path):
        raise _exists(path)
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
            try:
                with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as file:
                    yield ArchiveWriter(file)
                _put_into_place(draft.name, path, force)
            finally:
                Path(draft.name).unlink(missing_ok=True)
    except OSError as exc:
        raise InvalidRequest(f"The archive {path} cannot be written: {exc.strerror}.") from exc


def _put_into_place(draft: str, path: Path, force: bool) -> None:
    if not force:
        try:
            os.link(draft, path)  # unlike a rename, never over what somebody else has put there
        except FileExistsError:
            raise _exists(path) from None
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise _exists(path) from None
        else:
            return
    os.replace(draft, path)


def _exists(path: Path) -> InvalidRequest:
    return InvalidRequest(f"There is a file {path} already.", remedy="Give another name, or say that it be replaced.")


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)  # without a date, so that equal sessions make equal files
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o600 << 16
    return member


class ArchiveReader:
    """An archive that is being read; made by `read_archive`."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self._total = 0
        self._members = self._listed()
        self.blobs = {found[1] for found in map(BLOB.fullmatch, self._members) if found}
        self.sizes: dict[str, int] = {}  # of the blobs that have been checked
        self.manifest = self._manifest()

    def refusal(self, member: str, reason: str, remedy: str = "") -> InvalidRequest:
        """Return the error that says why this archive is not taken."""
        return InvalidRequest(f"The archive {self.path} is refused: {member!r:.120} {reason}.", remedy=remedy)

    def check_blobs(self) -> Iterator[str]:
        """Read all blobs, yield the digest of each, and raise if one is not what it is named after."""
        self._total = 0
        for digest in sorted(self.blobs):
            found, self.sizes[digest] = sha256(), 0
            for chunk in self.chunks(digest):
                found.update(chunk)
                self.sizes[digest] += len(chunk)
            if found.hexdigest() != digest:
                raise self.refusal(f"blobs/{digest}", "is not the content that it is named after")
            yield digest

    def chunks(self, digest: str, limit: int = MAX_BLOB) -> Iterator[bytes]:
        """Yield the pieces of a blob."""
        member = f"blobs/{digest}"
        if digest not in self.blobs:
            raise self.refusal(member, "is missing")
        with self._opened(member) as file:
            size = 0
            while chunk := file.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise self.refusal(member, f"is larger than {limit // MB} MB")
                self._count(member, len(chunk))
                yield chunk

    def field(self, digest: str) -> Any:
        """Return the JSON data that a blob holds."""
        return self.json(f"blobs/{digest}", b"".join(self.chunks(digest, MAX_FIELD)))

    def lines(self) -> Iterator[tuple[str, Any]]:
        """Yield each line of events: where it is, and its JSON data."""
        self._total = 0
        with self._opened(EVENTS) as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                where = f"{EVENTS}, line {number}"
                if len(line) > MAX_LINE:
                    raise self.refusal(where, f"is longer than {MAX_LINE // MB} MB")
                self._count(EVENTS, len(line))
                yield where, self.json(where, line)

    def json(self, where: str, text: bytes) -> Any:
        """Return `text` as JSON data."""
        try:
            return json.loads(text.decode("ascii"), parse_constant=_refuse_constant, parse_float=_finite)
        except (ValueError, RecursionError) as exc:
            raise self.refusal(where, f"is not JSON ({exc!s:.80})") from None

    def _count(self, member: str, size: int) -> None:
        self._total += size
        if self._total > MAX_TOTAL:
            raise self.refusal(member, f"takes the whole beyond {MAX_TOTAL // MB} MB")

    @contextmanager
    def _opened(self, member: str) -> Iterator[IO[bytes]]:
        if member not in self._members:
            raise self.refusal(member, "is missing")
        try:
            with self._file.open(self._members[member]) as raw, BufferedReader(raw, CHUNK) as file:  # type: ignore[type-var]
                yield file
        except BROKEN as exc:
            raise self.refusal(member, f"is damaged ({exc!s:.80})") from exc

    def _listed(self) -> Mapping[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in self._file.infolist():
            name = member.filename
            if name in members:
                raise self.refusal(name, "is there twice")
            if name not in (MANIFEST, EVENTS) and not BLOB.fullmatch(name):
                raise self.refusal(name, "does not belong into an archive of a session")
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                raise self.refusal(name, "is not a regular file")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.refusal(name, "is compressed in another way than deflate")
            members[name] = member
            if len(members) > MAX_MEMBERS:
                raise self.refusal(name, f"is one more than {MAX_MEMBERS:,} members")
        return members

    def _manifest(self) -> Manifest:
        with self._opened(MANIFEST) as file:
            text = file.read(MAX_MANIFEST + 1)
        if len(text) > MAX_MANIFEST:
            raise self.refusal(MANIFEST, f"is larger than {MAX_MANIFEST // MB} MB")
        told = self.json(MANIFEST, text)
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise self.refusal(MANIFEST, "is not that of a session")
        if not isinstance(told.get("version"), int):
            raise self.refusal(MANIFEST, "has no version")
        if told["version"] > VERSION:
            reason = f"has version {told['version']}; this program knows up to {VERSION}"
            raise self.refusal(MANIFEST, reason, remedy="Use the newer mcpruntime-server that wrote it.")
        given = told.get("sessions")
        if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
            raise self.refusal(MANIFEST, "names no session")
        sessions = [self._made(Travelling, each) for each in given]
        manifest: Manifest = self._made(Manifest, {**told, "sessions": sessions})
        return manifest

    def _made(self, cls: type[Any], found: Mapping[str, Any]) -> Any:
        names = [item.name for item in fields(cls)]
        wrong = [name for name in names if name not in found or not fits(found[name], cls, name)]
        if wrong:
            raise self.refusal(MANIFEST, f"has no right {wrong[0]!r}")
        return cls(**{name: found[name] for name in names})


@contextmanager
def read_archive(path: Path) -> Iterator[ArchiveReader]:
    """Open an archive and check its directory and its manifest; raises `InvalidRequest`."""
    with _open_file(path) as raw:
        try:
            _check_directory(raw)
            file = zipfile.ZipFile(raw)
        except BROKEN as exc:
            raise InvalidRequest(
                f"The archive {path} is refused: it is not a whole zip file of ours ({exc!s:.80}).",
                remedy="Export the session again, and copy the file as it is.",
            ) from exc
        with file:
            yield ArchiveReader(path, file)


def _open_file(path: Path) -> IO[bytes]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is refused, not waited for
    except OSError as exc:
        raise InvalidRequest(f"The archive {path} cannot be read: {exc.strerror}.") from exc
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InvalidRequest(f"The archive {path} is not a file.")
    return os.fdopen(handle, "rb")


def _check_directory(raw: IO[bytes]) -> None:
    """Refuse a directory that would fill the memory, before it is read; the end must be as this module writes it."""
    size = raw.seek(0, os.SEEK_END)
    tail_size = END.size + LOCATOR.size + END64.size
    raw.seek(max(size - tail_size, 0))
    tail = raw.read().rjust(tail_size, b"\0")
    mark, *_, length, _, comment = END.unpack(tail[-END.size :])
    if mark != b"PK\5\6" or comment:
        raise ValueError("its end is missing")
    locator, _, at, _ = LOCATOR.unpack(tail[END64.size : -END.size])
    if locator == b"PK\6\7":
        mark, *_, length, _ = END64.unpack(tail[: END64.size])
        if mark != b"PK\6\6" or at != size - tail_size:
            raise ValueError("its end is not where it says")
    if length > MAX_DIRECTORY:
        raise ValueError(f"its directory is larger than {MAX_DIRECTORY // MB} MB")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
