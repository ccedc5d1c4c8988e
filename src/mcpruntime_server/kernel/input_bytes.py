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

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, ClassVar, Dict, Iterator, Optional, Tuple

BLOCK = 1 << 20  # bytes read at once
PACKED = 1 << 16  # bytes of a gzip file unpacked at once: memory follows from it, whatever they unpack to
GZIP = b"\x1f\x8b\x08"  # what a gzip file begins with
MAX_UNPACKED = 64 << 30  # bytes: a bomb of some megabytes holds more
FIRST_GAP = 16 << 20  # unpacked bytes between two places from which a gzip file can be read on
MAX_PLACES = 64  # of these; each takes some 40 KB


class InputError(Exception):
    """An input cannot be read in the way that was asked for; the message says what is possible."""

    __module__ = "__main__"


class InputChanged(InputError):
    """The file behind an input has changed since it was given."""

    __module__ = "__main__"


class FileBytes:
    """A file as it was: `size` and `stamp` (modified, in ns; 0: not known) must not change."""

    def __init__(self, name: str, path: str, size: int, stamp: int, problem: str) -> None:
        self.name, self.path, self.size, self.stamp = name, path, size, stamp
        self.problem = problem  # why there is nothing to be read

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to the end of the file; raises `InputChanged`."""
        if self.problem:
            raise InputChanged(self.problem)
        end = min(end, self.size)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as exc:
            raise InputChanged(f"The input {self.name!r} cannot be read any more: {exc.strerror}.") from None
        try:
            data = os.pread(fd, end - start, start) if start < end else b""
            while len(data) < end - start and (more := os.pread(fd, end - start - len(data), start + len(data))):
                data += more
            info = os.fstat(fd)
        finally:
            os.close(fd)
        if len(data) < end - start or info.st_size != self.size or self.stamp not in (0, info.st_mtime_ns):
            raise InputChanged(f"The file behind the input {self.name!r} has changed since it was given.")
        return data


class Unpacking:
    """A gzip file, unpacked as far as `at`; copies of it go on from there."""

    def __init__(self, packed: FileBytes) -> None:
        from zlib import decompressobj

        self._packed = packed
        self._unzip: Any = decompressobj(31)
        self._offset = 0  # in the file
        self._held = b""  # bytes of it that are not unpacked yet
        self._is_full = False  # there may be more from the bytes that went before
        self.at = 0
        self.is_over = False

    def copy(self) -> Unpacking:
        """Return another one at the same place."""
        copied = Unpacking.__new__(Unpacking)
        copied.__dict__.update(self.__dict__)
        copied._unzip = self._unzip.copy()
        return copied

    def step(self) -> bytes:
        """Return the next bytes, `BLOCK` at most; raises `InputError` where the file is damaged."""
        from zlib import decompressobj, error

        if self._unzip.eof:
            self._held = self._held or self._more()
            if not self._held.startswith(GZIP[:2]):  # padding, or nothing
                self.is_over = True
                return b""
            self._unzip = decompressobj(31)
        if not self._held and not self._is_full:
            self._held = self._more()
            if not self._held:
                raise InputError(f"The gzip file {self._packed.name!r} ends in its middle, after {self.at:,} bytes.")
        try:
            data: bytes = self._unzip.decompress(self._held, BLOCK)
        except error as exc:
            raise InputError(f"The gzip file {self._packed.name!r} is damaged: {exc}.") from None
        self._held = self._unzip.unused_data if self._unzip.eof else self._unzip.unconsumed_tail
        self._is_full = len(data) == BLOCK
        self.at += len(data)
        if self.at > MAX_UNPACKED:
            raise InputError(f"The gzip file {self._packed.name!r} holds more than {MAX_UNPACKED:,} bytes.")
        return data

    def _more(self) -> bytes:
        data = self._packed.read(self._offset, self._offset + PACKED)
        self._offset += len(data)
        return data


class GzipBytes:
    """What a gzip file holds; its size is known when it has been read to its end."""

    def __init__(self, packed: FileBytes) -> None:
        self._packed = packed
        self._lock = Lock()
        self._now = Unpacking(packed)
        self._places = [Unpacking(packed)]
        self._gap = FIRST_GAP
        self._rest = b""  # bytes before `_now.at` that a read has not taken
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
            if not self._now.at - len(self._rest) <= start < self._now.at + self._gap:
                self._now = max((place for place in self._places if place.at <= start), key=_at).copy()
                self._rest = b""
            pieces = []
            while start < end:
                first = self._now.at - len(self._rest)
                piece = self._rest[max(start - first, 0) : end - first]
                pieces.append(piece)
                start += len(piece)
                if start < end and not self._advance():
                    break
            return b"".join(pieces)

    def _advance(self) -> bool:
        """Unpack some more; return whether there was any."""
        self._rest = self._now.step()
        if self._now.is_over:
            self._size = self._now.at
            return False
        if self._now.at >= self._places[-1].at + self._gap:
            self._places.append(self._now.copy())
        if len(self._places) > MAX_PLACES:
            del self._places[1::2]
            self._gap *= 2
        return True


def _at(place: Unpacking) -> int:
    return place.at


class Source:
    """The bytes of one input, in blocks, and where its lines are; `told` is what the host says of it."""

    _last: ClassVar[Tuple[str, int, bytes]] = ("", 0, b"")  # the block that was read last, of any source

    def __init__(self, told: Dict[str, Any]) -> None:
        self.id: str = told["id"]
        self.name: str = told["name"]
        self.path: str = told["path"]
        self._file = FileBytes(self.name, told["path"], told["size"], told["stamp"], told["problem"])
        self._bytes: Any = None
        self._newlines = array("Q")  # up to the end of each block

    @property
    def is_packed(self) -> bool:
        """Whether it is a gzip file."""
        return isinstance(self._opened(), GzipBytes)

    @property
    def size(self) -> int:
        """Its bytes, unpacked."""
        size: int = self._opened().size
        return size

    def _opened(self) -> Any:
        if self._bytes is None:
            is_packed = self._file.read(0, len(GZIP)) == GZIP
            self._bytes = GzipBytes(self._file) if is_packed else self._file
        return self._bytes

    def block(self, number: int) -> bytes:
        """Return a block; the last one is shorter, and those behind it are empty."""
        source, last, data = Source._last
        if source == self.id and last == number and not self._file.problem:
            return data
        read: bytes = self._opened().read(number * BLOCK, (number + 1) * BLOCK)
        Source._last = self.id, number, read
        return read

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to their end; what is read next is likely to follow."""
        return b"".join(data for _, data in self.blocks(start, end))

    def fetch(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, or to their end, and read no others: several threads may do so."""
        source, number, data = Source._last
        at = start - number * BLOCK
        if source == self.id and at >= 0 and end - number * BLOCK <= len(data) and not self._file.problem:
            return data[at : end - number * BLOCK]
        read: bytes = self._opened().read(start, end)
        return read

    def blocks(self, start: int, end: Optional[int]) -> Iterator[Tuple[int, bytes]]:
        """Yield (offset, bytes) from `start` to `end` (None: to their end)."""
        number = start // BLOCK
        while end is None or number * BLOCK < end:
            offset, data = number * BLOCK, self.block(number)
            is_last = len(data) < BLOCK
            if offset < start or (end is not None and offset + len(data) > end):
                data = data[max(start - offset, 0) : None if end is None else end - offset]
                offset = max(start, offset)
            if data:
                yield offset, data
            if is_last:
                return
            number += 1

    # lines ----------------------------------------------------------------------------------------

    def _count(self) -> array:  # type: ignore[type-arg]
        """Return how many newlines there are up to the end of each block, for which it is read once."""
        if not self._newlines:
            counted, total = array("Q"), 0
            for _, data in self.blocks(0, None):
                total += data.count(b"\n")
                counted.append(total)
            counted.append(total)
            self._newlines = counted
        return self._newlines

    def newlines_before(self, offset: int) -> int:
        """Return how many newlines there are before `offset`."""
        counted, number = self._count(), offset // BLOCK
        before = counted[min(number, len(counted)) - 1] if number else 0
        rest = offset - number * BLOCK
        return before + (self.block(number).count(b"\n", 0, rest) if rest else 0)

    def line_start(self, line: int) -> int:
        """Return the offset right after newline number `line`, counted from 1; 0 for 0, the size beyond the last."""
        counted = self._count()
        if line <= 0:
            return 0
        if line > counted[-1]:
            return self.size
        number = bisect_left(counted, line)
        left = line - (counted[number - 1] if number else 0)
        data, at = self.block(number), -1
        for _ in range(left):
            at = data.index(b"\n", at + 1)
        return number * BLOCK + at + 1


def whole(data: bytes) -> int:
    """Return how much of `data` is whole characters: one that is cut off at its end is left out."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            needed = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
            return len(data) - back if needed > back else len(data)
    return len(data)
