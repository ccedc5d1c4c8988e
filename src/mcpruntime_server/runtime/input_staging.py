"""Having the inputs of a run where its sandbox sees them, and telling the kernel of them.

Rule 1: what was put there once stays as long as the sandbox, so that pieces of earlier steps can still be read.
Rule 2: where a recording is executed again, an input that has changed is an error. Where a session only goes on, it is
one for the code that reads it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from anyio import from_thread
from anyio.to_thread import run_sync

from ..capabilities.inputs.store import InputStore, compute_file_name, compute_input_id
from ..errors import InputChanged, InvalidRequest
from ..journal.events import InputEntry
from ..protocol.payloads import InputDescription
from ..sandbox.hardening import WORKSPACE_FOLDER
from ..sandbox.link import SandboxLink
from .result_files import HIDDEN_FOLDER

PROGRESS_INTERVAL_S = 1.0  # between two words of progress
INPUT_WORKSPACE_SHARE = (
    2  # what is copied over the link takes at most this fraction of the workspace
)
READ_ONLY_MODE = 0o400
MAX_NAMED_INPUTS = 5  # inputs that a note names
INPUT_METHODS = ".peek(n) .lines() .grep(pattern) .sample(n) .chunks(max_chars) .map(fn)"


class StagingObserver(Protocol):
    """The run that the inputs are for."""

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to stop."""
        ...

    def set_stage(self, stage: str) -> None:
        """Tell who waits what is being done."""
        ...


class StagingCancelled(Exception):
    """Nobody wants the inputs any more."""


class InputStaging:
    """The inputs that one sandbox has; `room` is the size of its workspace, in bytes."""

    def __init__(self, link: SandboxLink, inputs: InputStore, max_bytes: int) -> None:
        self._link = link
        self._inputs = inputs
        self._bytes_left = max_bytes // INPUT_WORKSPACE_SHARE
        self._staged_files: dict[
            str, tuple[str, int]
        ] = {}  # by the names of their files: path inside, when modified

    async def stage_inputs(
        self,
        session: str,
        inputs: Sequence[InputEntry],
        observer: StagingObserver,
        *,
        require_unchanged: bool,
    ) -> list[InputDescription]:
        """Return what the kernel is told of the inputs of a run of `session`.

        Raises `InputChanged` for one that is not what it was, if `strictly`; `Unavailable`, `InvalidRequest`.
        """
        self._inputs.remember_inputs(session, inputs)
        told: list[InputDescription] = []
        for entry in inputs:
            path, modified, problem = "", 0, ""
            try:
                path, modified = await self._stage_input(session, entry, observer)
            except StagingCancelled:
                problem = "The run was cancelled."
            except InputChanged as exc:
                if require_unchanged:
                    raise
                problem = str(exc)
            told.append(
                {
                    "id": compute_input_id(entry),
                    "name": entry["name"],
                    "path": path,
                    "size": entry["size"],
                    "modified_ns": modified,
                    "problem": problem,
                    "start": entry["start"],
                    "end": entry["end"],
                }
            )
        return told

    async def _stage_input(
        self, session: str, entry: InputEntry, observer: StagingObserver
    ) -> tuple[str, int]:
        name = compute_file_name(entry)
        if name not in self._staged_files:
            try:
                self._staged_files[name] = await self._place_file(name, entry, observer)
            except InputChanged:
                if not entry["path"]:
                    raise
                await self._inputs.load_digests(session)  # the content may be the same
                self._staged_files[name] = await self._place_file(name, entry, observer)
        return self._staged_files[name]

    async def _place_file(
        self, name: str, entry: InputEntry, observer: StagingObserver
    ) -> tuple[str, int]:
        if self._link.inputs_folder is None:
            return await self._send_file(name, entry)
        progress = CopyProgress(entry, observer)
        modified = await run_sync(
            self._inputs.place_content,
            entry,
            self._link.inputs_folder / name,
            progress.report_copied,
        )
        if progress.has_reported:
            observer.set_stage("")
        return f"{self._link.info.inputs_path_inside}/{name}", modified

    async def _send_file(self, name: str, entry: InputEntry) -> tuple[str, int]:
        """Copy an input over the link: the engine is elsewhere, and sees no folder of this machine."""
        if entry["size"] > self._bytes_left:
            raise InvalidRequest(
                f"The input {entry['name']!r} has {entry['size']:,} bytes, and the engine is on another machine, "
                f"where at most {self._bytes_left:,} can be copied.",
                remedy="Use an engine of this machine, raise [sandbox] workspace_mb, or give less.",
            )
        self._bytes_left -= entry["size"]
        self._link.write_file(
            f"{HIDDEN_FOLDER}/inputs/{name}",
            READ_ONLY_MODE,
            await run_sync(self._inputs.read_content, entry),
        )
        return f"{WORKSPACE_FOLDER}/{HIDDEN_FOLDER}/inputs/{name}", 0


def describe_inputs(inputs: Sequence[InputEntry]) -> str:
    """Return what is told of inputs that a client has given: their sizes, and what code can do with them."""
    named = ", ".join(
        f"{each['name']!r} ({each['size']:,} bytes)" for each in inputs[:MAX_NAMED_INPUTS]
    )
    more = f" and {len(inputs) - MAX_NAMED_INPUTS} more" if len(inputs) > MAX_NAMED_INPUTS else ""
    one = "" if len(inputs) == 1 else " CONTEXT_DATA[0] is one of them."
    return f"CONTEXT is {named}{more}.{one} It has {INPUT_METHODS}."


class CopyProgress:
    """Tells a run how far the copy of an input is; the copy goes on in a worker thread."""

    def __init__(self, entry: InputEntry, observer: StagingObserver) -> None:
        self.has_reported = False
        self._entry = entry
        self._observer = observer
        self._next_report_at = time.monotonic() + PROGRESS_INTERVAL_S

    def report_copied(self, done: int) -> None:
        """Note that so many bytes are copied; raises `Cancelled` when nobody waits any more."""
        if self._observer.is_cancelled:
            raise StagingCancelled
        if time.monotonic() >= self._next_report_at:
            self.has_reported, self._next_report_at = True, time.monotonic() + PROGRESS_INTERVAL_S
            share = 100 * done // max(self._entry["size"], 1)
            from_thread.run_sync(
                self._observer.set_stage,
                f"copying the input {self._entry['name']!r}, {share}% done",
            )
