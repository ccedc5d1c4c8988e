"""Words of texts and queries, and expressions for FTS5."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.full_text import MAX_QUERY_WORDS, match_any, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("git_log", ["git", "log"]),
        ("gitLog", ["git", "Log"]),
        ("p95 of /var/log", ["p95", "of", "var", "log"]),
        ("Größe, naïve", ["Größe", "naïve"]),
        ("-- ''", []),
    ],
)
def test_names_are_split_into_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_longer_words_match_as_prefixes() -> None:
    assert match_any(["log", "commits"]) == '"log" OR "commits"*'
    assert match_any([]) == ""


def test_long_queries_are_truncated() -> None:
    assert match_any(["word"] * 100).count("word") == MAX_QUERY_WORDS


@given(st.text())
def test_no_query_is_a_syntax_error(query: str) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE VIRTUAL TABLE texts USING fts5(body)")
        if expression := match_any(split_words(query)):
            db.execute("SELECT * FROM texts WHERE texts MATCH ?", (expression,)).fetchall()
