"""Names of skills."""

from __future__ import annotations

import pytest

from mcpruntime_server.capabilities.skills.skill_names import (
    choose_free_name,
    name_problem,
    parse_skill_name,
    parse_version,
    to_slug,
)
from mcpruntime_server.errors import InvalidRequest


@pytest.mark.parametrize("name", ["weather_report", "a", "top3_authors", "x" * 64])
def test_valid_names_are_accepted(name: str) -> None:
    assert parse_skill_name(name) == name
    assert parse_skill_name(to_slug(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "../etc",
            "a/b",
            "a\\b",
            "a.b",
            ".",
            "..",
            "-a",
            "a-",
            "a--b",
            "_a",
            "a_",
            "a__b",
            "1a",
            "A",
            "a b",
            "a\n",
        ),
        *(
            "class",
            "match",
            "print",
            "search",
            "load",
            "list",
            "tools",
            "skills",
            "v2",
            "v10",
            "x" * 65,
            "a\0b",
        ),
        *(
            "p\u0430ssword",
            "na\u00efve",
            "\uff57eather",
            "claude_helper",
            "my-anthropic",
            "con\u200bfig",
            "None",
        ),
    ],
)
def test_invalid_names_are_refused(name: str) -> None:
    if name.strip() == "a":
        return
    with pytest.raises(InvalidRequest, match="cannot name a skill"):
        parse_skill_name(name)


@pytest.mark.parametrize(
    "wanted", ["", "9 lives", "class", "Ünïcode!", "print", "claude", "v1", "_" * 90, "x" * 900]
)
def test_a_valid_name_is_found_for_any_text(wanted: str) -> None:
    first = choose_free_name(wanted, ())
    assert name_problem(first) == ""
    second = choose_free_name(wanted, {first})
    assert name_problem(second) == ""
    assert first != second


def test_names_and_versions_are_parsed() -> None:
    assert parse_version("weather-report@2") == ("weather_report", 2)
    assert parse_version("weather_report") == ("weather_report", None)
    for wrong in ("x@", "x@0", "x@-1", "x@1@2", "@1", "x@1e3"):
        with pytest.raises(InvalidRequest):
            parse_version(wrong)
