"""Executes a recorded step again, so that its end state exists again; nothing outside is touched.

It knows neither sessions nor the order of steps (see `environment`), and journals nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from anyio import to_thread

from ..errors import ReplayDiverged
from ..journal.events import FileEntry
from ..journal.recording import Recording
from ..protocol import wire
from ..protocol.payloads import InputDescription
from ..sandbox.frame_writer import FrameWriter
from ..sandbox.link import SandboxLink
from .file_receiver import FILE_OVERHEAD_BYTES, FileReceiver, ReceivedFile
from .output_buffer import OutputBuffer
from .replayer import Replayer
from .router import Router
from .run_report import validate_error, validate_value
from .run_spec import RunLimits

REBUILD_TIMEOUT_FACTOR = 2.0  # of a step's time limit, plus `REBUILD_EXTRA_S`
REBUILD_EXTRA_S = 10.0
REPEATABLE_STATUSES = {"ok": "ok", "error": "error"}  # of a `RunDone` -> of a run


@dataclass
class RebuiltStep:
    """The outcome of a step that was executed again."""

    differences: list[str] = field(default_factory=list)  # results that are not as recorded
    divergence: ReplayDiverged | None = None
    was_stopped: bool = False
    files: dict[str, tuple[FileEntry, ReceivedFile]] = field(default_factory=dict)
    removed_files: list[str] = field(default_factory=list)
    output: dict[str, str] = field(default_factory=dict)  # by stream


class RebuildListener:
    """Answers the calls of a step that is executed again, and keeps its output and files."""

    def __init__(self, replayer: Replayer, limits: RunLimits, spool_folder: Path) -> None:
        self.output = OutputBuffer(lambda _: None, limits.max_output_bytes, {})
        self.removed_files: list[str] = []
        self.file_receiver = FileReceiver(limits.max_file_bytes + FILE_OVERHEAD_BYTES, spool_folder)
        self._replayer = replayer

    async def catch_up(self) -> None:
        """Do nothing: nothing is stored."""

    def on_output(self, message: wire.Output) -> None:
        """Keep output as it was kept when it was recorded."""
        self.output.receive_output(message)

    def on_files(self, message: wire.FilesChanged) -> None:
        """Note which files were removed; the content of the changed ones follows."""
        self.file_receiver.expected_files = set(message.changed)
        self.removed_files = message.removed

    def on_file_data(self, message: wire.FileData) -> None:
        """Keep a chunk of a changed file."""
        self.file_receiver.receive_chunk(message)

    def on_saved(self, message: wire.FilesSaved) -> None:
        """Do nothing: `rebuild_step` waits for the files at the link."""

    def on_probe_hit(self, message: wire.ProbeHit) -> None:
        """Do nothing: no probe was asked for."""

    async def on_call(self, message: wire.Call, writer: FrameWriter) -> wire.Reply:
        """Answer a call from the recording."""
        return await self._replayer.answer_call(message, None)


async def rebuild_step(
    link: SandboxLink,
    recording: Recording,
    router: Router,
    limits: RunLimits,
    spool_folder: Path,
    *,
    park: bool,
    inputs: Sequence[InputDescription] = (),
) -> RebuiltStep:
    """Execute a recorded step in the state that it started from; raises `SandboxFailed`.

    Its recorded time limit, which may come from an archive, counts up to that of the settings.
    """
    start = recording.start
    replayer = Replayer(recording, router)
    listener = RebuildListener(replayer, limits, spool_folder)
    done, stop_reason = await link.execute(
        start.code,
        start.name,
        listener,
        min(start.timeout_s, limits.max_timeout_s) * REBUILD_TIMEOUT_FACTOR + REBUILD_EXTRA_S,
        start.stale_packages,
        seed=start.seed,
        clock_readings=dict(recording.clock_readings),
        park=park,
        inputs=inputs,
    )
    await link.wait_for_files()
    listener.output.close()
    output = listener.output.read_from({})
    rebuilt = RebuiltStep(
        find_differences(recording, done, output),
        replayer.divergence or replayer.find_missing_call(),
        was_stopped=stop_reason is not None,
        removed_files=listener.removed_files,
        output=output,
    )
    listener.file_receiver.check_complete()
    received = listener.file_receiver.received_files
    if received:  # most steps change no file
        rebuilt.files = await to_thread.run_sync(build_file_entries, received)
    return rebuilt


def build_file_entries(
    received: Mapping[str, ReceivedFile],
) -> dict[str, tuple[FileEntry, ReceivedFile]]:
    """Return the entries of files; this blocks."""
    described = {}
    for path, file in received.items():
        content = sha256()
        for chunk in file.read_chunks():
            content.update(chunk)
        entry = FileEntry(digest=content.hexdigest(), size=file.size, mode=file.mode)
        described[path] = entry, file
    return described


def find_differences(
    recording: Recording, done: wire.RunDone, output: Mapping[str, str]
) -> list[str]:
    """Return the names of the results that are not as recorded."""
    results = {
        "status": REPEATABLE_STATUSES.get(done.status),
        "value": validate_value(done.value),
        "error": validate_error(done.error),
        **output,
    }
    return [
        name
        for name, value in recording.outcome.items()
        if without_hint(results.get(name)) != without_hint(value)
    ]


def without_hint(value: Any) -> Any:
    """Return an error without its hint, which depends on the settings; other values as they are."""
    if isinstance(value, Mapping) and "traceback" in value:
        return {key: each for key, each in value.items() if key != "hint"}
    return value
