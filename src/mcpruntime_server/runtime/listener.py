"""What a sandbox sends while it executes a run, taken where it belongs: output, files, and calls to be answered."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from ..errors import JournalFailed
from ..journal.events import FilesChanged
from ..journal.store import Journal
from ..kernel import wire
from .calls import Answers, CallLog
from .files import Files
from .printed import Printed
from .record import Record
from .report import Report
from .request import Limits

FILE_OVERHEAD = 64 * 1024 * 1024  # bytes of file content that a sandbox may send beyond its workspace's size


class RunListener:
    """Listens to a sandbox for one run, until it is deaf: then the run goes on in another server."""

    is_deaf = False
    has_files = False  # the code has changed files

    def __init__(
        self, report: Report, record: Record, log: CallLog, printed: Printed, answers: Answers, limits: Limits
    ) -> None:
        self.on_news: Callable[[], None] = lambda: None
        self.files = Files(limits.files + FILE_OVERHEAD)
        self._report = report
        self._record = record
        self._log = log
        self._printed = printed
        self._answers = answers

    def on_output(self, message: wire.Output) -> None:
        """Take what was printed."""
        if not self.is_deaf:
            self._printed.take(message)
            self.on_news()

    def on_files(self, message: wire.Files) -> None:
        """Note which files changed; their content follows."""
        self.has_files = True
        self._report.changed, self._report.removed = message.changed, message.removed
        if message.passed_over > 0:
            self._report.notes.append(
                f"{message.passed_over:,} files in the workspace are not kept: too many, or their names are not UTF-8."
            )

    def on_file_data(self, message: wire.FileData) -> None:
        """Take a piece of a changed file."""
        self.files.take(message)

    def on_saved(self, message: wire.Saved) -> None:
        """All files are here."""
        self.files.have_come = True

    async def on_call(self, message: wire.Call) -> wire.Reply:
        """Answer what the code asks for; what clocks told it before is journaled before."""
        if self.is_deaf:
            await anyio.sleep_forever()  # until its sandbox is gone
        try:
            self._record.note_clocks(message.clocks)
            return await self._answers.answer(message, self._log)
        except JournalFailed as exc:
            text = f"{message.target} was not called: {exc}"
            return wire.Reply(message.id, None, {"kind": "unavailable", "message": text, "data": None})

    async def store_files(self, journal: Journal) -> FilesChanged | None:
        """Keep the content of the changed files; return what changed, or None if not all of it has come.

        The journal then says that they were lost, and a rebuild can mend that.
        """
        if not self.files.have_come:
            return None
        changed = FilesChanged(await self.files.store(journal), self._report.removed)
        self._record.append(changed)
        return changed
