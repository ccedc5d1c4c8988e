"""Reading the past: runs, lines and sessions as the journal has them.

Nothing here needs a sandbox, and the journal is all that is read. What is damaged there is named in `damage`, and the
rest is told.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ..errors import InvalidRequest, NotFound
from ..journal.events import Asked, CallStarted, FileEntry, FilesChanged, RunFinished, RunStarted
from ..journal.replay import UNDONE, RecordedCall, Recorder, repeats
from ..journal.rows import AGENT, RunRow, SessionRow, Stored
from ..journal.store import Journal
from .calls import STATUS_OF, LedgerEntry
from .plan import Plan, PlannedCall, args_of, is_planned, name_of, planned_call
from .report import Report, Status, Wait

NAMED = 5  # of the sessions that an error names
STEP_DIGITS = 9  # of a step's number
BEGINS = "agent.run"  # the call by which code begins an agent
MAX_DEPTH = 20  # of agents that agents have begun, which are told


@dataclass(frozen=True)
class PastRun:
    """One run as the journal has it: `start` is None where that is damaged, `end` where the run has not ended."""

    row: RunRow
    start: RunStarted | None
    calls: tuple[RecordedCall, ...]
    printed: Mapping[str, str]
    end: RunFinished | None
    files: FilesChanged | None
    asked: tuple[Asked, ...] = ()  # and not answered
    damage: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """What was executed; "" where that is lost."""
        return self.start.code if self.start else ""

    @property
    def changed(self) -> Mapping[str, FileEntry]:
        """The files that it left changed."""
        return self.files.changed if self.files else {}

    @property
    def report(self) -> Report:
        """The same facts as were told when it ran, bar the notes, which were of that moment."""
        row, end, files = self.row, self.end, self.files
        report = Report(row.id, row.session, row.step, stdout=self.printed["stdout"], stderr=self.printed["stderr"])
        report.calls = [entry_of(call) for call in self.calls if call.listed]
        if files is not None:
            report.changed, report.removed = list(files.changed), list(files.removed)
        planned = [planned_call(call) for call in self.calls if is_planned(call)]
        report.waiting_for = self.open_waits if end is None else plan_waits(planned) if end.status == "waiting" else []
        if end is None:
            report.status = "waiting" if report.waiting_for else "queued" if row.status == "queued" else "running"
        else:
            report.status = cast(Status, end.status)
            report.value = None if end.value is None else dict(end.value)
            report.error = None if end.error is None else dict(end.error)
            report.usage = dict(end.usage or {})
        return report

    @property
    def open_waits(self) -> list[Wait]:
        """What it waits for before it can go on, if it has not ended."""
        calls = {call.call: call for call in self.calls}
        asked_of = [(asked, calls[asked.call]) for asked in self.asked if asked.call in calls]
        plan = Plan(self.start.approved if self.start else ())
        return [
            wait_of(asked, call.target, plan.arguments((call.target, call.args, call.nth), args_of(call)), call.line)
            for asked, call in asked_of
        ]


def wait_of(asked: Asked, target: str, args: Mapping[str, Any], line: int | None) -> Wait:
    """Return what a run waits for that has asked about a call, and about those that the answer holds for, too."""
    if asked.about:
        return Wait(asked.question, asked.kind, ((target, asked.about),), line, (), asked.expires)
    covered = ((each["target"], json.loads(each["sent"])) for each in asked.covers)
    return Wait(asked.question, asked.kind, ((target, args), *covered), line, tuple(asked.hints), asked.expires)


def plan_waits(calls: Iterable[PlannedCall]) -> list[Wait]:
    """Return what a dry run waits for: that its planned calls are committed."""
    return [Wait(name_of(each.call), "plan", ((each.target, each.args),), each.line, each.hints) for each in calls]


def past_run(row: RunRow, stored: Iterable[Stored], damage: Sequence[str] = ()) -> PastRun:
    """Return the run that these events make up."""
    found = Recorder()
    for each in stored:
        found.take(each)
    printed = {stream: "".join(pieces) for stream, pieces in found.printed.items()}
    return PastRun(
        row,
        found.start,
        tuple(found.calls.values()),
        printed,
        found.end,
        found.files,
        tuple(each for each in found.asked if each.question not in found.answered),
        tuple(damage),
    )


def report_of(row: RunRow, stored: Sequence[Stored]) -> Report:
    """Return the report of a run from its events; one that has not ended is `running`, with what it has done so far."""
    return past_run(row, stored).report


def entry_of(call: RecordedCall) -> LedgerEntry:
    """Return a recorded call as a line of the ledger."""
    entry = LedgerEntry(call.target, args_of(call), ms=call.ms)
    if call.error is not None:
        entry.status = STATUS_OF.get(str(call.error.get("kind")), "error")
        entry.error = str(call.error.get("message", ""))
    elif call.finished is not None:
        entry.status = "ok"
    return entry


async def load_run(journal: Journal, row: RunRow) -> PastRun:
    """Return a run from the journal."""
    damage: list[str] = []
    stored = await journal.events(row.session, run=row.id, damage=damage)
    return past_run(row, stored, damage)


async def load_report(journal: Journal, run: str) -> Report:
    """Return the report of a run; raises `NotFound`."""
    return (await load_run(journal, await journal.run(run))).report


async def load_line(journal: Journal, run: str | None) -> list[Report]:
    """Return the reports of the runs that led to the end of `run`, the first first; raises `NotFound`."""
    return [(await load_run(journal, row)).report for row in await journal.line(run)]


# a session as a whole -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One run in a list: the first line of its code, and how many calls it made and files it changed.

    `tier` is how the variables at its end come back where no copy of the interpreter is parked: `rebuild`, `files-only`
    (or "" for a run that has left no state).
    """

    row: RunRow
    code: str = ""
    calls: int = 0
    files: int = 0
    tier: str = ""


@dataclass(frozen=True)
class Tree:
    """The runs of a session, parents first, with those of other sessions that they go back to.

    `line` leads to the tip; every other run is on a line that was left, or is undone. `forks` are the sessions that
    begin at a run.
    """

    session: SessionRow
    runs: tuple[Summary, ...]
    line: tuple[str, ...]
    forks: Mapping[str, tuple[SessionRow, ...]] = field(default_factory=dict)
    damage: tuple[str, ...] = ()

    def children(self) -> Mapping[str | None, list[Summary]]:
        """Return the runs that each run was followed by, None being the beginning; later ones last."""
        known = {each.row.id for each in self.runs}
        children = defaultdict(list)
        for each in self.runs:
            children[each.row.parent if each.row.parent in known else None].append(each)
        return children


@dataclass(frozen=True)
class AgentTree:
    """An agent that a run has begun: its session, the runs in it, and the agents that these have begun, by run."""

    session: SessionRow
    runs: tuple[RunRow, ...]
    agents: Mapping[str, tuple[AgentTree, ...]]


async def load_agents(journal: Journal, past: PastRun) -> tuple[AgentTree, ...]:
    """Return the agents that a run has begun, the first first, with those that they have begun."""
    if not any(call.target == BEGINS for call in past.calls):
        return ()
    begun = defaultdict(list)
    for session in reversed(await journal.sessions()):
        if session.purpose == AGENT and session.origin is not None:
            begun[session.origin].append(session)

    async def tree(session: SessionRow, depth: int) -> AgentTree:
        rows = [row for row in await journal.passed(session.id) if row.session == session.id]
        below = {row.id: begun.get(row.id, []) for row in rows} if depth < MAX_DEPTH else {}
        agents = {run: tuple([await tree(each, depth + 1) for each in found]) for run, found in below.items() if found}
        return AgentTree(session, tuple(rows), agents)

    return tuple([await tree(each, 1) for each in begun.get(past.row.id, [])])


async def load_tree(journal: Journal, session: SessionRow) -> Tree:
    """Return what there is of a session."""
    line = await journal.line(session.tip)
    rows = {row.id: row for row in await journal.passed(session.id)}
    damage: list[str] = []
    summaries: dict[str, Summary] = {}
    for each in dict.fromkeys(row.session for row in rows.values()):
        summaries |= await _summaries(journal, each, rows, damage)
    tiers = _tiers(rows)
    forks = defaultdict(list)
    for other in reversed(await journal.sessions()):
        if other.origin in rows and other.id != session.id:
            forks[other.origin].append(other)
    return Tree(
        session,
        tuple(replace(summaries[run], tier=tier) for run, tier in tiers.items()),
        tuple(row.id for row in line),
        {run: tuple(others) for run, others in forks.items()},
        tuple(damage),
    )


def _tiers(rows: Mapping[str, RunRow]) -> Mapping[str, str]:
    """Return the tier of each run, parents being first."""
    exact: dict[str, bool] = {}
    for run, row in rows.items():
        exact[run] = repeats(row, exact.get(row.parent or "", True))
    has_end = {run: row.is_over and UNDONE not in row.flags for run, row in rows.items()}
    return {run: ("rebuild" if exact[run] else "files-only") if has_end[run] else "" for run in rows}


async def _summaries(
    journal: Journal, session: str, rows: Mapping[str, RunRow], damage: list[str]
) -> Mapping[str, Summary]:
    """Return those of `rows` that are runs of `session`, summed up."""
    code = {}
    for stored in await journal.events(session, kind="run_started", damage=damage):
        if isinstance(stored.event, RunStarted):
            code[stored.event.run] = first_line(stored.event.code)
    calls: Counter[str | None] = Counter()
    for stored in await journal.events(session, kind="call_started", damage=damage):
        if isinstance(stored.event, CallStarted) and stored.event.listed:
            calls[stored.run] += 1
    files: dict[str | None, int] = {}
    for stored in await journal.events(session, kind="files_changed", damage=damage):
        if isinstance(stored.event, FilesChanged):
            files[stored.run] = len(stored.event.changed) + len(stored.event.removed)
    return {
        row.id: Summary(row, code.get(row.id, ""), calls[row.id], files.get(row.id, 0))
        for row in rows.values()
        if row.session == session
    }


def first_line(code: str) -> str:
    """Return the first line of code that has something on it."""
    return next((line.strip() for line in code.splitlines() if line.strip()), "")


# what people call things ----------------------------------------------------------------------------


async def find_session(journal: Journal, handle: str, principal: str | None = None) -> SessionRow:
    """Return the principal's, or anybody's, session of that id or name.

    Raises `NotFound`, or `InvalidRequest` if it is several.
    """
    sessions = await journal.sessions(principal)
    found = [row for row in sessions if row.id == handle] or [row for row in sessions if row.name == handle]
    if not found:
        known = ", ".join(row.name or row.id for row in sessions[:NAMED])
        remedy = f"Last used: {known}." if known else "There are no sessions here yet; is this the right data folder?"
        raise NotFound(f"There is no session {handle!r:.80}.", remedy=remedy)
    if len(found) > 1:
        ids = ", ".join(row.id for row in found)
        raise InvalidRequest(f"{len(found)} sessions are called {handle!r}.", remedy=f"Use an id: {ids}.")
    return found[0]


async def find_run(journal: Journal, session: SessionRow, which: str) -> RunRow:
    """Return a run of `session`: by its id, or by its step on the session's line; raises `NotFound`."""
    line = await journal.line(session.tip)
    handle = session.name or session.id
    if is_step(which):
        for row in line:
            if row.step == int(which):
                return row
        steps = f"has the steps 1 to {line[-1].step}" if line else "is empty"
        remedy = f"A run beside them is named by its id; `mcpruntime-server replay list {handle}` shows all."
        raise NotFound(f"There is no step {which}: the session {handle!r} {steps}.", remedy=remedy)
    for row in await journal.passed(session.id):
        if row.id == which:
            return row
    remedy = f"`mcpruntime-server replay list {handle}` shows its runs."
    raise NotFound(f"The session {handle!r} has no run {which!r:.80}.", remedy=remedy)


def is_step(which: str) -> bool:
    """Return whether what people typed is the number of a step."""
    return which.isdecimal() and len(which) <= STEP_DIGITS


def fields_of(row: Any) -> dict[str, Any]:
    """Return the fields of a row as JSON data."""
    found = {name: getattr(row, name) for name in row.__dataclass_fields__}
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in found.items()}
