"""Count from the journal how versions of skills have done; recent uses count most.

Rule 1: sandboxed code reports the uses, so a report may be false. A run counts once for a version:
as a success if the version worked in it at all.
Rule 2: a use counts for the skill that the principal of the run has under that name, so nobody
else's use says anything about a skill that is not shared.
Rule 3: no session decides alone. Each session has one vote, which its forks and its agents share;
on a shared skill each principal has one. A skill is retired for failing only on the word of several
sessions, of more than one day, and if it is shared of more than one principal; a signed one is not,
because that takes a person.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from ...journal.rows import SkillUseRow
from .skill_names import name_problem

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
    is_shared: bool = False

    @property
    def success_rate(self) -> float:
        """The share of recent votes for a version; 0.5 where nothing is known."""
        return (self.decayed_successes + 1) / (self.decayed_votes + 2)

    @property
    def search_weight(self) -> float:
        """The factor of a skill's score in a search, from 0.7 to 1.3."""
        return 0.7 + 0.6 * self.success_rate


UsageRecords = Mapping[tuple[str, str, int], UsageRecord]  # by owner, name and version


@dataclass
class _RunOutcome:
    """What one run reported about one version."""

    use: SkillUseRow
    has_succeeded: bool = False


def count_uses(
    uses: Iterable[SkillUseRow],
    find_owner: Callable[[str, str], str],
    shared: Collection[tuple[str, str]] = (),
) -> UsageRecords:
    """Return the record of each version that was used.

    `find_owner` returns whose skill a name is for a principal; `shared` are the skills that
    everybody may use, as pairs of name and owner.
    """
    now = time.time()
    outcomes: dict[tuple[str, str, int], dict[str, _RunOutcome]] = defaultdict(dict)
    for use in uses:
        try:
            report = json.loads(use.args)
            name, version, succeeded = report["skill"], report["version"], report["ok"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(name, str) and type(version) is int and isinstance(succeeded, bool):
            owner = find_owner(use.principal, name) if not name_problem(name) else use.principal
            outcome = outcomes[owner, name, version].setdefault(use.run_id, _RunOutcome(use))
            outcome.has_succeeded |= succeeded
    return {
        (owner, name, version): _count_votes(
            list(by_run.values()), now, is_shared=(name, owner) in shared
        )
        for (owner, name, version), by_run in outcomes.items()
    }


def _count_votes(outcomes: list[_RunOutcome], now: float, *, is_shared: bool) -> UsageRecord:
    """Return the record of one version, from the outcome of each run that used it."""
    votes = successes = 0.0
    failing: list[SkillUseRow] = []
    failing_sessions = 0
    for sessions in _group_by_voter(outcomes, is_shared=is_shared):
        shares = []
        for runs in sessions:
            shares.append(sum(run.has_succeeded for run in runs) / len(runs))
            if shares[-1] < MIN_SUCCESS_RATE:
                failing_sessions += 1
                failing += [run.use for run in runs]
        last_used_at = max(run.use.recorded_at for runs in sessions for run in runs)
        weight = 0.5 ** (max(now - last_used_at, 0.0) / USE_HALF_LIFE_S)
        votes += weight
        successes += weight * sum(shares) / len(shares)
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
        is_shared=is_shared,
    )


def _group_by_voter(
    outcomes: Iterable[_RunOutcome], *, is_shared: bool
) -> list[list[list[_RunOutcome]]]:
    """Return the sessions of each voter, and their runs.

    A voter is a session, or of a shared skill a principal.
    """
    by_voter: dict[str, dict[str, list[_RunOutcome]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        voter = outcome.use.principal if is_shared else outcome.use.family
        by_voter[voter][outcome.use.family].append(outcome)
    return [list(by_session.values()) for by_session in by_voter.values()]


def retirement_reason(record: UsageRecord, active_since: float, *, is_signed: bool = False) -> str:
    """Return why a version should be retired; "" if it should not."""
    is_judged = (
        not is_signed
        and record.failing_sessions >= MIN_FAILING_SESSIONS
        and record.failing_s >= MIN_FAILING_S
        and record.failing_principals >= (2 if record.is_shared else 1)
    )
    if is_judged and record.success_rate < MIN_SUCCESS_RATE:
        failures = record.uses - record.successes
        return f"It failed in {failures} of the {record.uses} runs that used it."
    if time.time() - max(record.last_used_at, active_since) > RETIRE_UNUSED_S:
        return f"It has not been used for {RETIRE_UNUSED_S / 86_400:.0f} days."
    return ""
