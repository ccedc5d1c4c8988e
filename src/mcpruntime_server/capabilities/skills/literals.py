"""Read the values of literals in code, and name the types of recorded values."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from typing import Any

from .model import RecordedCase

SCALARS = (str, int, float, bool)
MAX_TYPE_DEPTH = 3
MAX_TYPED_ITEMS = 100  # of one container


def literal_value(node: ast.expr) -> Any:
    """Return the JSON value of a literal; raises `ValueError` if it is not one."""
    try:
        value = ast.literal_eval(node)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as exc:
        raise ValueError("not a literal") from exc
    return value


def annotation_of(value: Any, depth: int = MAX_TYPE_DEPTH) -> str:
    """Return the type of a JSON value as Python source.

    What is nested deeper than `depth`, or of mixed types, is `Any`.
    """
    if value is None:
        return "None"
    if isinstance(value, SCALARS):
        return type(value).__name__
    if depth == 0 or not isinstance(value, (list, tuple, dict)):
        return "Any"
    items = list(value.values()) if isinstance(value, dict) else value
    inner = _union_of(annotation_of(each, depth - 1) for each in items[:MAX_TYPED_ITEMS])
    if isinstance(value, dict):
        return f"dict[str, {inner}]"
    return f"tuple[{inner}, ...]" if isinstance(value, tuple) else f"list[{inner}]"


def _union_of(annotations: Iterable[str]) -> str:
    """Return the type of values of some types, as far as it is one type or None."""
    kinds = set(annotations)
    if "float" in kinds:
        kinds.discard("int")
    if kinds == {"None"}:
        return "None"
    is_optional = "None" in kinds
    kinds.discard("None")
    if len(kinds) != 1:
        return "Any"
    kind = kinds.pop()
    return f"{kind} | None" if is_optional and kind != "Any" else kind


def result_annotation(case: RecordedCase) -> str:
    """Return the type of a recorded result; "" if it is not known."""
    result = case.result
    if result is None or result["kind"] != "json" or result["cut"] or case.compares_stdout:
        return ""
    return annotation_of(json.loads(result["text"]))
