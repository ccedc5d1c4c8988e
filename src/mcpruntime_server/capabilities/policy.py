"""The verdict on a call: `allow`, `ask` (a person) or `deny`; and which tools only read.

Rule 1: the user's rules decide first, because the annotations of a tool are only its upstream's
claims. The most specific rule wins: an exact name before a pattern, a pattern with more literal
characters before one with fewer, and the stricter of two equal ones.
Rule 2: without a rule, the annotations decide. A tool counts as destructive only if it says so.
MCP's default for tools without annotations would require approval of nearly every call.
Rule 3: a tool that the user declares as reading only reads, whatever its annotations say.
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
    """One line of `[policy.tools]`; a name without a dot applies to all tools of a server."""

    name: str
    verdict: Verdict

    @property
    def pattern(self) -> str:
        """The pattern that a full tool name ("server.tool") must match."""
        return full_pattern(self.name)

    @property
    def precedence(self) -> tuple[bool, int, int]:
        """The sort key among the rules that match; the highest one decides."""
        is_exact = not WILDCARD.search(self.pattern)
        literal_chars = len(WILDCARD.sub("", self.pattern))
        return is_exact, literal_chars, STRICTNESS_RANK[self.verdict]


def full_pattern(name: str) -> str:
    """Return the pattern of tool names that a rule's name stands for."""
    return name if "." in name else f"{name}.*"


def matches(tool: str, name: str) -> bool:
    """Return whether a rule's name stands for `tool` ("server.tool").

    A rule may also name a tool as code imports it if it is called like a builtin: "files.open_".
    """
    pattern = full_pattern(name)
    is_exact = not WILDCARD.search(pattern)
    return fnmatchcase(tool, pattern) or (is_exact and pattern == f"{tool}_")


def server_pattern(name: str) -> str:
    """Return the pattern of server names in a rule's name."""
    return name.partition(".")[0]


class Policy:
    """The rules of one server."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        rules = [PolicyRule(name, verdict) for name, verdict in settings.tools.items()]
        self._ranked = sorted(rules, key=lambda rule: rule.precedence, reverse=True)

    def decide(self, tool: str, *, effect: str, destructive: bool) -> Verdict:
        """Return the verdict on a call of `tool` ("server.tool") with its declared effect."""
        for rule in self._ranked:
            if matches(tool, rule.name):
                return rule.verdict
        if effect == "read":
            return self._settings.read
        return self._settings.destructive if destructive else self._settings.write

    def declares_read(self, tool: str) -> bool:
        """Return whether the settings say that `tool` ("server.tool") only reads."""
        return any(matches(tool, name) for name in self._settings.reads)

    def may_read_resources(self, server: str) -> bool:
        """Return whether resources of a server may be read without asking, like a reading tool."""
        return self.decide(f"{server}.read_resource", effect="read", destructive=False) == "allow"

    def unused_rules(self, packages: Collection[str]) -> list[str]:
        """Return the names of rules that apply to none of `packages`, the servers' Python names."""
        return [
            rule
            for rule in (*self._settings.tools, *self._settings.reads)
            if not any(fnmatchcase(name, server_pattern(rule)) for name in packages)
        ]
