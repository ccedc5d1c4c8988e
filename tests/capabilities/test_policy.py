"""What the rules say of a call: the most specific one decides, and of two alike the stricter."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.policy import STRICTNESS_RANK, Policy
from mcpruntime_server.config import PolicySettings, Verdict

VERDICTS = st.sampled_from(("allow", "ask", "deny"))
NAMES = st.text("ab_*?", min_size=1, max_size=6)
RULES = st.builds(
    lambda server, tool: server + (f".{tool}" if tool else ""), NAMES, NAMES | st.just("")
)


def policy(tools: dict[str, Any] | None = None, **defaults: Any) -> Policy:
    return Policy(PolicySettings(tools=tools or {}, **defaults))


def verdict(tools: dict[str, Any], tool: str) -> Verdict:
    """Return the decision for a tool without annotations; without a rule it is allowed."""
    return policy(tools).decide(tool, effect="write", destructive=False)


@pytest.mark.parametrize(
    ("effect", "destructive", "expected"),
    [
        ("read", False, "ask"),
        ("read", True, "ask"),
        ("idempotent", False, "deny"),
        ("write", False, "deny"),
        ("idempotent", True, "allow"),
        ("write", True, "allow"),
    ],
)
def test_without_a_rule_what_the_tool_says_of_itself_decides(
    effect: str, destructive: bool, expected: str
) -> None:
    made = policy(read="ask", write="deny", destructive="allow")
    assert made.decide("git.log", effect=effect, destructive=destructive) == expected


def test_by_default_only_what_may_destroy_something_is_asked_about() -> None:
    said = [
        policy().decide("a.b", effect=effect, destructive=True)
        for effect in ("read", "idempotent", "write")
    ]
    assert said == ["allow", "ask", "ask"]
    assert policy().decide("a.b", effect="write", destructive=False) == "allow"


def test_a_rule_goes_before_what_the_tool_says_of_itself() -> None:
    made = policy({"a": "deny", "b.wipe": "allow"})
    assert made.decide("a.b", effect="read", destructive=False) == "deny"
    assert made.decide("b.wipe", effect="write", destructive=True) == "allow"


@pytest.mark.parametrize(
    ("rule", "matching", "others"),
    [
        ("github", ["github.get", "github.x"], ["github2.get", "my_github.get", "git.hub"]),
        ("github.get", ["github.get"], ["github.get_all", "github.ge", "github2.get", "git.get"]),
        ("github.get_*", ["github.get_", "github.get_all"], ["github.get", "github.forget_all"]),
        ("*", ["a.b", "github.get"], []),
        ("*.delete_*", ["a.delete_x", "b.delete_"], ["a.delete", "delete_x.a"]),
        ("git?", ["gita.x", "git2.x"], ["git.x", "gitab.x"]),
        ("git*", ["git.x", "github.x"], ["my_git.x"]),
        ("a.[xy]_*", ["a.x_1", "a.y_"], ["a.z_1", "a.xy_"]),
        ("a.[!x]*", ["a.y", "a.yx"], ["a.x", "a.xy"]),
        ("Git.Push", ["Git.Push"], ["git.push", "GIT.PUSH"]),
        ("*.straße", ["a.straße"], ["a.strasse", "a.STRASSE"]),
    ],
)
def test_a_rule_is_about_what_its_name_matches(
    rule: str, matching: list[str], others: list[str]
) -> None:
    assert [verdict({rule: "deny"}, tool) for tool in matching] == ["deny"] * len(matching)
    assert [verdict({rule: "deny"}, tool) for tool in others] == ["allow"] * len(others)


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ({"git.push_all": "allow", "git.push_al*": "deny", "*": "deny"}, "allow"),
        ({"git.push_all": "deny", "git.*_all": "allow", "git": "allow"}, "deny"),
        ({"*": "deny", "git": "allow"}, "allow"),
        ({"git": "deny", "git.push*": "allow"}, "allow"),
        ({"git": "allow", "*.push*": "deny"}, "deny"),
        ({"git.push*": "allow", "git.*": "ask"}, "allow"),
        ({"git.push[_x]al[a-z]": "allow", "git.push_al*": "deny"}, "deny"),
        ({"git.push[_abcdefghijklmnopqrstuvwxyz]*": "allow", "git.push_*": "deny"}, "deny"),
        ({"git": "deny", "git.*": "allow"}, "deny"),
        ({"git.*": "ask", "git": "allow"}, "ask"),
        ({"git.p*": "allow", "gi?.pu*": "deny"}, "deny"),
        ({"git.*a*l": "allow", "git.*p*u": "deny"}, "allow"),
        ({"git.push_???": "deny", "git.push_*": "allow", "git.*push_": "ask"}, "deny"),
    ],
)
def test_the_most_specific_rule_decides_whatever_their_order(
    tools: dict[str, Any], expected: str
) -> None:
    for order in permutations(tools.items()):
        assert verdict(dict(order), "git.push_all") == expected


@given(
    st.dictionaries(RULES, VERDICTS, max_size=6),
    st.sampled_from(("a.b", "aa.b_b", "ab.ba", "b_.a")),
)
def test_their_order_never_matters_and_a_stricter_rule_never_makes_it_laxer(
    tools: dict[str, Any], tool: str
) -> None:
    said = verdict(tools, tool)
    assert verdict(dict(reversed(tools.items())), tool) == said
    for name in tools:
        assert STRICTNESS_RANK[verdict({**tools, name: "deny"}, tool)] >= STRICTNESS_RANK[said]


@pytest.mark.parametrize("name", ["[", "a.[", "[]", "[!]", "a.b.c", "", "a-b", "a.b c", "ﬁle"])
def test_a_name_that_could_never_match_makes_no_policy(name: str) -> None:
    with pytest.raises(ValueError, match="no tool has this name"):
        PolicySettings.from_mapping({"tools": {name: "deny"}})


@pytest.mark.parametrize(
    "tool", ["", ".", "x", "a.b.c", "a.b\n", "\x00", "[", "a.[", "*", "*.*", "a" * 100_000 + ".b"]
)
def test_whatever_code_asks_for_has_a_verdict(tool: str) -> None:
    assert verdict({"git": "allow", "git.push": "allow"}, tool) == "allow"
    assert policy(write="deny").decide(tool, effect="write", destructive=False) == "deny"
    assert verdict({"*.*b": "deny"}, tool) in ("allow", "deny")


def test_what_only_looks_like_an_allowed_tool_is_not() -> None:
    made = policy({"git.log": "allow"}, write="deny")
    for tool in ("git.log\n", "git.log.x", " git.log", "Git.log", "git.\uff4cog", "git.log\x00"):
        assert made.decide(tool, effect="write", destructive=False) == "deny", tool


def test_rules_about_no_server_are_named() -> None:
    made = policy({"git.push": "deny", "gti": "deny", "*.x": "ask", "m?.y": "ask", "Git.*": "ask"})
    assert made.unused_rules(["git", "time"]) == ["gti", "m?.y", "Git.*"]
    assert made.unused_rules([]) == ["git.push", "gti", "*.x", "m?.y", "Git.*"]
    assert policy().unused_rules(["git"]) == []


@pytest.mark.parametrize(
    ("reads", "tool", "expected"),
    [
        (["shop.get_*"], "shop.get_order", True),
        (["shop.get_*"], "shop.set_order", False),
        (["shop.get_*"], "workshop.get_order", False),
        (["shop"], "shop.anything", True),
        (["*.list_*", "shop.find"], "shop.find", True),
        ([], "shop.get_order", False),
    ],
)
def test_tools_can_be_declared_as_reading(reads: list[str], tool: str, expected: bool) -> None:
    assert policy(reads=tuple(reads)).declares_read(tool) is expected


def test_a_rule_may_name_a_tool_as_code_imports_it() -> None:
    policy = Policy(PolicySettings(tools={"files.open_": "deny"}))
    assert policy.decide("files.open", effect="write", destructive=False) == "deny"
    assert policy.decide("files.openx", effect="write", destructive=False) == "allow"
