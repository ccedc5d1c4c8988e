"""Split texts and queries into words for full-text search with SQLite's FTS5.

Rule: a query never causes a syntax error, because the search uses only its words, each in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_QUERY_WORDS = 32
MIN_PREFIX_CHARS = 4  # a shorter word has to match a whole word
CAMEL_CASE_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def split_words(text: str) -> list[str]:
    """Return the words of `text`; `gitLog` and `git_log` are two words each."""
    return re.findall(r"[^\W_]+", CAMEL_CASE_BOUNDARY.sub(" ", text))


def match_any(words: Iterable[str]) -> str:
    """Return the FTS5 expression for any of `words`; longer words match as prefixes, too."""
    terms = [f'"{word}"*' if len(word) >= MIN_PREFIX_CHARS else f'"{word}"' for word in words]
    return " OR ".join(terms[:MAX_QUERY_WORDS])
