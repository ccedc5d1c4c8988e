"""Full-text search over tools: SQLite's FTS5 in memory, ranked by BM25, names counting most.

Rule: text in, rows out. This module knows neither upstreams nor shims, and no query can be a syntax error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from ..search import MAX_WORDS, words

MAX_TEXT = 4_000  # characters of a description that are indexed

Row = tuple[str, str, str, str]  # server, tool, description, parameters


class Index:
    """The tools of all servers as far as they are known; used from one thread."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:")
        self._db.execute(
            "CREATE VIRTUAL TABLE tools USING fts5("
            "server UNINDEXED, tool UNINDEXED, name, description, parameters, tokenize = 'porter unicode61')"
        )

    def replace(self, server: str, rows: Iterable[Row]) -> None:
        """Make `rows` all that is known of `server`."""
        with self._db:
            self._db.execute("DELETE FROM tools WHERE server = ?", (server,))
            self._db.executemany("INSERT INTO tools VALUES (?, ?, ?, ?, ?)", map(_document, rows))

    def search(self, query: str, limit: int) -> list[tuple[str, str]]:
        """Return (server, tool) of what matches any word of `query`, best first."""
        terms = [f'"{word}"*' for word in words(query)[:MAX_WORDS]]
        if not terms:
            return []
        rows = self._db.execute(
            "SELECT server, tool FROM tools WHERE tools MATCH ? "
            "ORDER BY bm25(tools, 0, 0, 8, 2, 3), server, tool LIMIT ?",
            (" OR ".join(terms), limit),
        )
        return list(rows)

    def close(self) -> None:
        """Forget everything."""
        self._db.close()


def _document(row: Row) -> tuple[str, str, str, str, str]:
    server, tool, description, parameters = row
    name = " ".join(words(server) + words(tool))
    return server, tool, name, " ".join(words(description[:MAX_TEXT])), " ".join(words(parameters))
