"""Full-text search over skills: SQLite's FTS5 in memory, by name, summary, signature and code, names counting most.

Rule: no query can be a syntax error, and what matches nothing says so by being empty.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from ..full_text import LIKENESS, match_any, query_words, related, split_words
from .guides import Guide
from .model import Skill, format_signature

MAX_BODY = 20_000  # characters of code that are indexed
CANDIDATES = 50  # that are weighed by how well they have done


class SkillIndex:
    """The skills in use; used from one thread at a time."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.execute(
            "CREATE VIRTUAL TABLE skills USING fts5("
            "skill UNINDEXED, name, summary, signature, body, tokenize = 'porter unicode61')"
        )

    def replace_all(self, skills: Iterable[Skill | Guide]) -> None:
        """Make `skills` all that can be found."""
        with self._db:
            self._db.execute("DELETE FROM skills")
            self._db.executemany(
                "INSERT INTO skills VALUES (?, ?, ?, ?, ?)", map(_document, skills)
            )

    def search(
        self, query: str, limit: int, weight: Callable[[str], float] = lambda _: 1.0
    ) -> list[str]:
        """Return the names of what matches any word of `query`, best first; `weight` says how well a skill does."""
        return [
            name
            for name, _ in sorted(self._found(query, weight), key=lambda each: (-each[1], each[0]))[
                :limit
            ]
        ]

    def _found(self, query: str, weight: Callable[[str], float]) -> Iterable[tuple[str, float]]:
        wanted = query_words(query)
        scores: defaultdict[str, float] = defaultdict(float)
        for terms, counts in ((wanted, 1.0), (related(wanted), LIKENESS)):
            for name, score in self._matching(terms):
                scores[name] += score * counts * weight(name)
        return scores.items()

    def _matching(self, terms: Sequence[str]) -> Sequence[tuple[str, float]]:
        if not terms:
            return ()
        return self._db.execute(
            "SELECT skill, -bm25(skills, 0, 4, 4, 2, 0.5) AS score FROM skills WHERE skills MATCH ? "
            "ORDER BY score DESC LIMIT ?",
            (match_any(terms), CANDIDATES),
        ).fetchall()

    def close(self) -> None:
        """Forget everything."""
        self._db.close()


def _document(skill: Skill | Guide) -> tuple[str, str, str, str, str]:
    if isinstance(skill, Guide):
        texts = skill.name, skill.summary, "", skill.text[:MAX_BODY]
    else:
        texts = (
            skill.name,
            skill.summary,
            format_signature(skill.signature),
            skill.source[:MAX_BODY],
        )
    name, summary, signature, body = (" ".join(split_words(text)) for text in texts)
    return skill.name, name, summary, signature, body
