"""Prepare the material of an agent: the code that sets CONTEXT, and its description for the model.

Texts and JSON data become plain values. Files and slices of inputs become inputs of the agent's
session, which programs read piece by piece.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...protocol.truncation import truncate_text
from ..data_marks import mark_as_data

CONTEXT_NAME = "CONTEXT"
PREVIEW_CHARS = 400  # of the material, shown to the model
READING_HELP = (
    "It is not a str: CONTEXT.peek(n), .slice(start, end), .lines(start, end), .grep(pattern), "
    '.sample(n) and .chunks(max_chars, overlap=0, by="lines") return slices of it, and .text is '
    "the text of a slice; ask_llm accepts slices as data and sub_agent as context; "
    "`for line in CONTEXT` reads all of it; CONTEXT_DATA has the inputs by position and name"
)


@dataclass(frozen=True)
class AgentMaterial:
    """The material of a task: a description, and a program and inputs that set it up."""

    description: str
    setup_code: str = "None"
    inputs: Sequence[Any] = ()


def material_text(context: Any) -> str:
    """Return a text as it is, and JSON data as text."""
    return context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)


def prepare_material(context: Any) -> AgentMaterial | None:
    """Return how an agent receives a text or JSON data; None if there is none."""
    if context is None:
        return None
    text = material_text(context)
    if isinstance(context, str):
        lines = text.count("\n") + 1
        description = f"a text of {len(text):,} characters in {lines:,} lines"
        setup_code = f"{CONTEXT_NAME} = {context!r}"
    else:
        description = f"{describe_json(context)}, {len(text):,} characters as JSON"
        loads = f"_json.loads({json.dumps(context)!r})"
        setup_code = f"import json as _json\n{CONTEXT_NAME} = {loads}\ndel _json"
    preview, _ = truncate_text(text, PREVIEW_CHARS)
    return AgentMaterial(
        f"{description}; it begins\n{mark_as_data(preview)}", f"{setup_code}\nNone"
    )


def prepare_inputs(names: str, preview: str, inputs: Sequence[Any]) -> AgentMaterial:
    """Return how an agent receives inputs; `preview` is the beginning of the first one."""
    count = "an input" if len(inputs) == 1 else f"{len(inputs)} inputs"
    description = f"{count}: {names}. {READING_HELP}. It begins\n{mark_as_data(preview)}"
    return AgentMaterial(description, inputs=inputs)


def describe_json(value: Any) -> str:
    """Return the type and size of JSON data in words."""
    if isinstance(value, list):
        return f"a list of {len(value):,} items"
    if isinstance(value, dict):
        return f"a dict with {len(value):,} keys"
    return f"a value of type {type(value).__name__}"
