"""Makes the inputs of a run readable in its sandbox, and describes them to the worker.

Rule 1: a file that was staged can be read by every later step, so that slices from earlier steps
can still be read. Sessions that share a sandbox see only the inputs of their own lineage.
Rule 2: an input that has changed is an error when a recording is executed again. When a session
only continues, it is an error for the code that reads it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from anyio import from_thread
from anyio.to_thread import run_sync

from ..errors import InputChanged, InvalidRequest
from ..journal.events import InputEntry
from ..protocol.payloads import InputDescription
from ..sandbox.hardening import WORKSPACE_FOLDER
from ..sandbox.link import SandboxLink
from ..sandbox.shared_folders import hide_file, show_file
from .input_provider import InputProvider
from .result_files import HIDDEN_FOLDER

PROGRESS_INTERVAL_S = 1.0
INPUT_WORKSPACE_SHARE = 2  # inputs copied over the link take at most this fraction of the workspace
READ_ONLY_MODE = 0o400
MAX_NAMED_INPUTS = 5  # in a note
INPUT_METHODS = ".peek(n) .lines() .grep(pattern) .sample(n) .chunks(max_chars) .map(fn)"


class StagingObserver(Protocol):
    """The run that the inputs are for."""

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to stop."""
        ...

    def set_stage(self, stage: str) -> None:
        """Tell its watchers what is being done."""
        ...


class StagingCancelled(Exception):
    """The run that the inputs are for was cancelled."""


class InputStaging:
    """The inputs that are in one sandbox; `workspace_bytes` is the size of its workspace."""

    def __init__(self, link: SandboxLink, inputs: InputProvider, workspace_bytes: int) -> None:
        self._link = link
        self._inputs = inputs
        self._bytes_left = workspace_bytes // INPUT_WORKSPACE_SHARE
        self._copied_bytes: dict[str, int] = {}  # by file name
        self._staged_files: dict[
            str, tuple[str, int]
        ] = {}  # path and modification time in ns, by file name
        self._names_by_run: dict[str, set[str]] = {}
        self._own_names: set[str] = set()  # of the inputs of the lineage that is restored
        self._hidden_names: set[str] = set()

    async def stage_inputs(
        self,
        session: str,
        run_id: str,
        inputs: Sequence[InputEntry],
        observer: StagingObserver,
        *,
        require_unchanged: bool,
    ) -> list[InputDescription]:
        """Stage the inputs of a run of `session` and describe them to its worker.

        Raises `InputChanged` for an input that has changed, if `require_unchanged`; also
        `Unavailable` and `InvalidRequest`.
        """
        self._inputs.remember_inputs(session, inputs)
        self._names_by_run[run_id] = {self._inputs.file_name(entry) for entry in inputs}
        staged = []
        for entry in inputs:
            path, modified_ns, problem = "", 0, ""
            try:
                path, modified_ns = await self._stage_input(session, entry, observer)
            except StagingCancelled:
                problem = "The run was cancelled."
            except InputChanged as exc:
                if require_unchanged:
                    raise
                problem = str(exc)
            staged.append(
                InputDescription(
                    id=self._inputs.input_id(entry),
                    name=entry["name"],
                    path=path,
                    size=entry["size"],
                    modified_ns=modified_ns,
                    problem=problem,
                    start=entry["start"],
                    end=entry["end"],
                )
            )
        return staged

    async def hide_others(self, lineage: Iterable[str]) -> None:
        """Hide the inputs that no run of a lineage has, which is about to be restored.

        Processes that another session has left may still run, so `show_own` follows later.
        """
        self._own_names = set().union(*(self._names_by_run.get(run, ()) for run in lineage))
        for name in self._staged_files.keys() - self._own_names - self._hidden_names:
            await self._hide_file(name)

    async def show_own(self) -> None:
        """Show the inputs of the lineage that was restored."""
        for name in self._own_names & self._hidden_names:
            await self._show_file(name)

    async def _hide_file(self, name: str) -> None:
        folder = self._link.inputs_folder
        if folder is not None:
            await run_sync(hide_file, folder, name)
            self._hidden_names.add(name)
            return
        path, _ = self._staged_files.pop(name)  # it is copied again when it is needed
        self._bytes_left += self._copied_bytes.pop(name)
        if self._link.info.takes_inputs:
            await self._link.copy_input(name, b"")
        else:
            self._link.remove_file(path.removeprefix(f"{WORKSPACE_FOLDER}/"))

    async def _show_file(self, name: str) -> None:
        folder = self._link.inputs_folder
        assert folder is not None, "other files are not hidden but removed"
        await run_sync(show_file, folder, name)
        self._hidden_names.remove(name)

    async def _stage_input(
        self, session: str, entry: InputEntry, observer: StagingObserver
    ) -> tuple[str, int]:
        name = self._inputs.file_name(entry)
        if name in self._hidden_names:
            await self._show_file(name)
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
        folder = self._link.inputs_folder
        if folder is None:
            return await self._copy_file(name, entry)
        progress = CopyProgress(entry, observer)
        modified_ns = await run_sync(
            self._inputs.place_content, entry, folder / name, progress.report_copied
        )
        if progress.has_reported:
            observer.set_stage("")
        return f"{self._link.info.inputs_path_inside}/{name}", modified_ns

    async def _copy_file(self, name: str, entry: InputEntry) -> tuple[str, int]:
        """Copy an input to an engine that cannot mount a folder of this machine.

        Over the link only if the folder is mounted and the sandbox may not read it all the same.
        """
        if entry["size"] > self._bytes_left:
            raise InvalidRequest(
                f"The input {entry['name']!r} has {entry['size']:,} bytes, and the engine is on "
                f"another machine, to which at most {self._bytes_left:,} can be copied.",
                remedy="Use an engine on this machine, raise [sandbox] workspace_mb, or pass less.",
            )
        self._bytes_left -= entry["size"]
        self._copied_bytes[name] = entry["size"]
        data = await run_sync(self._inputs.read_content, entry)
        if self._link.info.takes_inputs:
            await self._link.copy_input(name, data)
            return f"{self._link.info.inputs_path_inside}/{name}", 0
        path = f"{HIDDEN_FOLDER}/inputs/{name}"
        self._link.write_file(path, READ_ONLY_MODE, data)
        return f"{WORKSPACE_FOLDER}/{path}", 0


def describe_inputs(inputs: Sequence[InputEntry]) -> str:
    """Return a note on the inputs that a client has passed: their sizes, and what code can call."""
    named = [
        f"{each['name']!r} ({each['size']:,} byte{'s' * (each['size'] != 1)})"
        for each in inputs[:MAX_NAMED_INPUTS]
    ]
    text = ", ".join(named)
    if len(inputs) > MAX_NAMED_INPUTS:
        text += f" and {len(inputs) - MAX_NAMED_INPUTS} more"
    one = "" if len(inputs) == 1 else " CONTEXT_DATA[0] is one of them."
    return f"CONTEXT is {text}.{one} It has {INPUT_METHODS}."


class CopyProgress:
    """Reports to a run how far the copy of an input is, from the worker thread that copies it."""

    def __init__(self, entry: InputEntry, observer: StagingObserver) -> None:
        self.has_reported = False
        self._entry = entry
        self._observer = observer
        self._next_report_at = time.monotonic() + PROGRESS_INTERVAL_S

    def report_copied(self, done: int) -> None:
        """Note that `done` bytes are copied; raises `StagingCancelled` if the run was cancelled."""
        if self._observer.is_cancelled:
            raise StagingCancelled
        if time.monotonic() < self._next_report_at:
            return
        self.has_reported, self._next_report_at = True, time.monotonic() + PROGRESS_INTERVAL_S
        share = 100 * done // max(self._entry["size"], 1)
        stage = f"copying the input {self._entry['name']!r}, {share}% done"
        from_thread.run_sync(self._observer.set_stage, stage)
