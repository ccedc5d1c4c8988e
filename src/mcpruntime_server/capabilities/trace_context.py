"""The W3C trace context of a call, as requests to upstreams carry it.

Nothing is traced unless `service/tracing` is configured; then there is no context, and nothing to
carry.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

trace_propagator = TraceContextTextMapPropagator()  # without baggage, which is the client's own


def add_trace_context(carrier: MutableMapping[str, Any]) -> None:
    """Add `traceparent` to the headers of a request, or to its `_meta`, if the call is traced."""
    trace_propagator.inject(carrier)
