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
PIECE_ITEMS = 1_000  # of a list or an object
NUMBERS = frozenset((int, float, bool, type(None)))


def measure_json(value: Any, limit: int) -> int:
    """Return about how many characters JSON data has; no longer exact beyond `limit`."""
    size, waiting = 0, [value]
    while waiting and size <= limit:
        item = waiting.pop()
        size += len(item) if isinstance(item, str) else 8
        if isinstance(item, dict | list):
            if size + 2 * len(item) > limit:  # a comma and a character each, at least
                return size + 2 * len(item)
            if isinstance(item, dict):
                size += sum(map(len, item))
                waiting += item.values()
            else:
                waiting += item
    return size


async def encode_if_large(value: Any) -> Any:
    """Return large data as an `EncodedJson`, all other data as it is; raises `ValueError`."""
    if isinstance(value, EncodedJson) or measure_json(value, MAX_TURN_CHARS) <= MAX_TURN_CHARS:
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
    if measure_json(value, PIECE_CHARS) <= PIECE_CHARS:
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
    return are_numbers or measure_json(some, PIECE_CHARS) <= PIECE_CHARS
