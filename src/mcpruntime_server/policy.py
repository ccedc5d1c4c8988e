"""Which calls code may make: `allow`, `ask` (a person) or `deny`, by the user's rules and by what tools say of it.

Rule 1: the most specific rule decides: an exact name before a pattern, a longer pattern before a shorter one, and of
two as long the stricter.
Rule 2: without a rule, what the tool says of itself decides. That is an upstream's own word; whoever does not trust an
upstream has a rule for it.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from .config import PolicySettings, Verdict

STRICTNESS: dict[Verdict, int] = {"allow": 0, "ask": 1, "deny": 2}
WILD = "*?["


class Policy:
    """The rules of one server."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings

    def verdict(self, tool: str, *, effect: str, destructive: bool) -> Verdict:
        """Return what is to be done about a call of `tool` ("server.tool"), which says of itself what it may do."""
        found = [(_weight(pattern), STRICTNESS[verdict], verdict) for pattern, verdict in self._rules(tool)]
        if found:
            return max(found)[2]
        if effect == "read":
            return self._settings.read
        return self._settings.destructive if destructive else self._settings.write

    def _rules(self, tool: str) -> list[tuple[str, Verdict]]:
        return [(pattern, verdict) for pattern, verdict in self._settings.tools.items() if _fits(pattern, tool)]


def _fits(pattern: str, tool: str) -> bool:
    """Return whether a rule is about `tool`; one without a dot is about all tools of the servers that it names."""
    return fnmatchcase(tool, pattern if "." in pattern else f"{pattern}.*")


def _weight(pattern: str) -> tuple[bool, int]:
    """Return how specific a pattern is."""
    return "." in pattern and not any(mark in pattern for mark in WILD), sum(mark not in WILD for mark in pattern)
