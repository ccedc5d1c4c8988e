"""How skills have done, counted from the journal: what is recent and went well counts most."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

HALF_LIFE_S = 30 * 86_400.0  # after which a use counts half
UNUSED_S = 180 * 86_400.0  # after which a skill that nobody uses is retired
FAILING = 0.3  # share of recent uses that went well below which a skill is retired
ENOUGH = 5  # uses that such a judgement needs


@dataclass
class Record:
    """The uses of one version: how many, how many went well, when the last was; and both sums decayed."""

    uses: int = 0
    well: int = 0
    last: float = 0.0
    recent: float = 0.0
    recent_well: float = 0.0

    def count(self, at: float, now: float, *, ok: bool) -> None:
        """Count one use."""
        weight = 0.5 ** (max(now - at, 0.0) / HALF_LIFE_S)
        self.uses += 1
        self.well += ok
        self.last = max(self.last, at)
        self.recent += weight
        self.recent_well += weight * ok

    @property
    def success(self) -> float:
        """The share of recent uses that went well; one half where nothing is known."""
        return (self.recent_well + 1) / (self.recent + 2)

    @property
    def weight(self) -> float:
        """What a search multiplies a skill's score by: from 0.7 to 1.3."""
        return 0.7 + 0.6 * self.success


Records = Mapping[tuple[str, int], Record]


def records_of(uses: Iterable[tuple[str, float]]) -> Records:
    """Return the record of each version ("weather_report", 2); what code said of its uses may be anything."""
    now = time.time()
    found: dict[tuple[str, int], Record] = {}
    for text, at in uses:
        try:
            told = json.loads(text)
            key, ok = (told["skill"], told["version"]), told["ok"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(key[0], str) and type(key[1]) is int and isinstance(ok, bool):
            found.setdefault(key, Record()).count(at, now, ok=ok)
    return found


def why_retire(record: Record, since: float) -> str:
    """Return why a version that is in use since `since` is to be retired; "" if it is not."""
    if record.uses >= ENOUGH and record.success < FAILING:
        return f"It failed in {record.uses - record.well} of the {record.uses} runs that used it."
    if time.time() - max(record.last, since) > UNUSED_S:
        return f"Nobody has used it for {UNUSED_S / 86_400:.0f} days."
    return ""
