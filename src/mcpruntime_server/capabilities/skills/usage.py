"""How skills have done, counted from the journal: what is recent and went well counts most."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

USE_HALF_LIFE_S = 30 * 86_400.0  # after which a use counts half
RETIRE_UNUSED_S = 180 * 86_400.0  # after which a skill that nobody uses is retired
MIN_SUCCESS_RATE = 0.3  # share of recent uses that went well below which a skill is retired
MIN_USES_TO_JUDGE = 5  # uses that such a judgement needs


@dataclass
class UsageRecord:
    """The uses of one version: how many, how many went well, when the last was; and both sums decayed."""

    uses: int = 0
    successes: int = 0
    last_used_at: float = 0.0
    decayed_uses: float = 0.0
    decayed_successes: float = 0.0

    def count_use(self, at: float, now: float, *, ok: bool) -> None:
        """Count one use."""
        weight = 0.5 ** (max(now - at, 0.0) / USE_HALF_LIFE_S)
        self.uses += 1
        self.successes += ok
        self.last_used_at = max(self.last_used_at, at)
        self.decayed_uses += weight
        self.decayed_successes += weight * ok

    @property
    def success_rate(self) -> float:
        """The share of recent uses that went well; one half where nothing is known."""
        return (self.decayed_successes + 1) / (self.decayed_uses + 2)

    @property
    def search_weight(self) -> float:
        """What a search multiplies a skill's score by: from 0.7 to 1.3."""
        return 0.7 + 0.6 * self.success_rate


UsageRecords = Mapping[tuple[str, int], UsageRecord]


def count_uses(uses: Iterable[tuple[str, float]]) -> UsageRecords:
    """Return the record of each version ("weather_report", 2); what code said of its uses may be anything."""
    now = time.time()
    found: dict[tuple[str, int], UsageRecord] = {}
    for text, at in uses:
        try:
            told = json.loads(text)
            key, ok = (told["skill"], told["version"]), told["ok"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(key[0], str) and type(key[1]) is int and isinstance(ok, bool):
            found.setdefault(key, UsageRecord()).count_use(at, now, ok=ok)
    return found


def retirement_reason(record: UsageRecord, since: float) -> str:
    """Return why a version that is in use since `since` is to be retired; "" if it is not."""
    if record.uses >= MIN_USES_TO_JUDGE and record.success_rate < MIN_SUCCESS_RATE:
        return (
            f"It failed in {record.uses - record.successes} of the {record.uses} runs that used it."
        )
    if time.time() - max(record.last_used_at, since) > RETIRE_UNUSED_S:
        return f"Nobody has used it for {RETIRE_UNUSED_S / 86_400:.0f} days."
    return ""
