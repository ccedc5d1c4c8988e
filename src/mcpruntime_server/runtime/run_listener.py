"""What a sandbox sends while it executes a run, taken where it belongs: output, files, and calls to be answered."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from ..errors import JournalFailed
from ..journal.events import FilesChanged
from ..journal.store import Journal
from ..protocol import wire
from .file_receiver import FileReceiver
from .output_buffer import OutputBuffer
from .router import CallHandler, CallJournal
from .run_journal import RunJournal
from .run_report import RunReport
from .run_spec import RunLimits

FILE_OVERHEAD_BYTES = (
    64 * 1024 * 1024
)  # bytes of file content that a sandbox may send beyond its workspace's size


class RunListener:
    """Listens to a sandbox for one run, until it is deaf: then the run goes on in another server."""

    is_closed = False
    has_changed_files = False  # the code has changed files

    def __init__(
        self,
        report: RunReport,
        run_journal: RunJournal,
        call_journal: CallJournal,
        output: OutputBuffer,
        call_handler: CallHandler,
        limits: RunLimits,
    ) -> None:
        self.on_update: Callable[[], None] = lambda: None
        self.file_receiver = FileReceiver(limits.max_file_bytes + FILE_OVERHEAD_BYTES)
        self._report = report
        self._run_journal = run_journal
        self._call_journal = call_journal
        self._output = output
        self._call_handler = call_handler

    def on_output(self, message: wire.Output) -> None:
        """Take what was printed."""
        if not self.is_closed:
            self._output.receive_output(message)
            self.on_update()

    def on_files(self, message: wire.FilesChanged) -> None:
        """Note which files changed; their content follows."""
        self.has_changed_files = True
        self._report.changed_files, self._report.removed_files = message.changed, message.removed
        if message.skipped_count > 0:
            self._report.notes.append(
                f"{message.skipped_count:,} files in the workspace are not kept: too many, or their names are not UTF-8."
            )

    def on_file_data(self, message: wire.FileData) -> None:
        """Take a piece of a changed file."""
        self.file_receiver.receive_chunk(message)

    def on_saved(self, message: wire.FilesSaved) -> None:
        """All files are here."""
        self.file_receiver.is_complete = True

    async def on_call(self, message: wire.Call) -> wire.Reply:
        """Answer what the code asks for; what clocks told it before is journaled before."""
        if self.is_closed:
            await anyio.sleep_forever()  # until its sandbox is gone
        try:
            self._run_journal.journal_clock_readings(message.clock_readings)
            return await self._call_handler.answer_call(message, self._call_journal)
        except JournalFailed as exc:
            text = f"{message.target} was not called: {exc}"
            return wire.Reply(
                message.call_id, None, {"kind": "unavailable", "message": text, "data": None}
            )

    async def store_files(self, journal: Journal) -> FilesChanged | None:
        """Keep the content of the changed files; return what changed, or None if not all of it has come.

        The journal then says that they were lost, and a rebuild can mend that.
        """
        if not self.file_receiver.is_complete:
            return None
        changed = FilesChanged(
            await self.file_receiver.store_blobs(journal), self._report.removed_files
        )
        self._run_journal.append_event(changed)
        return changed
