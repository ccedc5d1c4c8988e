"""Cuts values and texts down to a number of characters, and counts what is left out.

Rule 1: a value is cut once, where the whole of it is, so the counts are those of the whole. What is
shown and what the marks count add up to it.
Rule 2: the room is divided among the parts of a container: small parts are shown whole, and the
large ones share the rest equally. Items that would get too little are left out, from the end.
Rule 3: a mark is never longer than what it replaces.
Rule 4: the work is bounded by the room, not by the value.
"""

from __future__ import annotations

import json
import sys
from itertools import islice

from .wire import escape_surrogates

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import (
        Any,
        Callable,
        Dict,
        Iterator,
        List,
        Mapping,
        Optional,
        Sequence,
        Set,
        Tuple,
        Union,
    )

ELLIPSIS = "\u2026"  # begins each mark; as a key, it counts an object's missing keys
MAX_DEPTH = 64  # of nested containers; JSON that is nested deeper is shown by its repr
LEAST_SHARE = 20  # of the room: that many parts are shown, however large, before one is left out
LEAST_PART_CHARS = 40
LEAST_TEXT_CHARS = 8  # that a cut text shows besides its mark
LINES_FROM_CHARS = 200  # a mark in a text of several lines has a line of its own from here on
MAX_BINARY_BYTES = 32  # shown of bytes that are not text
MAX_WHOLE_BINARY_BYTES = 64
SAMPLE_BYTES = 1_000  # that decide whether bytes are text
TEXT_BYTES = bytes([9, 10, 13, *range(32, 127)])
SEPARATOR = ", "

_dump_json = json.JSONEncoder(ensure_ascii=False).encode


class NotJsonData(Exception):
    """A value is not JSON data, or is nested too deeply to be shown as such."""


def type_name(value: Any) -> str:
    """Return the name of `value`'s type, with its module unless that is obvious."""
    cls = type(value)
    module = getattr(cls, "__module__", None)
    name = str(getattr(cls, "__qualname__", cls.__name__))
    return name if module in ("builtins", "__main__", None) else f"{module}.{name}"


def safe_repr(value: Any) -> str:
    """Return `repr(value)`, or a text that says how it failed."""
    try:
        return repr(value)
    except Exception as exc:  # noqa: BLE001 - a __repr__ of user code may raise anything
        return f"<{type_name(value)} whose repr failed with {type(exc).__name__}>"


# texts --------------------------------------------------------------------------------------------


def truncate_text(
    text: str, max_chars: int, measure: Callable[[str], int] = len
) -> Tuple[str, bool]:
    """Return head and tail of `text`, and whether it is cut.

    What is returned has at most `max_chars` characters by `measure`, or just a mark's length more.
    """
    if len(text) <= max_chars and measure(text) <= max_chars:
        return text, False
    has_lines = max_chars >= LINES_FROM_CHARS and "\n" in text
    mark_chars = measure(_text_mark(len(text), has_lines=has_lines))
    room = max(max_chars - mark_chars, LEAST_TEXT_CHARS)
    if len(text) <= room + mark_chars and measure(text) <= room + mark_chars:
        return text, False
    tail_room = room // 3
    head = text[: _longest_part(text, room - tail_room, measure, from_end=False)]
    tail = text[len(text) - _longest_part(text, tail_room, measure, from_end=True) :]
    missing = len(text) - len(head) - len(tail)
    return f"{head}{_text_mark(missing, has_lines=has_lines)}{tail}", True


def _text_mark(missing: int, *, has_lines: bool) -> str:
    border = "\n" if has_lines else ""
    return f"{border}{ELLIPSIS} {missing:,} characters left out {ELLIPSIS}{border}"


def _longest_part(text: str, room: int, measure: Callable[[str], int], *, from_end: bool) -> int:
    """Return how many characters of the head or the end of `text` fit into `room`."""
    fits, too_many = 0, min(room, len(text)) + 1
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        part = text[len(text) - count :] if from_end else text[:count]
        if measure(part) <= room:
            fits = count
        else:
            too_many = count
    return fits


def is_text(data: Union[bytes, bytearray]) -> bool:
    """Return whether bytes look like text in ASCII."""
    sample = bytes(data[:SAMPLE_BYTES])
    return len(sample.translate(None, TEXT_BYTES)) * 10 <= len(sample)


# containers ---------------------------------------------------------------------------------------


class Container:
    """What a presenter knows of a value with parts: its brackets and its parts, in order."""

    __slots__ = ("brackets", "count", "noun", "parts")

    def __init__(
        self,
        brackets: Tuple[str, str],
        count: int,
        noun: str,
        parts: Callable[[Optional[int]], Iterator[Tuple[str, Any]]],
    ) -> None:
        self.brackets = brackets
        self.count = count
        self.noun = noun  # of one part
        self.parts = parts  # prefix and value; gets how long a prefix may be, None to show it whole


class ContainerPart:
    """One part of a container that is being cut; `text` is None if it is not shown whole."""

    __slots__ = ("is_rigid", "prefix", "size", "text", "value")

    def __init__(self, prefix: str, value: Any, text: Optional[str], size: int) -> None:
        self.prefix = prefix
        self.value = value
        self.text = text
        self.size = size  # with its prefix and a separator
        self.is_rigid = type(value) in (bool, int, float, type(None))  # it cannot be cut


class Presenter:
    """Presents values as text in one notation; containers show at most `max_items` parts."""

    def __init__(self, max_items: Optional[int] = None) -> None:
        self.max_items = max_items
        self.is_cut = False
        self._open_ids: Set[int] = set()  # of the containers around the present value
        # Rooms that a container is too long for, by id and depth, with the value, which keeps its
        # id. Without them each level of a nested value would look through all that are below it.
        self._misfits: Dict[Tuple[int, int], Tuple[Any, int]] = {}

    def open_container(self, value: Any) -> Optional[Container]:
        """Return what to know of a value with parts, and None for one without."""
        raise NotImplementedError

    def fit_leaf(self, value: Any, max_chars: int) -> Optional[str]:
        """Return the whole text of a value without parts; None if it is longer than that."""
        raise NotImplementedError

    def cut_leaf(self, value: Any, max_chars: int) -> str:
        """Return a text of about that length for a value without parts."""
        raise NotImplementedError

    def format_mark(self, count: int, noun: str) -> str:
        """Return the part that stands for `count` parts that are left out."""
        return f"{ELLIPSIS} {count_more(count, noun)}"

    def describe_cycle(self, container: Container) -> str:
        """Return what stands for a container that is nested too deeply or contains itself."""
        raise NotImplementedError

    def fit(self, value: Any, max_chars: int, depth: int = 0) -> Optional[str]:
        """Return the whole text of `value`; None if it is longer than `max_chars`.

        Of a container with more than `max_items` parts, the others are counted.
        """
        container = self.open_container(value)
        if container is None:
            return self.fit_leaf(value, max_chars)
        if depth >= MAX_DEPTH or id(value) in self._open_ids:
            return self.describe_cycle(container)
        key = id(value), depth
        if key in self._misfits and max_chars <= self._misfits[key][1]:
            return None
        self._open_ids.add(id(value))
        try:
            text = self._fit_container(container, max_chars, depth)
        finally:
            self._open_ids.discard(id(value))
        if text is None:
            self._misfits[key] = value, max_chars
        return text

    def _fit_container(self, container: Container, max_chars: int, depth: int) -> Optional[str]:
        opening, closing = container.brackets
        is_whole = self.max_items is None or container.count <= self.max_items
        parts = container.parts(None if is_whole else max_chars)
        texts: List[str] = []
        left = max_chars - len(opening) - len(closing) + len(SEPARATOR)
        for prefix, item in islice(parts, self.max_items):
            left -= len(prefix) + len(SEPARATOR)
            text = self.fit(item, left, depth + 1)
            if text is None or len(text) > left:
                return None
            texts.append(prefix + text)
            left -= len(text)
        missing = container.count - len(texts)
        if missing > 0:
            texts += self._end_parts(container, parts, missing, depth)
        whole = f"{opening}{SEPARATOR.join(texts)}{closing}"
        return whole if len(whole) <= max_chars else None

    def cut(self, value: Any, max_chars: int, depth: int = 0) -> str:
        """Return a text for `value` of about `max_chars` characters at most."""
        container = self.open_container(value)
        least_chars = 0
        if container is not None:
            mark_chars = len(self.format_mark(container.count, container.noun))
            least_chars = mark_chars + sum(map(len, container.brackets))
        whole = self.fit(value, max(max_chars, least_chars), depth)
        if whole is not None:
            return whole
        if container is None:
            return self.cut_leaf(value, max_chars)
        self._open_ids.add(id(value))
        try:
            return self._cut_container(container, max_chars, mark_chars, depth)
        finally:
            self._open_ids.discard(id(value))

    def _cut_container(
        self, container: Container, max_chars: int, mark_chars: int, depth: int
    ) -> str:
        opening, closing = container.brackets
        room = max_chars - len(opening) - len(closing) - mark_chars
        least = max(max_chars // LEAST_SHARE, LEAST_PART_CHARS)
        shown: List[ContainerPart] = []
        left, large_count = room, 0
        parts = container.parts(least // 2)
        for prefix, item in islice(parts, self.max_items):
            part = self._measure(prefix, item, max(room // (1 + large_count), least), depth)
            large_count += part.text is None
            left -= part.size if part.is_rigid else min(part.size, least)
            if left < 0:
                parts = _chain_first((prefix, item), parts)
                break
            shown.append(part)
        missing = container.count - len(shown)
        rest: List[str] = []
        if missing > 0:
            rest = self._end_parts(container, parts, missing, depth)
        else:
            room += mark_chars
        self.is_cut = True
        return f"{opening}{SEPARATOR.join(self._divide_room(shown, room, depth) + rest)}{closing}"

    def _end_parts(
        self, container: Container, parts: Iterator[Tuple[str, Any]], missing: int, depth: int
    ) -> List[str]:
        """Return the mark for the parts that are left out, or these if it would be longer."""
        mark = self.format_mark(missing, container.noun)
        rest = self._fit_rest(parts, missing, len(mark), depth)
        if rest:
            return rest
        self.is_cut = True
        return [mark]

    def _measure(self, prefix: str, item: Any, max_chars: int, depth: int) -> ContainerPart:
        """Return a part with its whole text, if that has at most `max_chars` characters."""
        extra = len(prefix) + len(SEPARATOR)
        text = self.fit(item, max_chars - extra, depth + 1)
        return ContainerPart(prefix, item, text, extra + (max_chars if text is None else len(text)))

    def _fit_rest(
        self, parts: Iterator[Tuple[str, Any]], count: int, max_chars: int, depth: int
    ) -> List[str]:
        """Return the last `count` parts if together they are not longer than their mark."""
        texts: List[str] = []
        left = max_chars
        if count * (1 + len(SEPARATOR)) > max_chars + len(SEPARATOR):
            return []
        for prefix, item in islice(parts, count):
            text = self.fit(item, left - len(prefix), depth + 1)
            if text is None or len(prefix) + len(text) > left:
                return []
            texts.append(prefix + text)
            left -= len(texts[-1]) + len(SEPARATOR)
        return texts if len(texts) == count else []

    def _divide_room(self, shown: Sequence[ContainerPart], room: int, depth: int) -> List[str]:
        """Return the texts of the parts; those that need more than their share are cut."""
        share = find_share(
            [part.size for part in shown if not part.is_rigid],
            room - sum(part.size for part in shown if part.is_rigid),
        )
        texts: List[str] = []
        spare = 0
        for part in shown:
            if part.text is not None and (part.is_rigid or part.size <= share + spare):
                texts.append(part.prefix + part.text)
                spare -= max(part.size - share, 0)
                continue
            left = share + spare - len(part.prefix) - len(SEPARATOR)
            texts.append(part.prefix + self.cut(part.value, max(left, 0), depth + 1))
            spare += share - len(texts[-1]) - len(SEPARATOR)
        return texts


def find_share(sizes: Sequence[int], room: int) -> int:
    """Return the share at which parts of these sizes, cut to at most that, fill the room."""
    share = room
    for index, size in enumerate(sorted(sizes)):
        share = max(room, 0) // (len(sizes) - index)
        if size > share:
            return share
        room -= size
    return max(share, max(sizes, default=0))


def count_more(count: int, noun: str) -> str:
    """Return "1 more item", "1,000 more items"."""
    return f"{count:,} more {noun}{'' if count == 1 else 's'}"


def _chain_first(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


class JsonPresenter(Presenter):
    """Presents JSON data as JSON; raises `NotJsonData` for anything else that it comes to."""

    def open_container(self, value: Any) -> Optional[Container]:
        """Return the brackets and parts of an object or array."""
        if isinstance(value, dict):
            return Container(("{", "}"), len(value), "key", _ObjectParts(value).iterate)
        if isinstance(value, (list, tuple)) and not hasattr(type(value), "_fields"):
            if not has_repr_of(value, list, tuple):
                raise NotJsonData  # its repr says more than its items
            return Container(("[", "]"), len(value), "item", _SequenceParts(value).iterate)
        return None

    def format_mark(self, count: int, noun: str) -> str:
        """Return the mark as an array's item or as an object's key and value."""
        if noun == "key":
            return f'"{ELLIPSIS}": "{count_more(count, noun)}"'
        return f'"{super().format_mark(count, noun)}"'

    def describe_cycle(self, container: Container) -> str:
        """Raise `NotJsonData`."""
        raise NotJsonData

    def fit_leaf(self, value: Any, max_chars: int) -> Optional[str]:
        """Return a scalar as JSON; raises `NotJsonData`."""
        kind = type(value)
        if kind is str:
            return _fit_text(value, max_chars)
        if value is None or kind is bool or kind is int:
            return _dump_json(value)
        if kind is float and value - value == 0:  # neither NaN nor infinite
            return _dump_json(value)
        raise NotJsonData

    def cut_leaf(self, value: Any, max_chars: int) -> str:
        """Return a shortened text as JSON."""
        text, is_cut = truncate_text(value, max_chars - 2, lambda part: len(_dump_text(part)) - 2)
        self.is_cut |= is_cut
        return _dump_text(text)


def _dump_text(text: str) -> str:
    return _dump_json(text if text.isascii() else escape_surrogates(text))


def _fit_text(text: str, max_chars: int) -> Optional[str]:
    if len(text) + 2 > max_chars:
        return None
    dumped = _dump_text(text)
    return dumped if len(dumped) <= max_chars else None


class _SequenceParts:
    """The items of a list, tuple or set."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def iterate(self, max_prefix_chars: Optional[int]) -> Iterator[Tuple[str, Any]]:
        """Yield each item, without a prefix."""
        for item in self._value:
            yield "", item


class _ObjectParts:
    """The keys and values of a JSON object."""

    def __init__(self, value: Dict[Any, Any]) -> None:
        self._value = value

    def iterate(self, max_prefix_chars: Optional[int]) -> Iterator[Tuple[str, Any]]:
        """Yield each value with its key.

        Where keys may be cut, one that then equals another one, or the mark, is left out.
        """
        seen = {ELLIPSIS}
        for key in self._value:
            if type(key) is not str:
                raise NotJsonData
            text = key
            if max_prefix_chars is not None:
                text, _ = truncate_text(key, max_prefix_chars)
                if text in seen:
                    continue
                seen.add(text)
            yield f"{_dump_text(text)}: ", self._value[key]


def has_repr_of(value: Any, *builtins: type) -> bool:
    """Return whether `value` is shown as values of one of these types are."""
    return any(type(value).__repr__ is each.__repr__ for each in builtins)


BUILTIN_BRACKETS: Dict[Any, Tuple[str, str]] = {  # by the method that shows a value with them
    list.__repr__: ("[", "]"),
    tuple.__repr__: ("(", ")"),
    set.__repr__: ("{", "}"),
    frozenset.__repr__: ("frozenset({", "})"),
    dict.__repr__: ("{", "}"),
}


class PythonPresenter(Presenter):
    """Presents values as `repr` does."""

    def __init__(self, max_items: Optional[int] = None) -> None:
        super().__init__(max_items)
        self._reprs: Dict[int, Tuple[Any, str]] = {}  # by id, with the value, which keeps its id

    def open_container(self, value: Any) -> Optional[Container]:
        """Return the brackets and parts of a builtin container with the builtin repr."""
        brackets = BUILTIN_BRACKETS.get(type(value).__repr__)
        if brackets is None or not len(value):
            return None
        if isinstance(value, dict):
            return Container(brackets, len(value), "key", _MappingParts(value, self).iterate)
        if isinstance(value, tuple) and len(value) == 1:
            brackets = "(", ",)"
        return Container(brackets, len(value), "item", _SequenceParts(value).iterate)

    def describe_cycle(self, container: Container) -> str:
        """Return what `repr` shows."""
        return "...".join(container.brackets)

    def fit_leaf(self, value: Any, max_chars: int) -> Optional[str]:
        """Return the repr of a value."""
        if has_repr_of(value, str) and len(value) + 2 > max_chars:
            return None
        if has_repr_of(value, bytes, bytearray):
            room = max_chars if is_text(value) else MAX_WHOLE_BINARY_BYTES
            if len(value) > room:
                return None
        text = self._repr(value)
        return text if len(text) <= max_chars else None

    def cut_leaf(self, value: Any, max_chars: int) -> str:
        """Return a shortened repr."""
        if has_repr_of(value, str):
            text, is_cut = truncate_text(value, max_chars - 2, lambda part: len(repr(part)) - 2)
            self.is_cut |= is_cut
            return repr(text)
        if has_repr_of(value, bytes, bytearray):
            return self._cut_bytes(value, max_chars)
        text, is_cut = truncate_text(self._repr(value), max_chars)
        self.is_cut |= is_cut
        return text

    def _cut_bytes(self, value: Union[bytes, bytearray], max_chars: int) -> str:
        """Return the first bytes and how many follow; of binary data these are few."""
        opening, closing = ("bytearray(", ")") if isinstance(value, bytearray) else ("", "")
        count = min(MAX_BINARY_BYTES, len(value))
        has_text = is_text(value)
        if has_text:
            mark_chars = len(f" {ELLIPSIS} {count_more(len(value), 'byte')}{opening}{closing}")
            room = max(max_chars - mark_chars, LEAST_TEXT_CHARS)
            head = value[:room].decode("latin-1")
            count = _longest_part(head, room, _bytes_size, from_end=False)
        head = repr(bytes(value[:count]))
        more = count_more(len(value) - count, "byte")
        shown = f"{opening}{head} {ELLIPSIS} {more}{closing}"
        if len(value) <= len(shown):  # else its repr is longer than that
            whole = self._repr(value)
            if len(whole) <= len(shown):
                return whole
        self.is_cut |= has_text  # of binary data the short repr is all that anybody wants
        return shown

    def _repr(self, value: Any) -> str:
        """Return `repr(value)`, which is computed once."""
        found = self._reprs.get(id(value))
        if found is None:
            found = self._reprs[id(value)] = value, safe_repr(value)
        return found[1]


def _bytes_size(text: str) -> int:
    return len(repr(text.encode("latin-1")))


class _MappingParts:
    """The keys and values of a dict, keys in the presenter's notation."""

    def __init__(self, value: Dict[Any, Any], presenter: PythonPresenter) -> None:
        self._value = value
        self._presenter = presenter

    def iterate(self, max_prefix_chars: Optional[int]) -> Iterator[Tuple[str, Any]]:
        """Yield each value with its key."""
        for key in self._value:
            if max_prefix_chars is None:
                text = self._presenter.fit(key, sys.maxsize)
            else:
                text = self._presenter.cut(key, max_prefix_chars)
            yield f"{text}: ", self._value[key]


class Arguments:
    """The arguments of a call, by name."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def iterate(self, max_prefix_chars: Optional[int]) -> Iterator[Tuple[str, Any]]:
        """Yield each value with its name."""
        for name, value in self.values.items():
            yield f"{name}=", value


class CallPresenter(PythonPresenter):
    """Presents the arguments of a call as Python code."""

    def open_container(self, value: Any) -> Optional[Container]:
        """Return the arguments, or the parts of one."""
        if isinstance(value, Arguments):
            return Container(("(", ")"), len(value.values), "argument", value.iterate)
        return super().open_container(value)
