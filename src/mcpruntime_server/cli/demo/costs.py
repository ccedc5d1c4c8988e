"""What a run cost, and how much text the same calls would be with one call in each turn.

Nothing is estimated: times, arguments and results come from the journal. One call a turn counts the
call (its name and arguments, which the model writes) and its result. Code counts the program and
the text that `run_code` answered. Both sides leave out the definitions of the tools, and that a
model reads the whole conversation again in each turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import Unavailable
from .token_count import count_tokens

TOOL_PREFIX = "tools."
Interval = tuple[float, float]  # seconds


@dataclass(frozen=True)
class TimedCall:
    """One call of a run: when it was under way, and its text as a turn of its own."""

    target: str
    span: Interval
    text: str

    @property
    def is_tool(self) -> bool:
        """Whether an upstream answered it, and not the catalogue of tools."""
        return self.target.startswith(TOOL_PREFIX)


@dataclass(frozen=True)
class TextAmount:
    """An amount of text; `tokens` is None if they cannot be counted."""

    characters: int
    tokens: int | None

    def __sub__(self, other: TextAmount) -> TextAmount:
        """Return the difference of two amounts."""
        tokens = None if self.tokens is None or other.tokens is None else self.tokens - other.tokens
        return TextAmount(self.characters - other.characters, tokens)


@dataclass(frozen=True)
class StepCost:
    """One step: milliseconds by phase, and the text for the model, counted in both ways."""

    session_ms: float
    catalog_ms: float
    upstream_ms: float
    code_ms: float
    total_ms: float
    call_count: int
    as_turns: TextAmount
    as_code: TextAmount


def load_calls(events: Iterable[Mapping[str, Any]]) -> list[TimedCall]:
    """Return the calls of a run from its events, as `runs SESSION RUN --json` prints them."""
    started: dict[int, Mapping[str, Any]] = {}
    calls = []
    for event in events:
        if event["kind"] == "CallStarted":
            started[event["call_id"]] = event
        elif event["kind"] == "CallFinished":
            start = started[event["call_id"]]
            name = start["target"].removeprefix(TOOL_PREFIX)
            text = f"{name} {start['args']}\n{format_result(event)}"
            span = (start["at"], start["at"] + event["duration_ms"] / 1e3)
            calls.append(TimedCall(start["target"], span, text))
    return calls


def format_result(finished: Mapping[str, Any]) -> str:
    """Return a call's result as text for a model; data becomes JSON."""
    value = finished["error"]["message"] if finished["error"] else finished["value"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def compute_cost(
    calls: Sequence[TimedCall], usage: dict[str, float], total_ms: float, program: str, answer: str
) -> StepCost:
    """Return the cost of a run of `program` with this `usage` and the text `answer`."""
    session = usage["setup_ms"]
    tools = covered_duration_ms([call.span for call in calls if not call.is_tool])
    working = covered_duration_ms([call.span for call in calls if call.is_tool])
    turns = [call.text for call in calls if call.is_tool]
    return StepCost(
        session_ms=session,
        catalog_ms=tools,
        upstream_ms=working,
        code_ms=max(0.0, total_ms - session - tools - working),
        total_ms=total_ms,
        call_count=len(turns),
        as_turns=measure_texts(turns),
        as_code=measure_texts([program, answer]),
    )


def measure_texts(texts: Sequence[str]) -> TextAmount:
    """Return the amount of text in `texts`."""
    try:
        tokens = sum(map(count_tokens, texts))
    except Unavailable:
        return TextAmount(sum(map(len, texts)), None)
    return TextAmount(sum(map(len, texts)), tokens)


def sum_amounts(texts: Sequence[TextAmount]) -> TextAmount:
    """Return the sum of several amounts."""
    tokens = [text.tokens for text in texts if text.tokens is not None]
    return TextAmount(
        sum(text.characters for text in texts), sum(tokens) if len(tokens) == len(texts) else None
    )


def format_amount(text: TextAmount) -> tuple[str, str]:
    """Return an amount of text as two cells of a table."""
    return f"{text.characters:,}", "not counted" if text.tokens is None else f"{text.tokens:,}"


def covered_duration_ms(spans: Sequence[Interval]) -> float:
    """Return how long at least one of `spans` was under way; overlaps count once."""
    total, reached = 0.0, 0.0
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total * 1e3
