"""Questions about recorded steps: after-the-fact prints, questions to a state, and variables.

Each is answered in a sandbox of its own, in which the state is rebuilt from the journal; it is kept
for the next question of the same principal about the same session. The sandbox of the session is
not used: nothing that a question does can stop, slow down or change the session.

Rule 1: nothing outside is reached. Calls are answered from the recording, or refused.
Rule 2: an answer says whether it can be trusted: how the replay differs from the recording, or why
the step cannot be replayed.
Rule 3: a probe is for lines of its own step. A function of an earlier step is probed in that step.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import IO, Literal, cast

import anyio

from ..errors import Conflict, InvalidRequest, JournalFailed
from ..journal.recording import Recording, load_recording
from ..journal.rows import FRESH_FLAG, INTERRUPTED_FLAG, RunRow
from ..protocol.payloads import Inspection, ShownValue, VariableData
from .run import Run
from .run_report import (
    MAX_PROBE_HITS,
    MAX_PROBED_CHARS,
    ProbedValue,
    RunReport,
    validate_presented,
)
from .run_spec import RunSpec
from .runtime import Runtime
from .session import MAX_CODE_CHARS, Session, strip_fences
from .time_travel import (
    RERUN_EXTRA_TIMEOUT_S,
    check_end_state,
    check_finished,
    compare_with_recording,
)

MAX_EXPRESSION_CHARS = 10_000
DEFAULT_HITS = 100
QUESTION_TIMEOUT_S = 30.0
INTERRUPTED_EXTRA_S = 1.0  # beyond the time that an interrupted step took
SHOWN_CHARS = 1_000  # of a value of a probe or of a variable
SHOWN_ITEMS = 50  # of a list or an object in it
MAX_VARIABLES = 1_000
INTERRUPTED_NOTE = (
    "The step was interrupted when it was recorded, and cannot be interrupted at the same place: "
    "its end is not compared."
)

VariableChange = Literal["added", "changed", "unchanged"]


@dataclass(frozen=True)
class ProbeRequest:
    """A line of a step and an expression; executions before `first_hit` are only counted."""

    line: int
    expression: str
    first_hit: int = 1
    max_hits: int = DEFAULT_HITS


@dataclass(frozen=True)
class ProbeResult:
    """What a probe saw; `line` is that of the statement, `report` is about the replay.

    `hit_count` is None if the interpreter died before the end of the step. `differences` has the
    names of what differs from the recording.
    """

    line: int
    hits: Sequence[ProbedValue]
    hit_count: int | None
    report: RunReport
    differences: Sequence[str] = ()
    divergence: str = ""
    notes: Sequence[str] = ()

    @property
    def is_faithful(self) -> bool:
        """Whether the replay did what the recording says."""
        return not self.differences


@dataclass(frozen=True)
class Variable:
    """A variable after a step; `change` compares it with the state after the step before."""

    name: str
    value: ShownValue
    length: int | None
    shape: tuple[int, ...] | None
    change: VariableChange


@dataclass(frozen=True)
class VariableList:
    """The variables after a step, and the names of those that it removed."""

    variables: Sequence[Variable]
    removed: Sequence[str]
    notes: Sequence[str] = ()


@dataclass
class _ScratchSession:
    """A scratch session that is kept for questions about the session `source`."""

    session: Session
    source: str
    lock: anyio.Lock = field(default_factory=anyio.Lock)


class Inspector:
    """Answers questions about recorded steps of all principals."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._journal = runtime.journal
        self._scratch_sessions: dict[str, _ScratchSession] = {}  # by principal
        self._opening_lock = anyio.Lock()

    async def probe(self, target: RunRow, principal: str, request: ProbeRequest) -> ProbeResult:
        """Execute a recorded step again and return the values that an expression has on a line.

        Raises `Conflict` if the step cannot be replayed, or if there is nothing to probe.
        """
        check_probe(request)
        check_finished(target)
        await self._runtime.wait_for_files(target.session_id)
        recording = await load_recording(self._journal, target)
        inspection: Inspection = {
            "kind": "probe",
            "line": request.line,
            "expression": request.expression,
            "first_hit": request.first_hit,
            "max_hits": request.max_hits,
            "max_chars": SHOWN_CHARS,
            "max_items": SHOWN_ITEMS,
        }
        start = recording.start
        spec = RunSpec(
            start.code,
            replay_timeout_s(recording),
            recording=recording,
            starts_fresh=FRESH_FLAG in recording.flags,
            is_offline=True,
            inspection=inspection,
        )
        async with self._open_scratch_session(target, principal) as session:
            run = await self._execute(session, await self._load_parent(target), spec)
            return await self._build_probe_result(recording, run)

    async def ask(
        self, target: RunRow, principal: str, code: str, timeout_s: float = QUESTION_TIMEOUT_S
    ) -> RunReport:
        """Execute code in the state after a step and return its report; the state stays as it is.

        Raises `Conflict` if the state cannot be restored.
        """
        return (await self._ask(target, principal, strip_fences(code), timeout_s)).report

    async def write_file(
        self, target: RunRow, principal: str, code: str, path: str, timeout_s: float
    ) -> tuple[RunReport, IO[bytes] | None]:
        """Execute code that writes a file; return its report, and the file if it was stored.

        Raises as `ask` does.
        """
        run = await self._ask(target, principal, code, timeout_s)
        files, _ = await self._journal.load_files_at(run.id, [])
        entry = files.get(path)
        file = None if entry is None else await self._journal.open_blob(entry["digest"])
        return run.report, file

    async def _ask(self, target: RunRow, principal: str, code: str, timeout_s: float) -> Run:
        if len(code) > MAX_CODE_CHARS:
            raise InvalidRequest(
                f"The code has {len(code):,} characters; the limit is {MAX_CODE_CHARS:,}.",
                remedy="Ask a shorter question.",
            )
        check_end_state(target)
        spec = RunSpec(code, timeout_s, is_offline=True, context=())
        async with self._open_scratch_session(target, principal) as session:
            return await self._execute(session, target, spec)

    async def list_variables(self, target: RunRow, principal: str) -> VariableList:
        """Return the variables after a step; raises `Conflict` if they cannot be restored."""
        check_end_state(target)
        async with self._open_scratch_session(target, principal) as session:
            parent = await self._load_parent(target)
            before: dict[str, VariableData] = {}
            if parent is not None and FRESH_FLAG not in target.flags:
                before, _ = await self._read_variables(session, parent)
            after, notes = await self._read_variables(session, target)
        return VariableList(
            [build_variable(name, data, before.get(name)) for name, data in after.items()],
            [name for name in before if name not in after],
            notes,
        )

    async def _read_variables(
        self, session: Session, at: RunRow
    ) -> tuple[dict[str, VariableData], list[str]]:
        inspection: Inspection = {
            "kind": "variables",
            "max_chars": SHOWN_CHARS,
            "max_items": SHOWN_ITEMS,
        }
        spec = RunSpec("", QUESTION_TIMEOUT_S, is_offline=True, context=(), inspection=inspection)
        run = await self._execute(session, at, spec)
        if run.report.status != "ok" or run.report.value is None:
            reason = run.report.error["message"] if run.report.error else run.report.status
            raise Conflict(
                f"The variables after step {at.step} cannot be listed. {reason}",
                remedy="Ask for one of them by its name.",
            )
        return parse_variables(run.report.value["text"]), run.report.notes

    async def _build_probe_result(self, recording: Recording, run: Run) -> ProbeResult:
        result, report = run.ending.inspection_result, run.report
        if result is not None and not result["line"]:
            reason = result["problem"]
            if not reason:
                reason = "The code of the step is not valid Python: no line of it was executed."
            raise Conflict(reason, remedy="Probe another line, or another expression.")
        notes = list(report.notes)
        if result is not None and result["problem"]:
            notes.append(result["problem"])
        if INTERRUPTED_FLAG in recording.flags:
            notes.append(INTERRUPTED_NOTE)
            differences: Sequence[str] = ()
        else:
            differences = await compare_with_recording(self._journal, recording, run)
        assert run.replayer is not None, "it was given a recording"
        divergence = run.replayer.divergence or run.replayer.find_missing_call()
        return ProbeResult(
            result["line"] if result else 0,
            run.probe_hits,
            result["hit_count"] if result else None,
            report,
            differences,
            "" if divergence is None else str(divergence),
            notes,
        )

    # the sandbox that questions are answered in ---------------------------------------------------

    async def _load_parent(self, target: RunRow) -> RunRow | None:
        return await self._journal.load_run(target.parent_id) if target.parent_id else None

    @asynccontextmanager
    async def _open_scratch_session(self, target: RunRow, principal: str) -> AsyncIterator[Session]:
        """Yield the scratch session for questions about the session of a run, one at a time."""
        self._runtime.count_start(principal)
        await self._runtime.wait_for_files(target.session_id)
        with ExitStack() as stack:
            async with self._opening_lock:
                scratch = await self._find_scratch_session(target, principal)
                stack.callback(self._leave_scratch_session, scratch, principal)
                stack.enter_context(scratch.session.keep_open())
            async with scratch.lock:
                yield scratch.session

    def _leave_scratch_session(self, scratch: _ScratchSession, principal: str) -> None:
        """Close a scratch session that another one has replaced, when nobody uses it."""
        if self._scratch_sessions.get(principal) is not scratch and scratch.session.is_idle:
            self._runtime.retire_session(scratch.session)

    async def _find_scratch_session(self, target: RunRow, principal: str) -> _ScratchSession:
        """Return the scratch session of a principal, replacing one for another session."""
        scratch = self._scratch_sessions.get(principal)
        if scratch is not None and not scratch.session.is_closing:
            if scratch.source == target.session_id and self._has_room(scratch.session):
                return scratch
            if scratch.session.is_idle:
                self._runtime.retire_session(scratch.session)
        session = await self._runtime.open_scratch_session(None, principal)
        scratch = _ScratchSession(session, target.session_id)
        self._scratch_sessions[principal] = scratch
        return scratch

    def _has_room(self, session: Session) -> bool:
        try:
            self._journal.check_room(session.id)
        except JournalFailed:
            return False
        return True

    async def _execute(self, session: Session, at: RunRow | None, spec: RunSpec) -> Run:
        """Execute a run in the state after `at`; raises `Conflict` if that is not restored."""
        if session.tip != (at.id if at else None):
            await session.move_tip(at)
        run = session.enqueue_run(spec)
        try:
            await run.wait_until_finished()
        finally:
            run.cancel()  # if nobody waits for it
        if run.ending.failure is not None:
            raise run.ending.failure
        if FRESH_FLAG in run.ending.flags and not spec.starts_fresh and at is not None:
            raise Conflict(
                f"The state after step {at.step} cannot be restored. {' '.join(run.report.notes)}",
                remedy="Probe an earlier step, or look at what the journal has of this one.",
            )
        await run.file_storage.wait()
        return run


def replay_timeout_s(recording: Recording) -> float:
    """Return how long a replay may take: about as long as the step, if that was interrupted."""
    finish = recording.finish
    wall_ms = (finish.usage or {}).get("wall_ms") if finish else None
    if INTERRUPTED_FLAG in recording.flags and wall_ms is not None:
        return min(wall_ms / 1e3 + INTERRUPTED_EXTRA_S, recording.start.timeout_s)
    return recording.start.timeout_s + RERUN_EXTRA_TIMEOUT_S


def check_probe(request: ProbeRequest) -> None:
    """Raise `InvalidRequest` if a request is out of bounds."""
    if len(request.expression) > MAX_EXPRESSION_CHARS or not request.expression.strip():
        raise InvalidRequest(
            f"An expression has 1 to {MAX_EXPRESSION_CHARS:,} characters, "
            f"this one {len(request.expression):,}.",
            remedy="Give an expression, such as the name of a variable.",
        )
    if request.line < 1 or request.first_hit < 1 or not 1 <= request.max_hits <= MAX_PROBE_HITS:
        raise InvalidRequest(
            f"Line {request.line}, execution {request.first_hit} and {request.max_hits} values "
            "cannot be probed.",
            remedy=f"Lines and executions count from 1; a probe has 1 to {MAX_PROBE_HITS} values.",
        )


def parse_variables(text: str) -> dict[str, VariableData]:
    """Return the variables that a sandbox lists, by name; only name and value were checked."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    usable = found[:MAX_VARIABLES] if isinstance(found, list) else []
    return {
        str(data["name"]): cast("VariableData", data)
        for data in usable
        if isinstance(data, dict) and "name" in data and isinstance(data.get("value"), dict)
    }


def build_variable(name: str, data: VariableData, before: VariableData | None) -> Variable:
    """Return a variable from what the sandbox says of it after a step, and before it."""
    shape, length = data.get("shape"), data.get("length")
    change: VariableChange = "added"
    if before is not None:
        is_same = data.get("digest") == before.get("digest")
        is_same = is_same and data["value"].get("type") == before["value"].get("type")
        change = "unchanged" if is_same else "changed"
    is_shape = isinstance(shape, list) and all(type(each) is int for each in shape)
    return Variable(
        name,
        validate_presented(data["value"], MAX_PROBED_CHARS),
        length if type(length) is int else None,
        tuple(shape) if is_shape and shape else None,
        change,
    )
