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
from ..journal.rows import CallResult
from ..journal.store import Journal
from .router import Router

MAX_SEARCHED_EVENTS = 5_000  # of a session, that are looked through for answers
MIN_TEXT_CHARS = (
    6  # characters of what is compared: shorter texts are the same by chance all the time
)
SHINGLE_CHARS = (
    16  # characters that a longer text has to share; texts shorter than this count as a whole
)
BLOCK_CHARS = (
    SHINGLE_CHARS // 2
)  # any piece covers a whole block of so many characters that begins at a multiple of it
MAX_ARGUMENT_CHARS = 32_768  # of the arguments
MAX_SOURCE_CHARS = 1_000_000  # of all results together, the newest first
MAX_SOURCES = (
    200  # results, the newest first: the arguments are looked through for each that shares a piece
)
MAX_VALUES = 100_000  # of the arguments, and of all results together, whether they are text or not
MAX_HINTS = 5  # texts of the arguments that are told
MAX_SHOWN_CHARS = 60  # characters of a text or of its place that are told
MAX_NUMBER_DIGITS = (
    64  # of a whole number; a longer one takes the square of its length to be written down
)
MAX_SEPARATE_SEARCHES = (
    16  # texts; a search for each of so few is faster than a look at every place of a result
)
TEXT_SEPARATOR = "\0"  # between the texts of a result, so that no piece spans two of them

logger = logging.getLogger(__name__)


async def find_origin_hints(
    journal: Journal, router: Router, session: str, args: Mapping[str, Any]
) -> list[str]:
    """Return hints on a call's arguments, from what providers and tools of the open world have answered in a session.

    The runs of the session itself count, the one that makes the call among them, and no more than `LAST_EVENTS`.
    """

    def look(results: Iterable[CallResult]) -> list[str]:
        opened = (
            each
            for each in results
            if each.target.startswith(("tools.", "knowledge."))
            and router.is_open_world(each.target)
        )
        return describe_shared_text(
            args,
            (
                (format_call_label(each.run_id, each.call_id, each.target), each.value)
                for each in opened
            ),
        )

    try:
        return await journal.scan_call_results(session, MAX_SEARCHED_EVENTS, look)
    except (JournalFailed, ValueError, KeyError, TypeError) as exc:  # a person can be asked without
        logger.warning("no hints on a call in session %s: %s", session, exc)
        return []


@dataclass(frozen=True)
class JsonNode:
    """One value inside JSON data; the name of a field has the place of the object that the field is in."""

    value: Any
    path: str
    is_key: bool = False

    @property
    def text(self) -> str:
        """What is compared of it, before case is folded; empty if nothing is."""
        if (
            isinstance(self.value, int)
            and not isinstance(self.value, bool)
            and abs(self.value) < 10**MAX_NUMBER_DIGITS
        ):
            return str(self.value)
        return self.value if isinstance(self.value, str) else ""

    @property
    def is_parameter_name(self) -> bool:
        """Whether it is the name of one of the tool's parameters, which many results have for a name, too."""
        return self.is_key and not self.path


@dataclass
class TextMatch:
    """The longest run of pieces that was found of a text so far, in the text of the result that has them."""

    start: int
    end: int
    source: str
    call_label: str


@dataclass
class ArgumentText:
    """A text of the arguments, folded and as it is shown."""

    folded: str
    display_text: str
    node: JsonNode
    match: TextMatch | None = None


class TextReader:
    """Reads the texts of JSON data until it has read as much as it may; then it `is_short` of something."""

    def __init__(self, chars: int) -> None:
        self.is_truncated = False
        self._chars_left = chars
        self._values_left = MAX_VALUES

    def read_texts(self, data: Any) -> Iterator[tuple[JsonNode, str]]:
        """Yield the parts that are text, and as much of their text as may be read, with whitespace collapsed."""
        for part in walk_json(data):
            text = part.text
            self.is_truncated = (
                self.is_truncated or self._values_left <= 0 or len(text) > self._chars_left
            )
            text = text[: self._chars_left]
            self._values_left -= 1
            self._chars_left -= len(text)
            if text:
                yield part, " ".join(text.split())
            if self.is_truncated:
                return


class OriginFinder:
    """Looks for the texts of the arguments in one result after the other."""

    def __init__(self, wanted: Iterable[ArgumentText]) -> None:
        self._short_texts: dict[int, dict[str, ArgumentText]] = {}
        self._long_texts: list[ArgumentText] = []
        for each in wanted:
            if len(each.folded) < SHINGLE_CHARS:
                self._short_texts.setdefault(len(each.folded), {})[each.folded] = each
            else:
                self._long_texts.append(each)
        self._shingles = {
            piece
            for each in self._long_texts
            for piece in iter_shingles(each.folded, SHINGLE_CHARS)
        }
        self._blocks = {
            block for piece in self._shingles for block in iter_shingles(piece, BLOCK_CHARS)
        }

    def scan_source(self, source: str, label: str) -> None:
        """Note what occurs in `source`, the folded text of the result of the call that `label` names."""
        for size, wanted in self._short_texts.items():
            for text in find_whole_texts(wanted, source, size):
                wanted.pop(text).match = TextMatch(0, size, source, label)
        if occurring := self._find_shingles(source):
            for each in self._long_texts:
                start, end = find_longest_run(each.folded, occurring)
                if end - start > (each.match.end - each.match.start if each.match else 0):
                    each.match = TextMatch(start, end, source, label)

    def _find_shingles(self, source: str) -> set[str]:
        """Return those of the pieces that occur in `source`, which is looked at closely only around known blocks."""
        found: set[str] = set()
        for at in range(0, len(source) - BLOCK_CHARS + 1, BLOCK_CHARS):
            if source[at : at + BLOCK_CHARS] in self._blocks:
                starts = range(max(0, at - BLOCK_CHARS + 1), at + 1)
                found.update(
                    self._shingles.intersection(
                        source[start : start + SHINGLE_CHARS] for start in starts
                    )
                )
        return found


def describe_shared_text(arguments: Any, sources: Iterable[tuple[str, Any]]) -> list[str]:
    """Return a few sentences on text in `arguments` that is in a result, too; blocks, for a few seconds at worst.

    `sources` are results with the names of their calls, the newest first; at most one more is taken than is compared.
    """
    reader = TextReader(MAX_ARGUMENT_CHARS)
    wanted = collect_argument_texts(reader.read_texts(arguments))
    is_short = scan_sources(sources, OriginFinder(wanted)) if wanted else False
    found = [(each, each.match) for each in wanted if each.match is not None]
    hints = [format_hint(each, match) for each, match in found[:MAX_HINTS]]
    if len(found) > MAX_HINTS:
        hints.append(f"So do {len(found) - MAX_HINTS} other texts in the arguments.")
    if reader.is_truncated:
        hints.append(
            "The arguments are so large that only the first part of them was compared with results."
        )
    if is_short and len(found) < len(wanted):
        hints.append(
            "There are so many results that only the newest were compared with the arguments."
        )
    return hints


def scan_sources(sources: Iterable[tuple[str, Any]], finder: OriginFinder) -> bool:
    """Look through as many results as may be read; return whether that was not all of them."""
    reader = TextReader(MAX_SOURCE_CHARS)
    rest = iter(sources)
    for label, result in islice(rest, MAX_SOURCES):
        finder.scan_source(
            TEXT_SEPARATOR.join(text.casefold() for _, text in reader.read_texts(result)), label
        )
        if reader.is_truncated:
            return True
    return next(rest, None) is not None


def collect_argument_texts(texts: Iterable[tuple[JsonNode, str]]) -> list[ArgumentText]:
    """Return what is to be looked for, each text once, where it comes first."""
    wanted: dict[str, ArgumentText] = {}
    for part, text in texts:
        folded = text.casefold()
        if len(folded) >= (SHINGLE_CHARS if part.is_parameter_name else MIN_TEXT_CHARS):
            shown = (
                text if len(text) == len(folded) else folded
            )  # so that a piece of the one is one of the other
            wanted.setdefault(folded, ArgumentText(folded, shown, part))
    return list(wanted.values())


def format_hint(wanted: ArgumentText, match: TextMatch) -> str:
    """Return what is told of a text that was found."""
    end = find_contiguous_end(wanted.folded, match)
    piece, size = wanted.display_text[match.start : end], end - match.start
    told = quote_ascii(shorten_text(piece))
    place = wanted.node.path
    where = ("a name in " if wanted.node.is_key else "in ") + (place or "the arguments")
    length = f", {size} characters" if size > MAX_SHOWN_CHARS else ""
    return f"{told} ({where}{length}) also appears in the answer of {match.call_label}."


def format_call_label(run: str, call: int, target: str) -> str:
    """Return what is told of a call."""
    return f"{quote_ascii(shorten_text(target))[1:-1]} (call {call} of run {run})"


def quote_ascii(text: str) -> str:
    """Return text as JSON in ASCII, all of which can be printed, so that no letter passes for another."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def shorten_text(text: str) -> str:
    """Return as much of `text` as is told."""
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 3]}..."


def find_contiguous_end(text: str, match: TextMatch) -> int:
    """Return how far the source has the run in one piece: all its parts do occur there, but maybe apart."""
    sure, end = match.start + min(SHINGLE_CHARS, len(text)), match.end
    if text[match.start : end] in match.source:
        return end
    while end - sure > 1:
        middle = (sure + end) // 2
        if text[match.start : middle] in match.source:
            sure = middle
        else:
            end = middle
    return sure


def find_whole_texts(wanted: Iterable[str], source: str, size: int) -> set[str]:
    """Return those of the texts of `size` characters that occur in `source`."""
    texts = set(wanted)
    if len(texts) <= MAX_SEPARATE_SEARCHES:
        return {text for text in texts if text in source}
    return texts.intersection(iter_shingles(source, size))


def find_longest_run(text: str, occurring: set[str]) -> tuple[int, int]:
    """Return where the longest part of `text` is of which each piece is known to occur."""
    longest, start = (0, 0), 0
    for at, piece in enumerate(iter_shingles(text, SHINGLE_CHARS)):
        if piece not in occurring:
            start = at + 1
        elif at + SHINGLE_CHARS - start > longest[1] - longest[0]:
            longest = start, at + SHINGLE_CHARS
    return longest


def iter_shingles(text: str, size: int) -> Iterator[str]:
    """Yield every part of `text` that has `size` characters."""
    return (text[at : at + size] for at in range(len(text) - size + 1))


def walk_json(data: Any) -> Iterator[JsonNode]:
    """Yield every value in JSON data, depth first; without recursion, because it may be deep."""
    rest = [iter([JsonNode(data, "")])]
    while rest:
        part = next(rest[-1], None)
        if part is None:
            rest.pop()
            continue
        yield part
        if isinstance(part.value, dict | list | tuple):
            rest.append(child_nodes(part))


def child_nodes(part: JsonNode) -> Iterator[JsonNode]:
    """Yield what is directly in an object or a list."""
    if not isinstance(part.value, dict):
        for number, item in enumerate(part.value):
            yield JsonNode(item, join_path(part.path, f"[{number}]"))
        return
    for name, item in part.value.items():
        yield JsonNode(name, part.path, is_key=True)
        plain = (
            isinstance(name, str)
            and len(name) <= MAX_SHOWN_CHARS
            and name.isascii()
            and name.isidentifier()
        )
        step = (
            (f".{name}" if part.path else name)
            if plain
            else f"[{quote_ascii(str(name)[:MAX_SHOWN_CHARS])}]"
        )
        yield JsonNode(item, join_path(part.path, step))


def join_path(place: str, step: str) -> str:
    """Return the place of a value within another, shortened where it is too long to be read."""
    if place.endswith("..."):
        return place
    return shorten_text(place + step)
