"""The guide of a sandbox: what `help()` prints, and the hints that errors get.

Rule: standard library only, Python >= 3.9, and what costs time is imported when it is used.
"""

from __future__ import annotations

import sys

from ...protocol.sandbox_facts import NO_FACTS, describe_sandbox

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Mapping, Optional

    from ...protocol.payloads import SandboxFacts

HELP_PROPERTY = "_help_text"
MORE_HELP = "help(tools): the MCP servers and how to call them; help(CONTEXT): a run's input."


class SandboxGuide:
    """Knows what the sandbox is."""

    def __init__(self, facts: Optional[Mapping[str, Any]]) -> None:
        self.facts: SandboxFacts = {**NO_FACTS, **(facts or {})}  # type: ignore[typeddict-item]

    def help(self, *topics: Any) -> None:
        """Print what an object is and how it is used; without one, what this sandbox is."""
        if not topics:
            print(f"{self.describe_sandbox()}\n{MORE_HELP}")
            return
        for topic in topics:
            text = getattr(type(topic), HELP_PROPERTY, None)
            if isinstance(text, property):
                print(getattr(topic, HELP_PROPERTY))
            else:
                import pydoc

                pydoc.help(topic)

    def describe_sandbox(self) -> str:
        """Return what this sandbox is, in three lines."""
        from .hints import list_packages

        major, minor, micro = sys.version_info[:3]
        return describe_sandbox(self.facts, f"Python {major}.{minor}.{micro}", list_packages())

    def find_hint(self, exc: BaseException, pending_sources: Mapping[str, Any]) -> str:
        """Return the way out of a failure, or "".

        `pending_sources` has the lines that `linecache` may not have yet.
        """
        from .hints import find_hint

        def read_line(filename: str, number: int) -> str:
            import linecache

            lines = pending_sources[filename][2] if filename in pending_sources else None
            lines = lines or linecache.getlines(filename)
            return str(lines[number - 1]) if 0 < number <= len(lines) else ""

        try:
            return find_hint(exc, self.facts, read_line)
        except Exception:  # noqa: BLE001 - an exception of user code may be anything
            return ""
