"""The queries of the retrieval benchmark are valid, and the library finds more than BM25."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import retrieval
from retrieval_requests import SKILL_REQUESTS, TOOL_REQUESTS
from retrieval_tasks import QUERIES, SKILLS


def test_each_query_has_one_of_the_skills() -> None:
    names = [entry.name for entry in SKILLS]
    assert len(set(names)) == len(names)
    assert len(QUERIES) >= 60
    assert {name for _, name in QUERIES} <= set(names)
    assert [name for _, name in SKILL_REQUESTS] == names
    assert {name.split(".")[0] for _, name in TOOL_REQUESTS} == set(retrieval.TOOL_SERVERS)


def test_the_library_finds_more_than_a_plain_bm25() -> None:
    ours, theirs = (
        retrieval.measure(search, (*SKILL_REQUESTS, *QUERIES))
        for search in (
            retrieval.library_search(),
            retrieval.plain_search({entry.name: entry.summary for entry in SKILLS}),
        )
    )
    assert ours[0] > theirs[0]
    assert ours[1] > theirs[1]
