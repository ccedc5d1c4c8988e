"""What a provider is: named texts, each with a version that changes when it does.

Rule 1: a provider only tells and reads. Taking texts apart, finding and bounding are everybody's, in `pieces`, `index`
and `service`.
Rule 2: it is called in worker threads, and may block. One text that cannot be had is
`PassedOver`, with the reason; a provider that has nothing to tell now raises `Unavailable`.
Rule 3: names and texts are strangers' words: nothing here executes or believes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

MAX_DOCUMENTS = 100_000  # of one provider
MAX_DOCUMENT_BYTES = 4_000_000  # of one text
MAX_NAME_CHARS = 1_000  # characters
MAX_EXAMPLE_NAMES = 5  # names that are kept for each reason to pass something over


class UserProvider(Protocol):
    """What a user's own provider has to have."""

    def names(self) -> Mapping[str, str]:
        """Return the version of each text by its name; "" where that is not known, and the text is read again."""
        ...

    def read(self, name: str) -> str:
        """Return the text of a name; what it ends with (.md, .json, ...) says how it is taken apart."""
        ...


class DocumentSkipped(Exception):
    """One text is left out; the message is the reason, in a few words: "too large".

    A reason that `passes` is no reason for long: the text is tried again.
    """

    def __init__(self, reason: str, *, is_temporary: bool = False) -> None:
        super().__init__(reason)
        self.is_temporary = is_temporary


class SkippedDocuments:
    """What a listing has left out: by reason, how many, and the first few names."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, reason: str, name: str) -> None:
        """Note that something is left out."""
        count, names = self._found.get(reason, (0, []))
        self._found[reason] = count + 1, [*names, name] if len(names) < MAX_EXAMPLE_NAMES else names

    def by_reason(self) -> dict[str, tuple[int, list[str]]]:
        """Return the number and some names by reason."""
        return dict(self._found)


class KnowledgeProvider(UserProvider, Protocol):
    """What the service deals with: a provider, and what is known of it beyond its texts."""

    skipped: SkippedDocuments  # of the last listing

    def get_format(self, name: str) -> str:
        """Return how a text is taken apart, one of `marks.KINDS`."""
        ...


def is_valid_name(name: object) -> bool:
    """Return whether `name` can name a text: nothing in it is invisible, or moves a terminal's cursor."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()


def clean_line(text: str, limit: int) -> str:
    """Return a stranger's words on one line, at most so many characters, without what does not print."""
    line = " ".join(text[: limit * 4].split())
    return "".join(char if char.isprintable() else "?" for char in line)[:limit]


def replace_control_characters(text: str) -> str:
    """Return a text without the characters that control terminals; its lines stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def format_names(names: Iterable[str]) -> str:
    """Return some names as a list for people."""
    return ", ".join(clean_line(name, 80) for name in names)
