"""The routes that look into recorded steps; none of them changes the session of the step.

They need the scope `run`, although they only look: code is executed for each of them.
"""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from ..journal.rows import RunRow
from ..protocol.truncation import truncate_text
from ..runtime.inspector import QUESTION_TIMEOUT_S, ProbeRequest
from ..runtime.run_report import display_value
from ..server.run_lookup import RunLookup
from .api_models import MediaDocument
from .api_services import ApiServices
from .authentication import find_principal
from .documents import MAX_OUTPUT_CHARS, MAX_VALUE_CHARS
from .event_models import RunErrorInfo
from .inspection_models import (
    AnswerDocument,
    HitDocument,
    ProbeBody,
    ProbeDocument,
    QuestionBody,
    ShownValueDocument,
    VariableDocument,
    VariablesDocument,
)
from .requests import document_response, read_body


class InspectionApi:
    """The handlers of the routes."""

    def __init__(self, services: ApiServices) -> None:
        self._runtime = services.runtime
        self._inspector = services.inspector

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

    async def _find_run(self, request: Request) -> tuple[RunRow, str]:
        """Return the run of the address and its principal; raises `NotFound`."""
        lookup = RunLookup(self._runtime, find_principal(request.scope))
        row, _ = await lookup.load_run_rows(request.path_params["run_id"])
        return row, lookup.principal
