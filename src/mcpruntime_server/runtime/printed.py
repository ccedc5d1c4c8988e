"""What the code of a run prints: put together, bounded, and journaled unless the journal has it already."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping

from ..journal.events import Output
from ..kernel import wire

OVERHEAD = 1024 * 1024  # bytes that a sandbox may send beyond the limit that its own kernel keeps
STREAMS = ("stdout", "stderr")


class Printed:
    """The two streams of a run; `before` is what the journal has of them, which is not written again."""

    def __init__(self, append: Callable[[Output], None], limit: int, before: Mapping[str, str]) -> None:
        self.differs = False  # from what was there before
        self._append = append
        self._room = 2 * (limit + OVERHEAD)  # bytes of both streams
        self._before = dict(before)
        self._pieces: dict[str, list[str]] = {name: [] for name in STREAMS}
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("backslashreplace") for name in STREAMS}

    def take(self, message: wire.Output) -> None:
        """Take printed bytes; a character that is split between two messages is put together."""
        decoder = self._decoders.get(message.stream)
        if decoder is None:
            return  # a stream that no kernel of ours has
        self._room -= len(message.data)
        if self._room < 0:
            raise wire.WireError("more output than its kernel lets through")
        if message.dropped > 0:
            note = f"\n[{message.dropped:,} bytes of output dropped: limit reached]\n"
            self._print(message.stream, note, message.dropped)
        self._print(message.stream, decoder.decode(message.data), 0)

    def close(self) -> None:
        """Take what is left of a character that never came to its end."""
        for name, decoder in self._decoders.items():
            self._print(name, decoder.decode(b"", final=True), 0)

    def text(self, stream: str) -> str:
        """Return all that was printed to a stream."""
        return "".join(self._pieces[stream])

    def since(self, seen: dict[str, int]) -> dict[str, str]:
        """Return what each stream printed since `seen` (stream to pieces), and bring `seen` up to date."""
        news = {}
        for name, pieces in self._pieces.items():
            news[name] = "".join(pieces[seen.get(name, 0) :])
            seen[name] = len(pieces)
        return news

    def has_since(self, seen: Mapping[str, int]) -> bool:
        """Return whether something was printed since `seen`."""
        return any(len(pieces) > seen.get(name, 0) for name, pieces in self._pieces.items())

    def _print(self, stream: str, text: str, dropped: int) -> None:
        if not text:
            return
        self._pieces[stream].append(text)
        before = self._before.get(stream, "")
        if before:
            if not before.startswith(text[: len(before)]):
                self.differs = True
                before = ""
            self._before[stream] = before[len(text) :]
            text = text[len(before) :]
        if text:
            self._append(Output(stream, text, dropped))
