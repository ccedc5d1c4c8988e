"""The result of a program: the fields of the answer of `run_code` that agents read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict


class ProgramError(TypedDict):
    """The exception that ended a program."""

    type: str
    message: str
    traceback: str


class ProgramCall(TypedDict, total=False):
    """One line of the ledger: a call, or several similar calls."""

    call: Required[str]
    status: Required[str]
    times: int


class ProgramResult(TypedDict, total=False):
    """The fields of a result; fields with default values are left out."""

    run: Required[str]
    status: Required[str]
    session: str
    value: Any
    stdout: str
    stderr: str
    error: ProgramError
    calls: Sequence[ProgramCall]
    files: Sequence[str]
    note: str
    usage: Mapping[str, float]
    waiting_for: Sequence[Mapping[str, Any]]
    submitted: bool
