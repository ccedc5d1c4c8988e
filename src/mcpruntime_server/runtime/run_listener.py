"""What a sandbox sends while it executes a run: output, files, and calls to be answered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio

from ..errors import JournalFailed
from ..journal.call_scope import begin_call, end_call
from ..journal.events import FilesChanged
from ..journal.store import Journal
from ..protocol import wire
from ..sandbox.frame_writer import FrameWriter
from .call_journal import CallJournal
from .file_receiver import FILE_OVERHEAD_BYTES, FileReceiver
from .output_buffer import OutputBuffer
from .router import CallHandler
from .run_journal import RunJournal
from .run_report import MAX_PROBE_HITS, ProbedValue, RunReport, validate_probe_hit
from .run_spec import RunLimits


class RunListener:
    """Receives the messages of one run; closed when another server continues the run.

    Its calls are answered for `principal`.
    """

    def __init__(
        self,
        principal: str,
        report: RunReport,
        run_journal: RunJournal,
        call_journal: CallJournal,
        output: OutputBuffer,
        call_handler: CallHandler,
        limits: RunLimits,
        spool_folder: Path,
        on_update: Callable[[], None],
    ) -> None:
        self.output = output
        self.file_receiver = FileReceiver(limits.max_file_bytes + FILE_OVERHEAD_BYTES, spool_folder)
        self.has_changed_files = False
        self.probe_hits: list[ProbedValue] = []
        self._principal = principal
        self._is_closed = False
        self._report = report
        self._run_journal = run_journal
        self._call_journal = call_journal
        self._call_handler = call_handler
        self._on_update = on_update

    def close(self) -> None:
        """Drop output and leave calls unanswered from here on."""
        self._is_closed = True

    async def catch_up(self) -> None:
        """Wait for the disk if much waits for it; what fails is reported by the next event."""
        with suppress(JournalFailed):
            await self._run_journal.catch_up()

    def on_output(self, message: wire.Output) -> None:
        """Keep a piece of output."""
        if self._is_closed:
            return
        try:
            self.output.receive_output(message)
        except JournalFailed:
            self._call_journal.record_gap()
        self._on_update()

    def on_files(self, message: wire.FilesChanged) -> None:
        """Note which files changed; their content follows."""
        self.has_changed_files = True
        self.file_receiver.expected_files = set(message.changed)
        self._report.changed_files = list(dict.fromkeys(message.changed))
        self._report.removed_files = message.removed
        if message.skipped_count > 0:
            self._report.notes.append(
                f"{message.skipped_count:,} files in the workspace are not kept: too many, "
                "or their names are not UTF-8."
            )

    def on_file_data(self, message: wire.FileData) -> None:
        """Keep a chunk of a changed file."""
        self.file_receiver.receive_chunk(message)

    def on_saved(self, message: wire.FilesSaved) -> None:
        """Note that all changed files have arrived."""
        self.file_receiver.is_complete = True

    def on_probe_hit(self, message: wire.ProbeHit) -> None:
        """Keep the value of a probed expression."""
        hit = validate_probe_hit(message)
        if hit is not None and len(self.probe_hits) < MAX_PROBE_HITS:
            self.probe_hits.append(hit)

    async def on_call(self, message: wire.Call, writer: FrameWriter) -> wire.Reply:
        """Answer a call; what the code has read from clocks before it is journaled first."""
        if self._is_closed:
            await anyio.sleep_forever()  # until its sandbox is gone
        begin_call(self._principal, writer)
        try:
            await self._run_journal.catch_up()
            self._run_journal.journal_clock_readings(message.clock_readings)
            return await self._call_handler.answer_call(message, self._call_journal)
        except JournalFailed as exc:
            self._call_journal.record_gap()
            text = f"{message.target} was not called: {exc}"
            error = {"kind": "unavailable", "message": text, "data": None}
            return wire.Reply(message.call_id, None, error)
        finally:
            end_call()

    async def store_files(self, journal: Journal) -> FilesChanged | None:
        """Journal the changed files with their content; return None if some have not arrived.

        The journal then says that they are lost; executing the step again can recover them.
        """
        if not self.file_receiver.is_complete:
            return None
        stored = await self.file_receiver.store_blobs(journal)
        changed = FilesChanged(stored, self._report.removed_files)
        self._run_journal.append_event(changed)
        return changed
