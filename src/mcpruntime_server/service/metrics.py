"""Figures for Prometheus: `/metrics`.

What happens is counted when it happens: `RuntimeMetrics` is an observer of the runtime. What is, is
asked for when somebody scrapes: `ServerFigures`.

Rule: strangers cannot create values of labels. A tool is a label if the catalogue has it, and the
catalogue's tools are labels up to a limit, because an upstream may change its list as it likes. No
principal, session, run or text is a label.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..runtime.observer import UNKNOWN, CallOutcome, NameTarget, ObservedCall, ObservedRun
from .health import Finding

PREFIX = "mcpruntime"
DURATION_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
RUN_BUCKETS_S = (*DURATION_BUCKETS_S, 60, 120, 300, 600, 1800, 3600)
LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
LAG_INTERVAL_S = 0.5  # between two samples of the event loop's lag
MAX_TOOL_LABELS = 1_000  # of all upstreams
MAX_LABEL_CHARS = 100
OTHER_TOOL = "other"
MAX_FIGURES_AGE_S = 1.0  # scrapers that come more often get the same text
MAX_BLOBS_AGE_S = 60.0  # of the size of the blobs, which takes a walk over their folders


class RuntimeMetrics:
    """Counts what happens in the runtime."""

    def __init__(self, registry: CollectorRegistry, name_target: NameTarget) -> None:
        self._name_target = name_target
        self._tool_labels: set[tuple[str, str]] = set()
        self._runs = Counter(
            f"{PREFIX}_runs", "Runs that have ended.", ["mode", "status"], registry=registry
        )
        self._run_seconds = Histogram(
            f"{PREFIX}_run_duration_seconds",
            "Time from the request of a run to its end, waiting included.",
            ["mode"],
            buckets=RUN_BUCKETS_S,
            registry=registry,
        )
        self._setup_seconds = Histogram(
            f"{PREFIX}_run_setup_seconds",
            "Time from the request of a run to the start of its code: queues, and its sandbox.",
            ["mode"],
            buckets=RUN_BUCKETS_S,
            registry=registry,
        )
        self._calls = Counter(
            f"{PREFIX}_calls",
            "Calls that sandboxed code has made of the host.",
            ["route", "upstream", "tool", "outcome"],
            registry=registry,
        )
        self._call_seconds = Histogram(
            f"{PREFIX}_call_duration_seconds",
            "Time that handlers took for calls.",
            ["route", "upstream"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._acquired = Counter(
            f"{PREFIX}_sandboxes_acquired",
            "Sandboxes that sessions took: kept ready (hit), or waited for (miss).",
            ["pool"],
            registry=registry,
        )
        self._model_requests = Counter(
            f"{PREFIX}_model_requests", "Requests to models, retries included.", registry=registry
        )
        self._tokens = Counter(
            f"{PREFIX}_model_tokens", "Tokens of models.", ["direction"], registry=registry
        )
        self._cost = Counter(f"{PREFIX}_model_cost_usd", "Cost of models.", registry=registry)
        self._model_seconds = Histogram(
            f"{PREFIX}_model_request_duration_seconds",
            "Time that models took.",
            buckets=RUN_BUCKETS_S,
            registry=registry,
        )

    def on_run_requested(self, run: ObservedRun) -> None:
        """Count nothing: unfinished runs are asked for."""

    def on_run_ended(self, run: ObservedRun, status: str, usage: Mapping[str, float]) -> None:
        """Count a run."""
        self._runs.labels(run.mode, status).inc()
        if "total_ms" in usage:
            self._run_seconds.labels(run.mode).observe(usage["total_ms"] / 1e3)
        if "setup_ms" in usage:
            self._setup_seconds.labels(run.mode).observe(usage["setup_ms"] / 1e3)

    def on_call_started(self, call: ObservedCall) -> None:
        """Count nothing yet."""

    def on_call_ended(self, call: ObservedCall, outcome: CallOutcome) -> None:
        """Count a call."""
        route, upstream, tool = call.prefix or UNKNOWN, "", ""
        if route == "tools":
            upstream, tool = self._label_tool(call.entry.target)
        self._calls.labels(route, upstream, tool, outcome).inc()
        if outcome in ("ok", "error"):
            self._call_seconds.labels(route, upstream).observe(call.entry.duration_ms / 1e3)

    def on_sandbox_acquired(self, *, was_ready: bool) -> None:
        """Count a sandbox."""
        self._acquired.labels("hit" if was_ready else "miss").inc()

    def on_model_request(self, model: str, usage: Mapping[str, float], duration_ms: float) -> None:
        """Count a request to a model."""
        self._model_requests.inc(usage["calls"])
        self._tokens.labels("in").inc(usage["tokens_in"])
        self._tokens.labels("out").inc(usage["tokens_out"])
        self._cost.inc(usage["usd"])
        self._model_seconds.observe(duration_ms / 1e3)

    def _label_tool(self, target: str) -> tuple[str, str]:
        """Return the labels of the upstream and the tool that code names."""
        upstream, tool = self._name_target(target)
        if not upstream or not tool:
            return upstream or UNKNOWN, UNKNOWN
        if (upstream, tool) not in self._tool_labels:
            if len(self._tool_labels) >= MAX_TOOL_LABELS or len(tool) > MAX_LABEL_CHARS:
                return upstream, OTHER_TOOL
            self._tool_labels.add((upstream, tool))
        return upstream, tool


@dataclass(frozen=True)
class FigureSources:
    """Where the figures come from that are asked for."""

    count_sandboxes: Callable[[], Mapping[str, int]]  # by state
    count_sessions: Callable[[], Mapping[str, int]]
    count_active_runs: Callable[[], Mapping[str, int]]
    count_upstreams: Callable[[], Mapping[str, int]]
    count_connections: Callable[[], Mapping[str, int]]  # of clients, by kind
    check_readiness: Callable[[], Awaitable[list[Finding]]]
    data_dir: Path


class ServerFigures(Collector):
    """What is at the moment: asked for before each scrape, on the event loop."""

    def __init__(self, sources: FigureSources) -> None:
        self._sources = sources
        self._families: list[GaugeMetricFamily] = []
        self._blob_bytes = 0
        self._blobs_measured_at = -MAX_BLOBS_AGE_S

    async def refresh(self) -> None:
        """Ask for all figures."""
        sources = self._sources
        findings = await sources.check_readiness()
        left = sum(each.figures.get("sandboxes_left", 0) for each in findings)
        sandboxes = {**sources.count_sandboxes(), "left": left}
        ready = {each.name: int(each.is_ok) for each in findings}
        self._families = [
            build_gauge("sandboxes", "Sandboxes; those left have lost their server.", sandboxes),
            build_gauge("sessions", "Live sessions.", sources.count_sessions()),
            build_gauge("active_runs", "Runs that have not ended.", sources.count_active_runs()),
            build_gauge("upstreams", "Upstream servers.", sources.count_upstreams()),
            build_gauge(
                "connections",
                "MCP connections that are open, requests under way, and those that stream.",
                sources.count_connections(),
                "kind",
            ),
            build_gauge("ready", "Whether a check of `/readyz` succeeds.", ready, "check"),
            build_gauge(
                "journal_bytes", "Size of the journal.", await self._measure_journal(), "part"
            ),
        ]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield what `refresh` has found."""
        yield from self._families

    async def _measure_journal(self) -> Mapping[str, int]:
        if time.monotonic() - self._blobs_measured_at >= MAX_BLOBS_AGE_S:
            folder = self._sources.data_dir / "blobs"
            self._blob_bytes = await to_thread.run_sync(measure_folder, folder)
            self._blobs_measured_at = time.monotonic()
        return {
            "database": measure_file(self._sources.data_dir / "journal.db"),
            "log": measure_file(self._sources.data_dir / "journal.db-wal"),
            "blobs": self._blob_bytes,
        }


def build_gauge(
    name: str, text: str, values: Mapping[str, float], label: str = "state"
) -> GaugeMetricFamily:
    """Return a gauge with a value for each value of its label."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def measure_file(path: Path) -> int:
    """Return the size of a file; 0 if there is none."""
    with suppress(OSError):
        return path.stat().st_size
    return 0


def measure_folder(folder: Path) -> int:
    """Return the bytes of all files below a folder, which may change meanwhile."""
    return sum(measure_file(path) for path in folder.rglob("*") if path.is_file())


async def sample_loop_lag(registry: CollectorRegistry) -> None:
    """Measure how late the event loop wakes a task that sleeps, until cancelled."""
    lag = Histogram(
        f"{PREFIX}_event_loop_lag_seconds",
        "How late the event loop wakes a task that sleeps.",
        buckets=LAG_BUCKETS_S,
        registry=registry,
    )
    while True:
        due = time.perf_counter() + LAG_INTERVAL_S
        await anyio.sleep(LAG_INTERVAL_S)
        lag.observe(max(time.perf_counter() - due, 0.0))


def create_registry() -> CollectorRegistry:
    """Return a registry that has the figures of this process."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # twice as many lines
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class MetricsEndpoint:
    """Answers scrapers, at most once in `MAX_FIGURES_AGE_S` with new figures."""

    def __init__(self, registry: CollectorRegistry, figures: ServerFigures) -> None:
        registry.register(figures)
        self._registry = registry
        self._figures = figures
        self._lock = anyio.Lock()
        self._refreshed_at = -MAX_FIGURES_AGE_S
        self._texts: dict[str, bytes] = {}  # by content type

    async def respond(self, request: Request) -> Response:
        """Return all figures as text, in the format that the scraper prefers."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        async with self._lock:
            if time.monotonic() - self._refreshed_at >= MAX_FIGURES_AGE_S:
                await self._figures.refresh()
                self._refreshed_at = time.monotonic()
                self._texts.clear()
            if content_type not in self._texts:
                self._texts[content_type] = await to_thread.run_sync(encode, self._registry)
            text = self._texts[content_type]
        return Response(text, headers={"Content-Type": content_type})


class ScrapeToken:
    """Lets those pass who have the token for scrapers, and leaves others to `protected`."""

    def __init__(self, token: str, endpoint: ASGIApp, protected: ASGIApp) -> None:
        self._expected = f"Bearer {token}".encode() if token else b""
        self._endpoint = endpoint
        self._protected = protected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        header = dict(scope["headers"]).get(b"authorization", b"")
        is_scraper = bool(self._expected) and hmac.compare_digest(header, self._expected)
        await (self._endpoint if is_scraper else self._protected)(scope, receive, send)
