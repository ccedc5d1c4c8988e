"""The MCP extension for tasks: a long call of `run_code` is answered at once, and its client polls.

Rule 1: a task is a run, and has the run's id. The journal has the run, so that the task survives a
restart of the server.
Rule 2: a call becomes a task if it starts code, and its request would return before the run does:
with `background`, or after `wait_s`. Other requests about runs are answered as usual.
Rule 3: a task shows the forms and pages for a person (`input_required`). If the model has to
answer, or the client cannot show them, the task ends with a result that says so. The run continues
when it gets its answer.
Rule 4: a result is delivered once. A task does not end while a request waits for its run, and what
that request got is not repeated. Where the task was first, its result stays the same.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitRequestParams,
    ElicitResult,
    RequestParams,
)
from pydantic import ValidationError

from ..errors import InsufficientScope, InvalidRequest, McpRuntimeError, NotFound
from ..protocol.payloads import JsonObject
from ..runtime.pending_questions import APPROVAL_KIND, CREDENTIAL_KIND, PendingQuestion
from ..runtime.run import Run
from ..runtime.run_report import RunReport
from ..runtime.session import Session
from . import elicitation
from .client_questions import INPUT_REQUIRED_VERSION
from .delivery import DeliveryCursor
from .permissions import check_may_approve, may_approve
from .result_format import error_result
from .run_progress import GATHER_QUESTIONS_S
from .run_tool import RunToolHandler

DELIVERED_NOTE = "Its result was delivered to the call with run={!r}."
POLL_INTERVAL_SHARE = 0.1  # of a run's age
MIN_POLL_INTERVAL_S = 0.1
MAX_POLL_INTERVAL_S = 5.0
TASK_FORM_OPEN_S = 3 * MAX_POLL_INTERVAL_S  # after the last look at a task
MAX_RESPONSES = 100  # of a request: a task shows one form or page at a time
NAME_HEADER = "Mcp-Name"
MS_PER_DAY = 86_400_000

RequestContext = ServerRequestContext[Any, Any]


class TaskParams(RequestParams):
    """The task that a request is about."""

    task_id: str


class TaskUpdateParams(TaskParams):
    """What a person has answered, by the names of the forms; other names are ignored."""

    input_responses: JsonObject


class TasksExtension(Extension):
    """Tasks over the runs of a server; its journal keeps sessions for `keep_days` (0: for ever)."""

    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self, runs: RunToolHandler, keep_days: int) -> None:
        self._runs = runs
        self._ttl_ms = keep_days * MS_PER_DAY or None

    def methods(self) -> Sequence[MethodBinding]:
        """Return the handlers of the requests about tasks."""
        versions = frozenset({INPUT_REQUIRED_VERSION})
        return [
            MethodBinding("tasks/get", TaskParams, self._handle_get, versions),
            MethodBinding("tasks/update", TaskUpdateParams, self._handle_update, versions),
            MethodBinding("tasks/cancel", TaskParams, self._handle_cancel, versions),
        ]

    # the call -------------------------------------------------------------------------------------

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: RequestContext, call_next: CallNext
    ) -> HandlerResult:
        """Answer a call with a task if its run continues without the request."""
        result = await call_next(ctx)
        starts_code = params.name == "run_code" and (params.arguments or {}).get("run") is None
        if not starts_code or not self._is_supported_by(ctx):
            return result
        task = unfinished_run_id(result, self._askable_kinds(ctx))
        if task is None:
            return result
        found = await self._runs.lookup.find_run(task)
        if not isinstance(found, RunReport):
            cursor = self._runs.find_cursor(ctx)
            cursor.rewind(task)  # the end of the task reports everything
            cursor.keep_run(*found)
        return {"resultType": "task", **await self._build_task_fields(task, "working")}

    def _askable_kinds(self, ctx: RequestContext) -> frozenset[str]:
        """Return the kinds of questions that a person can be asked through the client."""
        capabilities, kinds = ctx.session.client_capabilities, set()
        if may_approve(ctx):
            if self._runs.questions.asks_person and elicitation.supports_forms(capabilities):
                kinds.add(APPROVAL_KIND)
            if elicitation.can_open_pages(capabilities):
                kinds.add(CREDENTIAL_KIND)
        return frozenset(kinds)

    def _is_supported_by(self, ctx: RequestContext) -> bool:
        capabilities = ctx.session.client_capabilities
        extensions = capabilities.extensions if capabilities is not None else None
        return ctx.protocol_version == INPUT_REQUIRED_VERSION and self.identifier in (
            extensions or {}
        )

    # requests about tasks -------------------------------------------------------------------------

    async def _handle_get(self, ctx: RequestContext, params: TaskParams) -> HandlerResult:
        """Return the state of a task."""
        require_client_extension(ctx, self.identifier)
        check_name_header(ctx, params.task_id)
        with convert_errors():
            cursor, kinds = self._runs.find_cursor(ctx), self._askable_kinds(ctx)
            status, more = await self._load_task_state(cursor, params.task_id, kinds)
            fields = await self._build_task_fields(params.task_id, status)
            return {"resultType": "complete", **fields, **more}

    async def _handle_update(self, ctx: RequestContext, params: TaskUpdateParams) -> HandlerResult:
        """Take what a person has done with forms and pages; one that is not pending is skipped."""
        require_client_extension(ctx, self.identifier)
        check_name_header(ctx, params.task_id)
        with convert_errors():
            check_may_approve(ctx)
            check_response_count(params.input_responses)
            found = await self._runs.lookup.find_run(params.task_id)
            for name, given in params.input_responses.items():
                if not isinstance(found, RunReport):
                    await self._receive_response(ctx, self._find_asking_run(found[1]), name, given)
        return {"resultType": "complete"}

    async def _handle_cancel(self, ctx: RequestContext, params: TaskParams) -> HandlerResult:
        """Cancel the run of a task, whichever server executes it, unless it is finished."""
        require_client_extension(ctx, self.identifier)
        check_name_header(ctx, params.task_id)
        with convert_errors():
            found = await self._runs.lookup.find_run(params.task_id)
            if isinstance(found, RunReport):
                await self._runs.cancel_elsewhere(found.run_id)
            else:
                session, run = found
                session.cancel_run(run)
        return {"resultType": "complete"}

    # the state of a task --------------------------------------------------------------------------

    async def _build_task_fields(self, task: str, status: str) -> JsonObject:
        """Return the fields that every task has."""
        row, _ = await self._runs.lookup.load_run_rows(task)
        created_at = await self._runs.lookup.load_request_time(row)
        now = time.time()
        poll_interval_s = max((now - created_at) * POLL_INTERVAL_SHARE, MIN_POLL_INTERVAL_S)
        return {
            "taskId": row.id,
            "status": status,
            "createdAt": format_timestamp(created_at),
            "lastUpdatedAt": format_timestamp(row.finished_at or now),
            "ttlMs": self._ttl_ms,
            "pollIntervalMs": round(min(poll_interval_s, MAX_POLL_INTERVAL_S) * 1e3),
        }

    async def _load_task_state(
        self, cursor: DeliveryCursor, task: str, askable_kinds: Collection[str]
    ) -> tuple[str, JsonObject]:
        """Return the status of a task and the fields that belong to it; raises `NotFound`."""
        found = self._find_finished_run(cursor, task) or await self._runs.lookup.find_run(task)
        if isinstance(found, RunReport):
            return await self._build_journaled_state(cursor, found)
        session, run = found
        if run.finished.is_set() and not run.audience.is_empty:
            return "working", {}  # a request that waits for it gets its end first
        asking_run = self._find_asking_run(run)
        if asking_run.questions.open_questions:
            with anyio.move_on_after(GATHER_QUESTIONS_S):
                await run.wait_until_finished()
        if run.finished.is_set():
            return await self._build_finished_state(cursor, session, run)
        if all(
            question.answer is not None for question in asking_run.questions.open_questions.values()
        ):
            return "working", {"statusMessage": run.lifecycle.stage or run.status}
        questions = self._select_shown(cursor, asking_run, askable_kinds)
        if questions:
            in_requests = cursor.questions_in_forms(asking_run.id, with_tasks=False)
            if any(question.id in in_requests for question in questions):
                return "working", {"statusMessage": run.status}  # a person is being asked
            form: ElicitRequestParams
            if questions[0].asked.kind == APPROVAL_KIND:
                form = elicitation.build_approval_form(session.handle, run, asking_run, questions)
            else:
                form = elicitation.build_page_request(session.handle, run, questions)
            request = to_wire_json(ElicitRequest(params=form))
            form_id, ids = elicitation.form_id(questions), [each.id for each in questions]
            cursor.open_form(form_id, asking_run.id, ids, TASK_FORM_OPEN_S, is_of_task=True)
            return "input_required", {"inputRequests": {form_id: request}}
        cursor.rewind(task)  # the same request gets the same result again
        result = await self._runs.build_progress_result(cursor, session, run)
        return "completed", {"result": to_wire_json(result)}

    def _find_finished_run(self, cursor: DeliveryCursor, task: str) -> tuple[Session, Run] | None:
        """Return the run of a task if it is finished here and kept with its notes."""
        found = cursor.find_kept_run(task)
        if found is None or not found[1].finished.is_set():
            return None
        return None if found[1].report.status == "cancelled" else found

    async def _build_finished_state(
        self, cursor: DeliveryCursor, session: Session, run: Run
    ) -> tuple[str, JsonObject]:
        """Return the state of a task whose run has ended here."""
        if run.report.status == "cancelled":
            await run.wait_until_recorded()
            return "cancelled", {}
        if not cursor.claim_task_result(run.id):
            return self._build_delivered_state(run.report, session.handle)
        try:
            result = await self._runs.build_finished_result(cursor, session, run, run.report)
        except McpRuntimeError as exc:
            result = error_result(exc)
        return "completed", {"result": to_wire_json(result)}

    def _build_delivered_state(self, report: RunReport, handle: str) -> tuple[str, JsonObject]:
        """Return the state of a task whose result another request has delivered."""
        note = DELIVERED_NOTE.format(report.run_id)
        brief = RunReport(
            report.run_id, report.session_id, report.step, report.status, notes=[note]
        )
        result = self._runs.build_report_result(brief, handle)
        return "completed", {"result": to_wire_json(result)}

    async def _build_journaled_state(
        self, cursor: DeliveryCursor, report: RunReport
    ) -> tuple[str, JsonObject]:
        """Return the state of a task from the journal."""
        row, session = await self._runs.lookup.load_run_rows(report.run_id)
        if not row.is_finished:
            return "working", {"statusMessage": f"{report.status} in another server"}
        if report.status == "cancelled":
            return "cancelled", {}
        if not cursor.claim_task_result(report.run_id):
            return self._build_delivered_state(report, session.name or session.id)
        result = self._runs.build_report_result(report, session.name or session.id)
        return "completed", {"result": to_wire_json(result)}

    # what a person is asked -----------------------------------------------------------------------

    def _find_asking_run(self, run: Run) -> Run:
        """Return the run that asks a person: `run`, or a run of one of its agents."""
        runs = (run, *self._runs.lookup.agent_runs_of(run))
        return next(filter(elicitation.asks_person, runs), run)

    def _select_shown(
        self, cursor: DeliveryCursor, run: Run, kinds: Collection[str]
    ) -> list[PendingQuestion]:
        """Return what one form or page asks, and a person has neither answered nor dismissed."""
        dismissed = cursor.dismissed_questions(run.id)
        pending = [
            each
            for each in run.questions.open_questions.values()
            if each.answer is None and each.id not in dismissed and each.asked.kind in kinds
        ]
        return elicitation.select_approvals(pending) or elicitation.select_page(pending)

    async def _receive_response(self, ctx: RequestContext, run: Run, name: str, given: Any) -> None:
        """Take what a person has done with the form or page `name`; raises `InvalidRequest`."""
        cursor = self._runs.find_cursor(ctx)
        shown = self._select_shown(cursor, run, (APPROVAL_KIND,))
        page = elicitation.questions_of_page(name, run.questions.open_questions.values())
        questions = elicitation.questions_of_form(name, shown) or page
        if not questions:
            return
        cursor.close_form(name)
        try:
            result = ElicitResult.model_validate(given, by_name=False)
        except ValidationError as exc:
            raise InvalidRequest(
                f"The answer to the form {name} is not an elicitation result.",
                remedy="Send what the client's form has returned.",
            ) from exc
        if questions is page:
            is_taken = await self._runs.questions.receive_page(ctx, name, run, result)
        else:
            is_taken = await self._runs.questions.receive_form(run, questions, result)
        if not is_taken:
            cursor.dismiss_questions(run.id, [question.id for question in questions])


def unfinished_run_id(result: HandlerResult, askable_kinds: Collection[str]) -> str | None:
    """Return the run in `result`, if it continues by itself or after a person was asked."""
    data = result.structured_content if isinstance(result, CallToolResult) else None
    if data is None:
        return None
    asks = any(wait["kind"] in askable_kinds for wait in data.get("waiting_for", ()))
    return data["run"] if data["status"] in ("queued", "running") or asks else None


def check_response_count(responses: JsonObject) -> None:
    """Raise `InvalidRequest` for more answers than a client can have been asked for."""
    if len(responses) > MAX_RESPONSES:
        raise InvalidRequest(
            f"A request has at most {MAX_RESPONSES} answers to forms and pages, and this one has "
            f"{len(responses):,}.",
            remedy="Answer what the task has shown last.",
        )


def check_name_header(ctx: RequestContext, task: str) -> None:
    """Refuse a request over HTTP whose header names another task than its body.

    What is between client and server routes by the header.
    """
    named = None if ctx.request is None else ctx.request.headers.get(NAME_HEADER)
    if named is not None and named.strip() != task:
        raise MCPError(HEADER_MISMATCH, f"The header {NAME_HEADER} names another task.")


@contextmanager
def convert_errors() -> Iterator[None]:
    """Turn our errors into errors of the protocol."""
    try:
        yield
    except (NotFound, InvalidRequest, InsufficientScope) as exc:
        raise MCPError(INVALID_PARAMS, f"[{exc.code}] {exc}") from exc
    except McpRuntimeError as exc:
        raise MCPError(INTERNAL_ERROR, f"[{exc.code}] {exc}") from exc


def format_timestamp(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as the protocol writes it."""
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def to_wire_json(message: CallToolResult | ElicitRequest) -> JsonObject:
    """Return a message as it is on the wire."""
    return message.model_dump(mode="json", by_alias=True, exclude_none=True)
