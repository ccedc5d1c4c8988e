"""Usage of skills: how uses are counted, and when a skill is retired."""

from __future__ import annotations

import itertools
import time

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
numbers = itertools.count()


def use(
    at: float = NOW, *, ok: bool, run: str = "", family: str = "", principal: str = "local"
) -> SkillUseRow:
    """A use in a run and a session of its own, unless they are named."""
    number = next(numbers)
    name, session = run or f"run {number}", family or f"session {number}"
    return SkillUseRow("tag", 2, ok, at, name, session, principal)


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


def count(uses: list[SkillUseRow], *, is_shared: bool = False) -> UsageRecord:
    """Return the record of the skill `tag` of the local user."""
    if is_shared:
        found = count_uses(uses, lambda *_: "local", {("tag", "local")})
    else:
        found = count_uses(uses, lambda principal, _: principal)
    return found["local", "tag", 2]


def reason_for(uses: list[SkillUseRow], *, is_shared: bool = False) -> str:
    return retirement_reason(count(uses, is_shared=is_shared), NOW)


def test_recent_uses_count_most() -> None:
    record = count([use(ok=True), use(NOW - USE_HALF_LIFE_S, ok=False)])
    assert (record.uses, record.successes) == (2, 1)
    assert record.decayed_votes == pytest.approx(1.5, abs=0.01)
    assert record.success_rate == pytest.approx(2 / 3.5, abs=0.01)
    assert record.last_used_at == NOW


def test_the_runs_of_a_session_and_its_forks_share_one_vote() -> None:
    many = count([use(ok=True, family="s") for _ in range(100)])
    assert many.uses == 100
    assert many.decayed_votes == pytest.approx(1, abs=0.01)


def test_an_unknown_skill_has_the_mean_weight_in_searches() -> None:
    assert (UsageRecord().success_rate, UsageRecord().search_weight) == (0.5, 1.0)


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


def test_each_principal_has_one_vote_on_a_shared_skill() -> None:
    good = [use(ok=True, principal=name) for name in ("ann", "ben", "cid", "dan")]
    bad = [use(NOW - day * 3600, ok=False, principal="eve") for day in range(40)]
    bad.append(use(ok=False, principal="fay"))
    record = count([*good, *bad], is_shared=True)
    assert record.decayed_votes == pytest.approx(6, abs=0.1)
    assert record.success_rate == pytest.approx(5 / 8, abs=0.02)
    assert retirement_reason(record, NOW) == ""


def test_uses_by_others_say_nothing_about_a_private_skill() -> None:
    mine = use(ok=True, principal="local")
    others = failures_of_days(("ann", "ben"))
    found = count_uses([mine, *others], lambda principal, _: principal)
    assert (found["local", "tag", 2].uses, found["local", "tag", 2].failing_sessions) == (1, 0)
    assert found["ann", "tag", 2].failing_principals == 1


def test_a_signed_skill_is_retired_by_a_person_or_because_nobody_uses_it() -> None:
    failing = count(failures_of_days())
    assert retirement_reason(failing, NOW, is_signed=True) == ""
    assert retirement_reason(UsageRecord(), NOW - RETIRE_UNUSED_S - 1, is_signed=True)
