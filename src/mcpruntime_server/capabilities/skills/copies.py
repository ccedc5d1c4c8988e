"""Copies of parameters that code changes: what changes a default changes it for all calls that follow."""

from __future__ import annotations

from typing import Any

ATOMS = (str, int, float, bool, type(None))


def copy_of(name: str, value: Any) -> str:
    """Return the expression that copies a parameter of this value, as deep as it goes; "" if it goes too deep."""
    if isinstance(value, ATOMS):
        return name
    inner = list(value.values()) if isinstance(value, dict) else value
    if all(isinstance(each, ATOMS) for each in inner):
        return f"{{**{name}}}" if isinstance(value, dict) else f"[*{name}]"
    kinds = {copy_of("each", each) for each in inner}
    copied = kinds.pop()
    if kinds or copied not in ("[*each]", "{**each}"):
        return ""
    if isinstance(value, dict):
        return f"{{key: {copied} for key, each in {name}.items()}}"
    return f"[{copied} for each in {name}]"
