"""The inputs of all sessions: kept, found again, read on behalf of code, and put before sandboxes.

Rule 1: up to `MAX_CONTENT` bytes an input is kept by content, in the journal; a larger file by what it was, and is
hashed when nobody waits. Where it is not that any more, an error says so: nothing else is ever put in its place.
Rule 2: a reference comes from hostile code. It is looked for among the inputs of the line of the very run that asks.
It knows neither sandboxes nor the protocol.
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
from .files import InputRoots

MAX_CONTENT_BYTES = 16 << 20  # bytes of an input that is kept by content
MAX_SLICE_BYTES = 16 << 20  # bytes of a piece that are read at once
MAX_HELD_BYTES = (
    64 << 20
)  # bytes of pieces that are held at once, whatever is asked: a reference costs its sender nothing
MAX_KNOWN_SESSIONS = 200  # whose inputs are remembered
SUFFIX_PATTERN = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$")  # libraries go by it

ReadResource = Callable[
    [str], Awaitable[tuple[str, bytes]]
]  # the name and the content of an upstream's resource


async def refuse_resource(address: str) -> tuple[str, bytes]:
    """Raise `InvalidRequest`: there are no upstreams."""
    raise InvalidRequest(f"No server has {address!r:.200}: none is configured.")


class MemoryLimiter:
    """So many bytes of memory, which whoever wants some waits for."""

    def __init__(self, size: int) -> None:
        self._free_bytes = size
        self._freed = anyio.Event()

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Have `size` bytes for as long as the context lasts."""
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
    """What is known of inputs; `roots` is where files may come from, `resource` reads those of upstreams."""

    def __init__(
        self,
        journal: Journal,
        roots: Sequence[Path] = (),
        read_resource: ReadResource = refuse_resource,
    ) -> None:
        self.journal = journal
        self.roots = InputRoots(tuple(roots), journal.data_dir)
        self.read_resource = read_resource
        self._known_inputs: OrderedDict[str, dict[str, InputEntry]] = (
            OrderedDict()
        )  # by session and id
        self._scanned_runs: dict[
            str, str
        ] = {}  # session to the run whose line has been looked through
        self._scan_lock = anyio.Lock()
        self._digests: dict[tuple[str, str], str] = {}  # of files, by path and stamp
        self._memory = MemoryLimiter(MAX_HELD_BYTES)

    # making them --------------------------------------------------------------------------------------

    async def add_text(self, text: str, name: str = "text") -> InputEntry:
        """Return a text as an input."""
        return await self.add_bytes(text.encode("utf-8", "backslashreplace"), name)

    async def add_bytes(self, data: bytes, name: str) -> InputEntry:
        """Return content as an input; raises `JournalFailed` if it cannot be kept."""
        return InputEntry(
            name=name,
            digest=await self.journal.put_blob(data),
            path="",
            size=len(data),
            stamp="",
            start=0,
            end=None,
        )

    async def add_file(self, path: str, name: str = "") -> InputEntry:
        """Return a file below one of the roots as an input; raises `InvalidRequest`."""
        made, data = await run_sync(self._inspect_file, path, name)
        return made if data is None else await self.add_bytes(data, made["name"])

    def _inspect_file(self, path: str, name: str) -> tuple[InputEntry, bytes | None]:
        with self.roots.open_file(path) as (fd, real):
            info = os.fstat(fd)
            name = name or os.path.basename(path)
            stamp = files.compute_stamp(info)
            made = InputEntry(
                name=name, digest="", path=real, size=info.st_size, stamp=stamp, start=0, end=None
            )
            if info.st_size > MAX_CONTENT_BYTES:
                return made, None
            data = files.read_range(fd, 0, info.st_size)
            if len(data) != info.st_size or files.compute_stamp(os.fstat(fd)) != stamp:
                raise InvalidRequest(
                    f"{path!r:.200} changed while it was read.",
                    remedy="Try again when it is whole.",
                )
            return made, data

    async def add_slice(self, session: str, run: str, reference: Any, name: str = "") -> InputEntry:
        """Return a part of an input of run `run` as an input of its own, for another session.

        `reference` is what code has sent (`InputSlice.to_argument()`). Raises `CallFailed` if it names no such piece.
        """
        entry, start, end = await self._resolve_reference(session, run, reference)
        name = name or f"{entry['name']} {start}:{end}"
        if end - start <= MAX_CONTENT_BYTES:
            async with self._memory.reserve(end - start):
                return await self.add_bytes(await self._read_bytes(entry, start, end), name)
        return InputEntry(**{**entry, "name": name, "start": start, "end": end})

    async def read_preview(self, entry: InputEntry, size: int) -> str:
        """Return the first `size` bytes of an input as text; raises `CallFailed`."""
        start, last = entry["start"], entry["size"] if entry["end"] is None else entry["end"]
        return (await self._read_bytes(entry, start, min(start + size, last))).decode(
            "utf-8", "replace"
        )

    # what code refers to ------------------------------------------------------------------------------

    @asynccontextmanager
    async def resolve_data(self, data: Any) -> AsyncIterator[Any]:
        """Yield what a question is about, read where it is a reference; raises `CallFailed`. Needs a call's scope.

        It is held in memory until the context is left, and others wait while there is no room for theirs.
        """
        if not isinstance(data, dict) or data.keys() != {SLICE_KEY}:
            yield data
            return
        asking = current_call_scope()
        entry, start, end = await self._resolve_reference(asking.session_id, asking.run_id, data)
        check_slice_size(end - start)
        async with self._memory.reserve(end - start):
            yield (await self._read_bytes(entry, start, end)).decode("utf-8", "replace")

    async def _resolve_reference(
        self, session: str, run: str, reference: Any
    ) -> tuple[InputEntry, int, int]:
        told = reference.get(SLICE_KEY) if isinstance(reference, dict) else None
        if (
            not isinstance(told, dict)
            or type(told.get("start")) is not int
            or type(told.get("end")) is not int
        ):
            raise CallFailed("invalid_arguments", "This is no reference to a piece of an input.")
        entry = await self._find_input(session, run, told.get("input"))
        start, end = told["start"], told["end"]
        last = entry["size"] if entry["end"] is None else entry["end"]
        if not entry["start"] <= start <= end <= last:
            raise CallFailed(
                "invalid_arguments", f"The input {entry['name']!r} has no piece {start}:{end}."
            )
        return entry, start, end

    async def _find_input(self, session: str, run: str, key: Any) -> InputEntry:
        if not isinstance(key, str):
            raise CallFailed("invalid_arguments", "This is no reference to a piece of an input.")
        if key not in self._known_inputs.get(session, {}):
            async with self._scan_lock:
                await self._scan_line(session, run)
        found = self._known_inputs.get(session, {}).get(key)
        if found is None:
            raise CallFailed(
                "invalid_arguments", "This piece is of no input that the session has had."
            )
        return found

    async def _scan_line(self, session: str, run: str) -> None:
        """Note the inputs of the line of a run, once: whoever asks for what there is not may ask often."""
        if self._scanned_runs.get(session) != run:
            for row in await self.journal.load_lineage(run):
                self.remember_inputs(session, await self.load_context(row.id))
            self._scanned_runs[session] = run

    def remember_inputs(self, session: str, inputs: Sequence[InputEntry]) -> None:
        """Remember that code of a session may refer to these."""
        if inputs:
            self._known_inputs.setdefault(session, {}).update(
                {compute_input_id(each): each for each in inputs}
            )
            self._known_inputs.move_to_end(session)
            if len(self._known_inputs) > MAX_KNOWN_SESSIONS:
                self._scanned_runs.pop(self._known_inputs.popitem(last=False)[0], None)

    async def load_context(self, run: str | None) -> list[InputEntry]:
        """Return the inputs of a run, as the journal has them; None has none."""
        if run is None:
            return []
        row = await self.journal.load_run(run)
        damage: list[str] = []
        stored = await self.journal.load_events(
            row.session_id, run_id=run, event_type=RunStarted, damage=damage
        )
        return [
            each
            for one in stored
            if isinstance(one.event, RunStarted)
            for each in one.event.context
        ]

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

    # what they are on the disk ------------------------------------------------------------------------

    def _open_content(self, entry: InputEntry) -> int:
        """Return a descriptor of the content; raises `InputChanged`."""
        try:
            if entry["digest"]:
                return os.open(
                    self.journal.blobs.blob_path(entry["digest"]), os.O_RDONLY | os.O_CLOEXEC
                )
            with self.roots.open_file(entry["path"]) as (fd, _):
                if not self._is_unchanged(fd, entry):
                    raise input_changed_error(entry)
                return os.dup(fd)
        except (InvalidRequest, NotFound, OSError) as exc:
            raise InputChanged(
                f"The input {entry['name']!r} is gone: {exc}", remedy=GIVE_AGAIN_REMEDY
            ) from None

    def _is_unchanged(self, fd: int, entry: InputEntry) -> bool:
        """Return whether an open file is what it was, by its stamp or else by its content, as far as that is known."""
        info = os.fstat(fd)
        if info.st_size != entry["size"]:
            return False
        known = self._digests.get((entry["path"], entry["stamp"]))
        stamp = files.compute_stamp(info)
        if stamp == entry["stamp"]:
            return True
        if known is None:
            return False
        if (entry["path"], stamp) not in self._digests:
            self._digests[entry["path"], stamp] = [*files.hash_in_steps(fd)][-1]
        return self._digests[entry["path"], stamp] == known

    def place_content(
        self, entry: InputEntry, target: Path, report_copied: placement.ReportCopied
    ) -> int:
        """Have `target` hold the content of an input; return when that was modified (ns). Call it in a worker thread.

        Raises `InputChanged`, `Unavailable`, and what `tell` raises, which is told of the bytes that are copied.
        """
        fd = self._open_content(entry)
        try:
            if entry["digest"] or not placement.link_file(fd, target):
                placement.copy_file(fd, target, report_copied, entry["digest"])
            info = os.fstat(fd)
            if entry["path"] and not self._is_unchanged(fd, entry):
                target.unlink()
                raise input_changed_error(entry)
            return 0 if entry["digest"] else info.st_mtime_ns
        finally:
            os.close(fd)

    def read_content(self, entry: InputEntry) -> bytes:
        """Return all of it; raises `InputChanged`. Call it in a worker thread."""
        return self._read_range(entry, 0, entry["size"])

    # digests, when nobody waits -----------------------------------------------------------------------

    async def load_digests(self, session: str) -> None:
        """Learn what the journal knows of the content of a session's files."""
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
        """Journal the content of those that are files, so that they are known again under another stamp."""
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


GIVE_AGAIN_REMEDY = "Give it anew with `context`."


def check_slice_size(size: int) -> None:
    """Raise `CallFailed` if a piece is too large to be read at once."""
    if size > MAX_SLICE_BYTES:
        raise CallFailed(
            "invalid_arguments", f"A piece has at most {MAX_SLICE_BYTES:,} bytes, not {size:,}."
        )


def input_changed_error(entry: InputEntry) -> InputChanged:
    """Return the error that the file of an input is another one by now."""
    message = f"The file behind the input {entry['name']!r} has changed since it was given."
    return InputChanged(message, remedy=GIVE_AGAIN_REMEDY)


def compute_input_id(entry: InputEntry) -> str:
    """Return what an input is called between code and host: it follows from its content, and tells nothing of it."""
    facts = [
        entry["digest"],
        entry["path"],
        entry["stamp"],
        entry["size"],
        entry["start"],
        entry["end"],
    ]
    return sha256(canonical_json(facts).encode()).hexdigest()[:16]


def compute_file_name(entry: InputEntry) -> str:
    """Return the name of the file that has the content of an input, which may be more than its part."""
    facts = [entry["digest"], entry["path"], entry["stamp"], entry["size"]]
    suffix = SUFFIX_PATTERN.search(entry["name"])
    return sha256(canonical_json(facts).encode()).hexdigest()[:16] + (suffix[0] if suffix else "")
