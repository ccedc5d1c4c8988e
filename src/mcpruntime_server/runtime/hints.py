"""Where text in a call's arguments may have come from, for whoever is asked whether the call may be made.

What a stranger wrote into a page or a mail can have code send something, or send it somewhere, that nobody wanted. So
text that the arguments share with what tools of the open world answered is named, with the call that it came from.

It is a hint, never a proof: text that was translated, encoded or put together on the way is not found, and text may be
the same by chance. Nothing is allowed or refused because of it.

Rule 1: strings and whole numbers are compared, names of fields too, with case folded and whitespace collapsed. Short
ones count if they occur as a whole, longer ones if a piece of them does.
Rule 2: both sides are hostile. What is read, compared and told is bounded, the time for it grows no faster than that,
and what was left out is told. Whatever is told is ASCII that can be printed, names that an archive brought, too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..errors import JournalFailed
from ..journal.store import Journal
from .calls import Router

LAST_EVENTS = 5_000  # of a session, that are looked through for answers
SHORTEST = 6  # characters of what is compared: shorter texts are the same by chance all the time
PIECE = 16  # characters that a longer text has to share; texts shorter than this count as a whole
STRIDE = PIECE // 2  # any piece covers a whole block of so many characters that begins at a multiple of it
ARGUMENT_CHARS = 32_768  # of the arguments
SOURCE_CHARS = 1_000_000  # of all results together, the newest first
SOURCES = 200  # results, the newest first: the arguments are looked through for each that shares a piece
VALUES = 100_000  # of the arguments, and of all results together, whether they are text or not
HINTS = 5  # texts of the arguments that are told
SHOWN = 60  # characters of a text or of its place that are told
DIGITS = 64  # of a whole number; a longer one takes the square of its length to be written down
FEW = 16  # texts; a search for each of so few is faster than a look at every place of a result
SEPARATOR = "\0"  # between the texts of a result, so that no piece spans two of them

logger = logging.getLogger(__name__)


async def find_hints(journal: Journal, router: Router, session: str, args: Mapping[str, Any]) -> list[str]:
    """Return hints on a call's arguments, from what providers and tools of the open world have answered in a session.

    The runs of the session itself count, the one that makes the call among them, and no more than `LAST_EVENTS`.
    """

    def look(answers: Iterable[tuple[str, int, str, Any]]) -> list[str]:
        opened = (each for each in answers if each[2].startswith(("tools.", "context.")) and router.is_open(each[2]))
        return shared_text(args, ((label_of(run, call, target), value) for run, call, target, value in opened))

    try:
        return await journal.look_at_answers(session, LAST_EVENTS, look)
    except (JournalFailed, ValueError, KeyError, TypeError) as exc:  # a person can be asked without
        logger.warning("no hints on a call in session %s: %s", session, exc)
        return []


@dataclass(frozen=True)
class Part:
    """One value inside JSON data; the name of a field has the place of the object that the field is in."""

    value: Any
    place: str
    is_name: bool = False

    @property
    def text(self) -> str:
        """What is compared of it, before case is folded; empty if nothing is."""
        if isinstance(self.value, int) and not isinstance(self.value, bool) and abs(self.value) < 10**DIGITS:
            return str(self.value)
        return self.value if isinstance(self.value, str) else ""

    @property
    def is_parameter(self) -> bool:
        """Whether it is the name of one of the tool's parameters, which many results have for a name, too."""
        return self.is_name and not self.place


@dataclass
class Match:
    """The longest run of pieces that was found of a text so far, in the text of the result that has them."""

    start: int
    end: int
    source: str
    label: str


@dataclass
class Wanted:
    """A text of the arguments, folded and as it is shown."""

    folded: str
    shown: str
    part: Part
    match: Match | None = None


class Reader:
    """Reads the texts of JSON data until it has read as much as it may; then it `is_short` of something."""

    def __init__(self, chars: int) -> None:
        self.is_short = False
        self._chars = chars
        self._values = VALUES

    def read(self, data: Any) -> Iterator[tuple[Part, str]]:
        """Yield the parts that are text, and as much of their text as may be read, with whitespace collapsed."""
        for part in parts(data):
            text = part.text
            self.is_short = self.is_short or self._values <= 0 or len(text) > self._chars
            text = text[: self._chars]
            self._values -= 1
            self._chars -= len(text)
            if text:
                yield part, " ".join(text.split())
            if self.is_short:
                return


class Finder:
    """Looks for the texts of the arguments in one result after the other."""

    def __init__(self, wanted: Iterable[Wanted]) -> None:
        self._whole: dict[int, dict[str, Wanted]] = {}
        self._long: list[Wanted] = []
        for each in wanted:
            if len(each.folded) < PIECE:
                self._whole.setdefault(len(each.folded), {})[each.folded] = each
            else:
                self._long.append(each)
        self._pieces = {piece for each in self._long for piece in slices(each.folded, PIECE)}
        self._blocks = {block for piece in self._pieces for block in slices(piece, STRIDE)}

    def look(self, source: str, label: str) -> None:
        """Note what occurs in `source`, the folded text of the result of the call that `label` names."""
        for size, wanted in self._whole.items():
            for text in occurring_whole(wanted, source, size):
                wanted.pop(text).match = Match(0, size, source, label)
        if occurring := self._occurring(source):
            for each in self._long:
                start, end = longest_run(each.folded, occurring)
                if end - start > (each.match.end - each.match.start if each.match else 0):
                    each.match = Match(start, end, source, label)

    def _occurring(self, source: str) -> set[str]:
        """Return those of the pieces that occur in `source`, which is looked at closely only around known blocks."""
        found: set[str] = set()
        for at in range(0, len(source) - STRIDE + 1, STRIDE):
            if source[at : at + STRIDE] in self._blocks:
                starts = range(max(0, at - STRIDE + 1), at + 1)
                found.update(self._pieces.intersection(source[start : start + PIECE] for start in starts))
        return found


def shared_text(arguments: Any, sources: Iterable[tuple[str, Any]]) -> list[str]:
    """Return a few sentences on text in `arguments` that is in a result, too; blocks, for a few seconds at worst.

    `sources` are results with the names of their calls, the newest first; at most one more is taken than is compared.
    """
    reader = Reader(ARGUMENT_CHARS)
    wanted = wanted_of(reader.read(arguments))
    is_short = look_through(sources, Finder(wanted)) if wanted else False
    found = [(each, each.match) for each in wanted if each.match is not None]
    hints = [sentence(each, match) for each, match in found[:HINTS]]
    if len(found) > HINTS:
        hints.append(f"So do {len(found) - HINTS} other texts in the arguments.")
    if reader.is_short:
        hints.append("The arguments are so large that only the first part of them was compared with results.")
    if is_short and len(found) < len(wanted):
        hints.append("There are so many results that only the newest were compared with the arguments.")
    return hints


def look_through(sources: Iterable[tuple[str, Any]], finder: Finder) -> bool:
    """Look through as many results as may be read; return whether that was not all of them."""
    reader = Reader(SOURCE_CHARS)
    rest = iter(sources)
    for label, result in islice(rest, SOURCES):
        finder.look(SEPARATOR.join(text.casefold() for _, text in reader.read(result)), label)
        if reader.is_short:
            return True
    return next(rest, None) is not None


def wanted_of(texts: Iterable[tuple[Part, str]]) -> list[Wanted]:
    """Return what is to be looked for, each text once, where it comes first."""
    wanted: dict[str, Wanted] = {}
    for part, text in texts:
        folded = text.casefold()
        if len(folded) >= (PIECE if part.is_parameter else SHORTEST):
            shown = text if len(text) == len(folded) else folded  # so that a piece of the one is one of the other
            wanted.setdefault(folded, Wanted(folded, shown, part))
    return list(wanted.values())


def sentence(wanted: Wanted, match: Match) -> str:
    """Return what is told of a text that was found."""
    end = end_of_piece(wanted.folded, match)
    piece, size = wanted.shown[match.start : end], end - match.start
    told = quoted(shortened(piece))
    place = wanted.part.place
    where = ("a name in " if wanted.part.is_name else "in ") + (place or "the arguments")
    length = f", {size} characters" if size > SHOWN else ""
    return f"{told} ({where}{length}) also appears in the answer of {match.label}."


def label_of(run: str, call: int, target: str) -> str:
    """Return what is told of a call."""
    return f"{quoted(shortened(target))[1:-1]} (call {call} of run {run})"


def quoted(text: str) -> str:
    """Return text as JSON in ASCII, all of which can be printed, so that no letter passes for another."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def shortened(text: str) -> str:
    """Return as much of `text` as is told."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def end_of_piece(text: str, match: Match) -> int:
    """Return how far the source has the run in one piece: all its parts do occur there, but maybe apart."""
    sure, end = match.start + min(PIECE, len(text)), match.end
    if text[match.start : end] in match.source:
        return end
    while end - sure > 1:
        middle = (sure + end) // 2
        if text[match.start : middle] in match.source:
            sure = middle
        else:
            end = middle
    return sure


def occurring_whole(wanted: Iterable[str], source: str, size: int) -> set[str]:
    """Return those of the texts of `size` characters that occur in `source`."""
    texts = set(wanted)
    if len(texts) <= FEW:
        return {text for text in texts if text in source}
    return texts.intersection(slices(source, size))


def longest_run(text: str, occurring: set[str]) -> tuple[int, int]:
    """Return where the longest part of `text` is of which each piece is known to occur."""
    longest, start = (0, 0), 0
    for at, piece in enumerate(slices(text, PIECE)):
        if piece not in occurring:
            start = at + 1
        elif at + PIECE - start > longest[1] - longest[0]:
            longest = start, at + PIECE
    return longest


def slices(text: str, size: int) -> Iterator[str]:
    """Yield every part of `text` that has `size` characters."""
    return (text[at : at + size] for at in range(len(text) - size + 1))


def parts(data: Any) -> Iterator[Part]:
    """Yield every value in JSON data, depth first; without recursion, because it may be deep."""
    rest = [iter([Part(data, "")])]
    while rest:
        part = next(rest[-1], None)
        if part is None:
            rest.pop()
            continue
        yield part
        if isinstance(part.value, dict | list | tuple):
            rest.append(inside(part))


def inside(part: Part) -> Iterator[Part]:
    """Yield what is directly in an object or a list."""
    if not isinstance(part.value, dict):
        for number, item in enumerate(part.value):
            yield Part(item, below(part.place, f"[{number}]"))
        return
    for name, item in part.value.items():
        yield Part(name, part.place, is_name=True)
        plain = isinstance(name, str) and len(name) <= SHOWN and name.isascii() and name.isidentifier()
        step = (f".{name}" if part.place else name) if plain else f"[{quoted(str(name)[:SHOWN])}]"
        yield Part(item, below(part.place, step))


def below(place: str, step: str) -> str:
    """Return the place of a value within another, shortened where it is too long to be read."""
    if place.endswith("..."):
        return place
    return shortened(place + step)
