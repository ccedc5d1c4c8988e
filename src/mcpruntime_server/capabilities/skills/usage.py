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

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
    by_version: dict[tuple[str, str, int], list[SkillUseRow]] = defaultdict(list)
    for use in uses:
        if not name_problem(use.skill):
            owner = find_owner(use.principal, use.skill)
            by_version[owner, use.skill, use.version].append(use)
    return {
        (owner, name, version): _count_votes(found, now, is_shared=(name, owner) in shared)
        for (owner, name, version), found in by_version.items()
    }


def _count_votes(uses: Sequence[SkillUseRow], now: float, *, is_shared: bool) -> UsageRecord:
    """Return the record of one version from the runs that used it."""
    votes = successes = 0.0
    failing: list[SkillUseRow] = []
    failing_sessions = 0
    for sessions in _group_by_voter(uses, is_shared=is_shared):
        shares = []
        for runs in sessions:
            shares.append(sum(run.has_succeeded for run in runs) / len(runs))
            if shares[-1] < MIN_SUCCESS_RATE:
                failing_sessions += 1
                failing += runs
        last_used_at = max(run.recorded_at for runs in sessions for run in runs)
        weight = 0.5 ** (max(now - last_used_at, 0.0) / USE_HALF_LIFE_S)
        votes += weight
        successes += weight * sum(shares) / len(shares)
    times = [use.recorded_at for use in failing]
    return UsageRecord(
        uses=len(uses),
        successes=sum(use.has_succeeded for use in uses),
        last_used_at=max(use.recorded_at for use in uses),
        decayed_votes=votes,
        decayed_successes=successes,
        failing_sessions=failing_sessions,
        failing_principals=len({use.principal for use in failing}),
        failing_s=max(times) - min(times) if times else 0.0,
        is_shared=is_shared,
    )


def _group_by_voter(
    uses: Iterable[SkillUseRow], *, is_shared: bool
) -> list[list[list[SkillUseRow]]]:
    """Return the sessions of each voter, and their runs.

    A voter is a session, or of a shared skill a principal.
    """
    by_voter: dict[str, dict[str, list[SkillUseRow]]] = defaultdict(lambda: defaultdict(list))
    for use in uses:
        by_voter[use.principal if is_shared else use.family][use.family].append(use)
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
