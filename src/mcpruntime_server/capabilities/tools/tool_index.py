"""Search over tools: a word in the name of a tool counts most, a word about a parameter least.

SQLite's FTS5 splits, stems and stores the words. The ranking is BM25F: the occurrences of a word
are summed over the fields, each with a weight and a length norm of its own, and then saturate. So
a long description does not make the words of a name worth less, as one length for all would.

Rule 1: this module knows neither upstreams nor shims, and no query can be a syntax error.
Rule 2: what a query means is not guessed: no list of synonyms. One was measured, and found nothing
more for requests whose author it had not met before.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..full_text import MAX_QUERY_WORDS, MIN_PREFIX_CHARS, split_words

MAX_INDEXED_CHARS = 4_000  # of each field of a tool
MAX_SERVER_CHARS = 1_000_000  # of each field of all tools of a server
SATURATION = 1.2  # BM25's k1: the fourth occurrence of a word says less than the first
PREFIX_WEIGHT = 0.5  # of a match with the beginning of a word
NAMED_SERVER_WEIGHT = 1.5  # for the tools of a server that the query names
MAX_QUERY_CHARS = 2_000
ACRONYM_END = re.compile(r"(?<=[A-Z])(?=[A-Z][a-z])")  # `getHTTPUrl` has three words

# Fields, as columns of the table, with weight and BM25's b: how much a longer field is discounted.
FIELD_WEIGHTS: Mapping[str, tuple[float, float]] = {
    "name": (5.0, 0.4),
    "server": (1.0, 0.0),
    "summary": (2.0, 0.6),
    "description": (1.0, 0.75),
    "parameters": (1.5, 0.6),
    "notes": (0.5, 0.75),
}

FIELD_NAMES = tuple(FIELD_WEIGHTS)

STOP_WORDS = frozenset(
    split_words(
        "a an and are as at be by can do does for from had has have how i if in into is it its me "
        "my of on or our please so some that the their them then there these this those to us via "
        "want was we what when where which who will with would you your"
    )
)


@dataclass(frozen=True)
class ToolRow:
    """One tool as it is indexed; `notes` are the descriptions of its parameters."""

    server: str
    tool: str
    summary: str
    description: str
    parameters: str
    notes: str


@dataclass(frozen=True)
class IndexedTool:
    """One tool and the number of words of each field, in the order of `FIELD_WEIGHTS`."""

    server: str
    tool: str
    lengths: tuple[int, ...]


class ToolIndex:
    """The known tools of all servers; used by one thread at a time."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        fields = ", ".join(FIELD_WEIGHTS)
        tokenizer = "tokenize = 'porter unicode61'"
        self._db.executescript(
            f"CREATE VIRTUAL TABLE tools USING fts5({fields}, {tokenizer});"
            "CREATE VIRTUAL TABLE tool_words USING fts5vocab(tools, instance);"
            f"CREATE VIRTUAL TABLE texts USING fts5(text, {tokenizer});"
            "CREATE VIRTUAL TABLE text_words USING fts5vocab(texts, instance);"
        )
        self._tools: dict[int, IndexedTool] = {}  # by row
        self._server_stems: dict[str, frozenset[str]] = {}
        self._mean_lengths = [1.0] * len(FIELD_WEIGHTS)

    def replace_server(self, server: str, rows: Sequence[ToolRow]) -> None:
        """Replace all tools of `server` by `rows`."""
        old = [row for row, tool in self._tools.items() if tool.server == server]
        for row in old:
            self._db.execute("DELETE FROM tools WHERE rowid = ?", (row,))
            del self._tools[row]
        max_chars = min(MAX_INDEXED_CHARS, MAX_SERVER_CHARS // max(1, len(rows)))
        for each in rows:
            words = _split_fields(each, max_chars)
            texts = [" ".join(field) for field in words]
            place = self._db.execute("INSERT INTO tools VALUES (?, ?, ?, ?, ?, ?)", texts).lastrowid
            assert place is not None
            self._tools[place] = IndexedTool(each.server, each.tool, tuple(map(len, words)))
        self._db.commit()
        self._server_stems[server] = frozenset(self._stem_words(_split_name(server)))
        lengths = zip(*(tool.lengths for tool in self._tools.values()), strict=True)
        self._mean_lengths = [max(1.0, sum(each) / len(self._tools)) for each in lengths]

    def search(self, query: str, limit: int) -> list[tuple[str, str]]:
        """Return (server, tool) of the tools that match any word of `query`, best first."""
        words = _split_name(query[:MAX_QUERY_CHARS])
        meant = [word for word in words if word.lower() not in STOP_WORDS] or words
        stems = self._stem_words(meant[:MAX_QUERY_WORDS])
        scores: dict[int, float] = defaultdict(float)
        for stem in stems:
            for row, score in self._score_word(stem).items():
                scores[row] += score
        ranked = []
        for row, score in scores.items():
            tool = self._tools[row]
            is_named = self._server_stems[tool.server] <= set(stems)
            weight = NAMED_SERVER_WEIGHT if is_named else 1.0
            ranked.append((-score * weight, tool.server, tool.tool))
        return [(server, tool) for _, server, tool in sorted(ranked)[:limit]]

    def _score_word(self, stem: str) -> dict[int, float]:
        """Return how much a word of the query contributes to the score of each matching row."""
        same = self._find_frequencies(stem, stem)
        longer: dict[int, float] = {}
        if len(stem) >= MIN_PREFIX_CHARS:
            longer = self._find_frequencies(f"{stem}\1", f"{stem}\U0010ffff")
        frequencies = {
            row: same.get(row, 0.0) + PREFIX_WEIGHT * longer.get(row, 0.0)
            for row in same.keys() | longer.keys()
        }
        matched = len(same) or len(frequencies)
        rarity = math.log(1 + (len(self._tools) - matched + 0.5) / (matched + 0.5))
        return {
            row: rarity * frequency * (SATURATION + 1) / (SATURATION + frequency)
            for row, frequency in frequencies.items()
        }

    def _find_frequencies(self, first: str, last: str) -> dict[int, float]:
        """Return the weighted, normalised number of words from `first` to `last` in each row."""
        counts = self._db.execute(
            "SELECT doc, col, count(*) FROM tool_words WHERE term BETWEEN ? AND ? "
            "GROUP BY doc, col",
            (first, last),
        )
        found: dict[int, float] = defaultdict(float)
        for row, field, count in counts:
            column = FIELD_NAMES.index(field)
            weight, discount = FIELD_WEIGHTS[field]
            relative = self._tools[row].lengths[column] / self._mean_lengths[column]
            found[row] += weight * count / (1 - discount + discount * relative)
        return found

    def _stem_words(self, words: Iterable[str]) -> list[str]:
        """Return the distinct stems of `words`, in their order, as the index stores them."""
        self._db.execute("INSERT INTO texts VALUES (?)", (" ".join(words),))
        found = self._db.execute("SELECT term FROM text_words ORDER BY offset")
        stems = list(dict.fromkeys(term for (term,) in found))
        self._db.execute("DELETE FROM texts")
        self._db.commit()
        return stems

    def close(self) -> None:
        """Close the database."""
        self._db.close()


def _split_name(text: str) -> list[str]:
    """Return the words of a name or a query; `getHTTPUrl` has three."""
    return split_words(ACRONYM_END.sub(" ", text))


def _split_fields(row: ToolRow, max_chars: int) -> list[list[str]]:
    """Return the words of each field up to `max_chars`, in the order of `FIELD_WEIGHTS`.

    Words of the server are left out of the name, because all of its tools may repeat them.
    """
    server, name = _split_name(row.server), _split_name(row.tool)
    own = [word for word in name if word.lower() not in map(str.lower, server)]
    texts = (row.summary, row.description, row.parameters, row.notes)
    return [own or name, server, *(_split_name(text[:max_chars]) for text in texts)]
