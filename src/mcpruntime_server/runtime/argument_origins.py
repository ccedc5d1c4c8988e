"""Hints on where text in a call's arguments may come from, for the person who decides.

A page or a mail that a stranger wrote can make code send something that nobody wanted to send, or
to a recipient that nobody chose. So text that the arguments share with an answer from the open
world is named, with the call that it came from.

A hint proves nothing: text that was translated, encoded or assembled on the way is not found, and
text may be equal by chance. Nothing is allowed or denied because of a hint.

Rule 1: strings, whole numbers and names of fields are compared, with case folded and whitespace
collapsed. A short text counts if it occurs as a whole, a longer one if one of its shingles occurs.
Rule 2: both sides are hostile. What is read, compared and shown is bounded, time grows linearly
with it, and omissions are reported. Hints are printable ASCII, also where an archive brought names.
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

MAX_SEARCHED_EVENTS = 5_000  # of a session
SEARCHED_PREFIXES = ("tools.", "knowledge.")
MIN_TEXT_CHARS = 6  # shorter texts are equal by chance all the time
SHINGLE_CHARS = 16  # that a longer text has to share; a shorter text counts as a whole
BLOCK_CHARS = SHINGLE_CHARS // 2  # every shingle contains a block that starts at a multiple of this
MAX_ARGUMENT_CHARS = 32_768
MAX_SOURCE_CHARS = 1_000_000  # of all results together, newest first
MAX_SOURCES = 200  # results, newest first
MAX_VALUES = 100_000  # of the arguments, and of all results together, text or not
MAX_HINTS = 5
MAX_SHOWN_CHARS = 60  # of a text or of its path
MAX_NUMBER_DIGITS = 64  # of a whole number; formatting takes quadratic time
MAX_SEPARATE_SEARCHES = 16  # for more texts, one pass over all positions of a result is faster
TEXT_SEPARATOR = "\0"  # between the texts of a result, so that no shingle spans two of them

logger = logging.getLogger(__name__)


async def find_origin_hints(
    journal: Journal, router: Router, session: str, args: Mapping[str, Any]
) -> list[str]:
    """Return hints on a call's arguments from the open-world answers that a session has got.

    The last `MAX_SEARCHED_EVENTS` events of the session are searched, the calling run included.
    """

    def scan(results: Iterable[CallResult]) -> list[str]:
        opened = (
            each
            for each in results
            if each.target.startswith(SEARCHED_PREFIXES) and router.is_open_world(each.target)
        )
        return describe_shared_text(
            args,
            (
                (format_call_label(each.run_id, each.call_id, each.target), each.value)
                for each in opened
            ),
        )

    try:
        return await journal.scan_call_results(session, MAX_SEARCHED_EVENTS, scan)
    except (JournalFailed, ValueError, KeyError, TypeError) as exc:  # a person can be asked without
        logger.warning("no hints on a call in session %s: %s", session, exc)
        return []


@dataclass(frozen=True)
class JsonNode:
    """One value in JSON data; the name of a field has the path of the object that it belongs to."""

    value: Any
    path: str
    is_key: bool = False

    @property
    def text(self) -> str:
        """What is compared of it, with its case; "" if nothing is."""
        if (
            isinstance(self.value, int)
            and not isinstance(self.value, bool)
            and abs(self.value) < 10**MAX_NUMBER_DIGITS
        ):
            return str(self.value)
        return self.value if isinstance(self.value, str) else ""

    @property
    def is_parameter_name(self) -> bool:
        """Whether it is the name of a tool's parameter; results often have the same names."""
        return self.is_key and not self.path


@dataclass
class TextMatch:
    """The longest run of shingles of a text that was found so far, and the result that has them."""

    start: int
    end: int
    source: str
    call_label: str


@dataclass
class ArgumentText:
    """A text of the arguments, with case folded and as it is shown."""

    folded: str
    display_text: str
    node: JsonNode
    match: TextMatch | None = None


class TextReader:
    """Reads the texts of JSON data up to a limit; if there is more, `is_truncated` is set."""

    def __init__(self, chars: int) -> None:
        self.is_truncated = False
        self._chars_left = chars
        self._values_left = MAX_VALUES

    def read_texts(self, data: Any) -> Iterator[tuple[JsonNode, str]]:
        """Yield the nodes that have text, with their text up to the limit, whitespace collapsed."""
        for node in walk_json(data):
            text = node.text
            self.is_truncated = (
                self.is_truncated or self._values_left <= 0 or len(text) > self._chars_left
            )
            text = text[: self._chars_left]
            self._values_left -= 1
            self._chars_left -= len(text)
            if text:
                yield node, " ".join(text.split())
            if self.is_truncated:
                return


class OriginFinder:
    """Searches one result after the other for the texts of the arguments."""

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
        """Record which texts occur in `source`, the folded text of the result of call `label`."""
        for size, wanted in self._short_texts.items():
            for text in find_whole_texts(wanted, source, size):
                wanted.pop(text).match = TextMatch(0, size, source, label)
        if occurring := self._find_shingles(source):
            for each in self._long_texts:
                start, end = find_longest_run(each.folded, occurring)
                if end - start > (each.match.end - each.match.start if each.match else 0):
                    each.match = TextMatch(start, end, source, label)

    def _find_shingles(self, source: str) -> set[str]:
        """Return the shingles that occur in `source`; only places near known blocks matter."""
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
    """Return a few sentences on text that `arguments` share with results; may block for seconds.

    `sources` are the labels of calls with their results, newest first; at most one more is taken
    than is compared.
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
    """Scan results up to the limit; return whether there are more."""
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
    """Return the texts to search for, each once, at its first position."""
    wanted: dict[str, ArgumentText] = {}
    for part, text in texts:
        folded = text.casefold()
        if len(folded) >= (SHINGLE_CHARS if part.is_parameter_name else MIN_TEXT_CHARS):
            # Positions in the folded text must be valid in the shown text, too.
            shown = text if len(text) == len(folded) else folded
            wanted.setdefault(folded, ArgumentText(folded, shown, part))
    return list(wanted.values())


def format_hint(wanted: ArgumentText, match: TextMatch) -> str:
    """Return the sentence on a text that was found."""
    end = find_contiguous_end(wanted.folded, match)
    piece, size = wanted.display_text[match.start : end], end - match.start
    told = quote_ascii(shorten_text(piece))
    place = wanted.node.path
    where = ("a name in " if wanted.node.is_key else "in ") + (place or "the arguments")
    length = f", {size} characters" if size > MAX_SHOWN_CHARS else ""
    return f"{told} ({where}{length}) also appears in the answer of {match.call_label}."


def format_call_label(run: str, call: int, target: str) -> str:
    """Return the name of a call for a sentence."""
    return f"{quote_ascii(shorten_text(target))[1:-1]} (call {call} of run {run})"


def quote_ascii(text: str) -> str:
    """Return text as printable ASCII JSON, so that no letter can pass for another."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def shorten_text(text: str) -> str:
    """Return `text`, truncated to what is shown."""
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 3]}..."


def find_contiguous_end(text: str, match: TextMatch) -> int:
    """Return how far the source has a run contiguously; its shingles may also occur apart."""
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
    """Return the texts, all of `size` characters, that occur in `source`."""
    texts = set(wanted)
    if len(texts) <= MAX_SEPARATE_SEARCHES:
        return {text for text in texts if text in source}
    return texts.intersection(iter_shingles(source, size))


def find_longest_run(text: str, occurring: set[str]) -> tuple[int, int]:
    """Return start and end of the longest part of `text` whose shingles all occur."""
    longest, start = (0, 0), 0
    for at, piece in enumerate(iter_shingles(text, SHINGLE_CHARS)):
        if piece not in occurring:
            start = at + 1
        elif at + SHINGLE_CHARS - start > longest[1] - longest[0]:
            longest = start, at + SHINGLE_CHARS
    return longest


def iter_shingles(text: str, size: int) -> Iterator[str]:
    """Yield every substring of `size` characters."""
    return (text[at : at + size] for at in range(len(text) - size + 1))


def walk_json(data: Any) -> Iterator[JsonNode]:
    """Yield every value in JSON data, depth first; without recursion, because data may be deep."""
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
    """Yield the values that are directly in an object or a list."""
    if not isinstance(part.value, dict):
        for number, item in enumerate(part.value):
            yield JsonNode(item, join_path(part.path, f"[{number}]"))
        return
    for name, item in part.value.items():
        yield JsonNode(name, part.path, is_key=True)
        yield JsonNode(item, join_path(part.path, path_step(name, is_first=not part.path)))


def path_step(name: Any, *, is_first: bool) -> str:
    """Return the name of a field as a step of a path."""
    is_short = isinstance(name, str) and len(name) <= MAX_SHOWN_CHARS
    if is_short and name.isascii() and name.isidentifier():
        return name if is_first else f".{name}"
    return f"[{quote_ascii(str(name)[:MAX_SHOWN_CHARS])}]"


def join_path(path: str, step: str) -> str:
    """Return the path of a value in another, truncated to what is shown."""
    if path.endswith("..."):
        return path
    return shorten_text(path + step)
