"""The MCP extension for tasks: a call of `run_code` that takes long is answered at once, and its client asks again.

Rule 1: a task is a run, and its id the run's. The journal has it, so it is there after a restart of the server.
Rule 2: a call becomes a task if it starts code, says nothing of waiting itself (`wait_s`, `background`) and its run is
not over soon. Whatever else a model does with runs, attaching to them included, is answered like any client's.
Rule 3: the forms that a person is to fill in are the task's (`input_required`). What the model is to answer, or this
client cannot ask, ends the task with the result that says so. The run goes on when that is answered.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

import anyio
from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitResult,
    InputRequiredResult,
    RequestParams,
)
from pydantic import ValidationError

from ..errors import InvalidRequest, McpRuntimeError, NotFound
from ..journal.rows import RunRow
from ..runtime.questions import APPROVAL, Question
from ..runtime.report import Report
from ..runtime.run import Run
from ..runtime.session import Session
from . import asking
from .results import refusal
from .runs import MODERN, Runs
from .watch import GATHER_S

SOON_S = 0.2  # that a run may take for its call to be answered with its result
PLAIN = ("wait_s", "background", "run")  # parameters of a call that gets its answer as it comes
POLL_SHARE = 0.1  # of a run's age, between two looks at it
MIN_POLL_S, MAX_POLL_S = 0.1, 5.0
REMEMBERED = 32  # tasks whose ends are told with the notes, which the journal does not keep
DAY_MS = 86_400_000

Context = ServerRequestContext[Any, Any]


class TaskParams(RequestParams):
    """Which task a request is about."""

    task_id: str


class UpdateParams(TaskParams):
    """What a person has answered, by the names of the forms; what bears another name may be anything."""

    input_responses: dict[str, Any]


class Tasks(Extension):
    """Tasks over the runs of a server, whose journal keeps a session for `keep_days` (0: for ever)."""

    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self, runs: Runs, keep_days: int) -> None:
        self._runs = runs
        self._ttl_ms = keep_days * DAY_MS or None
        self._recent: OrderedDict[str, tuple[Session, Run]] = OrderedDict()
        self._put_aside: WeakKeyDictionary[Run, set[str]] = WeakKeyDictionary()  # questions whose form came back empty

    def methods(self) -> Sequence[MethodBinding]:
        """Return the requests about tasks."""
        versions = frozenset({MODERN})
        return [
            MethodBinding("tasks/get", TaskParams, self._get, versions),
            MethodBinding("tasks/update", UpdateParams, self._update, versions),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, versions),
        ]

    # the call ---------------------------------------------------------------------------------------

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Answer a call whose run is not over soon with a task."""
        arguments = params.arguments or {}
        if params.name != "run_code" or not self._is_taken_by(ctx) or any(name in arguments for name in PLAIN):
            return await call_next(ctx)
        params.arguments = {**arguments, "wait_s": SOON_S}  # the tool gets these, whatever context it is given
        result = await call_next(ctx)
        task = run_under_way(result, can_ask=can_ask(ctx))
        if task is None:
            return result
        found = await self._runs.find(task)
        if not isinstance(found, Report):
            self._remember(*found)
        row, _ = await self._runs.row_of(task)
        return {"resultType": "task", **self._envelope(row, "working")}

    def _is_taken_by(self, ctx: Context) -> bool:
        capabilities = ctx.session.client_capabilities
        extensions = capabilities.extensions if capabilities is not None else None
        return ctx.protocol_version == MODERN and self.identifier in (extensions or {})

    def _remember(self, session: Session, run: Run) -> None:
        run.told.clear()  # what the call would have told is told with the end of the task
        self._recent[run.id] = session, run
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    # requests about tasks ---------------------------------------------------------------------------

    async def _get(self, ctx: Context, params: TaskParams) -> HandlerResult:
        """Tell what has become of a task."""
        require_client_extension(ctx, self.identifier)
        with protocol_errors():
            status, more = await self._state(params.task_id, can_ask=can_ask(ctx))
            row, _ = await self._runs.row_of(params.task_id)
            return {"resultType": "complete", **self._envelope(row, status), **more}

    async def _update(self, ctx: Context, params: UpdateParams) -> HandlerResult:
        """Take the forms that a person has filled in; one that is not asked, or not any more, is passed over."""
        require_client_extension(ctx, self.identifier)
        with protocol_errors():
            found = await self._runs.find(params.task_id)
            for name, given in params.input_responses.items():
                if not isinstance(found, Report):
                    await self._take_form(self._asking(found[1]), name, given)
        return {"resultType": "complete"}

    async def _cancel(self, ctx: Context, params: TaskParams) -> HandlerResult:
        """Stop the run of a task; one that is over, or under way in another server, is left alone."""
        require_client_extension(ctx, self.identifier)
        with protocol_errors():
            found = await self._runs.find(params.task_id)
            if not isinstance(found, Report):
                session, run = found
                session.cancel_run(run)
        return {"resultType": "complete"}

    # what there is to tell --------------------------------------------------------------------------

    def _envelope(self, row: RunRow, status: str) -> dict[str, Any]:
        """Return what is told of every task."""
        now = time.time()
        return {
            "taskId": row.id,
            "status": status,
            "createdAt": timestamp(row.started),
            "lastUpdatedAt": timestamp(row.finished or now),
            "ttlMs": self._ttl_ms,
            "pollIntervalMs": round(min(max((now - row.started) * POLL_SHARE, MIN_POLL_S), MAX_POLL_S) * 1e3),
        }

    async def _state(self, task: str, *, can_ask: bool) -> tuple[str, dict[str, Any]]:
        """Return the status of a task, and what belongs to that; raises `NotFound`."""
        found = self._ended_here(task) or await self._runs.find(task)
        if isinstance(found, Report):
            return await self._past(found)
        session, run = found
        asks = self._asking(run)
        if asks.questions.open:
            with anyio.move_on_after(GATHER_S):
                await run.over()
        if run.finished.is_set():
            return await self._end(session, run)
        if all(question.answer is not None for question in asks.questions.open.values()):
            return "working", {"statusMessage": run.stage or run.state}
        questions = self._to_ask(asks) if can_ask else []
        if questions:
            request = ElicitRequest(params=asking.form(session.handle, run, asks, questions))
            return "input_required", {"inputRequests": {asking.name_of(questions): as_json(request)}}
        run.told.clear()  # whoever asks twice is told the same
        return "completed", {"result": as_json(await self._runs.so_far(session, run))}

    def _ended_here(self, task: str) -> tuple[Session, Run] | None:
        """Return the run of a task if its whole end is remembered; one that moved to another server has none here."""
        found = self._recent.get(task)
        return found if found and found[1].finished.is_set() and found[1].report.status != "cancelled" else None

    async def _end(self, session: Session, run: Run) -> tuple[str, dict[str, Any]]:
        """Tell of a run that has ended here."""
        if run.report.status == "cancelled":
            await run.recorded()
            return "cancelled", {}
        try:
            result = await self._runs.end_of(session, run, run.report)
        except McpRuntimeError as exc:
            result = refusal(exc)
        return "completed", {"result": as_json(result)}

    async def _past(self, report: Report) -> tuple[str, dict[str, Any]]:
        """Tell of a run as the journal has it."""
        row, session = await self._runs.row_of(report.run)
        if not row.is_over:
            return "working", {"statusMessage": f"{report.status} in another server"}
        if report.status == "cancelled":
            return "cancelled", {}
        return "completed", {"result": as_json(self._runs.told(report, session.name or session.id))}

    # what a person is asked -------------------------------------------------------------------------

    def _asking(self, run: Run) -> Run:
        """Return the run that asks a person something: `run`, or one of an agent that it has begun."""
        return next(filter(asking.for_person, (run, *self._runs.agents_of(run))), run)

    def _to_ask(self, run: Run) -> list[Question]:
        """Return what a person has neither answered nor put aside."""
        put_aside = self._put_aside.get(run, set())
        return [each for each in asking.for_person(run) if each.answer is None and each.id not in put_aside]

    async def _take_form(self, run: Run, name: str, given: Any) -> None:
        questions = asking.asked_by(name, self._to_ask(run))
        if not questions:
            return
        try:
            result = ElicitResult.model_validate(given, by_name=False)
        except ValidationError as exc:
            raise InvalidRequest(
                f"What was given for the form {name} is no answer to one.", remedy="Answer with an elicitation result."
            ) from exc
        if not await self._runs.take_form(run, questions, result):
            self._put_aside.setdefault(run, set()).update(question.id for question in questions)


def run_under_way(result: HandlerResult, *, can_ask: bool) -> str | None:
    """Return the run that `result` tells of, if it goes on by itself or when a person has been asked."""
    if isinstance(result, InputRequiredResult):
        return (result.request_state or "").partition(" ")[0]
    data = result.structured_content if isinstance(result, CallToolResult) else None
    if data is None:
        return None
    asks = can_ask and any(wait["kind"] == APPROVAL for wait in data.get("waiting_for", ()))
    return data["run"] if data["status"] in ("queued", "running") or asks else None


def can_ask(ctx: Context) -> bool:
    """Return whether the client can show a form to a person."""
    return asking.shows_forms(ctx.session.client_capabilities)


@contextmanager
def protocol_errors() -> Iterator[None]:
    """Tell of what is wrong with a request about a task as errors of the protocol."""
    try:
        yield
    except (NotFound, InvalidRequest) as exc:
        raise MCPError(INVALID_PARAMS, f"[{exc.code}] {exc}") from exc
    except McpRuntimeError as exc:
        raise MCPError(INTERNAL_ERROR, f"[{exc.code}] {exc}") from exc


def timestamp(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as the protocol writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_json(message: CallToolResult | ElicitRequest) -> dict[str, Any]:
    """Return a message as it is on the wire."""
    return message.model_dump(mode="json", by_alias=True, exclude_none=True)
