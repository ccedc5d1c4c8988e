"""Traces for OpenTelemetry: one span for a run, with its calls and model requests as children.

Rule 1: a span has ids, names that the settings or the catalogue know, durations and outcomes. It
has no code, no arguments, no values, and no text of an error.
Rule 2: a request may belong to a trace of its client (`traceparent` in the HTTP header, or in
`_meta` of an MCP request); its run is then part of that trace. Requests to upstreams carry the
context of their call (`capabilities/trace_context`). Baggage is neither read nor sent.
Rule 3: the provider is this module's own and not the global one, so that the spans of libraries,
which may hold anything, are not recorded.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import Token
from threading import Thread
from typing import Any

import anyio
from anyio import to_thread
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import APP_NAME, __version__
from ..capabilities.trace_context import trace_propagator
from ..runtime.observer import UNKNOWN, CallOutcome, NameTarget, ObservedCall, ObservedRun

MAX_OPEN_RUNS = 10_000  # with a span; a run that its session forgets never ends
MAX_FIELD_CHARS = 512  # of `traceparent` and `tracestate`; W3C asks for no more
CONTEXT_FIELDS = ("traceparent", "tracestate")
SHUTDOWN_TIMEOUT_S = 2.0  # to send the last spans to a collector, which may be gone
FAILED_STATUSES = ("error", "timeout", "crashed")


class RuntimeTraces:
    """Records spans of runs, calls and model requests."""

    def __init__(self, tracer: Tracer, name_target: NameTarget, models: frozenset[str]) -> None:
        self._tracer = tracer
        self._name_target = name_target
        self._models = models  # whose names are in the settings
        self._runs: OrderedDict[str, Span] = OrderedDict()  # by run
        self._calls: dict[
            int, tuple[Span, Token[Context]]
        ] = {}  # by identity of the ledger's entry

    def on_run_requested(self, run: ObservedRun) -> None:
        """Start the span of a run, below that of the request or of the call that starts it."""
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "run_code",
            "gen_ai.conversation.id": run.session_id,
            "mcpruntime.run.id": run.id,
            "mcpruntime.run.mode": run.mode,
        }
        self._runs[run.id] = self._tracer.start_span("run_code", attributes=attributes)
        if len(self._runs) > MAX_OPEN_RUNS:
            self._runs.popitem(last=False)

    def on_run_ended(self, run: ObservedRun, status: str, usage: Mapping[str, float]) -> None:
        """End the span of a run."""
        span = self._runs.pop(run.id, None)
        if span is None:
            return
        span.set_attribute("mcpruntime.run.status", status)
        if "setup_ms" in usage:
            span.set_attribute("mcpruntime.run.setup_ms", usage["setup_ms"])
        mark_outcome(span, status)
        span.end()

    def on_call_started(self, call: ObservedCall) -> None:
        """Start the span of a call, which is the current one in this task until it ends."""
        run_span = self._runs.get(call.run_id)
        parent = Context()
        if run_span is not None:
            parent = set_span_in_context(run_span, parent)
        span = self._start_call_span(call, parent)
        token = context_api.attach(set_span_in_context(span, Context()))
        self._calls[id(call.entry)] = span, token

    def _start_call_span(self, call: ObservedCall, parent: Context) -> Span:
        attributes = {"mcpruntime.run.id": call.run_id, "mcpruntime.call.route": call.prefix}
        if call.prefix != "tools":
            name = call.prefix or UNKNOWN
            return self._tracer.start_span(f"call {name}", parent, attributes=attributes)
        upstream, tool = (each or UNKNOWN for each in self._name_target(call.entry.target))
        attributes |= {
            "mcp.method.name": "tools/call",
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": tool,
            "mcpruntime.upstream": upstream,
        }
        return self._tracer.start_span(
            f"tools/call {tool}", parent, SpanKind.CLIENT, attributes=attributes
        )

    def on_call_ended(self, call: ObservedCall, outcome: CallOutcome) -> None:
        """End the span of a call."""
        span, token = self._calls.pop(id(call.entry))
        context_api.detach(token)
        span.set_attribute("mcpruntime.call.outcome", outcome)
        if call.prefix == "tools":  # its upstream may have been unknown when it started
            upstream, tool = self._name_target(call.entry.target)
            if tool:
                span.update_name(f"tools/call {tool}")
                span.set_attributes({"gen_ai.tool.name": tool, "mcpruntime.upstream": upstream})
        mark_outcome(span, outcome)
        span.end()

    def on_sandbox_acquired(self, *, was_ready: bool) -> None:
        """Record nothing: the time is part of the run's `setup_ms`."""

    def on_model_request(self, model: str, usage: Mapping[str, float], duration_ms: float) -> None:
        """Record the span of a request that has ended, below that of the current call."""
        end_ns = time.time_ns()
        name = model if model in self._models else UNKNOWN
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": name,
            "gen_ai.usage.input_tokens": int(usage["tokens_in"]),
            "gen_ai.usage.output_tokens": int(usage["tokens_out"]),
        }
        span = self._tracer.start_span(
            f"chat {name}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=end_ns - int(duration_ms * 1e6),
        )
        span.end(end_ns)


def mark_outcome(span: Span, outcome: str) -> None:
    """Mark the span of what has failed."""
    if outcome in FAILED_STATUSES:
        span.set_attribute("error.type", outcome)
        span.set_status(StatusCode.ERROR)


class TraceContextReader:
    """Reads the trace context of requests: of HTTP requests, and of MCP requests, which wins."""

    def wrap_app(self, app: ASGIApp) -> ASGIApp:
        """Return an application that handles each request in the context of its headers."""

        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            token = context_api.attach(extract_context(Headers(scope=scope)))
            try:
                await app(scope, receive, send)
            finally:
                context_api.detach(token)

        return handle

    async def handle_mcp_request(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Handle an MCP request in the context of its `_meta`, if it has one."""
        found = extract_context(ctx.meta or {})
        if not found:
            return await call_next(ctx)
        token = context_api.attach(found)
        try:
            return await call_next(ctx)
        finally:
            context_api.detach(token)


def extract_context(carrier: Mapping[str, Any]) -> Context:
    """Return the trace context that a client sends; an empty one if there is none, or a bad one."""
    fields = {name: carrier.get(name) for name in CONTEXT_FIELDS}
    texts = {
        name: text
        for name, text in fields.items()
        if isinstance(text, str) and len(text) <= MAX_FIELD_CHARS
    }
    return trace_propagator.extract(texts, Context())


@asynccontextmanager
async def open_tracer(traces_url: str) -> AsyncIterator[Tracer]:
    """Yield a tracer whose spans go to a collector; "" is where OpenTelemetry's variables say."""
    resource = Resource({"service.name": APP_NAME, "service.version": __version__})
    provider = TracerProvider(
        resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint=traces_url or None)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider.get_tracer(APP_NAME, __version__)
    finally:
        # The exporter retries for longer than a client waits for a server that ends.
        stopping = Thread(target=provider.shutdown, daemon=True)
        stopping.start()
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(stopping.join, SHUTDOWN_TIMEOUT_S)
