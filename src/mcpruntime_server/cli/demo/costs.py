"""How much text a run was for a model, and how much the same calls with one in each turn.

Nothing is estimated: arguments and results come from the journal. One call a turn counts the
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
    """The text of one step for the model, counted in both ways."""

    call_count: int
    as_turns: TextAmount
    as_code: TextAmount


def load_calls(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the tool calls of a run, each as the text of a turn of its own.

    `events` are those of the run, as `runs SESSION RUN --json` prints them. Calls of the catalogue
    are left out.
    """
    started: dict[int, Mapping[str, Any]] = {}
    texts = []
    for event in events:
        if event["kind"] == "CallStarted":
            started[event["call_id"]] = event
        elif event["kind"] == "CallFinished":
            start = started[event["call_id"]]
            if start["target"].startswith(TOOL_PREFIX):
                name = start["target"].removeprefix(TOOL_PREFIX)
                texts.append(f"{name} {start['args']}\n{format_result(event)}")
    return texts


def format_result(finished: Mapping[str, Any]) -> str:
    """Return a call's result as text for a model; data becomes JSON."""
    value = finished["error"]["message"] if finished["error"] else finished["value"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def compute_cost(turns: Sequence[str], program: str, answer: str) -> StepCost:
    """Return the cost of a run of `program` with the text `answer`, and with these `turns`."""
    return StepCost(
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
