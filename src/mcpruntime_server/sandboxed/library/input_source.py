"""The bytes of an input, read in blocks where they are needed.

Rule 1: standard library only, Python >= 3.9, and imported only when a run has an input.
Rule 2: inputs are read, never mapped. The pages of a mapping count as memory of the sandbox, and a
mapped file that shrinks kills its reader.
Rule 3: an input stays what it was when it was passed. If its file has changed, reading it raises an
exception; it never returns other content.
Rule 4: a gzip file is read as if it were decompressed; offsets are those of the decompressed bytes.
Rule 5: nothing stays open between two reads, so that a fork of the interpreter shares nothing with
the original.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from threading import Lock

from ...protocol.library_names import GZIP_MAGIC

TYPE_CHECKING = False  # importing `typing` would slow down every start of a sandbox
if TYPE_CHECKING:
    from typing import Any, ClassVar, Iterator, Optional, Tuple, Union

    from ...protocol.payloads import InputDescription

BLOCK_BYTES = 1 << 20  # bytes of one read
PACKED_READ_BYTES = 1 << 16  # compressed bytes of one read; they bound the memory that it takes
MAX_UNPACKED_BYTES = 64 << 30  # a bomb of some megabytes holds more
INITIAL_GAP_BYTES = 16 << 20  # decompressed bytes between two points where reading can resume
MAX_RESUME_POINTS = 64  # of one gzip file; each takes about 40 KB
GZIP_WINDOW_BITS = 31  # of zlib: a gzip header is expected


class InputError(Exception):
    """An input cannot be read as requested; the message says what is possible."""

    __module__ = "__main__"


class InputChanged(InputError):
    """The file behind an input has changed since it was passed."""

    __module__ = "__main__"


class FileReader:
    """A file of known size and time of modification (0: unknown), neither of which may change."""

    def __init__(self, name: str, path: str, size: int, modified_ns: int, problem: str) -> None:
        self.name = name
        self.path = path
        self.size = size
        self.modified_ns = modified_ns
        self.problem = problem  # why it cannot be read; "" if it can

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to the end of the file.

        Raises `InputChanged`.
        """
        if self.problem:
            raise InputChanged(self.problem)
        wanted = max(min(end, self.size) - start, 0)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as exc:
            raise InputChanged(
                f"The input {self.name!r} can no longer be read: {exc.strerror}."
            ) from None
        try:
            data = os.pread(fd, wanted, start) if wanted else b""
            while len(data) < wanted:
                more = os.pread(fd, wanted - len(data), start + len(data))
                if not more:
                    break
                data += more
            info = os.fstat(fd)
        finally:
            os.close(fd)
        is_modified = self.modified_ns not in (0, info.st_mtime_ns)
        if len(data) < wanted or info.st_size != self.size or is_modified:
            raise InputChanged(
                f"The file behind the input {self.name!r} has changed since it was passed."
            )
        return data


class GzipCursor:
    """A gzip file, decompressed up to `offset`; a copy can continue from there."""

    def __init__(self, packed: FileReader) -> None:
        from zlib import decompressobj

        self._packed = packed
        self._decompressor: Any = decompressobj(GZIP_WINDOW_BITS)
        self._file_offset = 0
        self._pending = b""  # bytes of the file that are not decompressed yet
        self._has_more_output = False  # from bytes that were passed to the decompressor before
        self.offset = 0
        self.is_finished = False

    def copy(self) -> GzipCursor:
        """Return another cursor at the same offset."""
        copied = GzipCursor.__new__(GzipCursor)
        copied.__dict__.update(self.__dict__)
        copied._decompressor = self._decompressor.copy()
        return copied

    def read_block(self) -> bytes:
        """Return the next bytes, at most `BLOCK_BYTES`.

        Raises `InputError` if the file is damaged.
        """
        from zlib import decompressobj, error

        if self._decompressor.eof:
            self._pending = self._pending or self._read_packed()
            if not self._pending.startswith(GZIP_MAGIC[:2]):  # padding, or nothing
                self.is_finished = True
                return b""
            self._decompressor = decompressobj(GZIP_WINDOW_BITS)
        if not self._pending and not self._has_more_output:
            self._pending = self._read_packed()
            if not self._pending:
                raise InputError(
                    f"The gzip file {self._packed.name!r} is truncated after {self.offset:,} bytes."
                )
        try:
            data: bytes = self._decompressor.decompress(self._pending, BLOCK_BYTES)
        except error as exc:
            raise InputError(f"The gzip file {self._packed.name!r} is damaged: {exc}.") from None
        if self._decompressor.eof:
            self._pending = self._decompressor.unused_data
        else:
            self._pending = self._decompressor.unconsumed_tail
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
    """The content of a gzip file; its size is known after it has been read to its end."""

    def __init__(self, packed: FileReader) -> None:
        self._packed = packed
        self._lock = Lock()
        self._cursor = GzipCursor(packed)
        self._resume_points = [GzipCursor(packed)]
        self._gap_bytes = INITIAL_GAP_BYTES
        self._buffer = b""  # the block that ends at the cursor
        self._size: Optional[int] = None

    @property
    def size(self) -> int:
        """The number of decompressed bytes; the file may have to be read once to find out."""
        with self._lock:
            while self._size is None:
                self._advance()
        return self._size

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to the end of the content."""
        with self._lock:
            first = self._cursor.offset - len(self._buffer)
            if not first <= start < self._cursor.offset + self._gap_bytes:
                points = [point for point in self._resume_points if point.offset <= start]
                self._cursor = max(points, key=_cursor_offset).copy()
                self._buffer = b""
            parts = []
            while start < end:
                first = self._cursor.offset - len(self._buffer)
                part = self._buffer[max(start - first, 0) : end - first]
                parts.append(part)
                start += len(part)
                if start < end and not self._advance():
                    break
            return b"".join(parts)

    def _advance(self) -> bool:
        """Decompress the next block; return whether there was one."""
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


def _cursor_offset(cursor: GzipCursor) -> int:
    return cursor.offset


class InputSource:
    """The bytes of one input in blocks, and where its lines start."""

    _cached_block: ClassVar[Tuple[str, int, bytes]] = ("", 0, b"")  # the last block of any source

    def __init__(self, description: InputDescription) -> None:
        self.id = description["id"]
        self.name = description["name"]
        self.path = description["path"]
        self._file_reader = FileReader(
            description["name"],
            description["path"],
            description["size"],
            description["modified_ns"],
            description["problem"],
        )
        self._reader: Optional[Union[FileReader, GzipReader]] = None
        self._newline_counts: array[int] = array("Q")  # up to the end of each block

    @property
    def is_gzip(self) -> bool:
        """Whether it is a gzip file."""
        return isinstance(self._get_reader(), GzipReader)

    @property
    def size(self) -> int:
        """The number of bytes, decompressed."""
        return self._get_reader().size

    def _get_reader(self) -> Union[FileReader, GzipReader]:
        if self._reader is None:
            is_gzip = self._file_reader.read(0, len(GZIP_MAGIC)) == GZIP_MAGIC
            self._reader = GzipReader(self._file_reader) if is_gzip else self._file_reader
        return self._reader

    def read_block(self, number: int) -> bytes:
        """Return a block; the last one is shorter, and all after it are empty."""
        source, cached, data = InputSource._cached_block
        if source == self.id and cached == number and not self._file_reader.problem:
            return data
        data = self._get_reader().read(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)
        InputSource._cached_block = self.id, number, data
        return data

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to the end.

        Whole blocks are read and cached.
        """
        return b"".join(data for _, data in self.iter_blocks(start, end))

    def read_uncached(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to the end, and read no others.

        Several threads may do so at the same time.
        """
        source, number, data = InputSource._cached_block
        offset = number * BLOCK_BYTES
        is_cached = source == self.id and start >= offset and end - offset <= len(data)
        if is_cached and not self._file_reader.problem:
            return data[start - offset : end - offset]
        return self._get_reader().read(start, end)

    def iter_blocks(self, start: int, end: Optional[int]) -> Iterator[Tuple[int, bytes]]:
        """Yield (offset, bytes) from `start` to `end` (None: to the end)."""
        number = start // BLOCK_BYTES
        while end is None or number * BLOCK_BYTES < end:
            offset = number * BLOCK_BYTES
            data = self.read_block(number)
            is_last = len(data) < BLOCK_BYTES
            if offset < start or (end is not None and offset + len(data) > end):
                stop = None if end is None else end - offset
                data = data[max(start - offset, 0) : stop]
                offset = max(start, offset)
            if data:
                yield offset, data
            if is_last:
                return
            number += 1

    # lines ----------------------------------------------------------------------------------------

    def _count_newlines(self) -> array[int]:
        """Return the number of newlines up to the end of each block; reads the input once."""
        if not self._newline_counts:
            counts: array[int] = array("Q")
            total = 0
            for _, data in self.iter_blocks(0, None):
                total += data.count(b"\n")
                counts.append(total)
            counts.append(total)
            self._newline_counts = counts
        return self._newline_counts

    def count_newlines_before(self, offset: int) -> int:
        """Return the number of newlines before `offset`."""
        counts = self._count_newlines()
        number, rest = divmod(offset, BLOCK_BYTES)
        before = counts[min(number, len(counts)) - 1] if number else 0
        return before + (self.read_block(number).count(b"\n", 0, rest) if rest else 0)

    def find_line_start(self, line: int) -> int:
        """Return the offset after newline number `line`, counted from 1.

        It is 0 for line 0, and the size for a line beyond the last.
        """
        counts = self._count_newlines()
        if line <= 0:
            return 0
        if line > counts[-1]:
            return self.size
        number = bisect_left(counts, line)
        data = self.read_block(number)
        newline = -1
        for _ in range(line - (counts[number - 1] if number else 0)):
            newline = data.index(b"\n", newline + 1)
        return number * BLOCK_BYTES + newline + 1


def length_of_whole_characters(data: bytes) -> int:
    """Return the number of bytes of `data` without a UTF-8 character that is cut off at the end."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # the first byte of a character
            is_cut_off = _character_length(byte) > back
            return len(data) - back if is_cut_off else len(data)
    return len(data)


def _character_length(first_byte: int) -> int:
    if first_byte >> 5 == 0b110:
        return 2
    if first_byte >> 4 == 0b1110:
        return 3
    if first_byte >> 3 == 0b11110:
        return 4
    return 1
