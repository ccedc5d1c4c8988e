"""What the runtime needs of the capability that finds and keeps the inputs of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ..journal.events import InputEntry


class InputProvider(Protocol):
    """Knows where the content of inputs is; see `capabilities/inputs`."""

    def input_id(self, entry: InputEntry) -> str:
        """Return the id of an input, which follows from its content."""
        ...

    def file_name(self, entry: InputEntry) -> str:
        """Return the name of the file that holds the content of an input in a sandbox."""
        ...

    def remember_inputs(self, session: str, inputs: Sequence[InputEntry]) -> None:
        """Allow the code of a session to refer to these."""
        ...

    async def load_context(self, run: str | None) -> list[InputEntry]:
        """Return the inputs that the journal has of a run; None has none."""
        ...

    def place_content(
        self, entry: InputEntry, target: Path, report_copied: Callable[[int], None]
    ) -> int:
        """Put the content of an input at `target`; return its modification time in ns.

        Blocks, so it is for worker threads. Raises `InputChanged`, `Unavailable`, and what
        `report_copied` raises, which is called with the number of bytes copied so far.
        """
        ...

    def read_content(self, entry: InputEntry) -> bytes:
        """Return the content of an input; raises `InputChanged`. Blocks."""
        ...

    async def load_digests(self, session: str) -> None:
        """Learn what the journal knows about the content of a session's files."""
        ...

    async def hash_files(
        self,
        session: str,
        run: str,
        inputs: Sequence[InputEntry],
        should_continue: Callable[[], bool],
    ) -> None:
        """Journal the digests of large inputs; raises `JournalFailed`."""
        ...
