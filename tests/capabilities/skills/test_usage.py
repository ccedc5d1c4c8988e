"""Usage of skills: how uses are counted, and when a skill is retired."""

from __future__ import annotations

import json
import time

import pytest

from mcpruntime_server.capabilities.skills.usage import (
    RETIRE_UNUSED_S,
    USE_HALF_LIFE_S,
    UsageRecord,
    count_uses,
    retirement_reason,
)


def use(at: float, *, ok: bool) -> tuple[str, float]:
    return json.dumps({"skill": "tag", "version": 2, "ok": ok}), at


def test_recent_uses_count_most() -> None:
    now = time.time()
    record = count_uses([use(now, ok=True), use(now - USE_HALF_LIFE_S, ok=False)])["tag", 2]
    assert (record.uses, record.successes) == (2, 1)
    assert record.decayed_uses == pytest.approx(1.5, abs=0.01)
    assert record.success_rate == pytest.approx(2 / 3.5, abs=0.01)
    assert record.last_used_at == now


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
    assert count_uses([(arguments, 0.0)]) == {}


def test_skills_that_fail_or_are_unused_are_retired() -> None:
    now = time.time()
    failing = count_uses([use(now, ok=False)] * 6)["tag", 2]
    assert retirement_reason(failing, now) == "It failed in 6 of the 6 runs that used it."
    unused = retirement_reason(UsageRecord(), now - RETIRE_UNUSED_S - 1)
    assert unused == "It has not been used for 180 days."
    assert retirement_reason(UsageRecord(), now) == ""
    assert retirement_reason(count_uses([use(now, ok=False)])["tag", 2], now) == ""
