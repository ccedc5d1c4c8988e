"""One-line summaries of skills: how long ones are truncated, and that none is long for a model."""

from __future__ import annotations

import random

import pytest

from mcpruntime_server.capabilities.skills.model import Skill
from mcpruntime_server.cli.demo.token_count import count_tokens
from mcpruntime_server.server.skill_summaries import skill_line

WORDS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
LONG_NAME = "summarize_repository_history_by_author_and_month"
SUMMARY = (
    "Count the orders of each city in a shop that are open, the largest first, "
    "with their sums and their shares."
)


def skill(
    name: str, parameters: list[str], summary: str, returns: str = "list[dict[str, Any]]"
) -> Skill:
    source = f"def run({', '.join(parameters)}) -> {returns}:\n    return 1\n"
    return Skill(name, summary, source)


def letters(count: int, alphabet: str = "abcdefghijklmnopqrstuvwxyz") -> str:
    chance = random.Random(count)
    return "".join(chance.choice(alphabet) for _ in range(count))


def test_a_typical_skill_is_shown_completely() -> None:
    parameters = [
        "repo_path: str",
        "status: str = 'open'",
        "limit: int = 5",
    ]
    shown = skill_line(
        skill("orders_by_city", parameters, "Count the orders of each city in a shop.")
    )
    assert shown == (
        "orders_by_city(repo_path: str, status: str = 'open', limit: int = 5) "
        "-> list[dict[str, Any]]"
        "  # Count the orders of each city in a shop."
    )


@pytest.mark.parametrize(
    ("name", "value", "summary"),
    [
        (LONG_NAME, "{'some': ['default', 'value']}", SUMMARY),
        (
            "weather",
            "'\u5317\u4eac\u5e02\u6d77\u6dc0\u533a'",
            "\u8fd4\u56de\u57ce\u5e02\u7684\u5929\u6c14" * 20,
        ),
        ("weather", "'\U0001f600\U0001f600'", "\U0001f600\U0001f3f3\ufe0f\u200d\U0001f308" * 60),
        (letters(64), repr(letters(20)), letters(500)),
        ("a", "'!@#$%^&*()[]{};:'", "!?;:%$#@" * 60),
        ("a1", str(10**40), "0123456789" * 60),
        (
            "a",
            repr(letters(24, "qxzjkv")),
            " ".join(letters(n % 9 + 2, "qxzjkv") for n in range(90)),
        ),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_no_line_has_more_than_60_tokens(name: str, value: str, summary: str, count: int) -> None:
    parameters = [f"{word}_parameter: dict[str, list[str]] = {value}" for word in WORDS[:count]]
    shown = skill_line(skill(name, parameters, summary))
    assert count_tokens(shown) < 60, shown
    assert shown.startswith(f"{name}(")
    assert "\n" not in shown


def test_lines_are_truncated_at_words_and_marked() -> None:
    parameters = [f"{word}_parameter: dict[str, list[str]] = {{}}" for word in WORDS]
    shown = skill_line(skill(LONG_NAME, parameters, SUMMARY))
    assert shown.startswith(f"{LONG_NAME}(first_parameter")
    assert "..." in shown
    assert shown.endswith("...")
