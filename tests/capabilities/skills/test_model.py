"""Which version of a skill a name stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mcpruntime_server.capabilities.skills.model import Skill, active_skills, pick_version
from mcpruntime_server.errors import NotFound

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
