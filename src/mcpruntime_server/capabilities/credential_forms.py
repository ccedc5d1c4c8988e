"""How a credential may be quoted in encoded form."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from string import ascii_lowercase, ascii_uppercase, digits
from urllib.parse import quote, quote_plus

MIN_ENCODED_BYTES = 6  # the base64 of fewer, of up to eight characters, occurs by chance
MAX_SPELT_CHARS = 60  # of a credential that is looked for in rare forms, too
BASE64_CHARS = ascii_uppercase + ascii_lowercase + digits + "+/"
URL_SAFE = str.maketrans("+/", "-_")
PADDING = "={0,2}"
PERCENT_CODE = re.compile(r"%([0-9A-F]{2})")


def encode_base64_forms(secret: str) -> Iterator[str]:
    """Yield the base64 of `secret` after any number of bytes, in both alphabets.

    The characters at the ends that depend on what stands beside it are left out.
    """
    for values in list_base64_values(secret.encode("utf-8", "surrogateescape")):
        stable = "".join(BASE64_CHARS[first] for first, *others in values if not others)
        yield stable
        yield stable.translate(URL_SAFE)


def list_base64_values(data: bytes) -> Iterator[list[list[int]]]:
    """Yield the base64 of `data` after 0, 1 or 2 more bytes than whole groups of three.

    Each character is a list of the values that it may have: all with the bits of `data` in it. At
    the ends, others depend on what stands beside `data`. Short data has none.
    """
    bits = "".join(f"{byte:08b}" for byte in data)
    for lead in (0, 2, 4) if len(data) >= MIN_ENCODED_BYTES else ():
        spelt = "?" * lead + bits
        spelt += "?" * (-len(spelt) % 6)
        yield [list_values(spelt[start : start + 6]) for start in range(0, len(spelt), 6)]


def list_values(spelt: str) -> list[int]:
    """Return the values of bits, where "?" stands for either."""
    known = int(spelt.replace("?", "0"), 2)
    unknown = int("".join("01"[bit == "?"] for bit in spelt), 2)
    return [known | value for value in range(unknown + 1) if value & unknown == value]


def make_base64_patterns(data: bytes) -> Iterator[str]:
    """Yield patterns of the base64 of `data` in either alphabet.

    A pattern that ends with a group leaves out the first character that has bits of `data`: it may
    be one of many, and a search for these takes five times as long.
    """
    for values in list_base64_values(data):
        has_lead = len(values[0]) > 1
        first, *others = map(_list_chars, values[has_lead:])
        rest = "".join(map(_match_any, others))
        for char in first:  # which is one or, in each alphabet, another one
            yield re.escape(char) + rest + PADDING + "()" * has_lead


def _list_chars(values: Sequence[int]) -> str:
    chars = "".join(BASE64_CHARS[value] for value in values)
    return "".join(dict.fromkeys(chars + chars.translate(URL_SAFE)))


def _match_any(chars: str) -> str:
    return f"[{re.escape(chars)}]" if len(chars) > 1 else chars


def make_form_patterns(secret: str) -> Iterator[str]:
    """Yield patterns of the forms in which `secret` may occur in a text."""
    data = secret.encode("utf-8", "surrogateescape")
    in_json = [json.dumps(secret, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)]
    for form in {secret, *in_json}:
        yield re.escape(form)
    for form in {quote(data), quote(data, safe=""), quote_plus(data)}:
        yield PERCENT_CODE.sub(_either_case, re.escape(form))
    yield from make_base64_patterns(data)
    if len(data) <= MAX_SPELT_CHARS:
        yield from _make_rare_patterns(secret, data, in_json)
    else:
        yield data.hex()


def _make_rare_patterns(secret: str, data: bytes, in_json: list[str]) -> Iterator[str]:
    texts = [*in_json, *(json.dumps(text)[1:-1] for text in in_json)]  # JSON as a text in JSON
    texts += [text.replace("/", "\\/") for text in texts]
    texts += [repr(secret)[1:-1], ascii(secret)[1:-1], repr(data)[2:-1]]
    texts += [html.escape(secret), html.escape(secret, quote=False)]
    texts.append(secret.replace("'", "'\"'\"'"))  # as shells quote it
    for text in set(texts) - {secret, *in_json}:
        yield re.escape(text)
    codes = [f"{byte:02x}" for byte in data]
    yield "".join(_either_case_of(f"%{code}") for code in codes)
    yield "[ :-]?".join(map(_either_case_of, codes))


def _either_case(match: re.Match[str]) -> str:
    return _either_case_of(match[0])


def _either_case_of(text: str) -> str:
    """Return a pattern of a text with hexadecimal digits in either case."""
    return "".join(
        f"[{char.lower()}{char.upper()}]" if char.isalpha() else re.escape(char) for char in text
    )
