"""Skill versions: selection, equivalence, and forbidden contents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mcpruntime_server.capabilities.skills.extraction import read_written_skill
from mcpruntime_server.capabilities.skills.lint import check_case, check_dependency_cycle
from mcpruntime_server.capabilities.skills.model import (
    RecordedCase,
    Skill,
    active_skills,
    pick_version,
)
from mcpruntime_server.capabilities.skills.saving import find_duplicate, merge_cases
from mcpruntime_server.capabilities.skills.search_index import SkillIndex
from mcpruntime_server.capabilities.skills.source import source_shape
from mcpruntime_server.errors import NotFound, SkillRefused

SOURCE = 'def run(city: str = "Oslo") -> str:\n    """Greet."""\n    return city.upper()\n'


def skill(name: str = "greet", version: int = 1, **changes: Any) -> Skill:
    made = Skill(name, "Greet a city.", SOURCE, version=version, state="active")
    return replace(made, **changes)


def test_the_newest_active_version_is_picked() -> None:
    versions = (skill(), skill(version=2), skill(version=3, state="draft"))
    skills = {"greet": versions, "later": (skill("later", state="draft"),)}
    assert active_skills(skills) == {"greet": versions[1]}
    assert pick_version(skills, "greet") is versions[1]
    assert pick_version(skills, "greet@3") is versions[2]
    assert pick_version(skills, "later").state == "draft"
    with pytest.raises(NotFound, match="the newest is 3"):
        pick_version(skills, "greet@9")
    with pytest.raises(NotFound, match="Did you mean"):
        pick_version(skills, "gret")


def test_sources_that_differ_in_docstrings_and_defaults_are_duplicates() -> None:
    other = SOURCE.replace("Oslo", "Rome").replace("Greet.", "Say hello.")
    assert source_shape(other) == source_shape(SOURCE)
    assert source_shape(SOURCE.replace("upper", "lower")) != source_shape(SOURCE)
    extracted = read_written_skill(other)
    assert find_duplicate(extracted, {"greet": (skill(),)}) == skill()
    assert find_duplicate(extracted, {"greet": (skill(state="retired"),)}) is None
    assert find_duplicate(extracted, {}) is None


def test_a_duplicate_gets_one_more_case() -> None:
    known, new = RecordedCase({"city": "Oslo"}), RecordedCase({"city": "Rome"})
    extracted = replace(read_written_skill(SOURCE), cases=(new,))
    assert merge_cases(extracted, skill(cases=(known,))).cases == (known, new)
    assert merge_cases(extracted, skill(cases=(new,))).cases == (new,)


def test_an_edited_draft_keeps_only_the_case_that_was_recorded_with_it() -> None:
    known, new = RecordedCase({"city": "Oslo"}), RecordedCase({"city": "Rome"})
    extracted = replace(read_written_skill(SOURCE), cases=(new,))
    edited = skill(cases=(known,), origin="edit", state="draft")
    assert merge_cases(extracted, edited).cases == (new,)


def test_a_skill_must_not_use_itself_through_others() -> None:
    skills = {
        "one": (skill("one", source=f"from skills.two import run as two\n{SOURCE}"),),
        "two": (skill("two", source=f"import skills.three.v2 as three\n{SOURCE}"),),
    }
    user = "import skills\ndef run():\n    return skills.one.v1()\n"
    check_dependency_cycle(skill("four", source=user), skills)
    with pytest.raises(SkillRefused, match="three would use itself, through one, three, two"):
        check_dependency_cycle(skill("three", source=user), skills)


def test_cases_with_credentials_are_refused() -> None:
    check_case(RecordedCase({"city": "Oslo"}))
    with pytest.raises(SkillRefused, match="the value of 'password'"):
        check_case(RecordedCase({"password": "hunter22"}))
    with pytest.raises(SkillRefused, match="an AWS access key"):
        check_case(RecordedCase({}, stdout="AKIA" + "ABCDEFGHIJKLMNOP"))


def test_a_search_ranks_by_score_and_weight() -> None:
    index = SkillIndex()
    totals = skill("city_totals", summary="Add up sales by city.")
    skills = {"greet_city": skill("greet_city"), "city_totals": totals}
    assert index.search(skills, "sales by city", 3) == ["city_totals", "greet_city"]
    assert index.search(skills, "city", 1, lambda name: 2.0 if name == "greet_city" else 1.0) == [
        "greet_city"
    ]
    assert index.search(skills, "'--", 3) == []
    assert index.search({"city_totals": totals}, "city", 3) == ["city_totals"]
