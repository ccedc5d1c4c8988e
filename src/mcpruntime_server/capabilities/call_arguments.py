"""Read the arguments of calls. They are untrusted, because code in a sandbox wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CallFailed


def get_argument(args: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """Return an argument of exactly this type, or `default`.

    Raises `CallFailed` if it has another type.
    """
    value = args.get(name, default)
    if value is not default and type(value) is not kind:
        raise invalid_arguments(
            f"{name!r} must be of type {kind.__name__}, not {type(value).__name__}."
        )
    return value


def invalid_arguments(message: str, remedy: str = "") -> CallFailed:
    """Return the error for a call with arguments that cannot be used."""
    return CallFailed("invalid_arguments", message, remedy=remedy)
