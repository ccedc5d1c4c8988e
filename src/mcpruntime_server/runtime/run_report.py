"""What is known of a run: the same for one under way and for one read back from the journal.

What a sandbox says of itself is made sure here to be what it should be; it is hostile, and all of it goes to a client.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import McpRuntimeError
from ..protocol import wire
from ..protocol.presentation import NotJsonData, truncate_json, truncate_text
from .router import LedgerEntry

RunStatus = Literal[
    "queued", "running", "waiting", "ok", "error", "timeout", "crashed", "cancelled"
]

USAGE_FIELDS = ("wall_ms", "cpu_ms", "peak_mb")
MAX_USAGE_VALUE = 1e15  # of usage; more is not a measurement
MAX_ERROR_CHARS = (
    16_000  # of an error's message or traceback; the kernel sends half of that at most
)


@dataclass(frozen=True)
class PendingQuestionView:
    """What a run waits for, under the name `id`.

    That its `calls` are allowed ("approval"), decided on after a crash ("in_doubt"), or committed ("plan").
    """

    id: str
    kind: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...]  # target and arguments
    line: int | None = None
    hints: tuple[str, ...] = ()
    expires: float | None = None  # seconds since the epoch


@dataclass
class RunReport:
    """What is known of a run so far; the same for a run under way and one read back from the journal."""

    run_id: str
    session_id: str
    step: int
    status: RunStatus = "running"
    value: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    stdout: str = ""
    stderr: str = ""
    calls: list[LedgerEntry] = field(default_factory=list)
    changed_files: list[str] = field(default_factory=list)
    removed_files: list[str] = field(default_factory=list)
    usage: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pending_questions: list[PendingQuestionView] = field(default_factory=list)
    result_files: dict[str, str] = field(default_factory=dict)  # complete value, by truncated field
    flags: set[str] = field(default_factory=set)  # what is special about its end state

    def apply_done(self, done: wire.RunDone, stopped: str | None) -> None:
        """Take what the sandbox says of the code's end, and why it was stopped, if it was."""
        self.value, self.error = validate_value(done.value), validate_error(done.error)
        self.usage |= validate_usage(done.usage)
        if stopped is not None:
            self.status = "timeout" if stopped == "timeout" else "cancelled"
        elif done.status == "ok":
            self.status = "ok"
        else:
            self.status = "crashed" if done.status == "died" else "error"

    def apply_failure(
        self, failure: McpRuntimeError, message: str = "", status: RunStatus = "crashed"
    ) -> None:
        """It ended for a reason outside its code."""
        told = message or str(failure)
        self.status, self.value = status, None
        self.error = {
            "type": type(failure).__name__,
            "message": told,
            "traceback": "",
            "line": None,
        }

    def apply_plan(self, plan: list[PendingQuestionView]) -> None:
        """Its code has ended, and it waits for its plan to be committed."""
        self.status, self.pending_questions = "waiting", plan
        if self.error is not None:
            self.notes.append(
                "The plan ends where the code could not go on; what follows is planned in another round."
            )


def display_value(value: Mapping[str, Any], max_chars: int, max_items: int) -> tuple[Any, bool]:
    """Return a run's value as a client gets it, and whether these limits cut it.

    JSON data is given as itself, with at most `items` items a list or object, everything else as text.
    """
    text = value["text"]
    if value["kind"] == "json":
        data = wire.escape_json_surrogates(json.loads(text))
        if len(text) <= max_chars and text.count(",") < max_items:
            return data, False
        text, cut = truncate_json(data, max_chars, max_items)
        return json.loads(text), cut
    return truncate_text(text, max_chars)


def validate_value(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a sandbox says is the value, made sure to be what `present` returns."""
    if value is None:
        return None
    text = str(value.get("text"))
    kind = "json" if value.get("kind") == "json" and _is_json_text(text) else "repr"
    return {
        "kind": kind,
        "text": text,
        "type": str(value.get("type"))[:200],
        "cut": bool(value.get("cut")),
    }


def _is_json_text(text: str) -> bool:
    try:
        truncate_json(json.loads(text), len(text))
    except (NotJsonData, ValueError, RecursionError):
        return False
    return True


def validate_usage(usage: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what a sandbox says it used, made sure to be figures that can be written down."""
    found = ((name, (usage or {}).get(name)) for name in USAGE_FIELDS)
    return {
        name: value
        for name, value in found
        if isinstance(value, (int, float)) and 0 <= value <= MAX_USAGE_VALUE
    }


def validate_readings(clocks: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return what a sandbox says its clocks told the code, made sure to be lists of numbers."""
    lists = {str(name): values for name, values in clocks.items() if isinstance(values, list)}
    return {
        name: [value for value in values if _is_finite_number(value)]
        for name, values in lists.items()
    }


def _is_finite_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def validate_error(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a sandbox says is the error, made sure to be what `describe_error` returns."""
    if error is None:
        return None
    line = error.get("line")
    texts = {
        name: truncate_text(str(error.get(name, "")), MAX_ERROR_CHARS)[0]
        for name in ("type", "message", "traceback")
    }
    return {**texts, "line": line if type(line) is int else None}
