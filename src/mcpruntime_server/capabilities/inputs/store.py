"""The inputs of all sessions: how they are kept, read for code, and placed before sandboxes.

Rule 1: content of up to `MAX_CONTENT_BYTES` is kept in the journal. A larger file is kept by its
path, size and stamp, and hashed in the background. If it has changed, reading it is an error; other
content never takes its place.
Rule 2: a reference to a slice comes from hostile code. It is looked up among the inputs of the run
that makes the call and of the runs before it. This module knows neither sandboxes nor the link to
them.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from ...errors import CallFailed, InputChanged, InvalidRequest, NotFound
from ...journal.call_scope import current_call_scope
from ...journal.events import InputEntry, InputHashed, RunStarted, canonical_json
from ...journal.store import Journal
from ...protocol.library_names import SLICE_KEY
from . import files, placement
from .databases import HEADER_BYTES, WAL_SUFFIX, is_wal_database, merge_log, remove_wal_mode
from .files import InputRoots

MAX_CONTENT_BYTES = 16 << 20  # of an input that is kept by content
MAX_SLICE_BYTES = 16 << 20  # of a slice that is read for one call
MAX_HELD_BYTES = 64 << 20  # of all slices in memory; sending a reference costs the code nothing
MAX_KNOWN_SESSIONS = 200  # whose inputs are remembered
SUFFIX_PATTERN = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$")  # kept, because libraries go by it
CONTEXT_REMEDY = "Pass it again with `context`."
NOT_A_REFERENCE = "This is not a reference to a slice of an input."

ReadResource = Callable[[str], Awaitable[tuple[str, bytes]]]  # address -> name and content


async def refuse_resource(address: str) -> tuple[str, bytes]:
    """Raise `InvalidRequest`: there are no upstreams."""
    raise InvalidRequest(f"No server has {address!r:.200}: none is configured.")


class MemoryLimiter:
    """A number of bytes; a reservation waits until enough of them are free."""

    def __init__(self, size: int) -> None:
        self._free_bytes = size
        self._freed = anyio.Event()

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes until the context is left."""
        while self._free_bytes < size:
            await self._freed.wait()
        self._free_bytes -= size
        try:
            yield
        finally:
            self._free_bytes += size
            self._freed.set()
            self._freed = anyio.Event()


class InputStore:
    """All known inputs.

    Files may come from `roots`; `read_resource` reads the resources of upstreams.
    """

    def __init__(
        self,
        journal: Journal,
        roots: Sequence[Path] = (),
        read_resource: ReadResource = refuse_resource,
    ) -> None:
        self.journal = journal
        self.roots = InputRoots(tuple(roots), journal.data_dir)
        self.read_resource = read_resource
        self._known_inputs: OrderedDict[str, dict[str, InputEntry]] = OrderedDict()  # session -> id
        self._scanned_runs: dict[str, str] = {}  # session -> the run whose lineage was loaded last
        self._scan_lock = anyio.Lock()
        self._digests: dict[tuple[str, str], str] = {}  # of files, by path and stamp
        self._memory = MemoryLimiter(MAX_HELD_BYTES)

    # adding ---------------------------------------------------------------------------------------

    async def add_text(self, text: str, name: str = "text") -> InputEntry:
        """Return a text as an input."""
        return await self.add_bytes(text.encode("utf-8", "backslashreplace"), name)

    async def add_bytes(self, data: bytes, name: str) -> InputEntry:
        """Return content as an input; raises `JournalFailed` if it cannot be stored."""
        digest = await self.journal.put_blob(data)
        return InputEntry(
            name=name, digest=digest, path="", size=len(data), stamp="", start=0, end=None
        )

    async def add_file(self, path: str, name: str = "") -> InputEntry:
        """Return a file below one of the roots as an input; raises `InvalidRequest`."""
        entry, data = await run_sync(self._inspect_file, path, name)
        return entry if data is None else await self.add_bytes(data, entry["name"])

    def _inspect_file(self, path: str, name: str) -> tuple[InputEntry, bytes | None]:
        """Return a file as an input, and its content if it is small enough to be kept."""
        with self.roots.open_file(path) as (fd, real_path):
            info = os.fstat(fd)
            stamp = files.compute_stamp(info)
            entry = InputEntry(
                name=name or os.path.basename(path),
                digest="",
                path=real_path,
                size=info.st_size,
                stamp=stamp,
                start=0,
                end=None,
            )
            has_wal_mode = is_wal_database(files.read_range(fd, 0, HEADER_BYTES))
            log = self._read_log(path) if has_wal_mode else b""
            if info.st_size > MAX_CONTENT_BYTES:
                if log:
                    raise InvalidRequest(
                        f"{path!r:.200} is a SQLite database with changes in its log.",
                        remedy="Close the programs that use it, "
                        "or run PRAGMA wal_checkpoint(TRUNCATE).",
                    )
                return entry, None
            data = files.read_range(fd, 0, info.st_size)
            is_changed = len(data) != info.st_size or files.compute_stamp(os.fstat(fd)) != stamp
            if is_changed or (has_wal_mode and self._read_log(path) != log):
                raise InvalidRequest(
                    f"{path!r:.200} changed while it was read.",
                    remedy="Try again when it is complete.",
                )
            return entry, merge_log(data, log) if has_wal_mode else data

    def _read_log(self, path: str) -> bytes:
        """Return the log of a SQLite database; b"" if there is none."""
        try:
            with self.roots.open_file(path + WAL_SUFFIX) as (fd, _):
                return files.read_range(fd, 0, MAX_CONTENT_BYTES)
        except InvalidRequest:
            return b""

    async def add_slice(self, session: str, run: str, reference: Any, name: str = "") -> InputEntry:
        """Return a slice of an input of run `run` as an input of its own, for another session.

        `reference` is what code has sent (`InputSlice.to_argument()`). Raises `CallFailed` if there
        is no such slice.
        """
        entry, start, end = await self._resolve_reference(session, run, reference)
        name = name or f"{entry['name']} {start}:{end}"
        if end - start > MAX_CONTENT_BYTES:
            return {**entry, "name": name, "start": start, "end": end}
        async with self._memory.reserve(end - start):
            return await self.add_bytes(await self._read_bytes(entry, start, end), name)

    async def read_preview(self, entry: InputEntry, size: int) -> str:
        """Return the first `size` bytes of an input as text; raises `CallFailed`."""
        start = entry["start"]
        end = min(start + size, end_offset(entry))
        return (await self._read_bytes(entry, start, end)).decode("utf-8", "replace")

    # references from code -------------------------------------------------------------------------

    @asynccontextmanager
    async def resolve_data(self, data: Any) -> AsyncIterator[Any]:
        """Yield the data of a call; a reference to a slice is replaced by the slice's text.

        The text counts against `MAX_HELD_BYTES` until the context is left; other calls wait for
        free memory. Call it within the scope of a call. Raises `CallFailed`.
        """
        if not isinstance(data, dict) or data.keys() != {SLICE_KEY}:
            yield data
            return
        scope = current_call_scope()
        entry, start, end = await self._resolve_reference(scope.session_id, scope.run_id, data)
        check_slice_size(end - start)
        async with self._memory.reserve(end - start):
            yield (await self._read_bytes(entry, start, end)).decode("utf-8", "replace")

    async def _resolve_reference(
        self, session: str, run: str, reference: Any
    ) -> tuple[InputEntry, int, int]:
        bounds = reference.get(SLICE_KEY) if isinstance(reference, dict) else None
        if not isinstance(bounds, dict):
            raise CallFailed("invalid_arguments", NOT_A_REFERENCE)
        start, end = bounds.get("start"), bounds.get("end")
        if type(start) is not int or type(end) is not int:
            raise CallFailed("invalid_arguments", NOT_A_REFERENCE)
        entry = await self._find_input(session, run, bounds.get("input"))
        if not entry["start"] <= start <= end <= end_offset(entry):
            raise CallFailed(
                "invalid_arguments", f"The input {entry['name']!r} has no slice {start}:{end}."
            )
        return entry, start, end

    async def _find_input(self, session: str, run: str, input_id: Any) -> InputEntry:
        if not isinstance(input_id, str):
            raise CallFailed("invalid_arguments", NOT_A_REFERENCE)
        if input_id not in self._known_inputs.get(session, {}):
            async with self._scan_lock:
                await self._scan_line(session, run)
        found = self._known_inputs.get(session, {}).get(input_id)
        if found is None:
            raise CallFailed(
                "invalid_arguments", "The session has never had the input of this slice."
            )
        return found

    async def _scan_line(self, session: str, run: str) -> None:
        """Remember the inputs of a run and of the runs before it.

        This happens once for each run, because code may ask for missing inputs as often as it
        likes.
        """
        if self._scanned_runs.get(session) != run:
            for row in await self.journal.load_lineage(run):
                self.remember_inputs(session, await self.load_context(row.id))
            self._scanned_runs[session] = run

    def input_id(self, entry: InputEntry) -> str:
        """Return the id of an input, which follows from its content."""
        return compute_input_id(entry)

    def file_name(self, entry: InputEntry) -> str:
        """Return the name of the file that holds the content of an input in a sandbox."""
        return compute_file_name(entry)

    def remember_inputs(self, session: str, inputs: Sequence[InputEntry]) -> None:
        """Remember inputs that code of a session may refer to."""
        if not inputs:
            return
        known = self._known_inputs.setdefault(session, {})
        known.update({compute_input_id(each): each for each in inputs})
        self._known_inputs.move_to_end(session)
        if len(self._known_inputs) > MAX_KNOWN_SESSIONS:
            forgotten, _ = self._known_inputs.popitem(last=False)
            self._scanned_runs.pop(forgotten, None)

    async def load_context(self, run: str | None) -> list[InputEntry]:
        """Return the inputs of a run from the journal; none if `run` is None."""
        if run is None:
            return []
        row = await self.journal.load_run(run)
        damage: list[str] = []
        stored = await self.journal.load_events(
            row.session_id, run_id=run, event_type=RunStarted, damage=damage
        )
        started = [each.event for each in stored if isinstance(each.event, RunStarted)]
        return [entry for event in started for entry in event.context]

    async def _read_bytes(self, entry: InputEntry, start: int, end: int) -> bytes:
        check_slice_size(end - start)
        try:
            return await run_sync(self._read_range, entry, start, end)
        except InputChanged as exc:
            raise CallFailed("input_changed", exc.message) from None

    def _read_range(self, entry: InputEntry, start: int, end: int) -> bytes:
        fd = self._open_content(entry)
        try:
            data = files.read_range(fd, start, end)
            if len(data) != end - start or (entry["path"] and not self._is_unchanged(fd, entry)):
                raise input_changed_error(entry)
            return data
        finally:
            os.close(fd)

    # content on the disk --------------------------------------------------------------------------

    def _open_content(self, entry: InputEntry) -> int:
        """Return a descriptor of the content; raises `InputChanged`."""
        try:
            if entry["digest"]:
                path = self.journal.blobs.blob_path(entry["digest"])
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            with self.roots.open_file(entry["path"]) as (fd, _):
                if not self._is_unchanged(fd, entry):
                    raise input_changed_error(entry)
                return os.dup(fd)
        except (InvalidRequest, NotFound, OSError) as exc:
            raise InputChanged(
                f"The input {entry['name']!r} can no longer be read: {exc}",
                remedy=CONTEXT_REMEDY,
            ) from None

    def _is_unchanged(self, fd: int, entry: InputEntry) -> bool:
        """Return whether an open file still is the input, by its stamp or a known digest."""
        info = os.fstat(fd)
        if info.st_size != entry["size"]:
            return False
        path, stamp = entry["path"], files.compute_stamp(info)
        if stamp == entry["stamp"]:
            return True
        expected = self._digests.get((path, entry["stamp"]))
        if expected is None:
            return False
        if (path, stamp) not in self._digests:
            self._digests[path, stamp] = files.hash_file(fd)
        return self._digests[path, stamp] == expected

    def place_content(
        self, entry: InputEntry, target: Path, report_copied: placement.ReportCopied
    ) -> int:
        """Make `target` hold the content of an input; return its time of modification in ns.

        The time is 0 for content from the journal. `report_copied` gets the number of bytes copied
        so far; what it raises ends the copy. Raises `InputChanged`, `Unavailable`. Call it in a
        worker thread.
        """
        fd = self._open_content(entry)
        try:
            has_wal_mode = is_wal_database(files.read_range(fd, 0, HEADER_BYTES))
            placement.copy_file(fd, target, report_copied, entry["digest"])
            if has_wal_mode and not entry["digest"]:
                remove_wal_mode(target)
            info = os.fstat(fd)
            if entry["path"] and not self._is_unchanged(fd, entry):
                target.unlink()
                raise input_changed_error(entry)
            return 0 if entry["digest"] else info.st_mtime_ns
        finally:
            os.close(fd)

    def read_content(self, entry: InputEntry) -> bytes:
        """Return what `place_content` places; raises `InputChanged`. Call it in a worker thread."""
        data = self._read_range(entry, 0, entry["size"])
        if entry["digest"] or not is_wal_database(data[:HEADER_BYTES]):
            return data
        return merge_log(data, b"")

    # digests of files, computed in the background -------------------------------------------------

    async def load_digests(self, session: str) -> None:
        """Load what the journal knows about the content of a session's files."""
        for stored in await self.journal.load_events(session, event_type=InputHashed, damage=[]):
            if isinstance(stored.event, InputHashed):
                self._digests[stored.event.path, stored.event.stamp] = stored.event.digest

    async def hash_files(
        self,
        session: str,
        run: str,
        inputs: Sequence[InputEntry],
        should_continue: Callable[[], bool],
    ) -> None:
        """Append the digest of each input that is a file to the journal.

        So the file is recognised later, even if its stamp is another one. Stops when
        `should_continue` returns False.
        """
        for entry in inputs:
            key = entry["path"], entry["stamp"]
            if entry["path"] and key not in self._digests:
                digest = await run_sync(
                    self._hash_file, entry, should_continue, abandon_on_cancel=True
                )
                if digest:
                    self._digests[key] = digest
                    self.journal.append(session, InputHashed(*key, digest), run)

    def _hash_file(self, entry: InputEntry, should_continue: Callable[[], bool]) -> str:
        """Return the digest of a file; "" if it has changed or the caller wants to stop."""
        try:
            fd = self._open_content(entry)
        except InputChanged:
            return ""
        try:
            for digest in files.hash_in_steps(fd):
                if digest and files.compute_stamp(os.fstat(fd)) == entry["stamp"]:
                    return digest
                if not should_continue():
                    break
            return ""
        finally:
            os.close(fd)


def end_offset(entry: InputEntry) -> int:
    """Return where an input ends in its content or file, in bytes."""
    return entry["size"] if entry["end"] is None else entry["end"]


def check_slice_size(size: int) -> None:
    """Raise `CallFailed` if a slice is too large to be read for one call."""
    if size > MAX_SLICE_BYTES:
        raise CallFailed(
            "invalid_arguments", f"A slice has at most {MAX_SLICE_BYTES:,} bytes, not {size:,}."
        )


def input_changed_error(entry: InputEntry) -> InputChanged:
    """Return the error for an input whose file has changed."""
    return InputChanged(
        f"The file behind the input {entry['name']!r} has changed since it was passed.",
        remedy=CONTEXT_REMEDY,
    )


def compute_input_id(entry: InputEntry) -> str:
    """Return the id of an input for code and host.

    It follows from the content and reveals nothing about it.
    """
    return _digest_facts(entry, entry["start"], entry["end"])


def compute_file_name(entry: InputEntry) -> str:
    """Return the name of the file with the content of an input, which may be only a part of it."""
    suffix = SUFFIX_PATTERN.search(entry["name"])
    return _digest_facts(entry) + (suffix[0] if suffix else "")


def _digest_facts(entry: InputEntry, *more: int | None) -> str:
    facts = [entry["digest"], entry["path"], entry["stamp"], entry["size"], *more]
    return sha256(canonical_json(facts).encode()).hexdigest()[:16]
