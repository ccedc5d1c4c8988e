"""Where traces are sent: the setting, or the standard variables of OpenTelemetry."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .models import TelemetrySettings

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def sends_traces(settings: TelemetrySettings, environ: Mapping[str, str] | None = None) -> bool:
    """Return whether a collector is named, and nothing turns traces off."""
    environ = os.environ if environ is None else environ
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() != "otlp":
        return False
    return bool(settings.traces_url or any(environ.get(name) for name in ENDPOINT_VARIABLES))
