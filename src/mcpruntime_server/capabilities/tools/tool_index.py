"""Full-text search over tools: SQLite's FTS5 in memory, ranked by BM25; names count most.

Rule: this module knows neither upstreams nor shims, and no query can be a syntax error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from ..full_text import MAX_QUERY_WORDS, split_words

MAX_INDEXED_CHARS = 4_000  # characters of a description that are indexed

ToolRow = tuple[str, str, str, str]  # server, tool, description, parameters


class ToolIndex:
    """The known tools of all servers; used from one thread."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:")
        self._db.execute(
            "CREATE VIRTUAL TABLE tools USING fts5("
            "server UNINDEXED, tool UNINDEXED, name, description, parameters, "
            "tokenize = 'porter unicode61')"
        )

    def replace_server(self, server: str, rows: Iterable[ToolRow]) -> None:
        """Replace all tools of `server` by `rows`."""
        with self._db:
            self._db.execute("DELETE FROM tools WHERE server = ?", (server,))
            self._db.executemany(
                "INSERT INTO tools VALUES (?, ?, ?, ?, ?)", map(_build_document, rows)
            )

    def search(self, query: str, limit: int) -> list[tuple[str, str]]:
        """Return (server, tool) of the tools that match any word of `query`, best first."""
        terms = [f'"{word}"*' for word in split_words(query)[:MAX_QUERY_WORDS]]
        if not terms:
            return []
        rows = self._db.execute(
            "SELECT server, tool FROM tools WHERE tools MATCH ? "
            "ORDER BY bm25(tools, 0, 0, 8, 2, 3), server, tool LIMIT ?",
            (" OR ".join(terms), limit),
        )
        return list(rows)

    def close(self) -> None:
        """Close the database."""
        self._db.close()


def _build_document(row: ToolRow) -> tuple[str, str, str, str, str]:
    server, tool, description, parameters = row
    name = " ".join(split_words(server) + split_words(tool))
    return (
        server,
        tool,
        name,
        " ".join(split_words(description[:MAX_INDEXED_CHARS])),
        " ".join(split_words(parameters)),
    )
