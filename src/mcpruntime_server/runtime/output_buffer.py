"""What the code of a run prints: put together, bounded, and journaled unless the journal has it already."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping

from ..journal.events import OutputWritten
from ..protocol import wire

OUTPUT_OVERHEAD_BYTES = (
    1024 * 1024
)  # bytes that a sandbox may send beyond the limit that its own kernel keeps
OUTPUT_STREAMS = ("stdout", "stderr")


class OutputBuffer:
    """The two streams of a run; `before` is what the journal has of them, which is not written again."""

    def __init__(
        self, append: Callable[[OutputWritten], None], max_bytes: int, recorded: Mapping[str, str]
    ) -> None:
        self.differs_from_recording = False  # from what was there before
        self._append_event = append
        self._bytes_left = 2 * (max_bytes + OUTPUT_OVERHEAD_BYTES)  # bytes of both streams
        self._recorded = dict(recorded)
        self._chunks: dict[str, list[str]] = {name: [] for name in OUTPUT_STREAMS}
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")("backslashreplace")
            for name in OUTPUT_STREAMS
        }

    def receive_output(self, message: wire.Output) -> None:
        """Take printed bytes; a character that is split between two messages is put together."""
        decoder = self._decoders.get(message.stream)
        if decoder is None:
            return  # a stream that no kernel of ours has
        self._bytes_left -= len(message.data)
        if self._bytes_left < 0:
            raise wire.WireError("more output than its kernel lets through")
        if message.dropped_bytes > 0:
            note = f"\n[{message.dropped_bytes:,} bytes of output dropped: limit reached]\n"
            self._append_text(message.stream, note, message.dropped_bytes)
        self._append_text(message.stream, decoder.decode(message.data), 0)

    def close(self) -> None:
        """Take what is left of a character that never came to its end."""
        for name, decoder in self._decoders.items():
            self._append_text(name, decoder.decode(b"", final=True), 0)

    def stream_text(self, stream: str) -> str:
        """Return all that was printed to a stream."""
        return "".join(self._chunks[stream])

    def read_since(self, position: dict[str, int]) -> dict[str, str]:
        """Return what each stream printed since `seen` (stream to pieces), and bring `seen` up to date."""
        news = {}
        for name, pieces in self._chunks.items():
            news[name] = "".join(pieces[position.get(name, 0) :])
            position[name] = len(pieces)
        return news

    def has_output_since(self, position: Mapping[str, int]) -> bool:
        """Return whether something was printed since `seen`."""
        return any(len(pieces) > position.get(name, 0) for name, pieces in self._chunks.items())

    def _append_text(self, stream: str, text: str, dropped: int) -> None:
        if not text:
            return
        self._chunks[stream].append(text)
        before = self._recorded.get(stream, "")
        if before:
            if not before.startswith(text[: len(before)]):
                self.differs_from_recording = True
                before = ""
            self._recorded[stream] = before[len(text) :]
            text = text[len(before) :]
        if text:
            self._append_event(OutputWritten(stream, text, dropped))
