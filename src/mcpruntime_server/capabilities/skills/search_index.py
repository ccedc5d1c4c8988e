"""Search skills by name, summary, signature and code: SQLite's FTS5 in memory, ranked by BM25.

Rule: no query can be a syntax error, and a query that matches nothing returns nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping

from ..full_text import match_any, split_words
from .guides import Guide
from .model import Skill

MAX_BODY_CHARS = 20_000  # of code, or of a guide's text
MAX_QUERY_CHARS = 10_000  # splitting more of it into words would keep others waiting
MAX_RANKED = 50  # matches that are weighted by their usage


class SkillIndex:
    """An index of skills and guides; used from one thread at a time."""

    def __init__(self) -> None:
        self._indexed: Mapping[str, str] = {}  # the identity of the content, by name
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.execute(
            "CREATE VIRTUAL TABLE skills USING fts5("
            "skill UNINDEXED, name, summary, signature, body, tokenize = 'porter unicode61')"
        )

    def search(
        self,
        skills: Mapping[str, Skill | Guide],
        query: str,
        limit: int,
        weight: Callable[[str], float] = lambda _: 1.0,
    ) -> list[str]:
        """Return the names of those of `skills` that match any word of `query`, best first.

        Of a long query, only the beginning counts. `weight` returns the factor of a name's score.
        """
        self._update(skills)
        expression = match_any(split_words(query[:MAX_QUERY_CHARS]))
        if not expression:
            return []
        rows = self._db.execute(
            "SELECT skill, -bm25(skills, 0, 4, 4, 2, 0.5) AS score FROM skills "
            "WHERE skills MATCH ? ORDER BY score DESC LIMIT ?",
            (expression, MAX_RANKED),
        ).fetchall()
        ranked = sorted((-score * weight(name), name) for name, score in rows)
        return [name for _, name in ranked[:limit]]

    def _update(self, skills: Mapping[str, Skill | Guide]) -> None:
        """Replace the content of the index, if it is that of other skills."""
        identities = {name: each.content_identity for name, each in skills.items()}
        if identities == self._indexed:
            return
        with self._db:
            self._db.execute("DELETE FROM skills")
            rows = map(_to_row, skills.values())
            self._db.executemany("INSERT INTO skills VALUES (?, ?, ?, ?, ?)", rows)
        self._indexed = identities


def _to_row(skill: Skill | Guide) -> tuple[str, ...]:
    listing = skill.listing
    texts = (skill.name, skill.summary, listing["signature"], skill.body[:MAX_BODY_CHARS])
    return skill.name, *(" ".join(split_words(text)) for text in texts)
