"""Suggestions for misspelled names."""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}? " if close else ""
