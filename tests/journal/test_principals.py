"""One text for each principal, and none for two."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.journal.principals import (
    MAX_SUBJECT_CHARS,
    RESERVED_NAMES,
    is_token_name,
    issuer_principal,
    principal_file_name,
)

ISSUERS = ("https://id.example.org", "https://id.example.org/realms/a")
subjects = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
owners = st.tuples(st.sampled_from(ISSUERS), subjects)


@given(owners, owners)
def test_different_subjects_are_different_principals(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert (issuer_principal(*one) == issuer_principal(*other)) == (one == other)


@given(owners)
def test_a_subject_is_never_a_name_of_this_server(owner: tuple[str, str]) -> None:
    principal = issuer_principal(*owner)
    assert not is_token_name(principal)
    assert principal not in RESERVED_NAMES
    assert principal.partition("#")[0] == owner[0]


@given(owners)
def test_a_principal_is_safe_to_display(owner: tuple[str, str]) -> None:
    assert re.fullmatch(r"[!#-&(-~]+", issuer_principal(*owner))


@given(st.text(max_size=100))
def test_the_name_of_a_file_is_safe(principal: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,73}", principal_file_name(principal))


def test_names_of_files_differ_without_case_too() -> None:
    names = {principal_file_name(name) for name in ("ann", "Ann", "a-nn", "a.nn", "a_nn")}
    assert len(names) == 5


@pytest.mark.parametrize("subject", ["", "x" * (MAX_SUBJECT_CHARS + 1)])
def test_a_subject_has_a_usual_length(subject: str) -> None:
    with pytest.raises(ValueError, match="characters"):
        issuer_principal(ISSUERS[0], subject)


@pytest.mark.parametrize("name", ["", "local", "Local", "a#b", "a/b", "-a", "é", "a\n"])
def test_some_names_are_not_for_tokens(name: str) -> None:
    assert not is_token_name(name)
