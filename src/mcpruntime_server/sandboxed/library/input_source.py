"""The bytes of an input: read in blocks where they are needed, never mapped and never all at once.

Rule 1: standard library only, Python >= 3.9, and imported only when a run has an input.
Rule 2: an input is what it was when it was given. A file that has changed is an exception, never other content.
Rule 3: what a gzip file holds is read as if it lay there unpacked; offsets are those of the unpacked bytes.
Rule 4: nothing stays open between two reads, so that a copy of the interpreter shares nothing with it.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from threading import Lock

from ...protocol.library_names import GZIP_MAGIC

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, ClassVar, Dict, Iterator, Optional, Tuple

BLOCK_BYTES = 1 << 20  # bytes read at once
PACKED_READ_BYTES = (
    1 << 16
)  # bytes of a gzip file unpacked at once: memory follows from it, whatever they unpack to
MAX_UNPACKED_BYTES = 64 << 30  # bytes: a bomb of some megabytes holds more
INITIAL_GAP_BYTES = (
    16 << 20
)  # unpacked bytes between two places from which a gzip file can be read on
MAX_RESUME_POINTS = 64  # of these; each takes some 40 KB


class InputError(Exception):
    """An input cannot be read in the way that was asked for; the message says what is possible."""

    __module__ = "__main__"


class InputChanged(InputError):
    """The file behind an input has changed since it was given."""

    __module__ = "__main__"


class FileReader:
    """A file as it was: `size` and `stamp` (modified, in ns; 0: not known) must not change."""

    def __init__(self, name: str, path: str, size: int, modified_ns: int, problem: str) -> None:
        self.name, self.path, self.size, self.modified_ns = name, path, size, modified_ns
        self.problem = problem  # why there is nothing to be read

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to the end of the file; raises `InputChanged`."""
        if self.problem:
            raise InputChanged(self.problem)
        end = min(end, self.size)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as exc:
            raise InputChanged(
                f"The input {self.name!r} cannot be read any more: {exc.strerror}."
            ) from None
        try:
            data = os.pread(fd, end - start, start) if start < end else b""
            while len(data) < end - start and (
                more := os.pread(fd, end - start - len(data), start + len(data))
            ):
                data += more
            info = os.fstat(fd)
        finally:
            os.close(fd)
        if (
            len(data) < end - start
            or info.st_size != self.size
            or self.modified_ns not in (0, info.st_mtime_ns)
        ):
            raise InputChanged(
                f"The file behind the input {self.name!r} has changed since it was given."
            )
        return data


class GzipCursor:
    """A gzip file, unpacked as far as `at`; copies of it go on from there."""

    def __init__(self, packed: FileReader) -> None:
        from zlib import decompressobj

        self._packed = packed
        self._decompressor: Any = decompressobj(31)
        self._file_offset = 0  # in the file
        self._pending = b""  # bytes of it that are not unpacked yet
        self._has_more_output = False  # there may be more from the bytes that went before
        self.offset = 0
        self.is_finished = False

    def copy(self) -> GzipCursor:
        """Return another one at the same place."""
        copied = GzipCursor.__new__(GzipCursor)
        copied.__dict__.update(self.__dict__)
        copied._decompressor = self._decompressor.copy()
        return copied

    def read_block(self) -> bytes:
        """Return the next bytes, `BLOCK` at most; raises `InputError` where the file is damaged."""
        from zlib import decompressobj, error

        if self._decompressor.eof:
            self._pending = self._pending or self._read_packed()
            if not self._pending.startswith(GZIP_MAGIC[:2]):  # padding, or nothing
                self.is_finished = True
                return b""
            self._decompressor = decompressobj(31)
        if not self._pending and not self._has_more_output:
            self._pending = self._read_packed()
            if not self._pending:
                raise InputError(
                    f"The gzip file {self._packed.name!r} ends in its middle, after {self.offset:,} bytes."
                )
        try:
            data: bytes = self._decompressor.decompress(self._pending, BLOCK_BYTES)
        except error as exc:
            raise InputError(f"The gzip file {self._packed.name!r} is damaged: {exc}.") from None
        self._pending = (
            self._decompressor.unused_data
            if self._decompressor.eof
            else self._decompressor.unconsumed_tail
        )
        self._has_more_output = len(data) == BLOCK_BYTES
        self.offset += len(data)
        if self.offset > MAX_UNPACKED_BYTES:
            raise InputError(
                f"The gzip file {self._packed.name!r} holds more than {MAX_UNPACKED_BYTES:,} bytes."
            )
        return data

    def _read_packed(self) -> bytes:
        data = self._packed.read(self._file_offset, self._file_offset + PACKED_READ_BYTES)
        self._file_offset += len(data)
        return data


class GzipReader:
    """What a gzip file holds; its size is known when it has been read to its end."""

    def __init__(self, packed: FileReader) -> None:
        self._packed = packed
        self._lock = Lock()
        self._cursor = GzipCursor(packed)
        self._resume_points = [GzipCursor(packed)]
        self._gap_bytes = INITIAL_GAP_BYTES
        self._buffer = b""  # bytes before `_now.at` that a read has not taken
        self._size: Optional[int] = None

    @property
    def size(self) -> int:
        """The bytes that it holds, for which it may have to be read once."""
        with self._lock:
            while self._size is None:
                self._advance()
        return self._size

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to their end."""
        with self._lock:
            if (
                not self._cursor.offset - len(self._buffer)
                <= start
                < self._cursor.offset + self._gap_bytes
            ):
                self._cursor = max(
                    (place for place in self._resume_points if place.offset <= start),
                    key=_cursor_offset,
                ).copy()
                self._buffer = b""
            pieces = []
            while start < end:
                first = self._cursor.offset - len(self._buffer)
                piece = self._buffer[max(start - first, 0) : end - first]
                pieces.append(piece)
                start += len(piece)
                if start < end and not self._advance():
                    break
            return b"".join(pieces)

    def _advance(self) -> bool:
        """Unpack some more; return whether there was any."""
        self._buffer = self._cursor.read_block()
        if self._cursor.is_finished:
            self._size = self._cursor.offset
            return False
        if self._cursor.offset >= self._resume_points[-1].offset + self._gap_bytes:
            self._resume_points.append(self._cursor.copy())
        if len(self._resume_points) > MAX_RESUME_POINTS:
            del self._resume_points[1::2]
            self._gap_bytes *= 2
        return True


def _cursor_offset(place: GzipCursor) -> int:
    return place.offset


class InputSource:
    """The bytes of one input, in blocks, and where its lines are; `told` is what the host says of it."""

    _cached_block: ClassVar[Tuple[str, int, bytes]] = (
        "",
        0,
        b"",
    )  # the block that was read last, of any source

    def __init__(self, description: Dict[str, Any]) -> None:
        self.id: str = description["id"]
        self.name: str = description["name"]
        self.path: str = description["path"]
        self._file_reader = FileReader(
            self.name,
            description["path"],
            description["size"],
            description["stamp"],
            description["problem"],
        )
        self._reader: Any = None
        self._newline_counts = array("Q")  # up to the end of each block

    @property
    def is_gzip(self) -> bool:
        """Whether it is a gzip file."""
        return isinstance(self._get_reader(), GzipReader)

    @property
    def size(self) -> int:
        """Its bytes, unpacked."""
        size: int = self._get_reader().size
        return size

    def _get_reader(self) -> Any:
        if self._reader is None:
            is_packed = self._file_reader.read(0, len(GZIP_MAGIC)) == GZIP_MAGIC
            self._reader = GzipReader(self._file_reader) if is_packed else self._file_reader
        return self._reader

    def read_block(self, number: int) -> bytes:
        """Return a block; the last one is shorter, and those behind it are empty."""
        source, last, data = InputSource._cached_block
        if source == self.id and last == number and not self._file_reader.problem:
            return data
        read: bytes = self._get_reader().read(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)
        InputSource._cached_block = self.id, number, read
        return read

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to their end; what is read next is likely to follow."""
        return b"".join(data for _, data in self.iter_blocks(start, end))

    def read_uncached(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to their end, and read no others: several threads may do so."""
        source, number, data = InputSource._cached_block
        at = start - number * BLOCK_BYTES
        if (
            source == self.id
            and at >= 0
            and end - number * BLOCK_BYTES <= len(data)
            and not self._file_reader.problem
        ):
            return data[at : end - number * BLOCK_BYTES]
        read: bytes = self._get_reader().read(start, end)
        return read

    def iter_blocks(self, start: int, end: Optional[int]) -> Iterator[Tuple[int, bytes]]:
        """Yield (offset, bytes) from `start` to `end` (None: to their end)."""
        number = start // BLOCK_BYTES
        while end is None or number * BLOCK_BYTES < end:
            offset, data = number * BLOCK_BYTES, self.read_block(number)
            is_last = len(data) < BLOCK_BYTES
            if offset < start or (end is not None and offset + len(data) > end):
                data = data[max(start - offset, 0) : None if end is None else end - offset]
                offset = max(start, offset)
            if data:
                yield offset, data
            if is_last:
                return
            number += 1

    # lines ----------------------------------------------------------------------------------------

    def _count_newlines(self) -> array:  # type: ignore[type-arg]
        """Return how many newlines there are up to the end of each block, for which it is read once."""
        if not self._newline_counts:
            counted, total = array("Q"), 0
            for _, data in self.iter_blocks(0, None):
                total += data.count(b"\n")
                counted.append(total)
            counted.append(total)
            self._newline_counts = counted
        return self._newline_counts

    def count_newlines_before(self, offset: int) -> int:
        """Return how many newlines there are before `offset`."""
        counted, number = self._count_newlines(), offset // BLOCK_BYTES
        before = counted[min(number, len(counted)) - 1] if number else 0
        rest = offset - number * BLOCK_BYTES
        return before + (self.read_block(number).count(b"\n", 0, rest) if rest else 0)

    def find_line_start(self, line: int) -> int:
        """Return the offset right after newline number `line`, counted from 1; 0 for 0, the size beyond the last."""
        counted = self._count_newlines()
        if line <= 0:
            return 0
        if line > counted[-1]:
            return self.size
        number = bisect_left(counted, line)
        left = line - (counted[number - 1] if number else 0)
        data, at = self.read_block(number), -1
        for _ in range(left):
            at = data.index(b"\n", at + 1)
        return number * BLOCK_BYTES + at + 1


def length_of_whole_characters(data: bytes) -> int:
    """Return how much of `data` is whole characters: one that is cut off at its end is left out."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            needed = (
                2
                if byte >> 5 == 0b110
                else 3
                if byte >> 4 == 0b1110
                else 4
                if byte >> 3 == 0b11110
                else 1
            )
            return len(data) - back if needed > back else len(data)
    return len(data)
