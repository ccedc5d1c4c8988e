"""What may be told of a provider's words: nothing that could be a part of a credential, however it is written."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

SHOWN = 300  # characters of what a provider says
LOOKED = 20_000  # and of those that are looked through for them
LEAST = 8  # characters of what can be a credential
UNLIKELY = 16  # characters of a credential that no model says by chance, unlike "ollama" and others that stand for none
PIECE = 5  # characters of a credential that give it away
ENCODED = 8  # and of a transformed one
LEFT_OUT = "the provider's words are left out, because they quote a credential."
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
# Each goes through a text once: one that looks back or ahead takes minutes for a long word, and keeps all waiting.
MASKED = re.compile(r"\w(\*{2,}|\.{3,}|\u2026|[xX]{4,})")  # in a word, as providers cut keys short
LONG = re.compile(r"[A-Za-z0-9+/=_%~-]{16,}")
LIKE_A_KEY = re.compile(r"[0-9=+%]")  # in a long one


def secrets_in(environ: Mapping[str, str]) -> list[str]:
    """Return what looks like credentials in an environment."""
    return [value for name, value in environ.items() if SECRET_NAME.search(name) and len(value) >= LEAST]


class Words:
    """Makes what a provider says fit to be told."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = tuple(secrets)
        self._pieces: set[str] = set()
        for secret in self._secrets:
            self._pieces.update(pieces_of(secret, PIECE))
            for form in forms_of(secret):
                self._pieces.update(pieces_of(form, ENCODED))

    def fit(self, text: str, known: str = "") -> str:
        """Return what can be told of `text`, in which only the name `known` may look like a key."""
        text = " ".join("".join(char if char.isprintable() else " " for char in text[:LOOKED]).split())
        folded = text.replace(known, " ").casefold() if known else text.casefold()
        if any(folded[at : at + size] in self._pieces for size in (PIECE, ENCODED) for at in range(len(folded))):
            return LEFT_OUT
        text = LONG.sub(lambda found: "***" if found[0] != known and LIKE_A_KEY.search(found[0]) else found[0], text)
        return " ".join("***" if MASKED.search(word) else word for word in text.split(" "))[:SHOWN]

    def quotes(self, text: str) -> bool:
        """Return whether a text has a credential in it, as it is."""
        return any(len(secret) >= UNLIKELY and secret in text for secret in self._secrets)


def pieces_of(text: str, size: int) -> Iterator[str]:
    """Yield all parts of that size, in small letters."""
    folded = text.casefold()
    yield from (folded[at : at + size] for at in range(len(folded) - size + 1))


def forms_of(secret: str) -> Iterator[str]:
    """Yield a credential as it is when somebody has transformed it."""
    data = secret.encode("utf-8", "surrogateescape")
    for shift in range(3):  # base64 depends on what comes before
        yield base64.b64encode(b"\0" * shift + data).decode()[4 if shift else 0 : -4]
    yield data.hex()
    yield quote(secret, safe="", errors="surrogateescape")
    yield secret[::-1]
