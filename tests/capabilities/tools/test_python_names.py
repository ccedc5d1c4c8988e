"""Python names for arbitrary names."""

from __future__ import annotations

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.tools.python_names import (
    MAX_NAME_CHARS,
    assign_names,
    describe_collisions,
    to_class_name,
    to_identifier,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("git_log", "git_log"),
        ("git-log", "git_log"),
        ("get.current time", "get_current_time"),
        ("class", "class_"),
        ("None", "None_"),
        ("__getattr__", "getattr"),
        ("_private", "private"),
        ("2fa", "tool_2fa"),
        ("", "tool"),
        ("\n", "tool"),
        ("shim", "shim_"),
        ("日本語", "日本語"),
        ("ﬁle", "file"),
    ],
)
def test_a_name_stays_as_near_to_itself_as_python_allows(text: str, name: str) -> None:
    assert to_identifier(text, "tool", {"shim"}) == name


@given(st.text())
def test_any_text_becomes_a_public_name(text: str) -> None:
    name = to_identifier(text, "tool", {"shim"})
    assert name.isidentifier()
    assert not keyword.iskeyword(name)
    assert not name.startswith("_")
    assert len(name) <= MAX_NAME_CHARS + 6
    assert to_identifier(name, "tool", {"shim"}) == name


@given(
    st.lists(
        st.text(max_size=4)
        | st.sampled_from(["a-b", "a_b", "a b", "a.b", "a_b_2", "_a", "class", "class_"])
    )
)
def test_names_are_unique_whatever_their_order(texts: list[str]) -> None:
    names = assign_names(texts, "tool")
    assert len(set(names.values())) == len(set(texts))
    assert assign_names(reversed(texts), "tool") == names


def test_a_name_that_needs_no_change_keeps_it_and_the_others_are_reported() -> None:
    names = assign_names(["a-b", "a.b", "a_b"], "tool")
    assert names == {"a-b": "a_b_2", "a.b": "a_b_3", "a_b": "a_b"}
    assert describe_collisions(names, "tool") == [
        "the tool 'a-b' is renamed to 'a_b_2', because others have the same name",
        "the tool 'a.b' is renamed to 'a_b_3', because others have the same name",
    ]


def test_a_class_is_named_in_camel_case() -> None:
    assert to_class_name("git_log-all items") == "GitLogAllItems"
