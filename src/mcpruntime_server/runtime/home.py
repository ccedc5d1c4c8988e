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
from typing import Any

from anyio import Lock, move_on_after

from ..errors import JournalFailed, McpRuntimeError, NotFound
from ..inputs.service import Inputs
from ..journal.events import FileEntry, FilesChanged
from ..journal.replay import FRESH, INTERRUPTED, UNSEEDED, Recording, load_recording, repeats
from ..journal.rows import RunRow
from ..journal.store import Journal
from ..sandbox.link import Link
from .calls import Router
from .listener import FILE_OVERHEAD
from .placing import Placing
from .pool import Slot
from .rebuild import Rebuilt, rebuild_step
from .request import Limits
from .run import Run

UNSETTLED = "?"  # no run's end state: one that died has left something behind
UNKNOWN = FileEntry(digest="", size=0, mode=0)  # a file of which nobody knows the content
FILES_S = 60.0  # for a run's files to arrive: a full workspace takes seconds, on a loaded machine some more
MAX_NUMBERS = 10_000  # runs that a home remembers; far more than it holds the states of

logger = logging.getLogger(__name__)


class CannotRebuild(Exception):
    """The variables of a step cannot be had back; the message says why, in a sentence."""


@dataclass
class Arrival:
    """How a home came to the state that was asked for: what to tell the client, and whether variables are missing."""

    notes: list[str] = field(default_factory=list)
    rebuilt: int = 0  # steps that were executed again
    mended: dict[str, set[str]] = field(default_factory=dict)  # run whose files were lost -> paths that are here again
    fresh: bool = False


class Home:
    """One sandbox, the runs whose end states it holds, and what its workspace contains."""

    def __init__(
        self, slot: Slot, journal: Journal, router: Router, limits: Limits, lost: dict[str, str], inputs: Inputs
    ) -> None:
        self.slot = slot
        self.link: Link = slot.link
        self._placing = Placing(self.link, inputs, limits.files)
        self.turn = Lock()  # held by the session that uses it
        self._users: set[object] = set()
        self._journal = journal
        self._router = router
        self._limits = limits
        self._lost = lost  # runs whose variables cannot be had back, and why; of all homes
        self._numbers: dict[str | None, int] = {None: 0}  # run -> the link's number for it
        self._state: str | None = None  # the run whose end state interpreter and workspace are in
        self._rebuilt: str | None = None  # the last state that was come to by executing steps again
        self._runs = 0  # that the link had executed when that became so
        self._files: dict[str, FileEntry] = {}
        self._unsaved: list[Run] = []
        self._saving = Lock()  # held by the run whose files are saved

    @property
    def is_gone(self) -> bool:
        """Whether the sandbox does not live any more."""
        return self.link.closed.is_set()

    def holds(self, run: str | None) -> bool:
        """Return whether the end state of `run` is a matter of milliseconds here."""
        number = self._numbers.get(run)
        return not self.is_gone and number is not None and self.link.holds(number)

    def enter(self, user: object) -> None:
        """Be used by `user`, too."""
        self._users.add(user)

    def leave(self, user: object) -> None:
        """Do without it; when the last has done so it is removed."""
        self._users.discard(user)
        if not self._users:
            self.slot.release()

    # what a run leaves behind -----------------------------------------------------------------------

    def ran(self, run: Run) -> None:
        """Take note that `run`, for which this was brought to a state, is over."""
        if run.undone:
            if self._state is not None and (
                self.link.broke_protocol or (self.is_gone and self._rebuilt == self._state)
            ):
                self._lost[self._state] = "A sandbox does not survive it."
            if self.link.last_run != self._runs:
                self._state = UNSETTLED
                self._note_files(dict.fromkeys(run.report.changed, UNKNOWN), run.report.removed)
            return
        self._remember(run.id)
        self._note_files(dict.fromkeys(run.report.changed, UNKNOWN), run.report.removed)
        if not run.files_stored.is_set():
            self._unsaved.append(run)

    async def save(self, run: Run) -> None:
        """Take the files that `run` changed into the journal, when they have come; run by run, in their order."""
        try:
            async with self._saving:
                with move_on_after(FILES_S):
                    await self.link.saved()
                if not run.listener.files.have_come:
                    self.link.fail("it did not send the files of its last run in time")
                stored = await run.listener.store_files(self._journal)
                if stored is not None:
                    self._note_stored(run, stored)
        except JournalFailed as exc:
            logger.error("the files of run %s were not saved: %s", run.id, exc)
        finally:
            self._unsaved.remove(run)
            run.files_stored.set()

    async def settle(self) -> None:
        """Wait until the files of all runs are in the journal."""
        for run in list(self._unsaved):
            await run.files_stored.wait()

    def _note_stored(self, run: Run, stored: FilesChanged) -> None:
        """Note the content of the files that `run` has changed and no later run has changed again."""
        later = self._unsaved[self._unsaved.index(run) + 1 :]
        passed = {path for other in later for path in (*other.report.changed, *other.report.removed)}
        self._files.update({path: entry for path, entry in stored.changed.items() if path not in passed})

    def _note_files(self, changed: Mapping[str, FileEntry], removed: Iterable[str]) -> None:
        for path in removed:
            self._files.pop(path, None)
        self._files.update(changed)

    def _remember(self, run: str) -> None:
        """The interpreter is in the end state of `run`, which it has just executed."""
        self._state, self._runs = run, self.link.last_run
        self._numbers[run] = self.link.live
        if len(self._numbers) > MAX_NUMBERS:
            del self._numbers[next(name for name in self._numbers if name is not None)]

    def _is_live(self, run: str | None) -> bool:
        return self._numbers.get(run) == self.link.live

    # coming to a state ------------------------------------------------------------------------------

    async def bring(self, tip: str | None, run: Run) -> Arrival:
        """Have interpreter and workspace in the end state of run `tip`, for `run`; raises `SandboxFailed`."""
        if self._state == tip and self._is_live(tip) and not run.fresh:
            return Arrival()
        await self.settle()
        arrival = Arrival(fresh=run.fresh)
        if not run.fresh:
            try:
                await self._bring_variables(await self._journal.line(tip), run, arrival)
            except (CannotRebuild, JournalFailed) as exc:
                if run.is_cancelled:
                    self._state = UNSETTLED
                    return arrival
                arrival = self._give_up_variables(tip, str(exc))
        if arrival.fresh:
            await self._promote(None)
        await self._restore(tip, arrival)
        self._state, self._runs = tip, self.link.last_run
        return arrival

    def _give_up_variables(self, tip: str | None, reason: str) -> Arrival:
        if tip is not None:
            self._lost[tip] = reason
        return Arrival([f"Variables are gone; workspace files are kept. {reason}"], fresh=True)

    async def _bring_variables(self, line: Sequence[RunRow], run: Run, arrival: Arrival) -> None:
        """Start from the nearest state of `line` that is here, and execute what follows it again."""
        done = self._nearest(line)
        base = line[done - 1].id if done else None
        begins_fresh = done < len(line) and FRESH in line[done].flags
        if done < len(line):
            check_rebuildable(line, done, self._lost)
        if not await self._promote(None if begins_fresh else base):
            await self._bring_variables(line, run, arrival)  # the copy is gone, which this home knows now
            return
        if done < len(line):
            await self._restore(base, arrival)
            await self._rebuild(line, done, run, arrival)

    def _nearest(self, line: Sequence[RunRow]) -> int:
        """Return how many steps of `line` need not be executed to have the state at its end."""
        for done in range(len(line), 0, -1):
            if self.holds(line[done - 1].id):
                return done
            if FRESH in line[done - 1].flags:
                return done - 1
        return 0

    async def _promote(self, run: str | None) -> bool:
        """Make the end state of `run` live; return False if its copy is gone and an empty interpreter is live."""
        if self._is_live(run) and (run is not None or self._state is None):
            return True
        promoted = await self.link.promote(self._numbers[run])
        self._note_files(dict.fromkeys(promoted.changed, UNKNOWN), promoted.removed)
        self._state = UNSETTLED  # until the files are right, too
        return promoted.ok

    async def _rebuild(self, line: Sequence[RunRow], done: int, run: Run, arrival: Arrival) -> None:
        """Execute the steps of `line` after the first `done` again; raises `CannotRebuild`."""
        skipped = [row.step for row in line[done:] if INTERRUPTED in row.flags]
        for row in line[done:]:
            if row.step in skipped:
                continue
            run.enter_stage(f"executing step {row.step} of {line[-1].step} again, with recorded answers")
            recording = await load_recording(self._journal, row)
            limit = self._limits.files + FILE_OVERHEAD
            told = await self._inputs_again(recording, run)
            rebuilt = await rebuild_step(self.link, recording, self._router, limit, park=row is line[-1], inputs=told)
            self._note_files({path: entry for path, (entry, _) in rebuilt.files.items()}, rebuilt.removed)
            check(recording, rebuilt, strictly=bool(skipped))
            await self._take_rebuilt(recording, rebuilt, run, arrival)
        run.enter_stage("")
        arrival.rebuilt = len(line) - done - len(skipped)
        self._remember(line[-1].id)
        self._rebuilt = line[-1].id
        if skipped:
            listed = ", ".join(map(str, skipped))
            arrival.notes.append(f"What step {listed} did to variables before it was interrupted is not among them.")

    async def provide(self, run: Run) -> None:
        """Have the inputs of `run` here; raises what `Placing.provide` raises."""
        if run.inputs:
            strictly = run.request.recording is not None or run.request.context is not None
            session = run.report.session
            run.told_inputs = await self._placing.provide(session, run.inputs, run, strictly=strictly)

    async def _inputs_again(self, recording: Recording, run: Run) -> list[dict[str, Any]]:
        """Have the inputs of a step here that is executed again; raises `CannotRebuild`."""
        try:
            return await self._placing.provide(recording.session, recording.start.context, run, strictly=True)
        except McpRuntimeError as exc:
            raise CannotRebuild(f"Step {recording.start.step} cannot be executed again. {exc}") from None

    async def _take_rebuilt(self, recording: Recording, rebuilt: Rebuilt, run: Run, arrival: Arrival) -> None:
        """Tell what a step has left that was executed again; mend what a crash kept from being journaled then."""
        assert recording.end is not None, "only what has ended is rebuilt"
        run.overflow.keep(self.link, recording.start.run, rebuilt.texts, recording.end.value)
        if rebuilt.differences:
            what = ", ".join(rebuilt.differences)
            arrival.notes.append(f"Step {recording.start.step}, executed again, differs from the recording in: {what}.")
        if not recording.lacks_files:
            return
        arrival.mended[recording.start.run] = {*rebuilt.files, *rebuilt.removed}
        if recording.session == run.report.session:
            for _, data in rebuilt.files.values():
                await self._journal.put_blob(data)
            entries = {path: entry for path, (entry, _) in rebuilt.files.items()}
            self._journal.append(recording.session, FilesChanged(entries, rebuilt.removed), recording.start.run)

    # files ------------------------------------------------------------------------------------------

    async def _restore(self, tip: str | None, arrival: Arrival) -> None:
        """Have the workspace as it was at the end of run `tip`."""
        files, lacking = await self._journal.files_at(tip, arrival.notes)
        for path in set().union(*arrival.mended.values()):  # here they are as they should be
            files.pop(path, None)
            if path in self._files:
                files[path] = self._files[path]
        lacking = [each for each in lacking if each not in arrival.mended]
        for path in self._files.keys() - files.keys():
            self.link.remove(path)
        missing = {path: entry for path, entry in files.items() if not same(self._files.get(path), entry)}
        for path, entry in missing.items():
            try:
                self.link.put(path, entry["mode"], await self._journal.get_blob(entry["digest"]))
            except (JournalFailed, NotFound) as exc:
                arrival.notes.append(f"The file {path!r} is not restored: {exc}")
                files[path] = UNKNOWN
        self._files = files
        if lacking:
            arrival.notes.append(f"Files that {', '.join(lacking)} changed were lost.")


def same(here: FileEntry | None, wanted: FileEntry) -> bool:
    """Return whether a file is in the workspace as it should be."""
    return here is not None and (here["digest"], here["mode"]) == (wanted["digest"], wanted["mode"])


def check_rebuildable(line: Sequence[RunRow], done: int, lost: Mapping[str, str]) -> None:
    """Raise `CannotRebuild` if it is known that the steps of `line` after the first `done` cannot be had back."""
    if reason := lost.get(line[-1].id):
        raise CannotRebuild(reason)
    for row in line[done:]:
        if UNSEEDED in row.flags:
            raise CannotRebuild(f"Step {row.step} was recorded by an older version, without what it drew of chance.")
        if not row.is_over:
            raise CannotRebuild(f"Step {row.step} has no end in the journal.")


def is_exact(line: Iterable[RunRow]) -> bool:
    """Return whether executing `line` again is sure to repeat all that its steps did to variables."""
    exact = True
    for row in line:
        exact = repeats(row, exact)
    return exact


def check(recording: Recording, rebuilt: Rebuilt, *, strictly: bool) -> None:
    """Raise `CannotRebuild` if a step that was executed again did something else; `strictly`, if it shows any."""
    step = recording.start.step
    if rebuilt.divergence is not None:
        raise CannotRebuild(f"Executed again, the code did something else. {rebuilt.divergence}")
    if rebuilt.stopped:
        raise CannotRebuild(f"Step {step} did not come to its end when it was executed again.")
    if "status" in rebuilt.differences or (strictly and rebuilt.differences):
        what = ", ".join(rebuilt.differences)
        raise CannotRebuild(f"Step {step}, executed again, differs from the recording in: {what}.")
