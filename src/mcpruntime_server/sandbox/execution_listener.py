"""What a link tells about an execution."""

from __future__ import annotations

from typing import Protocol

from ..protocol import wire
from .frame_writer import FrameWriter


class ExecutionListener(Protocol):
    """Receives what a sandbox sends during a run, in order. What is not `async` must not block."""

    async def catch_up(self) -> None:
        """Wait while so much of what was received is not stored that no more should come."""
        ...

    def on_output(self, message: wire.Output) -> None:
        """Code printed something."""
        ...

    def on_files(self, message: wire.FilesChanged) -> None:
        """Code changed workspace files."""
        ...

    def on_file_data(self, message: wire.FileData) -> None:
        """A chunk of a changed file has arrived; the run has finished."""
        ...

    def on_saved(self, message: wire.FilesSaved) -> None:
        """The last chunk of the last changed file has arrived."""
        ...

    def on_probe_hit(self, message: wire.ProbeHit) -> None:
        """A probed line is about to be executed."""
        ...

    async def on_call(self, message: wire.Call, writer: FrameWriter) -> wire.Reply:
        """Answer a call; cancelled if the run finishes first.

        An answer that is asked of others may be large: `writer` says whether there is room for it.
        """
        ...
