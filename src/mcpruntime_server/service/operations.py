"""What the operators of the service ask it: the routes `/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection

from anyio.abc import TaskGroup
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.routing import BaseRoute, Route, request_response
from starlette.types import ASGIApp

from ..config.scopes import Scope
from ..errors import JournalFailed, McpRuntimeError
from ..journal.store import Journal
from ..runtime.runtime import Runtime
from .authentication import Authentication
from .health import CheckResult, Finding, Readiness, ReadinessEndpoint, report_live
from .metrics import (
    FigureSources,
    MetricsEndpoint,
    ScrapeToken,
    ServerFigures,
    sample_loop_lag,
)

ADMIN: Scope = "admin"
HEALTH_PATH = "/healthz"
READINESS_PATH = "/readyz"
METRICS_PATH = "/metrics"


@dataclass(frozen=True)
class Operations:
    """The parts of the server that operators may ask about."""

    registry: CollectorRegistry
    runtime: Runtime
    journal: Journal
    check_sandboxes: Callable[[], Awaitable[Sequence[Finding]]]  # engine, image, leftovers
    list_upstream_states: Callable[[], Sequence[str]]
    metrics_token: str = ""
    wrap_app: Callable[[ASGIApp], ASGIApp] = lambda app: app  # around all routes

    def build_routes(
        self,
        authentication: Authentication,
        count_mcp_connections: Callable[[], int],
        tasks: TaskGroup,
    ) -> list[BaseRoute]:
        """Return the routes; what they need while the service runs lives in `tasks`."""

        def count_connections() -> Mapping[str, int]:
            return {"mcp": count_mcp_connections(), **authentication.count_responses()}

        checks = {"engine": self.check_sandboxes, "journal": self._check_journal}
        readiness = Readiness(checks, tasks)
        figures = FigureSources(
            self.runtime.count_sandboxes,
            self.runtime.count_sessions,
            self.runtime.count_active_runs,
            self._count_upstreams,
            count_connections,
            readiness.find,
            self.journal.data_dir,
        )
        metrics = MetricsEndpoint(self.registry, ServerFigures(figures)).respond
        protected = authentication.protect(metrics, [ADMIN])
        tasks.start_soon(sample_loop_lag, self.registry)
        return [
            Route(HEALTH_PATH, report_live, methods=["GET"]),
            Route(
                READINESS_PATH,
                ReadinessEndpoint(readiness, partial(is_administrator, authentication)).respond,
                methods=["GET"],
            ),
            Route(
                METRICS_PATH,
                ScrapeToken(self.metrics_token, request_response(metrics), protected),
                methods=["GET"],
            ),
        ]

    async def _check_journal(self) -> list[Finding]:
        """Check whether the journal can be written, and is not behind."""
        try:
            await self.journal.write(read_anything)
        except JournalFailed as exc:
            return [CheckResult("journal", False, exc.message, exc.remedy)]
        if self.journal.is_behind:
            detail = "the disk is slower than what is recorded"
            return [CheckResult("journal", False, detail, "Use a faster disk, or fewer runs.")]
        return [CheckResult("journal", True, "it can be written")]

    def _count_upstreams(self) -> Mapping[str, int]:
        return Counter(self.list_upstream_states())


def read_anything(rows: Connection) -> None:
    """Do a transaction that takes a lock and reads a page."""
    rows.execute("SELECT 1 FROM sessions LIMIT 1").fetchall()


async def is_administrator(authentication: Authentication, request: Request) -> bool:
    """Return whether a request, which may have no token, has the scope `admin`."""
    try:
        caller = await authentication.identify(request.scope)
    except McpRuntimeError:
        return False
    return ADMIN in caller.scopes
