"""The queries of the retrieval benchmark are valid, and the library's index beats a plain BM25."""

from __future__ import annotations

from bench import retrieval
from bench.retrieval_requests import SKILL_REQUESTS, TOOL_REQUESTS
from bench.retrieval_tasks import QUERIES, SKILLS
from mcpruntime_server.capabilities.skills.model import Skill
from mcpruntime_server.capabilities.skills.search_index import SkillIndex


def library_search() -> retrieval.Search:
    index = SkillIndex()
    skills = {
        entry.name: Skill(entry.name, entry.summary, source, version=1, state="active")
        for entry in SKILLS
        for source in [f"{entry.body}\n\n\ndef run{entry.signature}:\n    return 0\n"]
    }
    return lambda query: index.search(skills, query, retrieval.RANKED_COUNT)


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
            library_search(),
            retrieval.plain_search({entry.name: entry.summary for entry in SKILLS}),
        )
    )
    assert ours[0] > theirs[0]
    assert ours[1] > theirs[1]
