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
from ..journal.replay import Recording
from ..kernel import wire
from ..sandbox.link import Link
from .calls import Router
from .files import Files
from .replayer import Replayer
from .report import checked_error, checked_value

SLOWER = 2.0  # times its time limit, and this many seconds more, a step may take when it is executed again
EXTRA_S = 10.0
STATUS = {"ok": "ok", "error": "error"}  # of a kernel's `Done`, as runs have it; other ends cannot be repeated


@dataclass
class Rebuilt:
    """A step that was executed again: which of its results differ from the recording, and the files that it left."""

    differences: list[str] = field(default_factory=list)
    divergence: ReplayDiverged | None = None
    stopped: bool = False
    files: dict[str, tuple[FileEntry, bytes]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # stdout, stderr


class Listener:
    """Listens to a step that is executed again: answers its calls, keeps what it prints and writes."""

    def __init__(self, replayer: Replayer, limit: int) -> None:
        self.output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.removed: list[str] = []
        self.files = Files(limit)
        self._replayer = replayer
        self._limit = limit

    def on_output(self, message: wire.Output) -> None:
        """Keep what is printed; what was dropped is noted as it was then."""
        kept = self.output.get(message.stream)
        if kept is None:
            return
        if message.dropped > 0:
            kept += f"\n[{message.dropped:,} bytes of output dropped: limit reached]\n".encode()
        kept += message.data
        if len(kept) > self._limit:
            raise wire.WireError("more output than its kernel lets through")

    def on_files(self, message: wire.Files) -> None:
        """Note what was removed."""
        self.removed = message.removed

    def on_file_data(self, message: wire.FileData) -> None:
        """Take a piece of a changed file."""
        self.files.take(message)

    def on_saved(self, message: wire.Saved) -> None:
        """All files are here; whoever wants them has waited for the link."""

    async def on_call(self, message: wire.Call) -> wire.Reply:
        """Answer from the recording."""
        return await self._replayer.answer(message, None)


async def rebuild_step(
    link: Link,
    recording: Recording,
    router: Router,
    limit: int,
    *,
    park: bool,
    inputs: Sequence[Mapping[str, Any]] = (),
) -> Rebuilt:
    """Execute a recorded step in the state that it began with; raises `SandboxFailed`.

    `limit` bounds, in bytes, what it may print and write. `inputs` are what the kernel is told of its inputs.
    """
    start = recording.start
    replayer = Replayer(recording, router)
    listener = Listener(replayer, limit)
    timeout_s = start.timeout_s * SLOWER + EXTRA_S
    done, stopped = await link.execute(
        start.code,
        start.name,
        listener,
        timeout_s,
        start.stale,
        seed=start.seed,
        clocks=dict(recording.readings),
        park=park,
        inputs=inputs,
    )
    await link.saved()
    rebuilt = Rebuilt(stopped=stopped is not None, removed=listener.removed)
    rebuilt.divergence = replayer.divergence or replayer.missing()
    rebuilt.texts = {name: bytes(text).decode("utf-8", "backslashreplace") for name, text in listener.output.items()}
    for path, (mode, data) in listener.files.complete.items():
        rebuilt.files[path] = FileEntry(digest=sha256(data).hexdigest(), size=len(data), mode=mode), data
    rebuilt.differences = differences(recording, done, rebuilt.texts)
    return rebuilt


def differences(recording: Recording, done: wire.Done, texts: Mapping[str, str]) -> list[str]:
    """Return the names of what came out otherwise than recorded."""
    ends = {"status": STATUS.get(done.status), "value": checked_value(done.value), "error": checked_error(done.error)}
    now = {**ends, **texts}
    return [name for name, was in recording.outcome.items() if now.get(name) != was]
