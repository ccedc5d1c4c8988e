"""Executing a recorded step again, so that its end state is there once more; nothing outside is touched.

It knows neither sessions nor the order of steps (`home`), and journals nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from ..errors import ReplayDiverged
from ..journal.events import FileEntry
from ..journal.recording import Recording
from ..protocol import wire
from ..sandbox.link import SandboxLink
from .file_receiver import FileReceiver
from .replayer import Replayer
from .router import Router
from .run_report import validate_error, validate_value

REBUILD_TIMEOUT_FACTOR = 2.0  # times its time limit, and this many seconds more, a step may take when it is executed again
REBUILD_EXTRA_S = 10.0
DONE_STATUSES = {
    "ok": "ok",
    "error": "error",
}  # of a kernel's `Done`, as runs have it; other ends cannot be repeated


@dataclass
class RebuiltStep:
    """A step that was executed again: which of its results differ from the recording, and the files that it left."""

    differences: list[str] = field(default_factory=list)
    divergence: ReplayDiverged | None = None
    was_stopped: bool = False
    files: dict[str, tuple[FileEntry, bytes]] = field(default_factory=dict)
    removed_files: list[str] = field(default_factory=list)
    output: dict[str, str] = field(default_factory=dict)  # stdout, stderr


class RebuildListener:
    """Listens to a step that is executed again: answers its calls, keeps what it prints and writes."""

    def __init__(self, replayer: Replayer, max_bytes: int) -> None:
        self.output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.removed_files: list[str] = []
        self.file_receiver = FileReceiver(max_bytes)
        self._replayer = replayer
        self._max_bytes = max_bytes

    def on_output(self, message: wire.Output) -> None:
        """Keep what is printed; what was dropped is noted as it was then."""
        kept = self.output.get(message.stream)
        if kept is None:
            return
        if message.dropped_bytes > 0:
            kept += (
                f"\n[{message.dropped_bytes:,} bytes of output dropped: limit reached]\n".encode()
            )
        kept += message.data
        if len(kept) > self._max_bytes:
            raise wire.WireError("more output than its kernel lets through")

    def on_files(self, message: wire.FilesChanged) -> None:
        """Note what was removed."""
        self.removed_files = message.removed

    def on_file_data(self, message: wire.FileData) -> None:
        """Take a piece of a changed file."""
        self.file_receiver.receive_chunk(message)

    def on_saved(self, message: wire.FilesSaved) -> None:
        """All files are here; whoever wants them has waited for the link."""

    async def on_call(self, message: wire.Call) -> wire.Reply:
        """Answer from the recording."""
        return await self._replayer.answer_call(message, None)


async def rebuild_step(
    link: SandboxLink,
    recording: Recording,
    router: Router,
    max_bytes: int,
    *,
    park: bool,
    inputs: Sequence[Mapping[str, Any]] = (),
) -> RebuiltStep:
    """Execute a recorded step in the state that it began with; raises `SandboxFailed`.

    `limit` bounds, in bytes, what it may print and write. `inputs` are what the kernel is told of its inputs.
    """
    start = recording.start
    replayer = Replayer(recording, router)
    listener = RebuildListener(replayer, max_bytes)
    timeout_s = start.timeout_s * REBUILD_TIMEOUT_FACTOR + REBUILD_EXTRA_S
    done, stopped = await link.execute(
        start.code,
        start.name,
        listener,
        timeout_s,
        start.stale_packages,
        seed=start.seed,
        clock_readings=dict(recording.clock_readings),
        park=park,
        inputs=inputs,
    )
    await link.wait_for_files()
    rebuilt = RebuiltStep(was_stopped=stopped is not None, removed_files=listener.removed_files)
    rebuilt.divergence = replayer.divergence or replayer.find_missing_call()
    rebuilt.output = {
        name: bytes(text).decode("utf-8", "backslashreplace")
        for name, text in listener.output.items()
    }
    for path, (mode, data) in listener.file_receiver.received_files.items():
        rebuilt.files[path] = (
            FileEntry(digest=sha256(data).hexdigest(), size=len(data), mode=mode),
            data,
        )
    rebuilt.differences = find_differences(recording, done, rebuilt.output)
    return rebuilt


def find_differences(
    recording: Recording, done: wire.RunDone, texts: Mapping[str, str]
) -> list[str]:
    """Return the names of what came out otherwise than recorded."""
    ends = {
        "status": DONE_STATUSES.get(done.status),
        "value": validate_value(done.value),
        "error": validate_error(done.error),
    }
    now = {**ends, **texts}
    return [name for name, was in recording.outcome.items() if now.get(name) != was]
