"""A sandbox and the session states that it can restore; sessions forked from each other share one.

The sessions use it one at a time. Before a run, the session that holds it has the interpreter
restored to the state that it needs: there is nothing to do if that state is live; a parked fork is
promoted in milliseconds; else the steps since the nearest state that is here are executed again
(`rebuild`). The files follow from the journal.

Rule 1: files in the workspace are known by content, so that only files that differ are moved.
Rule 2: the variables are those of the step that was asked for, or there are none and the client is
told why. A rebuild is checked: if a step makes another call or ends otherwise than recorded, the
variables are given up. Interrupted steps are left out, and then any difference counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from anyio import Lock, move_on_after

from ..errors import JournalFailed, McpRuntimeError, NotFound
from ..journal.events import FileEntry, FilesChanged, InputEntry
from ..journal.recording import Recording, is_reproducible, load_recording
from ..journal.rows import FRESH_FLAG, INTERRUPTED_FLAG, RunRow
from ..journal.store import Journal
from ..protocol.payloads import InputDescription
from ..sandbox.link import SandboxLink
from .input_provider import InputProvider
from .input_staging import InputStaging
from .rebuild import RebuiltStep, rebuild_step
from .router import Router
from .run import Run
from .run_spec import RunLimits
from .sandbox_pool import SandboxSlot

UNSETTLED_STATE = "?"  # the end state of no run: a run that died has left something behind
UNKNOWN_FILE = FileEntry(digest="", size=0, mode=0)  # its content is not known
FILES_TIMEOUT_S = (
    60.0  # for a run's files to arrive: a full workspace takes seconds, or more under load
)
MAX_KNOWN_RUNS = 10_000  # far more than the states that an environment holds

logger = logging.getLogger(__name__)


class RebuildFailed(Exception):
    """The variables of a step cannot be restored; the message is a sentence that says why."""


@dataclass
class Restored:
    """How a state was restored: notes for the client, and whether variables are missing."""

    notes: list[str] = field(default_factory=list)
    rebuilt_steps: int = 0  # that were executed again
    recovered_files: dict[str, set[str]] = field(
        default_factory=dict
    )  # paths, by run that lost them
    is_fresh: bool = False  # there are no variables


class Environment:
    """One sandbox, the runs whose end states it holds, and the files in its workspace."""

    def __init__(
        self,
        sandbox_slot: SandboxSlot,
        journal: Journal,
        router: Router,
        limits: RunLimits,
        lost_states: dict[str, str],
        inputs: InputProvider,
    ) -> None:
        self.use_lock = Lock()  # held by the session that uses it
        self._sandbox_slot = sandbox_slot
        self._users: set[object] = set()
        self._input_staging = InputStaging(self.link, inputs, limits.max_file_bytes)
        self._journal = journal
        self._router = router
        self._limits = limits
        self._lost_states = lost_states  # run whose variables are lost -> why; of all environments
        self._link_runs: dict[str | None, int] = {None: 0}  # run -> the link's number for it
        self._current_run: str | None = None  # whose end state interpreter and workspace are in
        self._last_rebuilt_run: str | None = None
        self._executed_count = 0  # runs that the link had executed when `_current_run` was set
        self._workspace_files: dict[str, FileEntry] = {}
        self._unsaved_runs: list[Run] = []
        self._saving_lock = Lock()  # held by the run whose files are saved

    @property
    def link(self) -> SandboxLink:
        """The sandbox."""
        return self._sandbox_slot.link

    @property
    def is_closed(self) -> bool:
        """Whether the sandbox is gone."""
        return self.link.closed.is_set()

    @property
    def is_shared(self) -> bool:
        """Whether several sessions use the sandbox."""
        return len(self._users) > 1

    def holds_state(self, run: str | None) -> bool:
        """Return whether the end state of `run` can be restored in milliseconds."""
        number = self._link_runs.get(run)
        return not self.is_closed and number is not None and self.link.has_state(number)

    def add_user(self, user: object) -> None:
        """Keep the sandbox for one more session."""
        self._users.add(user)

    def remove_user(self, user: object) -> None:
        """Note that a session does not need the sandbox; the last one has it removed."""
        self._users.discard(user)
        if not self._users:
            self._sandbox_slot.release()

    # what a run leaves behind ---------------------------------------------------------------------

    def record_run_end(self, run: Run) -> None:
        """Note the state that `run` has left behind."""
        if not run.is_undone:
            self._record_live_state(run.id)
            run.report.removed_files = self._select_known(run.report.removed_files)
            self._forget_content(run.report.changed_files, run.report.removed_files)
            if not run.file_storage.is_settled:
                self._unsaved_runs.append(run)
            return
        killed_by_rebuild = self.is_closed and self._last_rebuilt_run == self._current_run
        was_fatal = self.link.has_broken_protocol or killed_by_rebuild
        if self._current_run is not None and was_fatal and not run.spec.is_offline:
            self._lost_states[self._current_run] = "A sandbox does not survive it."
        if self.link.last_run_number != self._executed_count:
            self._current_run = UNSETTLED_STATE
            self._forget_content(run.report.changed_files, run.report.removed_files)

    async def save_files(self, run: Run) -> None:
        """Journal the files that `run` changed when they have arrived; runs are saved in order."""
        lost = "The sandbox did not send them in time."  # unless the rest is done
        try:
            async with self._saving_lock:
                with move_on_after(FILES_TIMEOUT_S):
                    await self.link.wait_for_files()
                if not run.listener.file_receiver.is_complete:
                    self.link.fail("it did not send the files of its last run in time")
                stored = await run.listener.store_files(self._journal)
                if stored is not None:
                    lost = ""
                    self._record_stored_files(run, stored)
        except JournalFailed as exc:
            logger.error("the files of run %s were not saved: %s", run.id, exc)
            lost = str(exc)
        finally:
            self._unsaved_runs.remove(run)
            run.file_storage.settle(lost)

    async def wait_for_files(self) -> None:
        """Wait until the files of all runs are in the journal."""
        for run in list(self._unsaved_runs):
            await run.file_storage.wait()

    def _record_stored_files(self, run: Run, stored: FilesChanged) -> None:
        """Note the content of the files of `run` that no later run has changed again."""
        overwritten: set[str] = set()
        for later in self._unsaved_runs[self._unsaved_runs.index(run) + 1 :]:
            overwritten.update(later.report.changed_files, later.report.removed_files)
        for path, entry in stored.changed.items():
            if path not in overwritten:
                self._workspace_files[path] = entry

    def _select_known(self, removed: Iterable[str]) -> list[str]:
        """Return the paths that were in the workspace: a sandbox may claim to have removed any."""
        return [path for path in dict.fromkeys(removed) if path in self._workspace_files]

    def _forget_content(self, changed: Iterable[str], removed: Iterable[str]) -> None:
        """Note that files were changed, without knowing what is in them, or removed."""
        for path in removed:
            self._workspace_files.pop(path, None)
        self._workspace_files.update(dict.fromkeys(changed, UNKNOWN_FILE))

    def _record_live_state(self, run: str) -> None:
        """Note that the interpreter has just executed `run` and is in its end state."""
        self._current_run, self._executed_count = run, self.link.last_run_number
        self._link_runs[run] = self.link.live_run
        if len(self._link_runs) > MAX_KNOWN_RUNS:
            del self._link_runs[next(name for name in self._link_runs if name is not None)]

    def _is_live_state(self, run: str | None) -> bool:
        return self._link_runs.get(run) == self.link.live_run

    # restoring a state ----------------------------------------------------------------------------

    async def restore_state(self, tip: str | None, run: Run) -> Restored:
        """Restore the end state of run `tip` for `run`, the next one; raises `SandboxFailed`."""
        starts_fresh = run.spec.starts_fresh
        if self._current_run == tip and self._is_live_state(tip) and not starts_fresh:
            return Restored()
        await self.wait_for_files()
        restored = Restored(is_fresh=starts_fresh)
        try:
            lineage = await self._journal.load_lineage(tip)
            await self._input_staging.hide_others(row.id for row in lineage)
            if not starts_fresh:
                await self._restore_variables(lineage, run, restored)
        except (RebuildFailed, JournalFailed) as exc:
            if run.is_cancelled:
                self._current_run = UNSETTLED_STATE
                return restored
            restored = self._discard_variables(tip, str(exc))
        if restored.is_fresh:
            await self._promote_state(None)
        await self._restore_files(tip, restored)
        await self._input_staging.show_own()
        self._current_run, self._executed_count = tip, self.link.last_run_number
        return restored

    def _discard_variables(self, tip: str | None, reason: str) -> Restored:
        if tip is not None:
            self._lost_states[tip] = reason
        return Restored([f"Variables are gone; workspace files are kept. {reason}"], is_fresh=True)

    async def _restore_variables(
        self, lineage: Sequence[RunRow], run: Run, restored: Restored
    ) -> None:
        """Promote the nearest state of `lineage` that is here, and rebuild the steps after it."""
        done = self._count_reusable_steps(lineage)
        base = lineage[done - 1].id if done else None
        is_complete = done == len(lineage)
        if not is_complete:
            check_rebuildable(lineage, done, self._lost_states)
            if FRESH_FLAG in lineage[done].flags:
                base = None
        if not await self._promote_state(base):
            # The parked fork is gone, which is known now: look for another base.
            await self._restore_variables(lineage, run, restored)
        elif not is_complete:
            await self._restore_files(lineage[done - 1].id if done else None, restored)
            await self._rebuild_steps(lineage, done, run, restored)

    def _count_reusable_steps(self, lineage: Sequence[RunRow]) -> int:
        """Return how many steps of `lineage` need not be executed again to restore its end."""
        for done in range(len(lineage), 0, -1):
            if self.holds_state(lineage[done - 1].id):
                return done
            if FRESH_FLAG in lineage[done - 1].flags:
                return done - 1
        return 0

    async def _promote_state(self, run: str | None) -> bool:
        """Make the end state of `run` live; return False if it is gone: then nothing is live."""
        if self._is_live_state(run) and (run is not None or self._current_run is None):
            return True
        promoted = await self.link.promote(self._link_runs[run])
        self._forget_content(promoted.changed, promoted.removed)
        self._current_run = UNSETTLED_STATE  # until the files are restored, too
        return promoted.ok

    async def _rebuild_steps(
        self, lineage: Sequence[RunRow], done: int, run: Run, restored: Restored
    ) -> None:
        """Execute the steps of `lineage` after the first `done` again; raises `RebuildFailed`."""
        last = lineage[-1]
        skipped = [row.step for row in lineage[done:] if INTERRUPTED_FLAG in row.flags]
        for row in lineage[done:]:
            if row.step in skipped:
                continue
            run.set_stage(f"executing step {row.step} of {last.step} again, with recorded answers")
            recording = await load_recording(self._journal, row)
            inputs = await self._stage_recorded_inputs(recording, run)
            rebuilt = await rebuild_step(
                self.link,
                recording,
                self._router,
                self._limits,
                self._journal.blobs.drafts,
                park=row is last,
                inputs=inputs,
            )
            rebuilt.removed_files = self._select_known(rebuilt.removed_files)
            self._forget_content((), rebuilt.removed_files)
            for path, (entry, _) in rebuilt.files.items():
                self._workspace_files[path] = entry
            check_rebuilt_step(recording, rebuilt, require_same_output=bool(skipped))
            await self._apply_rebuilt_step(recording, rebuilt, run, restored)
        run.set_stage("")
        restored.rebuilt_steps = len(lineage) - done - len(skipped)
        self._record_live_state(last.id)
        self._last_rebuilt_run = last.id
        if skipped:
            listed = ", ".join(map(str, skipped))
            restored.notes.append(
                f"What step {listed} did to variables before it was interrupted is not restored."
            )

    async def stage_inputs(self, run: Run, inputs: Sequence[InputEntry]) -> list[InputDescription]:
        """Make the inputs of `run` readable in the sandbox; raises what `InputStaging` raises."""
        if not inputs:
            return []
        is_given = run.spec.recording is not None or run.spec.context is not None
        return await self._input_staging.stage_inputs(
            run.report.session_id, run.id, inputs, run, require_unchanged=is_given
        )

    async def _stage_recorded_inputs(
        self, recording: Recording, run: Run
    ) -> list[InputDescription]:
        """Make the inputs of a step that is executed again readable; raises `RebuildFailed`."""
        try:
            return await self._input_staging.stage_inputs(
                recording.session_id,
                recording.start.run_id,
                recording.start.context,
                run,
                require_unchanged=True,
            )
        except McpRuntimeError as exc:
            message = f"Step {recording.start.step} cannot be executed again. {exc}"
            raise RebuildFailed(message) from None

    async def _apply_rebuilt_step(
        self, recording: Recording, rebuilt: RebuiltStep, run: Run, restored: Restored
    ) -> None:
        """Keep what a rebuilt step has left, and journal files of it that a crash had lost."""
        assert recording.finish is not None, "only what has ended is rebuilt"
        start = recording.start
        await run.services.result_files.save_long_results(
            self.link, start.run_id, rebuilt.output, recording.finish.value
        )
        if rebuilt.differences:
            restored.notes.append(describe_differences(recording, rebuilt))
        if not recording.has_lost_files:
            return
        restored.recovered_files[start.run_id] = {*rebuilt.files, *rebuilt.removed_files}
        if recording.session_id == run.report.session_id:
            await self._journal.put_streams(
                [file.read_chunks for _, file in rebuilt.files.values()]
            )
            entries = {path: entry for path, (entry, _) in rebuilt.files.items()}
            event = FilesChanged(entries, rebuilt.removed_files)
            self._journal.append(recording.session_id, event, start.run_id)

    # files ----------------------------------------------------------------------------------------

    async def _restore_files(self, tip: str | None, restored: Restored) -> None:
        """Restore the workspace as it was at the end of run `tip`."""
        files, lacking = await self._journal.load_files_at(tip, restored.notes)
        for path in set().union(*restored.recovered_files.values()):  # they are right already
            files.pop(path, None)
            if path in self._workspace_files:
                files[path] = self._workspace_files[path]
        for path in self._workspace_files.keys() - files.keys():
            self.link.remove_file(path)
        for path, entry in list(files.items()):
            if is_same_file(self._workspace_files.get(path), entry):
                continue
            try:
                data = await self._journal.get_blob(entry["digest"])
                self.link.write_file(path, entry["mode"], data)
            except (JournalFailed, NotFound) as exc:
                restored.notes.append(f"The file {path!r} is not restored: {exc}")
                files[path] = UNKNOWN_FILE
        self._workspace_files = files
        lost = [run for run in lacking if run not in restored.recovered_files]
        if lost:
            restored.notes.append(f"Files that {', '.join(lost)} changed were lost.")


def is_same_file(present: FileEntry | None, wanted: FileEntry) -> bool:
    """Return whether a file in the workspace has the content and the mode that it should have."""
    if present is None:
        return False
    return (present["digest"], present["mode"]) == (wanted["digest"], wanted["mode"])


def check_rebuildable(lineage: Sequence[RunRow], done: int, lost_states: Mapping[str, str]) -> None:
    """Raise `RebuildFailed` if a step of `lineage` after the first `done` is known to be lost."""
    if reason := lost_states.get(lineage[-1].id):
        raise RebuildFailed(reason)
    for row in lineage[done:]:
        if not row.is_finished:
            raise RebuildFailed(f"Step {row.step} has no end in the journal.")


def is_lineage_reproducible(lineage: Iterable[RunRow]) -> bool:
    """Return whether executing `lineage` again repeats everything its steps did to variables."""
    exact = True
    for row in lineage:
        exact = is_reproducible(row, exact)
    return exact


def check_rebuilt_step(
    recording: Recording, rebuilt: RebuiltStep, *, require_same_output: bool
) -> None:
    """Raise `RebuildFailed` if a rebuilt step did something else than the recording says."""
    step = recording.start.step
    if rebuilt.divergence is not None:
        raise RebuildFailed(f"Executed again, the code did something else. {rebuilt.divergence}")
    if rebuilt.was_stopped:
        raise RebuildFailed(f"Step {step} did not end in time when it was executed again.")
    if "status" in rebuilt.differences or (require_same_output and rebuilt.differences):
        raise RebuildFailed(describe_differences(recording, rebuilt))


def describe_differences(recording: Recording, rebuilt: RebuiltStep) -> str:
    """Return a sentence that names the results that differ from the recording."""
    what = ", ".join(rebuilt.differences)
    step = recording.start.step
    return f"Step {step}, executed again, differs from the recording in: {what}."
