"""The routes that look into recorded steps; none of them changes the session of the step.

They need the scope `run`, although they only look: code is executed for each of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Literal

import anyio
from starlette.requests import Request
from starlette.responses import Response

from ..journal.recording import RecordedCall
from ..journal.rows import RunRow
from ..protocol.truncation import truncate_text
from ..runtime.inspector import QUESTION_TIMEOUT_S, ProbeRequest
from ..runtime.run_diff import diff_runs, diff_to_json
from ..runtime.run_history import load_recorded_run
from ..runtime.run_report import display_value
from ..server.run_lookup import RunLookup
from .api_models import MediaDocument
from .api_services import ApiServices
from .authentication import find_principal
from .documents import MAX_LISTED_CALLS, MAX_OUTPUT_CHARS, MAX_VALUE_CHARS
from .event_models import RunErrorInfo
from .inspection_models import (
    AnswerDocument,
    DiffDocument,
    DiffQuery,
    HitDocument,
    PinBody,
    PinDocument,
    ProbeBody,
    ProbeDocument,
    QuestionBody,
    RecordedCallDocument,
    RecordedCallsDocument,
    ShownValueDocument,
    VariableDocument,
    VariablesDocument,
)
from .requests import document_response, read_body, read_query

MAX_ANSWER_CHARS = 64 * 1024  # of a recorded answer that is shown


class InspectionApi:
    """The handlers of the routes."""

    def __init__(self, services: ApiServices) -> None:
        self._runtime = services.runtime
        self._inspector = services.inspector
        # Comparisons one after the other: each holds all that two runs have printed.
        self._comparison = anyio.Lock()

    async def probe_run(self, request: Request) -> Response:
        """Execute a step again and return the values of an expression on one of its lines."""
        row, principal = await self._find_run(request)
        body = await read_body(request, ProbeBody)
        found = await self._inspector.probe(row, principal, ProbeRequest(**body.model_dump()))
        return document_response(
            ProbeDocument(
                run=row.id,
                line=found.line,
                hits=[
                    HitDocument(
                        number=hit.number, value=ShownValueDocument.model_validate(hit.value)
                    )
                    for hit in found.hits
                ],
                hit_count=found.hit_count,
                faithful=found.is_faithful,
                differences=list(found.differences),
                divergence=found.divergence,
                status=found.report.status,
                wall_ms=found.report.usage.get("wall_ms"),
                notes=list(found.notes),
            )
        )

    async def ask_run(self, request: Request) -> Response:
        """Execute code in the state after a step."""
        row, principal = await self._find_run(request)
        body = await read_body(request, QuestionBody)
        timeout_s = QUESTION_TIMEOUT_S if body.timeout_s is None else body.timeout_s
        report = await self._inspector.ask(row, principal, body.code, timeout_s)
        value, value_cut = None, False
        if report.value is not None:
            value, value_cut = display_value(report.value, MAX_VALUE_CHARS, None)
        stdout, stdout_cut = truncate_text(report.stdout, MAX_OUTPUT_CHARS)
        stderr, stderr_cut = truncate_text(report.stderr, MAX_OUTPUT_CHARS)
        return document_response(
            AnswerDocument(
                run=row.id,
                status=report.status,
                value=value,
                value_cut=value_cut,
                value_type=report.value["type"] if report.value else None,
                stdout=stdout,
                stderr=stderr,
                output_cut=stdout_cut or stderr_cut,
                error=None if report.error is None else RunErrorInfo(**report.error),
                media=[MediaDocument(**each) for each in report.media],
                notes=report.notes,
            )
        )

    async def list_variables(self, request: Request) -> Response:
        """Return the variables after a step."""
        row, principal = await self._find_run(request)
        found = await self._inspector.list_variables(row, principal)
        return document_response(
            VariablesDocument(
                run=row.id,
                variables=[
                    VariableDocument(
                        **{**asdict(each), "shape": each.shape and list(each.shape)},
                        type=each.value["type"],
                    )
                    for each in found.variables
                ],
                removed=list(found.removed),
                notes=list(found.notes),
            )
        )

    async def pin_run(self, request: Request) -> Response:
        """Keep a run from garbage collection, or no longer."""
        row, _ = await self._find_run(request)
        body = await read_body(request, PinBody)
        if body.pinned:
            await self._runtime.journal.pin_run(row.id, body.reason)
        else:
            await self._runtime.journal.unpin_run(row.id)
        return document_response(PinDocument(run=row.id, pinned=body.pinned))

    async def list_calls(self, request: Request) -> Response:
        """Return the calls of a run with their recorded answers."""
        row, _ = await self._find_run(request)
        run = await load_recorded_run(self._runtime.journal, row)
        listed = [call for call in run.calls if call.in_ledger]
        return document_response(
            RecordedCallsDocument(
                run=row.id,
                calls=[
                    build_recorded_call(number, call)
                    for number, call in enumerate(listed[:MAX_LISTED_CALLS], 1)
                ],
                call_count=len(listed),
            )
        )

    async def diff_runs(self, request: Request) -> Response:
        """Compare two runs of the principal."""
        lookup = RunLookup(self._runtime, find_principal(request.scope))
        row, _ = await lookup.load_run_rows(request.path_params["run_id"])
        other = read_query(request, DiffQuery).other or row.parent_id or row.id
        compared, _ = await lookup.load_run_rows(other)
        await self._runtime.wait_for_files(compared.session_id)
        async with self._comparison:
            found = await diff_runs(self._runtime.journal, row, compared)
        return document_response(DiffDocument.model_validate(diff_to_json(found)))

    async def _find_run(self, request: Request) -> tuple[RunRow, str]:
        """Return the run of the address and its principal; raises `NotFound`."""
        lookup = RunLookup(self._runtime, find_principal(request.scope))
        row, _ = await lookup.load_run_rows(request.path_params["run_id"])
        return row, lookup.principal


def build_recorded_call(number: int, call: RecordedCall) -> RecordedCallDocument:
    """Return a call with its answer, unless that is long."""
    is_long = len(json.dumps(call.value)) > MAX_ANSWER_CHARS
    status: Literal["ok", "error", "started"] = "ok"
    if call.error is not None:
        status = "error"
    elif call.finished_sequence is None:
        status = "started"
    return RecordedCallDocument(
        number=number,
        target=call.target,
        args=truncate_text(call.args, MAX_ANSWER_CHARS)[0],
        status=status,
        value=None if is_long else call.value,
        cut=is_long,
        error=None if call.error is None else call.error["message"],
        line=call.line_number,
        duration_ms=call.duration_ms,
    )
