"""Types of recorded values, as Python source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 3
MAX_LOOKED_AT = 100  # items of a container


def annotation_of(value: Any, depth: int = MAX_DEPTH) -> str:
    """Return the annotation that fits a JSON value; what is deeper than `depth`, or of many kinds, is `Any`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return "None" if value is None else type(value).__name__
    if depth == 0 or not isinstance(value, (list, tuple, dict)):
        return "Any"
    if isinstance(value, dict):
        return f"dict[str, {_union(annotation_of(each, depth - 1) for each in list(value.values())[:MAX_LOOKED_AT])}]"
    items = _union(annotation_of(each, depth - 1) for each in value[:MAX_LOOKED_AT])
    return f"tuple[{items}, ...]" if isinstance(value, tuple) else f"list[{items}]"


def _union(annotations: Iterable[str]) -> str:
    kinds = dict.fromkeys(annotations)
    if "float" in kinds:
        kinds.pop("int", None)
    nullable = kinds.pop("None", "") is None and bool(kinds)
    if len(kinds) != 1:
        return "Any" if kinds or not nullable else "None"
    kind = next(iter(kinds))
    return f"{kind} | None" if nullable and kind != "Any" else kind
