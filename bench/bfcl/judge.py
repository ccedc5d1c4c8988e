"""Judges scenarios by the leaderboard's own checkers, in its own environment.

It reads one request a line: the id and class names of a scenario, its initial configuration, its
gold calls by turn, and the values that the program returned by turn. The states are those that the
MCP server wrote to its trace. Each answer is a line with a list of problems, empty if it is right.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import (
    response_checker,
    state_checker,
)
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call


def read_trace(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the instances after each call."""
    with file.open("rb") as trace:
        while trace.peek(1):
            yield pickle.load(trace)[2]


def present_value(value: Any) -> str:
    """Return a value as the text that the leaderboard's executor makes of it."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, dict) else str(value)


def find_problems(request: dict[str, Any], trace: Path, attempt: int) -> list[str]:
    """Return what is wrong with a scenario, after each turn as the leaderboard's checker does."""
    states, values = list(read_trace(trace)), request["values"]
    turns = request["turns"]
    if [len(each) for each in turns] != [len(each) for each in values]:
        return ["the program did not return a value for each call"]
    if len(states) != sum(map(len, turns)):
        return [f"{len(states)} calls reached the server, not {sum(map(len, turns))}"]
    seen: list[str] = []
    for number, turn in enumerate(turns):
        seen += map(present_value, values[number])
        expected, instances = execute_multi_turn_func_call(
            turn,
            request["config"],
            request["classes"],
            f"gold_{attempt}",  # it keeps instances by this name
            request["id"],
            long_context=request["long_context"],
        )
        if not turn:
            continue
        for found in (
            state_checker(states[sum(map(len, turns[: number + 1])) - 1], instances),
            response_checker(seen, expected, number),
        ):
            if not found["valid"]:
                detail = json.dumps(found.get("details", {}), default=str)
                return [f"turn {number}: {found['error_message']} {detail}"]
    return []


if __name__ == "__main__":
    for attempt, line in enumerate(sys.stdin):
        problems = find_problems(json.loads(line), Path(sys.argv[1]), attempt)
        print(json.dumps(problems), flush=True)
