"""Usage of skills: how uses are counted, and when a skill is retired."""

from __future__ import annotations

import json
import time
from itertools import count

import pytest

from mcpruntime_server.capabilities.skills.usage import (
    MIN_FAILING_S,
    MIN_FAILING_SESSIONS,
    RETIRE_UNUSED_S,
    USE_HALF_LIFE_S,
    UsageRecord,
    count_uses,
    retirement_reason,
)
from mcpruntime_server.journal.rows import SkillUseRow

NOW = time.time()
numbers = count()


def use(
    at: float = NOW, *, ok: bool, run: str = "", family: str = "", principal: str = "local"
) -> SkillUseRow:
    """A use in a run and a session of its own, unless they are named."""
    number = next(numbers)
    args = json.dumps({"skill": "tag", "version": 2, "ok": ok})
    return SkillUseRow(args, at, run or f"run {number}", family or f"session {number}", principal)


def failures_of_days(principals: tuple[str, ...] = ("local",)) -> list[SkillUseRow]:
    """The least that retires a skill."""
    last = MIN_FAILING_SESSIONS - 1
    return [
        use(
            NOW - MIN_FAILING_S * (number == last),
            ok=False,
            principal=principals[number % len(principals)],
        )
        for number in range(MIN_FAILING_SESSIONS)
    ]


def reason_for(uses: list[SkillUseRow], *, is_shared: bool = False) -> str:
    return retirement_reason(count_uses(uses)["tag", 2], NOW, is_shared=is_shared)


def test_recent_uses_count_most() -> None:
    record = count_uses([use(ok=True), use(NOW - USE_HALF_LIFE_S, ok=False)])["tag", 2]
    assert (record.uses, record.successes) == (2, 1)
    assert record.decayed_votes == pytest.approx(1.5, abs=0.01)
    assert record.success_rate == pytest.approx(2 / 3.5, abs=0.01)
    assert record.last_used_at == NOW


def test_a_run_counts_once_whatever_it_reports() -> None:
    reports = [use(ok=False, run="r", family="s") for _ in range(12)]
    assert count_uses(reports)["tag", 2].uses == 1
    mixed = count_uses([*reports, use(ok=True, run="r", family="s")])["tag", 2]
    assert (mixed.uses, mixed.successes) == (1, 1)


def test_the_runs_of_a_session_and_its_forks_share_one_vote() -> None:
    many = count_uses([use(ok=True, family="s") for _ in range(100)])["tag", 2]
    assert many.uses == 100
    assert many.decayed_votes == pytest.approx(1, abs=0.01)


def test_an_unknown_skill_has_the_mean_weight_in_searches() -> None:
    assert (UsageRecord().success_rate, UsageRecord().search_weight) == (0.5, 1.0)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "[]",
        "{}",
        '{"skill": 1, "version": 2, "ok": true}',
        '{"skill": "tag", "version": true, "ok": true}',
        '{"skill": "tag", "version": 2, "ok": 1}',
    ],
)
def test_malformed_uses_are_skipped(arguments: str) -> None:
    assert count_uses([SkillUseRow(arguments, 0.0, "r", "s", "local")]) == {}


def test_skills_that_fail_or_are_unused_are_retired() -> None:
    assert reason_for(failures_of_days()) == "It failed in 5 of the 5 runs that used it."
    unused = retirement_reason(UsageRecord(), NOW - RETIRE_UNUSED_S - 1)
    assert unused == "It has not been used for 180 days."
    assert retirement_reason(UsageRecord(), NOW) == ""
    assert reason_for([use(ok=False)]) == ""


@pytest.mark.parametrize(
    "uses",
    [
        pytest.param([use(ok=False, run="r", family="s") for _ in range(12)], id="one run"),
        pytest.param(
            [use(NOW - day * 86_400, ok=False, family="s") for day in range(12)], id="one session"
        ),
        pytest.param([use(ok=False) for _ in range(50)], id="one day"),
        pytest.param(
            [*failures_of_days(), *(use(ok=True) for _ in range(5))], id="others disagree"
        ),
    ],
)
def test_a_skill_is_not_retired_on_the_word_of(uses: list[SkillUseRow]) -> None:
    assert reason_for(uses) == ""


def test_one_principal_cannot_retire_what_several_share() -> None:
    assert reason_for(failures_of_days(), is_shared=True) == ""
    assert reason_for(failures_of_days(("ann", "ben")), is_shared=True)


def test_a_signed_skill_is_retired_by_a_person_or_because_nobody_uses_it() -> None:
    failing = count_uses(failures_of_days())["tag", 2]
    assert retirement_reason(failing, NOW, is_signed=True) == ""
    assert retirement_reason(UsageRecord(), NOW - RETIRE_UNUSED_S - 1, is_signed=True)
