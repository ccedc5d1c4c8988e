"""Count from the journal how versions of skills have done; recent uses count most."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

USE_HALF_LIFE_S = 30 * 86_400.0
RETIRE_UNUSED_S = 180 * 86_400.0
MIN_SUCCESS_RATE = 0.3  # of recent uses; a skill below it is retired
MIN_USES_TO_JUDGE = 5


@dataclass
class UsageRecord:
    """The uses of one version; the decayed sums halve every `USE_HALF_LIFE_S`."""

    uses: int = 0
    successes: int = 0
    last_used_at: float = 0.0
    decayed_uses: float = 0.0
    decayed_successes: float = 0.0

    def count_use(self, at: float, now: float, *, succeeded: bool) -> None:
        """Count one use."""
        weight = 0.5 ** (max(now - at, 0.0) / USE_HALF_LIFE_S)
        self.uses += 1
        self.successes += succeeded
        self.last_used_at = max(self.last_used_at, at)
        self.decayed_uses += weight
        self.decayed_successes += weight * succeeded

    @property
    def success_rate(self) -> float:
        """The share of recent uses that succeeded; 0.5 where nothing is known."""
        return (self.decayed_successes + 1) / (self.decayed_uses + 2)

    @property
    def search_weight(self) -> float:
        """The factor of a skill's score in a search, from 0.7 to 1.3."""
        return 0.7 + 0.6 * self.success_rate


UsageRecords = Mapping[tuple[str, int], UsageRecord]  # by name and version


def count_uses(uses: Iterable[tuple[str, float]]) -> UsageRecords:
    """Return the record of each version that was used.

    `uses` are the arguments of `skills.used` calls, with their times. Sandboxed code made them, so
    they may be anything.
    """
    now = time.time()
    found: dict[tuple[str, int], UsageRecord] = {}
    for arguments, at in uses:
        try:
            use = json.loads(arguments)
            name, version, succeeded = use["skill"], use["version"], use["ok"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(name, str) and type(version) is int and isinstance(succeeded, bool):
            record = found.setdefault((name, version), UsageRecord())
            record.count_use(at, now, succeeded=succeeded)
    return found


def retirement_reason(record: UsageRecord, active_since: float) -> str:
    """Return why a version should be retired; "" if it should not."""
    if record.uses >= MIN_USES_TO_JUDGE and record.success_rate < MIN_SUCCESS_RATE:
        failures = record.uses - record.successes
        return f"It failed in {failures} of the {record.uses} runs that used it."
    if time.time() - max(record.last_used_at, active_since) > RETIRE_UNUSED_S:
        return f"It has not been used for {RETIRE_UNUSED_S / 86_400:.0f} days."
    return ""
