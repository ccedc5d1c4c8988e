"""Progress of work that takes a while, as people read it."""

from __future__ import annotations

from collections.abc import Callable

ReportProgress = Callable[[str], None]  # takes what is done now


def ignore_progress(_: str) -> None:
    """Report progress to nobody."""
