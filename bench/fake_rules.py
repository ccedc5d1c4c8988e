"""The answers of the deterministic model: the name of a model is its rule.

- `echo`: the last message;
- `parrot`: a program whose answer is the last message;
- `sum`: the sum of the integers in the last message;
- `count:WORD`: how often the word occurs in it;
- `json`: the smallest value of the schema;
- `never-json`: a text that is not JSON;
- `tool`: a call of the first tool with the smallest arguments, then the result of the call;
- `reader`: an answer from a text (`fake_reader`), or for an agent a program (`fake_programmer`);
- `forgetful:N:RULE`: the rule, applied to the first and the last N/2 characters of each message.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .fake_programmer import AGENT_MARK, write_program
from .fake_reader import read_text

Schema = Mapping[str, Any] | None


class UnknownModel(ValueError):
    """No rule has this name."""


def answer_by_rule(model: str, texts: Sequence[str], schema: Schema) -> str:
    """Return the model's answer in a conversation; raises `UnknownModel`."""
    rule, _, rest = model.rpartition("/")[2].partition(":")
    if rule == "forgetful":
        window, _, other = rest.partition(":")
        if not window.isdecimal():
            raise UnknownModel(
                f"The model `{model}` does not exist: {window!r} is no number of characters."
            )
        return answer_by_rule(
            other, [truncate_to_window(text, int(window)) for text in texts], schema
        )
    if rule not in RULES:
        raise UnknownModel(f"The model `{model}` does not exist.")
    return RULES[rule](texts, rest, schema)


def truncate_to_window(text: str, window: int) -> str:
    """Return a text without its middle if it is longer than the window."""
    half = window // 2
    return text if len(text) <= window else text[:half] + text[len(text) - half :]


def add_integers(texts: Sequence[str], rest: str, schema: Schema) -> str:
    """Return the sum of the integers in the last message."""
    return str(sum(map(int, re.findall(r"-?\d+", texts[-1]))))


def count_word(texts: Sequence[str], rest: str, schema: Schema) -> str:
    """Return how often the word `rest` occurs in the last message."""
    return str(len(re.findall(rf"\b{re.escape(rest)}\b", texts[-1])))


def read_or_program(texts: Sequence[str], rest: str, schema: Schema) -> str:
    """Answer from a text, or write a program if an agent asks."""
    return write_program(texts) if AGENT_MARK in texts[0] else read_text(texts[-1], schema)


RULES: Mapping[str, Callable[[Sequence[str], str, Schema], str]] = {
    "echo": lambda texts, rest, schema: texts[-1],
    "tool": lambda texts, rest, schema: texts[-1],
    "parrot": lambda texts, rest, schema: f"```python\n# answer\n{texts[-1]!r}\n```",
    "sum": add_integers,
    "count": count_word,
    "json": lambda texts, rest, schema: json.dumps(smallest_value(schema or {})),
    "never-json": lambda texts, rest, schema: "I would rather not.",
    "reader": read_or_program,
}


def tool_calls_by_rule(model: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tool calls of the answer.

    Only the rule `tool` makes a call, unless the last message is the result of one.
    """
    tools = body.get("tools") or []
    if (
        model.rpartition("/")[2] != "tool"
        or not tools
        or body["messages"][-1].get("role") == "tool"
    ):
        return []
    function = tools[0]["function"]
    arguments = json.dumps(smallest_value(function.get("parameters") or {"type": "object"}))
    return [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments},
        }
    ]


def extract_schema(text: str) -> Any:
    """Return the JSON object at the end of a text, or None."""
    try:
        return json.loads(text[text.index("\n{") :])
    except ValueError:
        return None


def smallest_value(schema: Mapping[str, Any]) -> Any:
    """Return the smallest value that is valid for a schema."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return smallest_value(schema["anyOf"][0])
    kind = schema.get("type", "string")
    if kind == "object":
        properties = schema.get("properties", {})
        return {
            name: smallest_value(properties[name]) for name in schema.get("required", properties)
        }
    if kind == "array":
        return [smallest_value(schema.get("items", {}))] * schema.get("minItems", 0)
    smallest_of = {
        "string": "",
        "integer": schema.get("minimum", 0),
        "number": 0.5,
        "boolean": False,
        "null": None,
    }
    return smallest_of[kind if isinstance(kind, str) else kind[0]]


def count_tokens(text: str) -> int:
    """Return the number of tokens of a text: characters/4, rounded up."""
    return math.ceil(len(text) / 4)
