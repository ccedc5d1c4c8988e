"""Encode large JSON data without holding up the event loop.

The encoder holds the interpreter's lock for some milliseconds per megabyte, in a thread as well. So
data is encoded in pieces, and others have their turn in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from time import perf_counter
from typing import Any

from anyio.lowlevel import checkpoint

from .events import EncodedJson, encode_json

TURN_S = 0.001  # of encoding, before others have their turn
MAX_TURN_CHARS = 256 * 1024  # of JSON data that is worked on at once; for more, others have turns
PIECE_CHARS = 64 * 1024  # of JSON data that is encoded at once
PIECE_ITEMS = 250  # of a list or an object
VALUE_CHARS = 8  # of a value that is no text, about
ENCODED_CHARS = 32  # of text, in whose time the encoder writes a value of a list or an object
NUMBERS = frozenset((int, float, bool, type(None)))


def measure_json(value: Any, limit: int, value_chars: int = VALUE_CHARS) -> int:
    """Return about how many characters JSON data has; beyond `limit`, only that it has more.

    Each value in a list or an object counts as `value_chars`, and a text as its length, too.
    """
    size, waiting = 0, [value]
    while waiting and size <= limit:
        item = waiting.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict | list):
            size += value_chars * len(item)
            if size > limit:  # before as many values are looked at
                break
            if isinstance(item, dict):
                size += sum(map(len, item))
                waiting += item.values()
            else:
                waiting += item
    return size


def takes_longer(value: Any, chars: int) -> bool:
    """Return whether to encode JSON data takes longer than so many characters of text."""
    return measure_json(value, chars, ENCODED_CHARS) > chars


async def encode_if_large(value: Any) -> Any:
    """Return large data as an `EncodedJson`, all other data as it is; raises `ValueError`."""
    if isinstance(value, EncodedJson) or not takes_longer(value, MAX_TURN_CHARS):
        return value
    return await encode_in_turns(value)


async def encode_in_turns(value: Any) -> EncodedJson:
    """Return data as `encode_json` writes it; raises `ValueError` if it is not JSON data."""
    pieces: list[bytes] = []
    try:
        turn_end = perf_counter() + TURN_S
        for piece in iter_encoded(value):
            pieces.append(piece.encode("ascii"))
            if perf_counter() > turn_end:
                await checkpoint()
                turn_end = perf_counter() + TURN_S
    except RecursionError as exc:
        raise ValueError(f"This is not JSON data: {exc}.") from exc
    return EncodedJson(b"".join(pieces))


def iter_encoded(value: Any) -> Iterator[str]:
    """Yield data in pieces, none of which takes long; raises `ValueError`, `RecursionError`."""
    if not takes_longer(value, PIECE_CHARS):
        yield encode_json(value)
    elif isinstance(value, str):
        yield '"'
        for start in range(0, len(value), PIECE_CHARS):
            yield encode_json(value[start : start + PIECE_CHARS])[1:-1]
        yield '"'
    elif isinstance(value, list):
        yield from _iter_items(value)
    elif isinstance(value, dict):
        yield from _iter_members(value)
    else:
        yield encode_json(value)


def _iter_items(items: Sequence[Any]) -> Iterator[str]:
    before = "["
    for start in range(0, len(items), PIECE_ITEMS):
        some = items[start : start + PIECE_ITEMS]
        if _is_short(some):
            yield f"{before}{encode_json(some)[1:-1]}"
            before = ","
            continue
        for item in some:
            yield before
            yield from iter_encoded(item)
            before = ","
    yield "]"


def _iter_members(members: Mapping[str, Any]) -> Iterator[str]:
    before, items = "{", iter(members.items())
    while some := dict(islice(items, PIECE_ITEMS)):
        if _is_short(some):
            yield f"{before}{encode_json(some)[1:-1]}"
            before = ","
            continue
        for name, item in some.items():
            yield f"{before}{encode_json({name: 0})[1:-2]}"
            yield from iter_encoded(item)
            before = ","
    yield "}"


def _is_short(some: Any) -> bool:
    """Return whether a few items or members are encoded at once."""
    are_numbers = isinstance(some, list) and NUMBERS.issuperset(map(type, some))
    return are_numbers or not takes_longer(some, PIECE_CHARS)
