"""What is known of a run: the same for a run under way and for one read back from the journal.

What a sandbox says is hostile, and it goes to a client: here it is validated.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

from anyio import to_thread

from ..errors import McpRuntimeError
from ..journal.events import ClientModelRequest, MediaEntry, RunError, RunValue, encode_json
from ..protocol import wire
from ..protocol.json_limits import is_nested_deeper
from ..protocol.media import (
    MAX_ALL_MEDIA_BYTES,
    MAX_MEDIA_BYTES,
    MAX_MEDIA_ITEMS,
    identify_media,
)
from ..protocol.payloads import InspectionResult, ShownValue
from ..protocol.presentation import truncate_json
from ..protocol.truncation import MAX_DEPTH, truncate_text
from .call_ledger import LedgerEntry

RunStatus = Literal[
    "queued", "running", "waiting", "ok", "error", "timeout", "crashed", "cancelled"
]

USAGE_FIELDS = ("wall_ms", "cpu_ms", "peak_mb")
MAX_USAGE_VALUE = 1e15  # more is not a measurement
MAX_CUT_EXCESS = 1.25  # of a value that the sandbox has cut; more is not by our presenter
MIN_BOUND_CHARS = 200
MAX_READING = 1 << 63  # of a clock, in nanoseconds
MAX_CLOCK_NAME_CHARS = 200  # with the thread that reads it
MAX_CLOCKS = 2_000  # with readings in one message; there are a few for each thread
MAX_VALUE_CHARS = 2 * 1024 * 1024  # of a value; the worker sends much less
MAX_LOOP_CHARS = 32 * 1024  # of a value that takes the event loop a millisecond
MAX_REMEMBERED_VALUES = 4  # truncated ones: each is asked for twice, at the end of its run
MAX_TYPE_CHARS = 200  # of the name of a value's type
MAX_HINT_CHARS = 1_500
MAX_PROBE_HITS = 500  # of one probe
MAX_PROBED_CHARS = 4_000  # of one value of a probe
MAX_COUNT = 1 << 53
VALUE_KINDS = ("json", "repr", "error")
MAX_ERROR_CHARS = 16_000  # of a message or traceback; the worker sends at most half of that


@dataclass(frozen=True)
class PendingQuestionView:
    """What a run waits for, as a client sees it.

    Its `kind` is "approval" (may the calls be made?), "in_doubt" (were they made before a crash?),
    "question" (of the code to the client's model), "credential" (which a person has to store) or
    "plan" (shall the calls be committed?).
    """

    id: str
    kind: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...]  # target and arguments
    model_request: ClientModelRequest | None = None  # of a "question"
    line: int | None = None
    hints: tuple[str, ...] = ()
    expires: float | None = None  # seconds since the epoch
    url: str = ""  # of the page for a "credential"
    needs_person: bool = False  # a planned call that a person is asked about when it is committed


@dataclass(frozen=True)
class ProbedValue:
    """The value of a probed expression; `number` counts the executions of its line from 1."""

    number: int
    value: ShownValue


@dataclass
class RunReport:
    """What is known of a run so far."""

    run_id: str
    session_id: str
    step: int
    status: RunStatus = "running"
    is_dry_run: bool = False  # or the commit of one
    value: RunValue | None = None
    error: RunError | None = None
    stdout: str = ""
    stderr: str = ""
    calls: list[LedgerEntry] = field(default_factory=list)
    changed_files: list[str] = field(default_factory=list)
    removed_files: list[str] = field(default_factory=list)
    media: list[MediaEntry] = field(default_factory=list)  # what the code has shown, in order
    usage: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pending_questions: list[PendingQuestionView] = field(default_factory=list)
    result_files: dict[str, str] = field(default_factory=dict)  # complete value, by truncated field

    def apply_done(
        self, done: wire.RunDone, value: RunValue | None, stop_reason: str | None
    ) -> None:
        """Set what the sandbox says of the end; `stop_reason` is why the code was stopped.

        `value` is that of `done`, validated.
        """
        self.value, self.error = value, validate_error(done.error)
        self.media, problem = validate_media(done.media)
        if problem:
            self.notes.append(problem)
        self.usage |= validate_usage(done.usage)
        if stop_reason is not None:
            self.status = "timeout" if stop_reason == "timeout" else "cancelled"
        elif done.status == "ok":
            self.status = "ok"
        else:
            self.status = "crashed" if done.status == "died" else "error"

    def apply_failure(
        self, failure: McpRuntimeError, message: str = "", status: RunStatus = "crashed"
    ) -> None:
        """Set an end for which the code is not responsible."""
        self.status, self.value = status, None
        self.error = {
            "type": type(failure).__name__,
            "message": message or str(failure),
            "traceback": "",
            "line": None,
            "hint": "",
        }

    def apply_plan(self, plan: list[PendingQuestionView]) -> None:
        """Wait for a plan to be committed: the code has ended."""
        self.status, self.pending_questions = "waiting", plan
        if self.error is not None:
            self.notes.append(
                "The plan ends where the code could not continue; "
                "what follows is planned in another round. A dry run does call tools that only "
                "read, if they or the server's setting [policy] reads say so."
            )


def display_value(value: RunValue, max_chars: int, max_items: int | None) -> tuple[Any, bool]:
    """Return a run's value as a client gets it, and whether it is truncated.

    JSON data stays data, with at most `max_items` items in a list or object; the rest is text. A
    value that came whole is cut here; one that the sandbox had to cut is as its client gets it.
    """
    text, is_cut = value["text"], value["cut"]
    if is_cut:  # in the sandbox, where its parts were counted: here it is only bounded
        max_chars = max(int(max_chars * MAX_CUT_EXCESS), MIN_BOUND_CHARS)
        max_items = None
    if value["kind"] != "json" or (is_cut and len(text) > max_chars):
        text, is_cut_again = truncate_text(text, max_chars)
        return text, is_cut or is_cut_again
    if len(text) > max_chars or (max_items is not None and text.count(",") >= max_items):
        text, is_cut = _truncate_long_json(text, max_chars, max_items)
    return wire.escape_json_surrogates(json.loads(text)), is_cut


@lru_cache(MAX_REMEMBERED_VALUES)
def _truncate_long_json(text: str, max_chars: int, max_items: int | None) -> tuple[str, bool]:
    """Return JSON text of at most that size, and whether something is missing."""
    return truncate_json(wire.escape_json_surrogates(json.loads(text)), max_chars, max_items)


async def receive_value(
    value: Mapping[str, Any] | None, max_chars: int, max_items: int
) -> RunValue | None:
    """Validate what the sandbox says is the value of a run.

    A long value takes so much time that others would have to wait: it is validated in a thread, and
    truncated there to what a client is shown.
    """
    text = (value or {}).get("text")
    if not isinstance(text, str) or len(text) <= MAX_LOOP_CHARS:
        return validate_value(value)

    def prepare() -> RunValue | None:
        valid = validate_value(value)
        if valid is not None:
            display_value(valid, max_chars, max_items)
        return valid

    return await to_thread.run_sync(prepare)


def validate_value(value: Mapping[str, Any] | None) -> RunValue | None:
    """Return what the sandbox says is the value of a run, of the right types."""
    if value is None:
        return None
    text, is_cut = truncate_text(str(value.get("text")), MAX_VALUE_CHARS)
    is_json = not is_cut and value.get("kind") == "json" and _is_json_text(text)
    return {
        "kind": "json" if is_json else "repr",
        "text": text,
        "type": str(value.get("type"))[:MAX_TYPE_CHARS],
        "cut": is_cut or bool(value.get("cut")),
    }


def validate_presented(value: Mapping[str, Any], max_chars: int) -> ShownValue:
    """Return what the sandbox shows of a value, bounded and of the right types."""
    text, is_cut = truncate_text(str(value.get("text")), max_chars)
    kind = value.get("kind")
    return {
        "kind": kind if kind in VALUE_KINDS else "repr",
        "text": text,
        "type": str(value.get("type"))[:MAX_TYPE_CHARS],
        "cut": is_cut or bool(value.get("cut")),
    }


def validate_probe_hit(message: wire.ProbeHit) -> ProbedValue | None:
    """Return a value of a probe; None if it cannot be one."""
    if not 0 < message.number < MAX_COUNT:
        return None
    return ProbedValue(message.number, validate_presented(message.value, MAX_PROBED_CHARS))


def validate_inspection_result(result: Mapping[str, Any] | None) -> InspectionResult | None:
    """Return what the sandbox says at the end of a probe, of the right types."""
    if result is None:
        return None

    def count(name: str) -> int:
        value = result.get(name)
        return value if type(value) is int and 0 <= value < MAX_COUNT else 0

    problem = truncate_text(str(result.get("problem") or ""), MAX_HINT_CHARS)[0]
    return {"line": count("line"), "hit_count": count("hit_count"), "problem": problem}


def validate_media(claimed: Sequence[Any] | None) -> tuple[list[MediaEntry], str]:
    """Return the images and sounds of a run that are what they claim to be, and why others are not.

    The type is that of the bytes; number and size are bounded.
    """
    valid: list[MediaEntry] = []
    problems: list[str] = []
    size = 0
    for item in (claimed or ())[: MAX_MEDIA_ITEMS + 1]:
        text = item.get("data") if isinstance(item, dict) else None
        if not isinstance(text, str) or len(text) > MAX_MEDIA_BYTES * 2:
            problems.append("it is too large or no data")
            continue
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            problems.append("its data is not in base64")
            continue
        media = identify_media(data)
        problem = "it is neither an image nor a sound" if media is None else media.problem
        size += len(data)
        if not problem and (len(valid) >= MAX_MEDIA_ITEMS or size > MAX_ALL_MEDIA_BYTES):
            problem = "a run may show no more"
        if problem or media is None:
            problems.append(problem)
        else:
            encoded = base64.b64encode(data).decode()
            valid.append(MediaEntry(mime_type=media.mime_type, data=encoded))
    refused = len(claimed or ()) - len(valid)
    if not refused:
        return valid, ""
    what = "1 image or sound is" if refused == 1 else f"{refused:,} images or sounds are"
    return valid, f"{what} not shown: {problems[0]}."


def _is_json_text(text: str) -> bool:
    """Return whether `truncate_json` takes the data in `text`, which may be large."""
    try:
        data = json.loads(text)
        encode_json(data)  # no number in it is infinite
    except (ValueError, RecursionError):
        return False
    return not is_nested_deeper(data, MAX_DEPTH)


def validate_usage(usage: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the figures of a sandbox's usage that can be measurements."""
    valid: dict[str, float] = {}
    for name in USAGE_FIELDS:
        value = (usage or {}).get(name)
        if isinstance(value, (int, float)) and 0 <= value <= MAX_USAGE_VALUE:
            valid[name] = value
    return valid


def validate_readings(readings: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the clock readings of a sandbox that are numbers, by clock."""
    return {
        name: [value for value in values if _is_reading(value)]
        for name, values in islice(readings.items(), MAX_CLOCKS)
        if isinstance(values, list) and len(name) <= MAX_CLOCK_NAME_CHARS
    }


def _is_reading(value: Any) -> bool:
    if type(value) is int:
        return abs(value) <= MAX_READING
    return type(value) is float and math.isfinite(value)


def validate_error(error: Mapping[str, Any] | None) -> RunError | None:
    """Return what the sandbox says is the error of a run, bounded and of the right types."""
    if error is None:
        return None
    line = error.get("line")

    def text(name: str, max_chars: int) -> str:
        return truncate_text(str(error.get(name) or ""), max_chars)[0]

    return {
        "type": text("type", MAX_ERROR_CHARS),
        "message": text("message", MAX_ERROR_CHARS),
        "traceback": text("traceback", MAX_ERROR_CHARS),
        "line": line if type(line) is int else None,
        "hint": text("hint", MAX_HINT_CHARS),
    }
