"""Which calls code may make: `allow`, `ask` (a person) or `deny`, by the user's rules and by what tools say of it.

Rule 1: the most specific rule decides: an exact name before a pattern, a pattern with more characters that stand for
themselves before one with fewer, and of two alike the stricter.
Rule 2: without a rule, what the tool says of itself decides. That is an upstream's own word; whoever does not trust an
upstream has a rule for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..config import PolicySettings, Verdict
from ..config.models import WILDCARD

STRICTNESS_RANK: Mapping[Verdict, int] = {"allow": 0, "ask": 1, "deny": 2}


@dataclass(frozen=True)
class PolicyRule:
    """One line of `[policy.tools]`; a name without a dot is about all tools of the servers that have it."""

    name: str
    verdict: Verdict

    @property
    def pattern(self) -> str:
        """What the whole name of a tool has to match."""
        return self.name if "." in self.name else f"{self.name}.*"

    @property
    def server_pattern(self) -> str:
        """What the name of a server has to match for the rule to be about it."""
        return self.name.partition(".")[0]

    @property
    def precedence(self) -> tuple[bool, int, int]:
        """How much it counts among the rules that match."""
        return (
            not WILDCARD.search(self.pattern),
            len(WILDCARD.sub("", self.pattern)),
            STRICTNESS_RANK[self.verdict],
        )


class Policy:
    """The rules of one server."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._rules = [PolicyRule(name, verdict) for name, verdict in settings.tools.items()]
        self._ranked = sorted(self._rules, key=lambda rule: rule.precedence, reverse=True)

    def decide(self, tool: str, *, effect: str, destructive: bool) -> Verdict:
        """Return what is to be done about a call of `tool` ("server.tool"), which says of itself what it may do."""
        for rule in self._ranked:
            if fnmatchcase(tool, rule.pattern):
                return rule.verdict
        if effect == "read":
            return self._settings.read
        return self._settings.destructive if destructive else self._settings.write

    def may_read_resources(self, server: str) -> bool:
        """Return whether resources of a server may be read without asking, as a tool may that only reads."""
        return self.decide(f"{server}.read_resource", effect="read", destructive=False) == "allow"

    def unused_rules(self, packages: Collection[str]) -> list[str]:
        """Return the names of rules that are about none of the servers, given by their names in code."""
        return [
            rule.name
            for rule in self._rules
            if not any(fnmatchcase(name, rule.server_pattern) for name in packages)
        ]
