"""How well skills are found: the queries of `retrieval_tasks`, asked of the library's index and of plain BM25.

Recall@3 is the share of queries whose skill is among the first three, MRR the mean of 1/rank (0 beyond the tenth).
Plain BM25 has names and descriptions, whole words, nothing else. Run it with `make bench-skills`.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from mcpruntime_server.capabilities.skills.lint import check_entry_signature, parse_source
from mcpruntime_server.capabilities.skills.model import Skill
from mcpruntime_server.capabilities.skills.search_index import SkillIndex
from retrieval_tasks import QUERIES, SKILLS, Entry

SHOWN = 3  # as many as `list_skills` tells
RANKED = 10
PLAIN = 14  # queries at the end that are put plainly

Search = Callable[[str], Sequence[str]]


def library_search() -> Search:
    """Return the search of the library over the skills of the set, none of which has been used."""
    index = SkillIndex()
    index.replace_all(map(skill_of, SKILLS))
    return lambda query: index.search(query, RANKED)


def skill_of(entry: Entry) -> Skill:
    """Return an entry as the store would have it."""
    source = f"def run{entry.signature}:\n    return 0\n"
    return Skill(
        name=entry.name,
        version=1,
        state="active",
        summary=entry.summary,
        source=entry.body,
        signature=check_entry_signature(parse_source(source)),
        cases=(),
        digest="",
        saved_at=0.0,
    )


def plain_search() -> Search:
    """Return BM25 (k1 1.2, b 0.75) over names and descriptions."""
    documents = [tokens(f"{entry.name} {entry.summary}") for entry in SKILLS]
    holders = Counter(word for document in documents for word in set(document))
    mean = sum(map(len, documents)) / len(documents)

    def score(document: list[str], query: list[str]) -> float:
        counts, total = Counter(document), 0.0
        for word in query:
            if word in counts:
                rarity = math.log(
                    1 + (len(documents) - holders[word] + 0.5) / (holders[word] + 0.5)
                )
                length = 1.2 * (0.25 + 0.75 * len(document) / mean)
                total += rarity * counts[word] * 2.2 / (counts[word] + length)
        return total

    def search(query: str) -> list[str]:
        asked = tokens(query)
        scores = {
            entry.name: score(document, asked)
            for entry, document in zip(SKILLS, documents, strict=True)
        }
        found = [name for name, value in scores.items() if value > 0]
        return sorted(found, key=lambda name: (-scores[name], name))[:RANKED]

    return search


def tokens(text: str) -> list[str]:
    """Return the words of a text, as plain BM25 takes them."""
    return re.findall(r"[^\W_]+", text.lower())


def told(search: Search, queries: Sequence[tuple[str, str]]) -> str:
    """Return the two figures as the table has them."""
    recall, reciprocal = measured(search, queries)
    return f"{recall:.2f} / {reciprocal:.2f}"


def measured(search: Search, queries: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """Return recall@3 and MRR."""
    ranks = [
        list(search(query)).index(name) + 1 if name in search(query) else 0
        for query, name in queries
    ]
    recall = sum(0 < rank <= SHOWN for rank in ranks) / len(ranks)
    return recall, sum(1 / rank for rank in ranks if rank) / len(ranks)


def main() -> None:
    """Print the table, and with `-v` what was not found."""
    searches = {"plain BM25": plain_search(), "the library": library_search()}
    parts = {"in other words": QUERIES[:-PLAIN], "plainly": QUERIES[-PLAIN:], "all": QUERIES}
    print(f"{len(QUERIES)} queries over {len(SKILLS)} skills: recall@{SHOWN} / MRR")
    for name, search in searches.items():
        row = [
            f"{asked} ({len(queries)}) {told(search, queries)}" for asked, queries in parts.items()
        ]
        print(f"{name:12}  " + "   ".join(row))
    if "-v" in sys.argv:
        for query, name in QUERIES:
            found = list(searches["the library"](query))[:SHOWN]
            if name not in found:
                print(f"{query!r}: {name}, found {', '.join(found) or 'nothing'}")


if __name__ == "__main__":
    main()
