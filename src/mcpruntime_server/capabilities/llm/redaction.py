"""Remove credentials, parts of them and encoded ones from the messages of a provider."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from ...config.credentials import is_credential_name, is_key_like
from ..credential_forms import encode_base64_forms

MAX_SHOWN_CHARS = 300  # of a provider's message
MAX_SCANNED_CHARS = 20_000
MIN_SECRET_CHARS = 8
MIN_UNIQUE_SECRET_CHARS = 16  # shorter values, such as "ollama", may occur in an answer by chance
PLAIN_PART_CHARS = 5  # a message that quotes so much of a credential is withheld
ENCODED_PART_CHARS = 8  # the same for an encoded credential
WITHHELD_NOTICE = "the provider's message is withheld, because it quotes a credential."
# These patterns scan a text once. A pattern that looks back or ahead would take minutes for a long
# word and block the process.
MASKED_KEY = re.compile(r"\w(\*{2,}|\.{3,}|\u2026|[xX]{4,})")  # as providers abbreviate keys
LONG_WORD = re.compile(r"[A-Za-z0-9+/=_%~-]{16,}")
REDACTED = "***"


def find_secrets(environ: Mapping[str, str]) -> list[str]:
    """Return the values of an environment that look like credentials."""
    return [
        value
        for name, value in environ.items()
        if is_credential_name(name) and len(value) >= MIN_SECRET_CHARS
    ]


class Redactor:
    """Redacts known credentials and words that look like keys."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = tuple(secrets)
        self._secret_parts: set[str] = set()
        for secret in self._secrets:
            self._secret_parts.update(list_substrings(secret, PLAIN_PART_CHARS))
            for form in encoded_forms(secret):
                self._secret_parts.update(list_substrings(form, ENCODED_PART_CHARS))

    def redact(self, text: str, allowed: str = "") -> str:
        """Return `text` redacted and truncated, or a notice that it is withheld.

        Only the name `allowed` may look like a key.
        """
        scanned = text[:MAX_SCANNED_CHARS]
        printable = "".join(char if char.isprintable() else " " for char in scanned)
        words = " ".join(printable.split())
        if self._contains_secret_part(words.replace(allowed, " ") if allowed else words):
            return WITHHELD_NOTICE
        words = LONG_WORD.sub(lambda found: redact_key(found[0], allowed), words)
        shown = [REDACTED if MASKED_KEY.search(word) else word for word in words.split(" ")]
        return " ".join(shown)[:MAX_SHOWN_CHARS]

    def contains_secret(self, text: str) -> bool:
        """Return whether a text contains a credential literally."""
        return any(
            len(secret) >= MIN_UNIQUE_SECRET_CHARS and secret in text for secret in self._secrets
        )

    def _contains_secret_part(self, text: str) -> bool:
        folded = text.casefold()
        return any(
            folded[start : start + size] in self._secret_parts
            for size in (PLAIN_PART_CHARS, ENCODED_PART_CHARS)
            for start in range(len(folded))
        )


def redact_key(word: str, allowed: str) -> str:
    """Return a long word, redacted if it looks like a key."""
    return REDACTED if word != allowed and is_key_like(word) else word


def list_substrings(text: str, size: int) -> Iterator[str]:
    """Yield all substrings of that size in lower case."""
    folded = text.casefold()
    yield from (folded[start : start + size] for start in range(len(folded) - size + 1))


def encoded_forms(secret: str) -> Iterator[str]:
    """Yield a credential in the encodings in which a message may quote it."""
    yield from encode_base64_forms(secret)
    yield secret.encode("utf-8", "surrogateescape").hex()
    yield quote(secret, safe="", errors="surrogateescape")
    yield secret[::-1]
