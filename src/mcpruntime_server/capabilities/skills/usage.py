"""Count from the journal how versions of skills have done; recent uses count most.

Rule 1: sandboxed code reports the uses, so a report may be false. A run counts once for a version:
as a success if the version worked in it at all.
Rule 2: no session decides alone. Each session has one vote, which its forks and its agents share.
A skill is retired for failing only on the word of several sessions, of more than one day, and of
more than one principal where several use skills; a signed one is not, because that takes a person.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...journal.rows import SkillUseRow

USE_HALF_LIFE_S = 30 * 86_400.0
RETIRE_UNUSED_S = 180 * 86_400.0
MIN_SUCCESS_RATE = 0.3  # of recent votes; a skill below it is retired
MIN_FAILING_SESSIONS = 5  # that a retirement needs
MIN_FAILING_S = 86_400.0  # between the first and the last of their uses


@dataclass(frozen=True)
class UsageRecord:
    """The runs that used one version, and the votes of their sessions.

    The decayed sums are of votes, and halve every `USE_HALF_LIFE_S`. The failing sessions are those
    in which the version mostly failed; they used it within `failing_s` seconds.
    """

    uses: int = 0
    successes: int = 0
    last_used_at: float = 0.0
    decayed_votes: float = 0.0
    decayed_successes: float = 0.0
    failing_sessions: int = 0
    failing_principals: int = 0
    failing_s: float = 0.0

    @property
    def success_rate(self) -> float:
        """The share of recent votes for a version; 0.5 where nothing is known."""
        return (self.decayed_successes + 1) / (self.decayed_votes + 2)

    @property
    def search_weight(self) -> float:
        """The factor of a skill's score in a search, from 0.7 to 1.3."""
        return 0.7 + 0.6 * self.success_rate


UsageRecords = Mapping[tuple[str, int], UsageRecord]  # by name and version


@dataclass
class _RunOutcome:
    """What one run reported about one version."""

    use: SkillUseRow
    has_succeeded: bool = False


def count_uses(uses: Iterable[SkillUseRow]) -> UsageRecords:
    """Return the record of each version that was used."""
    now = time.time()
    outcomes: dict[tuple[str, int], dict[str, _RunOutcome]] = defaultdict(dict)
    for use in uses:
        try:
            report = json.loads(use.args)
            name, version, succeeded = report["skill"], report["version"], report["ok"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(name, str) and type(version) is int and isinstance(succeeded, bool):
            outcome = outcomes[name, version].setdefault(use.run_id, _RunOutcome(use))
            outcome.has_succeeded |= succeeded
    return {key: _count_votes(list(by_run.values()), now) for key, by_run in outcomes.items()}


def _count_votes(outcomes: list[_RunOutcome], now: float) -> UsageRecord:
    """Return the record of one version, from the outcome of each run that used it."""
    by_session: dict[str, list[_RunOutcome]] = defaultdict(list)
    for outcome in outcomes:
        by_session[outcome.use.family].append(outcome)
    votes = successes = 0.0
    failing: list[SkillUseRow] = []
    failing_sessions = 0
    for runs in by_session.values():
        share = sum(run.has_succeeded for run in runs) / len(runs)
        age_s = max(now - max(run.use.recorded_at for run in runs), 0.0)
        weight = 0.5 ** (age_s / USE_HALF_LIFE_S)
        votes += weight
        successes += weight * share
        if share < MIN_SUCCESS_RATE:
            failing_sessions += 1
            failing += [run.use for run in runs]
    times = [use.recorded_at for use in failing]
    return UsageRecord(
        uses=len(outcomes),
        successes=sum(outcome.has_succeeded for outcome in outcomes),
        last_used_at=max(outcome.use.recorded_at for outcome in outcomes),
        decayed_votes=votes,
        decayed_successes=successes,
        failing_sessions=failing_sessions,
        failing_principals=len({use.principal for use in failing}),
        failing_s=max(times) - min(times) if times else 0.0,
    )


def retirement_reason(
    record: UsageRecord, active_since: float, *, is_shared: bool = False, is_signed: bool = False
) -> str:
    """Return why a version should be retired; "" if it should not.

    With `is_shared`, several principals use the skills of this store.
    """
    is_judged = (
        not is_signed
        and record.failing_sessions >= MIN_FAILING_SESSIONS
        and record.failing_s >= MIN_FAILING_S
        and record.failing_principals >= (2 if is_shared else 1)
    )
    if is_judged and record.success_rate < MIN_SUCCESS_RATE:
        failures = record.uses - record.successes
        return f"It failed in {failures} of the {record.uses} runs that used it."
    if time.time() - max(record.last_used_at, active_since) > RETIRE_UNUSED_S:
        return f"It has not been used for {RETIRE_UNUSED_S / 86_400:.0f} days."
    return ""
