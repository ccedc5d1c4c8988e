"""How an agent gets its material: the program that makes the variable CONTEXT, and what its model is told of it.

This is the one place that knows how CONTEXT comes into a namespace.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..kernel.present import shorten
from .conversation import apart

NAME = "CONTEXT"
BEGINS = 400  # characters of a context that the model is shown


@dataclass(frozen=True)
class Given:
    """A program that makes the variable, what the model is told of it, and how many characters it has."""

    code: str
    told: str
    size: int


def text_of(context: Any) -> str:
    """Return a text, or JSON data as text."""
    return context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)


def given(context: Any) -> Given | None:
    """Return how a text, or JSON data, is given to an agent; None if there is nothing to give."""
    if context is None:
        return None
    text = text_of(context)
    if isinstance(context, str):
        code = f"{NAME} = {context!r}"
        kind = f"a text of {len(text):,} characters in {text.count(chr(10)) + 1:,} lines"
    else:
        code = f"import json as _json\n{NAME} = _json.loads({json.dumps(context)!r})\ndel _json"
        kind = f"{kind_of(context)}, {len(text):,} characters as JSON"
    return Given(f"{code}\nNone", f"{kind}; it begins\n{apart(shorten(text, BEGINS)[0])}", len(text))


def kind_of(value: Any) -> str:
    """Return in words what JSON data is."""
    if isinstance(value, list):
        return f"a list of {len(value):,} items"
    if isinstance(value, dict):
        return f"a dict with {len(value):,} keys"
    return f"a value of type {type(value).__name__}"
