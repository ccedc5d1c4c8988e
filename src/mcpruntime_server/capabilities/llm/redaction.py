"""What may be told of a provider's words: nothing that could be a part of a credential, however it is written."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from ...config.credentials import is_credential_name, is_key_like

MAX_SHOWN_CHARS = 300  # characters of what a provider says
MAX_SCANNED_CHARS = 20_000  # and of those that are looked through for them
MIN_SECRET_CHARS = 8  # characters of what can be a credential
MIN_UNIQUE_SECRET_CHARS = 16  # characters of a credential that no model says by chance, unlike "ollama" and others that stand for none
PLAIN_PART_CHARS = 5  # characters of a credential that give it away
ENCODED_PART_CHARS = 8  # and of a transformed one
WITHHELD_NOTICE = "the provider's words are left out, because they quote a credential."
# Each goes through a text once: one that looks back or ahead takes minutes for a long word, and keeps all waiting.
MASKED_KEY = re.compile(
    r"\w(\*{2,}|\.{3,}|\u2026|[xX]{4,})"
)  # in a word, as providers cut keys short
LONG_WORD = re.compile(r"[A-Za-z0-9+/=_%~-]{16,}")


def find_secrets(environ: Mapping[str, str]) -> list[str]:
    """Return what looks like credentials in an environment."""
    return [
        value
        for name, value in environ.items()
        if is_credential_name(name) and len(value) >= MIN_SECRET_CHARS
    ]


class Redactor:
    """Makes what a provider says fit to be told."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = tuple(secrets)
        self._secret_parts: set[str] = set()
        for secret in self._secrets:
            self._secret_parts.update(substrings(secret, PLAIN_PART_CHARS))
            for form in encoded_forms(secret):
                self._secret_parts.update(substrings(form, ENCODED_PART_CHARS))

    def redact(self, text: str, allowed: str = "") -> str:
        """Return what can be told of `text`, in which only the name `known` may look like a key."""
        text = " ".join(
            "".join(
                char if char.isprintable() else " " for char in text[:MAX_SCANNED_CHARS]
            ).split()
        )
        folded = text.replace(allowed, " ").casefold() if allowed else text.casefold()
        if any(
            folded[at : at + size] in self._secret_parts
            for size in (PLAIN_PART_CHARS, ENCODED_PART_CHARS)
            for at in range(len(folded))
        ):
            return WITHHELD_NOTICE
        text = LONG_WORD.sub(
            lambda found: "***" if found[0] != allowed and is_key_like(found[0]) else found[0],
            text,
        )
        return " ".join("***" if MASKED_KEY.search(word) else word for word in text.split(" "))[
            :MAX_SHOWN_CHARS
        ]

    def contains_secret(self, text: str) -> bool:
        """Return whether a text has a credential in it, as it is."""
        return any(
            len(secret) >= MIN_UNIQUE_SECRET_CHARS and secret in text for secret in self._secrets
        )


def substrings(text: str, size: int) -> Iterator[str]:
    """Yield all parts of that size, in small letters."""
    folded = text.casefold()
    yield from (folded[at : at + size] for at in range(len(folded) - size + 1))


def encoded_forms(secret: str) -> Iterator[str]:
    """Yield a credential as it is when somebody has transformed it."""
    data = secret.encode("utf-8", "surrogateescape")
    for shift in range(3):  # base64 depends on what comes before
        yield base64.b64encode(b"\0" * shift + data).decode()[4 if shift else 0 : -4]
    yield data.hex()
    yield quote(secret, safe="", errors="surrogateescape")
    yield secret[::-1]
