"""How a run ended, beside the report that clients get of it."""

from __future__ import annotations

import anyio

from ..errors import McpRuntimeError
from ..journal.rows import UNDONE_FLAG
from ..protocol.payloads import InspectionResult


class RunEnding:
    """The state that a run leaves to its session, and why it may have no report."""

    def __init__(self) -> None:
        self.flags: set[str] = set()  # what is special about the state, as in `RunFinished`
        self.failure: McpRuntimeError | None = None  # why there is nothing to report
        self.inspection_result: InspectionResult | None = None  # of a probe

    @property
    def is_undone(self) -> bool:
        """Whether the session's state is still the one before the run."""
        return UNDONE_FLAG in self.flags

    def undo(self) -> None:
        """Leave the session's state as it was before the run."""
        self.flags.add(UNDONE_FLAG)

    def settle_flags(self, flags: set[str]) -> None:
        """Add what describes the final state; that of an undone run has nothing special."""
        if self.is_undone:
            self.flags = {UNDONE_FLAG}
        else:
            self.flags |= flags


class FileStorage:
    """Whether the files that a run has changed are in the journal."""

    def __init__(self) -> None:
        self.lost_reason = ""  # why they will never be
        self._settled = anyio.Event()

    @property
    def is_settled(self) -> bool:
        """Whether they are stored, or lost."""
        return self._settled.is_set()

    def settle(self, lost_reason: str = "") -> None:
        """Note that they are stored; with a reason, that they are lost."""
        self.lost_reason = lost_reason
        self._settled.set()

    async def wait(self) -> None:
        """Wait until they are stored, or lost."""
        await self._settled.wait()
