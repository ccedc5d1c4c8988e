"""Small random changes of bytes, of JSON data, and of JSON in other formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

MAX_BYTES = 1 << 20  # of an input
MAX_REPEATS = 20_000
TOKENS = (
    *(
        b"\x00",
        b"\n",
        b"\r\n",
        b"\xff",
        b"\x1b]0;x\x07",
        b"\xc2\x9b",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
    ),
    *(b"\\ud800", b"\\uD800", b"\\u0000", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"NaN"),
    *(b"-Infinity", b"1e999", b"9" * 400, b"null", b"true", b"-0", b"0.1e-400", b"[]", b"{}"),
    *(b"---", b"&a ", b"*a", b"!!python/object ", b"? ", b"- ", b"|", b">", b"#", b"%YAML 9.9\n"),
    *(b"<<: *a", b"{a: b}", b"'", b"@", b"`", b"\t", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc2\x85"),
)
TEXTS = (
    *("", "x" * 70_000, "\ud800", "a\udfff", "\x00", "\x1b[2J", "\r", "\u2028note: x", "\u202e"),
    *("../x", "/etc/passwd", "a//b", ".", "..", "tools.x", "skills.used", "🎉" * 300, "\x85"),
    *("\nnote: all is well", "\ncalls:\n  bank.pay() -> ok", "json", "repr", "ok", "error", "died"),
    *(
        "[" * 90 + "]" * 90,
        "[" * 5_000,
        "{}",
        "9" * 4_200,
        "9" * 9_000,
        "1e999",
        "NaN",
        '"\\ud800"',
    ),
)
NUMBERS = (
    *(0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**18, 10**400, 1e308, 5e-324, -0.0, 0.5),
    *(float("nan"), float("inf"), float("-inf")),
)


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """Return `data` with a few changes at random places."""
    changed = bytearray(data)
    for _ in range(1 + int(random.expovariate(0.7))):
        start = random.randrange(len(changed) + 1)
        end = min(len(changed), start + int(random.expovariate(0.1)))
        match random.randrange(6):
            case 0:
                changed[start:end] = random.randbytes(end - start)
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = random.choice(TOKENS)
            case 3:
                changed[start:end] = random.choice(TOKENS)
            case 4:
                piece = bytes(changed[start:end]) or random.choice(TOKENS)
                room = (MAX_BYTES - len(changed)) // len(piece)
                count = min(
                    int(10 ** random.uniform(0, random.choice((1, 2, 2, 5)))), MAX_REPEATS, room
                )
                changed[start:start] = piece * count
            case 5 if start < len(changed):
                changed[start] ^= 1 << random.randrange(8)
    return bytes(changed[:MAX_BYTES])


def mutate_json(random: Random, data: Any) -> Any:
    """Return JSON data with one value replaced, removed, repeated, nested or added."""
    if isinstance(data, dict) and data and random.random() < 0.8:
        changed, key = dict(data), random.choice(list(data))
        match random.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[random.choice(TEXTS)] = changed[key]
            case _:
                changed[key] = mutate_json(random, changed[key])
        return changed
    if isinstance(data, list) and data and random.random() < 0.8:
        items, index = list(data), random.randrange(len(data))
        match random.randrange(8):
            case 0:
                del items[index]
            case 1:
                items *= random.choice((2, 50, 2_000 // len(items) + 1))
            case _:
                items[index] = mutate_json(random, items[index])
        return items
    if isinstance(data, str) and random.random() < 0.4:
        mutated = mutate_bytes(random, data.encode("utf-8", "surrogatepass"))
        return mutated.decode("utf-8", random.choice(("replace", "surrogateescape")))
    return make_value(random, data)


def make_value(random: Random, data: Any) -> Any:
    """Return a value that a reader may not expect in the place of `data`."""
    match random.randrange(7):
        case 0:
            return random.choice(NUMBERS)
        case 1:
            return random.choice((None, True, False, [], {}, [None] * 300))
        case 2:
            return {random.choice(TEXTS): data}
        case 3:
            for _ in range(random.choice((1, 30, 99, 101, 900))):
                data = [data] if random.random() < 0.5 else {"a": data}
            return data
        case _:
            return random.choice(TEXTS)


def mutate_json_text(random: Random, text: bytes) -> bytes:
    """Return a text of JSON with a change of its data, or of its bytes."""
    try:
        data = json.loads(text)
        if random.random() < 0.8:
            return dump_json(random, mutate_json(random, data))
    except (ValueError, RecursionError):
        pass
    return mutate_bytes(random, text)


def dump_json(random: Random, data: Any) -> bytes:
    """Return JSON, in ASCII or, seldom, with everything that Python writes."""
    try:
        text = json.dumps(data, ensure_ascii=random.random() < 0.9, separators=(",", ":"))
    except (ValueError, RecursionError, MemoryError):  # what cannot be written, or only at length
        return b"[" * 1_000
    return text.encode("utf-8", "surrogatepass")[:MAX_BYTES]
