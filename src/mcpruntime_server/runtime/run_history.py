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
from ..journal.events import (
    CallStarted,
    FileEntry,
    FilesChanged,
    QuestionAsked,
    RunFinished,
    RunStarted,
)
from ..journal.recording import RecordedCall, RecordingBuilder, is_reproducible
from ..journal.rows import AGENT_PURPOSE, UNDONE_FLAG, RunRow, SessionRow, StoredEvent
from ..journal.store import Journal
from .plan import Plan, PlannedCall, is_planned, parse_args, planned_call_name, planned_call_of
from .router import STATUS_BY_ERROR_KIND, LedgerEntry
from .run_report import PendingQuestionView, RunReport, RunStatus

MAX_NAMED_SESSIONS = 5  # of the sessions that an error names
MAX_STEP_DIGITS = 9  # of a step's number
AGENT_RUN_TARGET = "agent.run"  # the call by which code begins an agent
MAX_AGENT_DEPTH = 20  # of agents that agents have begun, which are told


@dataclass(frozen=True)
class RecordedRun:
    """One run as the journal has it: `start` is None where that is damaged, `end` where the run has not ended."""

    row: RunRow
    start: RunStarted | None
    calls: tuple[RecordedCall, ...]
    output: Mapping[str, str]
    finished: RunFinished | None
    files: FilesChanged | None
    open_questions: tuple[QuestionAsked, ...] = ()  # and not answered
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
    def report(self) -> RunReport:
        """The same facts as were told when it ran, bar the notes, which were of that moment."""
        row, end, files = self.row, self.finished, self.files
        report = RunReport(
            row.id,
            row.session_id,
            row.step,
            stdout=self.output["stdout"],
            stderr=self.output["stderr"],
        )
        report.calls = [ledger_entry_of(call) for call in self.calls if call.in_ledger]
        if files is not None:
            report.changed_files, report.removed_files = list(files.changed), list(files.removed)
        planned = [planned_call_of(call) for call in self.calls if is_planned(call)]
        report.pending_questions = (
            self.pending_questions
            if end is None
            else planned_call_views(planned)
            if end.status == "waiting"
            else []
        )
        if end is None:
            report.status = (
                "waiting"
                if report.pending_questions
                else "queued"
                if row.status == "queued"
                else "running"
            )
        else:
            report.status = cast(RunStatus, end.status)
            report.value = None if end.value is None else dict(end.value)
            report.error = None if end.error is None else dict(end.error)
            report.usage = dict(end.usage or {})
            report.flags = set(end.flags)
        return report

    @property
    def pending_questions(self) -> list[PendingQuestionView]:
        """What it waits for before it can go on, if it has not ended."""
        calls = {call.call_id: call for call in self.calls}
        asked_of = [
            (asked, calls[asked.call_id]) for asked in self.open_questions if asked.call_id in calls
        ]
        plan = Plan(self.start.approved_calls if self.start else ())
        return [
            pending_question_view(
                asked,
                call.target,
                plan.approved_args((call.target, call.args, call.nth), parse_args(call)),
                call.line_number,
            )
            for asked, call in asked_of
        ]


def pending_question_view(
    asked: QuestionAsked, target: str, args: Mapping[str, Any], line: int | None
) -> PendingQuestionView:
    """Return what a run waits for that has asked about a call, and about those that the answer holds for, too."""
    if asked.model_request:
        return PendingQuestionView(
            asked.question_id,
            asked.kind,
            ((target, asked.model_request),),
            line,
            (),
            asked.expires_at,
        )
    covered = ((each["target"], json.loads(each["sent"])) for each in asked.covered_calls)
    return PendingQuestionView(
        asked.question_id,
        asked.kind,
        ((target, args), *covered),
        line,
        tuple(asked.hints),
        asked.expires_at,
    )


def planned_call_views(calls: Iterable[PlannedCall]) -> list[PendingQuestionView]:
    """Return what a dry run waits for: that its planned calls are committed."""
    return [
        PendingQuestionView(
            planned_call_name(each.number),
            "plan",
            ((each.target, each.args),),
            each.line,
            each.hints,
        )
        for each in calls
    ]


def build_recorded_run(
    row: RunRow, stored: Iterable[StoredEvent], damage: Sequence[str] = ()
) -> RecordedRun:
    """Return the run that these events make up."""
    found = RecordingBuilder()
    for each in stored:
        found.add(each)
    printed = {stream: "".join(pieces) for stream, pieces in found.output.items()}
    return RecordedRun(
        row,
        found.start,
        tuple(found.calls.values()),
        printed,
        found.finish,
        found.files,
        tuple(each for each in found.questions if each.question_id not in found.answers),
        tuple(damage),
    )


def report_of(row: RunRow, stored: Sequence[StoredEvent]) -> RunReport:
    """Return the report of a run from its events; one that has not ended is `running`, with what it has done so far."""
    return build_recorded_run(row, stored).report


def ledger_entry_of(call: RecordedCall) -> LedgerEntry:
    """Return a recorded call as a line of the ledger."""
    entry = LedgerEntry(call.target, parse_args(call), duration_ms=call.duration_ms)
    if call.error is not None:
        entry.status = STATUS_BY_ERROR_KIND.get(str(call.error.get("kind")), "error")
        entry.error = str(call.error.get("message", ""))
    elif call.finished_sequence is not None:
        entry.status = "ok"
    return entry


async def load_run(journal: Journal, row: RunRow) -> RecordedRun:
    """Return a run from the journal."""
    damage: list[str] = []
    stored = await journal.load_events(row.session_id, run_id=row.id, damage=damage)
    return build_recorded_run(row, stored, damage)


async def load_report(journal: Journal, run: str) -> RunReport:
    """Return the report of a run; raises `NotFound`."""
    return (await load_run(journal, await journal.load_run(run))).report


async def load_lineage(journal: Journal, run: str | None) -> list[RunReport]:
    """Return the reports of the runs that led to the end of `run`, the first first; raises `NotFound`."""
    return [(await load_run(journal, row)).report for row in await journal.load_lineage(run)]


# a session as a whole -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunSummary:
    """One run in a list: the first line of its code, and how many calls it made and files it changed.

    `tier` is how the variables at its end come back where no copy of the interpreter is parked: `rebuild`, `files-only`
    (or "" for a run that has left no state).
    """

    row: RunRow
    code: str = ""
    call_count: int = 0
    file_count: int = 0
    tier: str = ""


@dataclass(frozen=True)
class SessionTree:
    """The runs of a session, parents first, with those of other sessions that they go back to.

    `line` leads to the tip; every other run is on a line that was left, or is undone. `forks` are the sessions that
    begin at a run.
    """

    session: SessionRow
    runs: tuple[RunSummary, ...]
    lineage: tuple[str, ...]
    forks: Mapping[str, tuple[SessionRow, ...]] = field(default_factory=dict)
    damage: tuple[str, ...] = ()

    def children(self) -> Mapping[str | None, list[RunSummary]]:
        """Return the runs that each run was followed by, None being the beginning; later ones last."""
        known = {each.row.id for each in self.runs}
        children = defaultdict(list)
        for each in self.runs:
            children[each.row.parent_id if each.row.parent_id in known else None].append(each)
        return children


@dataclass(frozen=True)
class AgentTree:
    """An agent that a run has begun: its session, the runs in it, and the agents that these have begun, by run."""

    session: SessionRow
    runs: tuple[RunRow, ...]
    agents: Mapping[str, tuple[AgentTree, ...]]


async def load_agents(journal: Journal, past: RecordedRun) -> tuple[AgentTree, ...]:
    """Return the agents that a run has begun, the first first, with those that they have begun."""
    if not any(call.target == AGENT_RUN_TARGET for call in past.calls):
        return ()
    begun = defaultdict(list)
    for session in reversed(await journal.list_sessions()):
        if session.purpose == AGENT_PURPOSE and session.origin is not None:
            begun[session.origin].append(session)

    async def tree(session: SessionRow, depth: int) -> AgentTree:
        rows = [
            row
            for row in await journal.list_visited_runs(session.id)
            if row.session_id == session.id
        ]
        below = {row.id: begun.get(row.id, []) for row in rows} if depth < MAX_AGENT_DEPTH else {}
        agents = {
            run: tuple([await tree(each, depth + 1) for each in found])
            for run, found in below.items()
            if found
        }
        return AgentTree(session, tuple(rows), agents)

    return tuple([await tree(each, 1) for each in begun.get(past.row.id, [])])


async def load_tree(journal: Journal, session: SessionRow) -> SessionTree:
    """Return what there is of a session."""
    line = await journal.load_lineage(session.tip)
    rows = {row.id: row for row in await journal.list_visited_runs(session.id)}
    damage: list[str] = []
    summaries: dict[str, RunSummary] = {}
    for each in dict.fromkeys(row.session_id for row in rows.values()):
        summaries |= await _load_summaries(journal, each, rows, damage)
    tiers = _restore_tiers(rows)
    forks = defaultdict(list)
    for other in reversed(await journal.list_sessions()):
        if other.origin in rows and other.id != session.id:
            forks[other.origin].append(other)
    return SessionTree(
        session,
        tuple(replace(summaries[run], tier=tier) for run, tier in tiers.items()),
        tuple(row.id for row in line),
        {run: tuple(others) for run, others in forks.items()},
        tuple(damage),
    )


def _restore_tiers(rows: Mapping[str, RunRow]) -> Mapping[str, str]:
    """Return the tier of each run, parents being first."""
    exact: dict[str, bool] = {}
    for run, row in rows.items():
        exact[run] = is_reproducible(row, exact.get(row.parent_id or "", True))
    has_end = {run: row.is_finished and UNDONE_FLAG not in row.flags for run, row in rows.items()}
    return {
        run: ("rebuild" if exact[run] else "files-only") if has_end[run] else "" for run in rows
    }


async def _load_summaries(
    journal: Journal, session: str, rows: Mapping[str, RunRow], damage: list[str]
) -> Mapping[str, RunSummary]:
    """Return those of `rows` that are runs of `session`, summed up."""
    code = {}
    for stored in await journal.load_events(session, event_type=RunStarted, damage=damage):
        if isinstance(stored.event, RunStarted):
            code[stored.event.run_id] = first_code_line(stored.event.code)
    calls: Counter[str | None] = Counter()
    for stored in await journal.load_events(session, event_type=CallStarted, damage=damage):
        if isinstance(stored.event, CallStarted) and stored.event.in_ledger:
            calls[stored.run_id] += 1
    files: dict[str | None, int] = {}
    for stored in await journal.load_events(session, event_type=FilesChanged, damage=damage):
        if isinstance(stored.event, FilesChanged):
            files[stored.run_id] = len(stored.event.changed) + len(stored.event.removed)
    return {
        row.id: RunSummary(row, code.get(row.id, ""), calls[row.id], files.get(row.id, 0))
        for row in rows.values()
        if row.session_id == session
    }


def first_code_line(code: str) -> str:
    """Return the first line of code that has something on it."""
    return next((line.strip() for line in code.splitlines() if line.strip()), "")


# what people call things ----------------------------------------------------------------------------


async def find_session(journal: Journal, handle: str, principal: str | None = None) -> SessionRow:
    """Return the principal's, or anybody's, session of that id or name.

    Raises `NotFound`, or `InvalidRequest` if it is several.
    """
    sessions = await journal.list_sessions(principal)
    found = [row for row in sessions if row.id == handle] or [
        row for row in sessions if row.name == handle
    ]
    if not found:
        known = ", ".join(row.name or row.id for row in sessions[:MAX_NAMED_SESSIONS])
        remedy = (
            f"Last used: {known}."
            if known
            else "There are no sessions here yet; is this the right data folder?"
        )
        raise NotFound(f"There is no session {handle!r:.80}.", remedy=remedy)
    if len(found) > 1:
        ids = ", ".join(row.id for row in found)
        raise InvalidRequest(
            f"{len(found)} sessions are called {handle!r}.", remedy=f"Use an id: {ids}."
        )
    return found[0]


async def find_run(journal: Journal, session: SessionRow, which: str) -> RunRow:
    """Return a run of `session`: by its id, or by its step on the session's line; raises `NotFound`."""
    line = await journal.load_lineage(session.tip)
    handle = session.name or session.id
    if is_step_number(which):
        for row in line:
            if row.step == int(which):
                return row
        steps = f"has the steps 1 to {line[-1].step}" if line else "is empty"
        remedy = f"A run beside them is named by its id; `mcpruntime-server replay list {handle}` shows all."
        raise NotFound(f"There is no step {which}: the session {handle!r} {steps}.", remedy=remedy)
    for row in await journal.list_visited_runs(session.id):
        if row.id == which:
            return row
    remedy = f"`mcpruntime-server replay list {handle}` shows its runs."
    raise NotFound(f"The session {handle!r} has no run {which!r:.80}.", remedy=remedy)


def is_step_number(which: str) -> bool:
    """Return whether what people typed is the number of a step."""
    return which.isdecimal() and len(which) <= MAX_STEP_DIGITS


def row_fields(row: Any) -> dict[str, Any]:
    """Return the fields of a row as JSON data."""
    found = {name: getattr(row, name) for name in row.__dataclass_fields__}
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in found.items()
    }
