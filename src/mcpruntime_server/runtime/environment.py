"""A sandbox and the states that it can be in: the home of a session, and of the sessions forked from it.

The sessions of a family take turns in it. Whoever has the turn has the interpreter brought to the state that it needs:
nothing to do if that is live, a parked copy if there is one (milliseconds), else the steps since the nearest state that
is here are executed again (`rebuild`). The files follow from the journal.

Rule 1: what is in the workspace is known by content, so that only files that differ are moved.
Rule 2: variables are the ones of the step that was asked for, or there are none and the client is told why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from anyio import Lock, move_on_after

from ..capabilities.inputs.store import InputStore
from ..errors import JournalFailed, McpRuntimeError, NotFound
from ..journal.events import FileEntry, FilesChanged
from ..journal.recording import Recording, is_reproducible, load_recording
from ..journal.rows import FRESH_FLAG, INTERRUPTED_FLAG, RunRow
from ..journal.store import Journal
from ..protocol.payloads import InputDescription
from ..sandbox.link import SandboxLink
from .input_staging import InputStaging
from .rebuild import RebuiltStep, rebuild_step
from .router import Router
from .run import Run
from .run_listener import FILE_OVERHEAD_BYTES
from .run_spec import RunLimits
from .sandbox_pool import SandboxSlot

UNSETTLED_STATE = "?"  # no run's end state: one that died has left something behind
UNKNOWN_FILE = FileEntry(digest="", size=0, mode=0)  # a file of which nobody knows the content
FILES_TIMEOUT_S = 60.0  # for a run's files to arrive: a full workspace takes seconds, on a loaded machine some more
MAX_KNOWN_RUNS = 10_000  # runs that a home remembers; far more than it holds the states of

logger = logging.getLogger(__name__)


class RebuildFailed(Exception):
    """The variables of a step cannot be had back; the message says why, in a sentence."""


@dataclass
class Restored:
    """How a home came to the state that was asked for: what to tell the client, and whether variables are missing."""

    notes: list[str] = field(default_factory=list)
    rebuilt_steps: int = 0  # steps that were executed again
    recovered_files: dict[str, set[str]] = field(
        default_factory=dict
    )  # run whose files were lost -> paths that are here again
    is_fresh: bool = False


class Environment:
    """One sandbox, the runs whose end states it holds, and what its workspace contains."""

    def __init__(
        self,
        sandbox_slot: SandboxSlot,
        journal: Journal,
        router: Router,
        limits: RunLimits,
        lost_states: dict[str, str],
        inputs: InputStore,
    ) -> None:
        self.sandbox_slot = sandbox_slot
        self.link: SandboxLink = sandbox_slot.link
        self._input_staging = InputStaging(self.link, inputs, limits.max_file_bytes)
        self.use_lock = Lock()  # held by the session that uses it
        self._sessions: set[object] = set()
        self._journal = journal
        self._router = router
        self._limits = limits
        self._lost_states = (
            lost_states  # runs whose variables cannot be had back, and why; of all homes
        )
        self._link_runs: dict[str | None, int] = {None: 0}  # run -> the link's number for it
        self._current_run: str | None = (
            None  # the run whose end state interpreter and workspace are in
        )
        self._last_rebuilt_run: str | None = (
            None  # the last state that was come to by executing steps again
        )
        self._executed_count = 0  # that the link had executed when that became so
        self._workspace_files: dict[str, FileEntry] = {}
        self._unsaved_runs: list[Run] = []
        self._saving_lock = Lock()  # held by the run whose files are saved

    @property
    def is_closed(self) -> bool:
        """Whether the sandbox does not live any more."""
        return self.link.closed.is_set()

    def holds_state(self, run: str | None) -> bool:
        """Return whether the end state of `run` is a matter of milliseconds here."""
        number = self._link_runs.get(run)
        return not self.is_closed and number is not None and self.link.has_state(number)

    def add_session(self, session: object) -> None:
        """Be used by `user`, too."""
        self._sessions.add(session)

    def remove_session(self, session: object) -> None:
        """Do without it; when the last has done so it is removed."""
        self._sessions.discard(session)
        if not self._sessions:
            self.sandbox_slot.release()

    # what a run leaves behind -----------------------------------------------------------------------

    def record_run_end(self, run: Run) -> None:
        """Take note that `run`, for which this was brought to a state, is over."""
        if run.is_undone:
            if self._current_run is not None and (
                self.link.has_broken_protocol
                or (self.is_closed and self._last_rebuilt_run == self._current_run)
            ):
                self._lost_states[self._current_run] = "A sandbox does not survive it."
            if self.link.last_run_number != self._executed_count:
                self._current_run = UNSETTLED_STATE
                self._record_changed_files(
                    dict.fromkeys(run.report.changed_files, UNKNOWN_FILE), run.report.removed_files
                )
            return
        self._record_live_state(run.id)
        self._record_changed_files(
            dict.fromkeys(run.report.changed_files, UNKNOWN_FILE), run.report.removed_files
        )
        if not run.files_stored.is_set():
            self._unsaved_runs.append(run)

    async def save_files(self, run: Run) -> None:
        """Take the files that `run` changed into the journal, when they have come; run by run, in their order."""
        try:
            async with self._saving_lock:
                with move_on_after(FILES_TIMEOUT_S):
                    await self.link.wait_for_files()
                if not run.listener.file_receiver.is_complete:
                    self.link.fail("it did not send the files of its last run in time")
                stored = await run.listener.store_files(self._journal)
                if stored is not None:
                    self._record_stored_files(run, stored)
        except JournalFailed as exc:
            logger.error("the files of run %s were not saved: %s", run.id, exc)
        finally:
            self._unsaved_runs.remove(run)
            run.files_stored.set()

    async def wait_for_files(self) -> None:
        """Wait until the files of all runs are in the journal."""
        for run in list(self._unsaved_runs):
            await run.files_stored.wait()

    def _record_stored_files(self, run: Run, stored: FilesChanged) -> None:
        """Note the content of the files that `run` has changed and no later run has changed again."""
        later = self._unsaved_runs[self._unsaved_runs.index(run) + 1 :]
        passed = {
            path
            for other in later
            for path in (*other.report.changed_files, *other.report.removed_files)
        }
        self._workspace_files.update(
            {path: entry for path, entry in stored.changed.items() if path not in passed}
        )

    def _record_changed_files(
        self, changed: Mapping[str, FileEntry], removed: Iterable[str]
    ) -> None:
        for path in removed:
            self._workspace_files.pop(path, None)
        self._workspace_files.update(changed)

    def _record_live_state(self, run: str) -> None:
        """The interpreter is in the end state of `run`, which it has just executed."""
        self._current_run, self._executed_count = run, self.link.last_run_number
        self._link_runs[run] = self.link.live_run
        if len(self._link_runs) > MAX_KNOWN_RUNS:
            del self._link_runs[next(name for name in self._link_runs if name is not None)]

    def _is_live_state(self, run: str | None) -> bool:
        return self._link_runs.get(run) == self.link.live_run

    # coming to a state ------------------------------------------------------------------------------

    async def restore_state(self, tip: str | None, run: Run) -> Restored:
        """Have interpreter and workspace in the end state of run `tip`, for `run`; raises `SandboxFailed`."""
        if self._current_run == tip and self._is_live_state(tip) and not run.starts_fresh:
            return Restored()
        await self.wait_for_files()
        arrival = Restored(is_fresh=run.starts_fresh)
        if not run.starts_fresh:
            try:
                await self._restore_variables(await self._journal.load_lineage(tip), run, arrival)
            except (RebuildFailed, JournalFailed) as exc:
                if run.is_cancelled:
                    self._current_run = UNSETTLED_STATE
                    return arrival
                arrival = self._discard_variables(tip, str(exc))
        if arrival.is_fresh:
            await self._promote_state(None)
        await self._restore_files(tip, arrival)
        self._current_run, self._executed_count = tip, self.link.last_run_number
        return arrival

    def _discard_variables(self, tip: str | None, reason: str) -> Restored:
        if tip is not None:
            self._lost_states[tip] = reason
        return Restored([f"Variables are gone; workspace files are kept. {reason}"], is_fresh=True)

    async def _restore_variables(
        self, line: Sequence[RunRow], run: Run, restored: Restored
    ) -> None:
        """Start from the nearest state of `line` that is here, and execute what follows it again."""
        done = self._count_reusable_steps(line)
        base = line[done - 1].id if done else None
        begins_fresh = done < len(line) and FRESH_FLAG in line[done].flags
        if done < len(line):
            check_rebuildable(line, done, self._lost_states)
        if not await self._promote_state(None if begins_fresh else base):
            await self._restore_variables(
                line, run, restored
            )  # the copy is gone, which this home knows now
            return
        if done < len(line):
            await self._restore_files(base, restored)
            await self._rebuild_steps(line, done, run, restored)

    def _count_reusable_steps(self, line: Sequence[RunRow]) -> int:
        """Return how many steps of `line` need not be executed to have the state at its end."""
        for done in range(len(line), 0, -1):
            if self.holds_state(line[done - 1].id):
                return done
            if FRESH_FLAG in line[done - 1].flags:
                return done - 1
        return 0

    async def _promote_state(self, run: str | None) -> bool:
        """Make the end state of `run` live; return False if its copy is gone and an empty interpreter is live."""
        if self._is_live_state(run) and (run is not None or self._current_run is None):
            return True
        promoted = await self.link.promote(self._link_runs[run])
        self._record_changed_files(dict.fromkeys(promoted.changed, UNKNOWN_FILE), promoted.removed)
        self._current_run = UNSETTLED_STATE  # until the files are right, too
        return promoted.ok

    async def _rebuild_steps(
        self, line: Sequence[RunRow], done: int, run: Run, restored: Restored
    ) -> None:
        """Execute the steps of `line` after the first `done` again; raises `CannotRebuild`."""
        skipped = [row.step for row in line[done:] if INTERRUPTED_FLAG in row.flags]
        for row in line[done:]:
            if row.step in skipped:
                continue
            run.set_stage(
                f"executing step {row.step} of {line[-1].step} again, with recorded answers"
            )
            recording = await load_recording(self._journal, row)
            limit = self._limits.max_file_bytes + FILE_OVERHEAD_BYTES
            told = await self._stage_recorded_inputs(recording, run)
            rebuilt = await rebuild_step(
                self.link, recording, self._router, limit, park=row is line[-1], inputs=told
            )
            self._record_changed_files(
                {path: entry for path, (entry, _) in rebuilt.files.items()}, rebuilt.removed_files
            )
            check_rebuilt_step(recording, rebuilt, require_same_output=bool(skipped))
            await self._apply_rebuilt_step(recording, rebuilt, run, restored)
        run.set_stage("")
        restored.rebuilt_steps = len(line) - done - len(skipped)
        self._record_live_state(line[-1].id)
        self._last_rebuilt_run = line[-1].id
        if skipped:
            listed = ", ".join(map(str, skipped))
            restored.notes.append(
                f"What step {listed} did to variables before it was interrupted is not among them."
            )

    async def stage_inputs(self, run: Run) -> None:
        """Have the inputs of `run` here; raises what `Placing.provide` raises."""
        if run.inputs:
            strictly = run.spec.recording is not None or run.spec.context is not None
            session = run.report.session_id
            run.staged_inputs = await self._input_staging.stage_inputs(
                session, run.inputs, run, require_unchanged=strictly
            )

    async def _stage_recorded_inputs(
        self, recording: Recording, run: Run
    ) -> list[InputDescription]:
        """Have the inputs of a step here that is executed again; raises `CannotRebuild`."""
        try:
            return await self._input_staging.stage_inputs(
                recording.session_id, recording.start.context, run, require_unchanged=True
            )
        except McpRuntimeError as exc:
            raise RebuildFailed(
                f"Step {recording.start.step} cannot be executed again. {exc}"
            ) from None

    async def _apply_rebuilt_step(
        self, recording: Recording, rebuilt: RebuiltStep, run: Run, restored: Restored
    ) -> None:
        """Tell what a step has left that was executed again; mend what a crash kept from being journaled then."""
        assert recording.finish is not None, "only what has ended is rebuilt"
        run.result_files.save_long_results(
            self.link, recording.start.run_id, rebuilt.output, recording.finish.value
        )
        if rebuilt.differences:
            what = ", ".join(rebuilt.differences)
            restored.notes.append(
                f"Step {recording.start.step}, executed again, differs from the recording in: {what}."
            )
        if not recording.has_lost_files:
            return
        restored.recovered_files[recording.start.run_id] = {*rebuilt.files, *rebuilt.removed_files}
        if recording.session_id == run.report.session_id:
            for _, data in rebuilt.files.values():
                await self._journal.put_blob(data)
            entries = {path: entry for path, (entry, _) in rebuilt.files.items()}
            self._journal.append(
                recording.session_id,
                FilesChanged(entries, rebuilt.removed_files),
                recording.start.run_id,
            )

    # files ------------------------------------------------------------------------------------------

    async def _restore_files(self, tip: str | None, restored: Restored) -> None:
        """Have the workspace as it was at the end of run `tip`."""
        files, lacking = await self._journal.load_files_at(tip, restored.notes)
        for path in set().union(
            *restored.recovered_files.values()
        ):  # here they are as they should be
            files.pop(path, None)
            if path in self._workspace_files:
                files[path] = self._workspace_files[path]
        lacking = [each for each in lacking if each not in restored.recovered_files]
        for path in self._workspace_files.keys() - files.keys():
            self.link.remove_file(path)
        missing = {
            path: entry
            for path, entry in files.items()
            if not is_same_file(self._workspace_files.get(path), entry)
        }
        for path, entry in missing.items():
            try:
                self.link.write_file(
                    path, entry["mode"], await self._journal.get_blob(entry["digest"])
                )
            except (JournalFailed, NotFound) as exc:
                restored.notes.append(f"The file {path!r} is not restored: {exc}")
                files[path] = UNKNOWN_FILE
        self._workspace_files = files
        if lacking:
            restored.notes.append(f"Files that {', '.join(lacking)} changed were lost.")


def is_same_file(here: FileEntry | None, wanted: FileEntry) -> bool:
    """Return whether a file is in the workspace as it should be."""
    return here is not None and (here["digest"], here["mode"]) == (wanted["digest"], wanted["mode"])


def check_rebuildable(line: Sequence[RunRow], done: int, lost: Mapping[str, str]) -> None:
    """Raise `CannotRebuild` if it is known that the steps of `line` after the first `done` cannot be had back."""
    if reason := lost.get(line[-1].id):
        raise RebuildFailed(reason)
    for row in line[done:]:
        if not row.is_finished:
            raise RebuildFailed(f"Step {row.step} has no end in the journal.")


def is_lineage_reproducible(line: Iterable[RunRow]) -> bool:
    """Return whether executing `line` again is sure to repeat all that its steps did to variables."""
    exact = True
    for row in line:
        exact = is_reproducible(row, exact)
    return exact


def check_rebuilt_step(
    recording: Recording, rebuilt: RebuiltStep, *, require_same_output: bool
) -> None:
    """Raise `CannotRebuild` if a step that was executed again did something else; `strictly`, if it shows any."""
    step = recording.start.step
    if rebuilt.divergence is not None:
        raise RebuildFailed(f"Executed again, the code did something else. {rebuilt.divergence}")
    if rebuilt.was_stopped:
        raise RebuildFailed(f"Step {step} did not come to its end when it was executed again.")
    if "status" in rebuilt.differences or (require_same_output and rebuilt.differences):
        what = ", ".join(rebuilt.differences)
        raise RebuildFailed(f"Step {step}, executed again, differs from the recording in: {what}.")
