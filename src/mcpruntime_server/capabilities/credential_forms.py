"""How a credential may be quoted in encoded form."""

from __future__ import annotations

import base64
from collections.abc import Iterator

MIN_FORM_CHARS = 8


def encode_base64_forms(secret: str) -> Iterator[str]:
    """Yield the base64 of `secret` after any number of bytes, without the ends that depend on more.

    A form of few characters, which occurs by chance, is left out.
    """
    data = secret.encode("utf-8", "surrogateescape")
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + data).decode()
        stable = encoded[4 if shift else 0 : -4]
        if len(stable) >= MIN_FORM_CHARS:
            yield stable
