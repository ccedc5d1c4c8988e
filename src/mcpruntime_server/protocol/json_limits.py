"""How large JSON data is, in ways that cost its reader: the number of its values, and its depth.

Standard library only, Python >= 3.9.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, List, Union

COUNTED_CHARS = 64 * 1024  # of a text, at once: a hostile one splits into very many pieces
CONTAINERS = (dict, list, tuple)


class ValueCounter:
    """Counts the values of a JSON text that arrives in pieces, without parsing it."""

    def __init__(self) -> None:
        self.count = 0
        self._is_in_string = False
        self._rest = b""  # a backslash whose pair has not arrived

    def feed(self, data: Union[bytes, bytearray]) -> int:
        """Count the values in the next piece, and return how many there are altogether."""
        text = self._rest + data
        backslashes = len(text) - len(text.rstrip(b"\\"))
        self._rest = b"\\" if backslashes % 2 else b""
        if backslashes % 2:
            text = text[:-1]
        if b"\\" in text:
            text = text.replace(rb"\\", b"").replace(rb"\"", b"")
        pieces = text.split(b'"')  # they are within strings and outside by turns
        outside = b"".join(pieces[self._is_in_string :: 2])
        self._is_in_string ^= len(pieces) % 2 == 0
        # Each comma begins a value, and so does each container, or the first value in it.
        self.count += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        return self.count


def has_more_values(text: str, max_count: int) -> bool:
    """Return whether the data in a JSON text has more than `max_count` values, roughly.

    What looks like a value within a string does not count.
    """
    counter = ValueCounter()
    starts = range(0, len(text), COUNTED_CHARS)
    return any(
        counter.feed(text[start : start + COUNTED_CHARS].encode("utf-8", "replace")) > max_count
        for start in starts
    )


def is_nested_deeper(data: Any, max_depth: int) -> bool:
    """Return whether JSON data has more than `max_depth` arrays and objects within each other."""
    level: List[Any] = [data] if isinstance(data, CONTAINERS) else []
    for _ in range(max_depth):
        if not level:
            return False
        level = [  # in one expression, because calls for so many values take long
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, CONTAINERS)
        ]
    return bool(level)
