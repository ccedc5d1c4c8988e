"""How a credential may be quoted in encoded form."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

MIN_FORM_CHARS = 8
MIN_WRAPPED_CHARS = 60  # of base64 that may be broken into lines
MAX_SPELT_CHARS = 60  # of a credential that is looked for in rare forms, too
URL_SAFE = str.maketrans("+/", "-_")
BASE64_END = r"[A-Za-z0-9+/_-]{0,4}={0,2}"  # which depends on what follows the value
MAX_END_CHARS = 6
PERCENT_CODE = re.compile(r"%([0-9A-F]{2})")


def encode_base64_forms(secret: str) -> Iterator[str]:
    """Yield the base64 of `secret` after any number of bytes, without the ends that depend on more.

    Both alphabets are used. A form of few characters, which occurs by chance, is left out.
    """
    data = secret.encode("utf-8", "surrogateescape")
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + data).decode()
        stable = encoded[4 if shift else 0 : -4]
        if len(stable) >= MIN_FORM_CHARS:
            yield stable
            yield stable.translate(URL_SAFE)


def make_form_patterns(secret: str) -> Iterator[str]:
    """Yield patterns of the forms in which `secret` may occur in a text."""
    data = secret.encode("utf-8", "surrogateescape")
    in_json = [json.dumps(secret, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)]
    for form in {secret, *in_json}:
        yield re.escape(form)
    for form in {quote(data), quote(data, safe=""), quote_plus(data)}:
        yield PERCENT_CODE.sub(_either_case, re.escape(form))
    for form in encode_base64_forms(secret):
        yield re.escape(form) + BASE64_END
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
    for form in encode_base64_forms(secret):
        if len(form) >= MIN_WRAPPED_CHARS:
            yield "(?:\r?\n)?".join(map(re.escape, form)) + BASE64_END


def _either_case(match: re.Match[str]) -> str:
    return _either_case_of(match[0])


def _either_case_of(text: str) -> str:
    """Return a pattern of a text with hexadecimal digits in either case."""
    return "".join(
        f"[{char.lower()}{char.upper()}]" if char.isalpha() else re.escape(char) for char in text
    )
