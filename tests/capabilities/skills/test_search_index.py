"""Searches of skills."""

from __future__ import annotations

from mcpruntime_server.capabilities.skills.model import Skill
from mcpruntime_server.capabilities.skills.search_index import MAX_QUERY_CHARS, SkillIndex

SOURCE = 'def run(city: str = "Oslo") -> str:\n    """Greet."""\n    return city.upper()\n'


def skill(name: str, summary: str = "Greet a city.") -> Skill:
    return Skill(name, summary, SOURCE, version=1, state="active")


def test_a_search_ranks_by_score_and_weight() -> None:
    index = SkillIndex()
    totals = skill("city_totals", "Add up sales by city.")
    skills = {"greet_city": skill("greet_city"), "city_totals": totals}
    assert index.search(skills, "sales by city", 3) == ["city_totals", "greet_city"]
    assert index.search(skills, "city", 1, lambda name: 2.0 if name == "greet_city" else 1.0) == [
        "greet_city"
    ]
    assert index.search(skills, "'--", 3) == []
    assert index.search({"city_totals": totals}, "city", 3) == ["city_totals"]


def test_only_the_beginning_of_a_long_query_counts() -> None:
    index, skills = SkillIndex(), {"greet_city": skill("greet_city")}
    assert index.search(skills, "greet" + '"' * MAX_QUERY_CHARS, 3) == ["greet_city"]
    assert index.search(skills, '"' * MAX_QUERY_CHARS + "greet", 3) == []
