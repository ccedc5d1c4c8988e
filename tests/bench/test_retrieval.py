from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import retrieval
from retrieval_tasks import QUERIES, SKILLS


def test_the_set_is_large_and_each_query_has_a_skill() -> None:
    assert len(QUERIES) >= 60
    assert {name for _, name in QUERIES} <= {entry.name for entry in SKILLS}
    assert len({entry.name for entry in SKILLS}) == len(SKILLS)


def test_the_library_finds_more_than_plain_bm25() -> None:
    ours, theirs = (
        retrieval.measured(search, QUERIES)
        for search in (retrieval.library_search(), retrieval.plain_search())
    )
    assert ours[0] > theirs[0] + 0.1
    assert ours[1] > theirs[1] + 0.1
