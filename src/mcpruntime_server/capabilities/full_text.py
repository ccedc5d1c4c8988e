"""How text and questions are taken apart for full-text search with SQLite's FTS5.

Rule: no question can be a syntax error: only its words are asked for, each in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .english import COMMON, alike

MAX_QUERY_WORDS = 32  # of a question
LIKENESS = 0.35  # what a word of about the same meaning counts, against the word itself
CAMEL_CASE_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def split_words(text: str) -> list[str]:
    """Return the words of `text`; names are taken apart (`gitLog` and `git_log` are two words each)."""
    return re.findall(r"[^\W_]+", CAMEL_CASE_BOUNDARY.sub(" ", text))


def query_words(question: str) -> list[str]:
    """Return the words of a question that say something, in lower case."""
    return [
        word
        for word in map(str.lower, split_words(question)[:MAX_QUERY_WORDS])
        if word not in COMMON
    ]


def related(terms: Sequence[str]) -> list[str]:
    """Return words of about the same meaning as `terms`, without those."""
    return sorted(set().union(*map(alike, terms)) - set(terms))


def match_any(terms: Iterable[str]) -> str:
    """Return what FTS5 is asked so that it finds any of `terms`; longer ones also where they only begin a word."""
    return " OR ".join(f'"{term}"*' if len(term) > 3 else f'"{term}"' for term in terms)
