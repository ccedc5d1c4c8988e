"""Only names with versions are taken, whatever else installers take."""

from __future__ import annotations

from typing import Any

import pytest

from mcpruntime_server.capabilities.packages.requirements import (
    Platform,
    find_refused,
    parse_installed,
    parse_requirements,
)
from mcpruntime_server.errors import CallFailed


@pytest.mark.parametrize(
    "text",
    [
        "-r requirements.txt", "--index-url=https://evil.example", "-e .", "./here", "/etc/passwd",
        "../x.whl", "x.whl/../y", "https://evil.example/x.whl", "git+https://evil.example/x",
        "x @ https://evil.example/x.whl", "x @ file:///etc/passwd", "x; import os", "x\n-r y",
        "x --hash=sha256:0", "", " ", "x y", "a" * 300, "x>=", "x=1", "x==1,,", "-x", "x[", None, 5,
    ],
)  # fmt: skip
def test_what_is_no_name_with_versions_is_refused(text: Any) -> None:
    with pytest.raises(CallFailed) as caught:
        parse_requirements([text])
    assert caught.value.kind == "invalid_arguments"


@pytest.mark.parametrize("texts", [[], ["x"] * 51, "x", None, {}])
def test_the_number_of_packages_is_bounded(texts: Any) -> None:
    with pytest.raises(CallFailed, match="1 to 50"):
        parse_requirements(texts)


def test_names_with_versions_extras_and_markers_are_taken() -> None:
    texts = ["scipy>=1.14", "Pandas[excel]==2.*", "x; python_version < '3.9'"]
    assert len(parse_requirements(texts)) == 3


def test_the_settings_allow_names_in_any_spelling() -> None:
    found = parse_requirements(["Scikit_Learn", "scipy"])
    assert find_refused(found, ["scikit-learn", "sci*"]) == ""
    assert find_refused(found, ["scikit-learn"]) == "scipy"
    assert find_refused(found, []) == "Scikit_Learn"


def test_what_a_sandbox_claims_to_have_is_cleaned() -> None:
    claimed = {"NumPy": "2.0", "x\n-r y": "1", "y": "--evil", "z": "1.0\nq==2"}
    assert parse_installed(claimed) == {"numpy": "2.0"}


@pytest.mark.parametrize(
    "description",
    [None, {}, {"python": "3.11", "machine": "x86_64"},
     {"python": "2.7", "machine": "x", "glibc": ""},
     {"python": "3.11", "machine": "--evil", "glibc": ""},
     {"python": "3.11", "machine": "x86_64", "glibc": "2.36 --evil"}],
)  # fmt: skip
def test_a_platform_is_described_in_one_way(description: Any) -> None:
    with pytest.raises(CallFailed):
        Platform(description)
