"""Errors say what to do, and programs can tell them apart."""

from __future__ import annotations

import inspect

import pytest

from mcpruntime_server import errors
from mcpruntime_server.errors import CallFailed, McpRuntimeError, NotFound

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, McpRuntimeError)
]


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in CLASSES if "code" in vars(cls)]  # `Conflict` shares one
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("cls", CLASSES)
def test_codes_and_statuses_are_usable(cls: type[McpRuntimeError]) -> None:
    assert cls.code.isidentifier()
    assert 400 <= cls.http_status < 600
    assert 0 < cls.exit_code < 128


def test_the_remedy_follows_the_message() -> None:
    assert (
        str(NotFound("There is no run 'r_9'.", remedy="List them first."))
        == "There is no run 'r_9'. List them first."
    )
    assert str(NotFound("There is no run 'r_9'.")) == "There is no run 'r_9'."


def test_a_failed_call_carries_its_kind_and_data() -> None:
    error = CallFailed("timeout", "It took too long.", data={"after_s": 60})
    assert (error.kind, error.data, str(error)) == ("timeout", {"after_s": 60}, "It took too long.")
