"""What a provider is: named texts, each with a version that changes when the text changes.

Rule 1: a provider only lists and reads texts. Splitting, searching and limiting them is the same
for all providers: see `passages`, `passage_index` and `service`.
Rule 2: providers run in worker threads and may block. A text that cannot be read raises
`DocumentSkipped` with the reason. A provider that cannot list anything at the moment raises
`Unavailable`.
Rule 3: names and texts come from strangers. Nothing here executes or trusts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

MAX_DOCUMENTS = 100_000  # of one provider
MAX_DOCUMENT_BYTES = 4_000_000
MAX_NAME_CHARS = 1_000
MAX_EXAMPLE_NAMES = 5  # names that are kept for each reason to skip documents


class UserProvider(Protocol):
    """The interface of a provider that a user writes."""

    def names(self) -> Mapping[str, str]:
        """Return the version of each text by its name.

        The version "" means that it is not known; the text is then read again from time to time.
        """
        ...

    def read(self, name: str) -> str:
        """Return the text with this name; its suffix (.md, .json, ...) decides how it is split."""
        ...


class DocumentSkipped(Exception):
    """One text is left out; the message is the reason in a few words: "too large".

    If `is_temporary`, the text is tried again soon.
    """

    def __init__(self, reason: str, *, is_temporary: bool = False) -> None:
        super().__init__(reason)
        self.is_temporary = is_temporary


class SkippedDocuments:
    """What a listing left out: for each reason the number of names and the first few."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one skipped name."""
        count, names = self._found.get(reason, (0, []))
        self._found[reason] = count + 1, [*names, name][:MAX_EXAMPLE_NAMES]

    def by_reason(self) -> dict[str, tuple[int, list[str]]]:
        """Return the number of names and some of them, by reason."""
        return dict(self._found)


class KnowledgeProvider(UserProvider, Protocol):
    """The interface that the service uses: a provider, and what else is known about its texts."""

    skipped: SkippedDocuments  # in the last listing

    def get_format(self, name: str) -> str:
        """Return the format of a text, one of `boundaries.SCANNERS`."""
        ...


def is_valid_name(name: object) -> bool:
    """Return whether `name` can name a text: printable, so it cannot move a terminal's cursor."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()


def clean_line(text: str, limit: int) -> str:
    """Return text from a stranger as one printable line of at most `limit` characters."""
    line = " ".join(text[: limit * 4].split())
    return "".join(char if char.isprintable() else "?" for char in line)[:limit]


def replace_control_characters(text: str) -> str:
    """Return a text with U+FFFD for each character that could control a terminal; lines stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def format_names(names: Iterable[str]) -> str:
    """Return names as a comma-separated list for people."""
    return ", ".join(clean_line(name, 80) for name in names)
