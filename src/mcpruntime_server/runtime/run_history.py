"""Reads recorded runs, lineages and sessions from the journal.

It needs no sandbox. What is damaged in the journal is listed as `damage`; everything else is
returned all the same.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from anyio import to_thread

from ..errors import InvalidRequest, NotFound
from ..journal.events import (
    ApprovedCall,
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
from .call_ledger import LedgerEntry
from .plan import Plan, PlannedCall, is_planned, parse_args, planned_call_name, planned_call_of
from .run_report import PendingQuestionView, RunReport, RunStatus, validate_media

MANY_EVENTS = 100  # of a run that is put together in a thread
MAX_NAMED_SESSIONS = 5  # in an error
MAX_STEP_DIGITS = 9
AGENT_RUN_TARGET = "agent.run"  # the call by which code starts an agent
MAX_AGENT_DEPTH = 20  # of agents that agents have started, in a tree


@dataclass(frozen=True)
class RecordedRun:
    """One run as the journal has it."""

    row: RunRow
    start: RunStarted | None  # None if it is damaged
    calls: tuple[RecordedCall, ...]
    output: Mapping[str, str]
    finished: RunFinished | None  # None if the run has no end
    files: FilesChanged | None
    open_questions: tuple[QuestionAsked, ...] = ()
    damage: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """What was executed; "" if that is damaged."""
        return self.start.code if self.start else ""

    @property
    def changed(self) -> Mapping[str, FileEntry]:
        """The files that it changed, with their content at its end."""
        return self.files.changed if self.files else {}

    @property
    def report(self) -> RunReport:
        """The report that its client got, except for the notes, which the journal does not have."""
        row, finished, files = self.row, self.finished, self.files
        is_dry_run = self.start is not None and self.start.dry_run
        report = RunReport(row.id, row.session_id, row.step, is_dry_run=is_dry_run)
        report.stdout, report.stderr = self.output["stdout"], self.output["stderr"]
        approvals = self.start.approved_calls if self.start else ()
        report.calls = ledger_of(self.calls, approvals)
        if files is not None:
            report.changed_files, report.removed_files = list(files.changed), list(files.removed)
        if finished is None:
            asked = {question.call_id for question in self.open_questions}
            listed = [call for call in self.calls if call.in_ledger]
            for call, entry in zip(listed, report.calls, strict=True):
                if call.call_id in asked:
                    entry.status = "waiting"
            report.pending_questions = self.pending_questions
            report.status = "queued" if row.status == "queued" else "running"
            if report.pending_questions:
                report.status = "waiting"
            return report
        report.status = cast(RunStatus, finished.status)
        if report.status == "waiting":
            planned = [planned_call_of(call) for call in self.calls if is_planned(call)]
            report.pending_questions = planned_call_views(planned)
        report.value = finished.value
        report.error = finished.error
        report.usage = dict(finished.usage or {})
        report.media, _ = validate_media(finished.media)
        return report

    @property
    def pending_questions(self) -> list[PendingQuestionView]:
        """What it waits for, if it is not finished."""
        calls = {call.call_id: call for call in self.calls}
        plan = Plan(self.start.approved_calls if self.start else ())
        views = []
        for asked in self.open_questions:
            call = calls.get(asked.call_id)
            if call is not None:
                args = plan.approved_args((call.target, call.args, call.nth), parse_args(call))
                views.append(pending_question_view(asked, call.target, args, call.line_number))
        return views


def pending_question_view(
    asked: QuestionAsked, target: str, args: Mapping[str, Any], line: int | None
) -> PendingQuestionView:
    """Return a question as a client sees it: about a call and those that the answer covers, too."""
    calls = [(target, args)]
    calls += [(each["target"], json.loads(each["sent"])) for each in asked.covered_calls]
    return PendingQuestionView(
        asked.question_id,
        asked.kind,
        tuple(calls),
        asked.model_request,
        line,
        tuple(asked.hints),
        asked.expires_at,
        asked.url,
    )


def planned_call_views(calls: Iterable[PlannedCall]) -> list[PendingQuestionView]:
    """Return what a dry run waits for: that its planned calls are committed."""
    return [
        PendingQuestionView(
            planned_call_name(call.number),
            "plan",
            ((call.target, call.args),),
            line=call.line,
            hints=call.hints,
            needs_person=call.needs_person,
        )
        for call in calls
    ]


def build_recorded_run(
    row: RunRow, stored: Iterable[StoredEvent], damage: Sequence[str] = ()
) -> RecordedRun:
    """Return the run that these events make up."""
    builder = RecordingBuilder()
    for each in stored:
        builder.add(each)
    return RecordedRun(
        row,
        builder.start,
        tuple(builder.calls.values()),
        {stream: "".join(chunks) for stream, chunks in builder.output.items()},
        builder.finish,
        builder.files,
        tuple(each for each in builder.questions if each.question_id not in builder.answers),
        tuple(damage),
    )


def ledger_of(
    calls: Iterable[RecordedCall], approvals: Iterable[ApprovedCall]
) -> list[LedgerEntry]:
    """Return the ledger of recorded calls; an approval may have changed their arguments."""
    plan = Plan(approvals)
    return [ledger_entry_of(call, plan) for call in calls if call.in_ledger]


def ledger_entry_of(call: RecordedCall, plan: Plan) -> LedgerEntry:
    """Return a recorded call, with the arguments that it was made with, as an entry."""
    args = plan.approved_args((call.target, call.args, call.nth), parse_args(call))
    entry = LedgerEntry(
        call.target,
        args,
        duration_ms=call.duration_ms,
        effect=call.effect,
        summary=call.summary,
    )
    if call.error is not None:
        entry.apply_error(call.error)
    elif call.finished_sequence is not None:
        entry.status = "ok"
    return entry


async def load_recorded_run(journal: Journal, row: RunRow) -> RecordedRun:
    """Return a run from the journal."""
    damage: list[str] = []
    stored = await journal.load_events(row.session_id, run_id=row.id, damage=damage)
    if len(stored) > MANY_EVENTS:
        return await to_thread.run_sync(build_recorded_run, row, stored, damage)
    return build_recorded_run(row, stored, damage)


async def load_report(journal: Journal, run: str) -> RunReport:
    """Return the report of a run; raises `NotFound`."""
    return (await load_recorded_run(journal, await journal.load_run(run))).report


async def load_lineage_reports(journal: Journal, run: str | None) -> list[RunReport]:
    """Return the reports of the lineage of `run`, oldest first; raises `NotFound`."""
    return [
        (await load_recorded_run(journal, row)).report for row in await journal.load_lineage(run)
    ]


# a whole session ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListedRun:
    """One run in a list.

    `tier` says how its variables are restored when no fork is parked: `rebuild`, `files-only`, or
    "" for a run that has left no state.
    """

    row: RunRow
    code: str = ""  # the first line
    call_count: int = 0
    file_count: int = 0
    tier: str = ""


@dataclass(frozen=True)
class SessionTree:
    """The runs of a session, parents first, with those of the sessions that it was forked from.

    A run that is not in `lineage`, which leads to the tip, was abandoned or undone.
    """

    session: SessionRow
    runs: tuple[ListedRun, ...]
    lineage: tuple[str, ...]
    forks: Mapping[str, tuple[SessionRow, ...]] = field(default_factory=dict)  # by run
    damage: tuple[str, ...] = ()

    def children(self) -> Mapping[str | None, list[ListedRun]]:
        """Return the runs that followed each run, oldest first; None is the session's start."""
        known = {each.row.id for each in self.runs}
        children = defaultdict(list)
        for each in self.runs:
            parent = each.row.parent_id if each.row.parent_id in known else None
            children[parent].append(each)
        return children


@dataclass(frozen=True)
class AgentTree:
    """An agent that a run has started: its session, its runs, and the agents that those started."""

    session: SessionRow
    runs: tuple[RunRow, ...]
    agents: Mapping[str, tuple[AgentTree, ...]]  # by run


async def load_agents(journal: Journal, recorded: RecordedRun) -> tuple[AgentTree, ...]:
    """Return the agents that a run has started, oldest first, with the agents that they started."""
    if not any(call.target == AGENT_RUN_TARGET for call in recorded.calls):
        return ()
    sessions_by_run = defaultdict(list)
    for session in reversed(await journal.list_sessions()):
        if session.purpose == AGENT_PURPOSE and session.origin is not None:
            sessions_by_run[session.origin].append(session)

    async def load_agent(session: SessionRow, depth: int) -> AgentTree:
        visited = await journal.list_visited_runs(session.id)
        rows = [row for row in visited if row.session_id == session.id]
        agents = {}
        for row in rows if depth < MAX_AGENT_DEPTH else ():
            if row.id in sessions_by_run:
                children = [await load_agent(each, depth + 1) for each in sessions_by_run[row.id]]
                agents[row.id] = tuple(children)
        return AgentTree(session, tuple(rows), agents)

    own_sessions = sessions_by_run.get(recorded.row.id, [])
    return tuple([await load_agent(each, 1) for each in own_sessions])


async def load_tree(journal: Journal, session: SessionRow) -> SessionTree:
    """Return the runs of a session and the sessions that were forked from them."""
    lineage = await journal.load_lineage(session.tip)
    rows = {row.id: row for row in await journal.list_visited_runs(session.id)}
    damage: list[str] = []
    summaries: dict[str, ListedRun] = {}
    for session_id in dict.fromkeys(row.session_id for row in rows.values()):
        summaries |= await _load_summaries(journal, session_id, rows, damage)
    tiers = _restore_tiers(rows)
    forks = defaultdict(list)
    for other in reversed(await journal.list_sessions()):
        if other.origin in rows and other.id != session.id:
            forks[other.origin].append(other)
    return SessionTree(
        session,
        tuple(replace(summaries[run], tier=tier) for run, tier in tiers.items()),
        tuple(row.id for row in lineage),
        {run: tuple(others) for run, others in forks.items()},
        tuple(damage),
    )


def _restore_tiers(rows: Mapping[str, RunRow]) -> Mapping[str, str]:
    """Return the tier of each run; `rows` has parents first."""
    exact: dict[str, bool] = {}
    tiers = {}
    for run, row in rows.items():
        exact[run] = is_reproducible(row, exact.get(row.parent_id or "", True))
        if not row.is_finished or UNDONE_FLAG in row.flags:
            tiers[run] = ""
        else:
            tiers[run] = "rebuild" if exact[run] else "files-only"
    return tiers


async def _load_summaries(
    journal: Journal, session_id: str, rows: Mapping[str, RunRow], damage: list[str]
) -> Mapping[str, ListedRun]:
    """Return the summaries of those `rows` that belong to a session."""
    code = {}
    for stored in await journal.load_events(session_id, event_type=RunStarted, damage=damage):
        if isinstance(stored.event, RunStarted):
            code[stored.event.run_id] = first_code_line(stored.event.code)
    calls: Counter[str | None] = Counter()
    for stored in await journal.load_events(session_id, event_type=CallStarted, damage=damage):
        if isinstance(stored.event, CallStarted) and stored.event.in_ledger:
            calls[stored.run_id] += 1
    files: dict[str | None, int] = {}
    for stored in await journal.load_events(session_id, event_type=FilesChanged, damage=damage):
        if isinstance(stored.event, FilesChanged):
            files[stored.run_id] = len(stored.event.changed) + len(stored.event.removed)
    return {
        row.id: ListedRun(row, code.get(row.id, ""), calls[row.id], files.get(row.id, 0))
        for row in rows.values()
        if row.session_id == session_id
    }


def first_code_line(code: str) -> str:
    """Return the first line of code that is not blank."""
    return next((line.strip() for line in code.splitlines() if line.strip()), "")


# the names that people use ------------------------------------------------------------------------


async def find_any_session(
    journal: Journal, handle: str, principal: str | None = None
) -> SessionRow:
    """Return the session of that id or name, of one principal or of any.

    Raises `NotFound`, or `InvalidRequest` if several sessions have the name.
    """
    sessions = await journal.list_sessions(principal)
    found = [row for row in sessions if row.id == handle]
    if not found:
        found = [row for row in sessions if row.name == handle]
    if not found:
        known = ", ".join(row.name or row.id for row in sessions[:MAX_NAMED_SESSIONS])
        remedy = "There are no sessions here yet; is this the right data folder?"
        if known:
            remedy = f"Last used: {known}."
        raise NotFound(f"There is no session {handle!r:.80}.", remedy=remedy)
    if len(found) > 1:
        ids = ", ".join(row.id for row in found)
        raise InvalidRequest(
            f"{len(found)} sessions are called {handle!r}.", remedy=f"Use an id: {ids}."
        )
    return found[0]


async def find_own_run(
    journal: Journal, run: str, principal: str, remedy: str
) -> tuple[RunRow, SessionRow]:
    """Return a run of a principal with its session.

    Raises `NotFound`, in the same words for a run of somebody else and for one that never was.
    """
    try:
        row = await journal.load_run(run)
        return row, await journal.find_session(row.session_id, principal)
    except NotFound:
        raise NotFound(f"There is no run {run!r:.80}.", remedy=remedy) from None


async def find_run(journal: Journal, session: SessionRow, which: str) -> RunRow:
    """Return a run of `session` by its id, or by its step in the lineage; raises `NotFound`."""
    handle = session.name or session.id
    command = f"`mcpruntime-server replay list {handle}`"
    if is_step_number(which):
        lineage = await journal.load_lineage(session.tip)
        for row in lineage:
            if row.step == int(which):
                return row
        steps = f"has the steps 1 to {lineage[-1].step}" if lineage else "is empty"
        raise NotFound(
            f"There is no step {which}: the session {handle!r} {steps}.",
            remedy=f"An abandoned run is named by its id; {command} shows all runs.",
        )
    try:
        return await journal.load_visited_run(session.id, which)
    except NotFound:
        raise NotFound(
            f"The session {handle!r} has no run {which!r:.80}.", remedy=f"{command} shows its runs."
        ) from None


def is_step_number(which: str) -> bool:
    """Return whether a run is named by the number of its step."""
    return which.isdecimal() and len(which) <= MAX_STEP_DIGITS


def row_fields(row: Any) -> dict[str, Any]:
    """Return the fields of a row as JSON data."""
    fields = {name: getattr(row, name) for name in row.__dataclass_fields__}
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in fields.items()
    }
