"""Search skills by name, summary, signature and code: SQLite's FTS5 in memory, ranked by BM25.

Rule: no query can be a syntax error, and a query that matches nothing returns nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable

from ..full_text import match_any, split_words
from .guides import Guide
from .model import Skill
from .signatures import format_signature

MAX_BODY_CHARS = 20_000  # of code, or of a guide's text
MAX_RANKED = 50  # matches that are weighted by their usage


class SkillIndex:
    """An index of skills and guides; used from one thread at a time."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.execute(
            "CREATE VIRTUAL TABLE skills USING fts5("
            "skill UNINDEXED, name, summary, signature, body, tokenize = 'porter unicode61')"
        )

    def replace_all(self, skills: Iterable[Skill | Guide]) -> None:
        """Replace the content of the index."""
        with self._db:
            self._db.execute("DELETE FROM skills")
            self._db.executemany("INSERT INTO skills VALUES (?, ?, ?, ?, ?)", map(_to_row, skills))

    def search(
        self, query: str, limit: int, weight: Callable[[str], float] = lambda _: 1.0
    ) -> list[str]:
        """Return the names of what matches any word of `query`, best first.

        `weight` returns the factor of a name's score.
        """
        expression = match_any(split_words(query))
        if not expression:
            return []
        rows = self._db.execute(
            "SELECT skill, -bm25(skills, 0, 4, 4, 2, 0.5) AS score FROM skills "
            "WHERE skills MATCH ? ORDER BY score DESC LIMIT ?",
            (expression, MAX_RANKED),
        ).fetchall()
        ranked = sorted((-score * weight(name), name) for name, score in rows)
        return [name for _, name in ranked[:limit]]


def _to_row(skill: Skill | Guide) -> tuple[str, str, str, str, str]:
    if isinstance(skill, Guide):
        signature, body = "", skill.text
    else:
        signature, body = format_signature(skill.signature), skill.source
    texts = (skill.name, skill.summary, signature, body[:MAX_BODY_CHARS])
    name, summary, signature, body = (" ".join(split_words(text)) for text in texts)
    return skill.name, name, summary, signature, body
