"""The output of a run: decoded, bounded, and journaled unless the journal has it already."""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Callable, Mapping

from ..journal.events import OutputWritten
from ..protocol import wire

OUTPUT_OVERHEAD_BYTES = 1024 * 1024  # beyond the limit that the worker itself keeps
OUTPUT_STREAMS = ("stdout", "stderr")
MAX_DROP_NOTES = 8  # in one stream; our worker sends at most two
BLOCK_CHARS = 512 * 1024  # joined chunks of it leave no gaps in memory when they are freed
# Bytes that are not UTF-8, by how they are decoded. The codec that spells them out itself calls
# Python code for each of them.
ESCAPED_BYTES = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)}


class StreamBuffer:
    """The text of one stream, in the chunks in which it came."""

    def __init__(self, max_chars: int) -> None:
        self.length = 0  # in characters
        self.dropped_bytes = 0  # beyond the limit, and not noted in the text yet
        self._max_chars = max_chars
        self._drop_note_count = 0
        self._chunks: list[str] = []
        self._ends: list[int] = []  # the length after each chunk
        self._joined_length = 0  # of the chunks that were joined already
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def add_bytes(self, data: bytes, *, final: bool = False) -> str:
        """Add as much of the output as there is room for, and return it as text.

        What finds no room is not even decoded. A character that is split between calls comes with
        the last one.
        """
        room = self._max_chars - self.length
        if room <= 0:
            self.dropped_bytes += len(data)
            return ""
        text = _escape_bytes(self._decoder.decode(data, final=final))
        if len(text) > room:
            self.dropped_bytes += len(text) - room
            text = text[:room]
        self.append(text)
        return text

    def add_drop_note(self, dropped_bytes: int) -> str:
        """Add and return a note on dropped bytes; without room they are noted at the end."""
        note = dropped_output_note(dropped_bytes)
        has_room = self.length + len(note) <= self._max_chars
        if not has_room or self._drop_note_count >= MAX_DROP_NOTES:
            self.dropped_bytes += dropped_bytes
            return ""
        self._drop_note_count += 1
        self.append(note)
        return note

    def take_final_note(self) -> str:
        """Add and return what stands at the end of output that was dropped and not noted yet."""
        if not self.dropped_bytes:
            return ""
        note = dropped_output_note(self.dropped_bytes)
        self.dropped_bytes = 0
        self.append(note)
        return note

    def append(self, text: str) -> None:
        """Add a chunk, whatever room there is."""
        self.length += len(text)
        self._chunks.append(text)
        self._ends.append(self.length)
        if self.length - self._joined_length >= BLOCK_CHARS:
            self._join_from(bisect_right(self._ends, self._joined_length))

    def _join_from(self, index: int) -> None:
        """Make one chunk of those from `index` on."""
        self._chunks[index:] = ["".join(self._chunks[index:])]
        self._ends[index:] = [self.length]
        self._joined_length = self.length

    def compact(self) -> None:
        """Join the chunks, so that later reads of the whole text share one string."""
        self._join_from(0)

    def read_from(self, position: int) -> str:
        """Return the text from character `position` on."""
        if position >= self.length:
            return ""
        index = bisect_right(self._ends, position)
        start = self._ends[index - 1] if index else 0
        return "".join(self._chunks[index:])[position - start :]


class OutputBuffer:
    """The two streams of a run; `recorded` is the output that the journal has of it already."""

    def __init__(
        self,
        append_event: Callable[[OutputWritten], None],
        max_bytes: int,
        recorded: Mapping[str, str],
    ) -> None:
        self.differs_from_recording = False
        self._append_event = append_event
        self._bytes_left = 2 * (max_bytes + OUTPUT_OVERHEAD_BYTES)  # of both streams together
        self._recorded = dict(recorded)  # what has not been written again yet
        max_chars = max_bytes + OUTPUT_OVERHEAD_BYTES
        self._streams = {name: StreamBuffer(max_chars) for name in OUTPUT_STREAMS}

    def receive_output(self, message: wire.Output) -> None:
        """Add written bytes; raises `WireError` for more than the worker lets through."""
        stream = self._streams.get(message.stream)
        if stream is None:
            return  # a stream that our worker does not have
        self._bytes_left -= len(message.data)
        if self._bytes_left < 0:
            raise wire.WireError("more output than its worker lets through")
        if message.dropped_bytes > 0:
            note = stream.add_drop_note(message.dropped_bytes)
            self._journal_text(message.stream, note, message.dropped_bytes)
        self._journal_text(message.stream, stream.add_bytes(message.data), 0)

    def close(self) -> None:
        """Add what is left of a character that was not written completely, and what is missing."""
        for name, stream in self._streams.items():
            self._journal_text(name, stream.add_bytes(b"", final=True), 0)
            dropped_bytes = stream.dropped_bytes
            self._journal_text(name, stream.take_final_note(), dropped_bytes)
            stream.compact()

    def stream_text(self, stream: str) -> str:
        """Return everything that was written to a stream."""
        return self._streams[stream].read_from(0)

    def read_from(self, positions: Mapping[str, int]) -> dict[str, str]:
        """Return the text of each stream from the given character on (default 0)."""
        return {
            name: stream.read_from(positions.get(name, 0)) for name, stream in self._streams.items()
        }

    def positions(self) -> dict[str, int]:
        """Return the length of each stream in characters."""
        return {name: stream.length for name, stream in self._streams.items()}

    def has_output_since(self, positions: Mapping[str, int]) -> bool:
        """Return whether a stream is longer than the given position."""
        return any(stream.length > positions.get(name, 0) for name, stream in self._streams.items())

    def _journal_text(self, stream: str, text: str, dropped_bytes: int) -> None:
        if not text:
            return
        recorded = self._recorded.get(stream, "")
        if recorded:
            if not recorded.startswith(text[: len(recorded)]):
                self.differs_from_recording = True
                recorded = ""
            self._recorded[stream] = recorded[len(text) :]
            text = text[len(recorded) :]
        if text:
            self._append_event(OutputWritten(stream, text, dropped_bytes))


def _escape_bytes(text: str) -> str:
    """Return decoded text with the bytes that are not UTF-8 spelled out."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.translate(ESCAPED_BYTES)
    return text


def dropped_output_note(count: int) -> str:
    """Return what stands in the output where bytes of it were dropped."""
    return f"\n[{count:,} bytes of output dropped: limit reached]\n"
