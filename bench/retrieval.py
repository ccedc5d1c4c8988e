"""How well skills are found, by the library's index and by a plain BM25 for comparison.

Recall@3 is the share of queries whose skill is among the first three, MRR the mean of 1/rank (0
beyond the tenth). The queries are of three kinds: requests written from the list of skills
(`retrieval_requests`), queries whose words are not in the descriptions, and plain ones (both in
`retrieval_tasks`). The plain BM25 has names and summaries, and only whole words. Run it with `make
bench-skills`.
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
from retrieval_requests import REQUESTS
from retrieval_tasks import QUERIES, SKILLS, Entry

FOUND_COUNT = 3  # `list_skills` shows so many
RANKED_COUNT = 10
PLAIN_COUNT = 14  # queries at the end of `QUERIES` that are put plainly

Search = Callable[[str], Sequence[str]]
Queries = Sequence[tuple[str, str]]  # each with the name of the right skill


def library_search() -> Search:
    """Return the search of the library over the skills of the set, none of which has been used."""
    index = SkillIndex()
    index.replace_all(map(to_skill, SKILLS))
    return lambda query: index.search(query, RANKED_COUNT)


def to_skill(entry: Entry) -> Skill:
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
    documents = [split_words(f"{entry.name} {entry.summary}") for entry in SKILLS]
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
        words = split_words(query)
        scores = {
            entry.name: score(document, words)
            for entry, document in zip(SKILLS, documents, strict=True)
        }
        found = [name for name, value in scores.items() if value > 0]
        return sorted(found, key=lambda name: (-scores[name], name))[:RANKED_COUNT]

    return search


def split_words(text: str) -> list[str]:
    """Return the words of a text, as the plain BM25 takes them."""
    return re.findall(r"[^\W_]+", text.lower())


def measure(search: Search, queries: Queries) -> tuple[float, float]:
    """Return recall@3 and MRR."""
    ranks: list[int] = []
    for query, name in queries:
        found = list(search(query))
        ranks.append(found.index(name) + 1 if name in found else 0)
    recall = sum(0 < rank <= FOUND_COUNT for rank in ranks) / len(ranks)
    return recall, sum(1 / rank for rank in ranks if rank) / len(ranks)


def main() -> None:
    """Print a table, and with `-v` the queries whose skill was not found."""
    searches = {"plain BM25": plain_search(), "the library": library_search()}
    kinds: dict[str, Queries] = {
        "from the list": REQUESTS,
        "in other words": QUERIES[:-PLAIN_COUNT],
        "plainly": QUERIES[-PLAIN_COUNT:],
    }
    print(f"queries over {len(SKILLS)} skills: recall@{FOUND_COUNT} / MRR")
    for search_name, search in searches.items():
        print(f"{search_name:12}", end="")
        for kind, queries in kinds.items():
            recall, reciprocal_rank = measure(search, queries)
            print(f"  {kind} ({len(queries)}) {recall:.2f} / {reciprocal_rank:.2f}", end="")
        print()
    if "-v" in sys.argv:
        for query, name in (*REQUESTS, *QUERIES):
            found = list(searches["the library"](query))[:FOUND_COUNT]
            if name not in found:
                print(f"{query!r}: {name}, found {', '.join(found) or 'nothing'}")


if __name__ == "__main__":
    main()
