"""Whether the server lives, and whether it can do its work: `/healthz` and `/readyz`.

Rule 1: anybody may ask, so asking costs nothing: the checks run at most once in `MAX_AGE_S`, and a
request waits for them at most `TIMEOUT_S`, however long an engine takes that does not answer.
Rule 2: the reasons name paths, versions and programs. They are for administrators, and for the log.
A request from this machine proves nothing, because it may come from a proxy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import anyio
from anyio.abc import TaskGroup
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

MAX_AGE_S = 2.0  # of what is reported
TIMEOUT_S = 4.0  # for one check; probes of orchestrators wait 1 to 10 seconds

logger = logging.getLogger(__name__)


class Finding(Protocol):
    """What a check has found; the checks of `doctor` have this form, too."""

    @property
    def name(self) -> str:
        """What was checked."""
        ...

    @property
    def is_ok(self) -> bool:
        """Whether it can be used."""
        ...

    @property
    def detail(self) -> str:
        """The reason, for people."""
        ...

    @property
    def remedy(self) -> str:
        """What to do if it is not."""
        ...

    @property
    def figures(self) -> Mapping[str, int]:
        """Figures for programs, by name."""
        ...


@dataclass(frozen=True)
class CheckResult:
    """A finding of this room."""

    name: str
    is_ok: bool
    detail: str
    remedy: str = ""
    figures: Mapping[str, int] = field(default_factory=dict)


RunCheck = Callable[[], Awaitable[Sequence[Finding]]]


class CachedCheck:
    """One check, which runs in a task of its own, and its last findings."""

    def __init__(self, name: str, run_check: RunCheck, tasks: TaskGroup) -> None:
        self._name = name
        self._run_check = run_check
        self._tasks = tasks
        self._findings: Sequence[Finding] = ()
        self._checked_at = -MAX_AGE_S
        self._finished: anyio.Event | None = None  # of the check that is under way

    async def find(self) -> Sequence[Finding]:
        """Return what the last check has found, after a new one if that was too long ago."""
        if self._finished is None and time.monotonic() - self._checked_at >= MAX_AGE_S:
            self._finished = anyio.Event()
            self._tasks.start_soon(self._refresh, self._finished)
        if self._finished is not None:
            with anyio.move_on_after(TIMEOUT_S) as bound:
                await self._finished.wait()
            if bound.cancelled_caught:
                return [CheckResult(self._name, False, f"no answer within {TIMEOUT_S:g} s")]
        return self._findings

    async def _refresh(self, finished: anyio.Event) -> None:
        try:
            self._findings = await self._run_check()
        except Exception as exc:  # the check of a part that is broken may fail in any way
            logger.exception("the check of the %s failed", self._name)
            self._findings = [CheckResult(self._name, False, f"the check failed: {exc}")]
        finally:
            self._checked_at = time.monotonic()
            self._finished = None
            finished.set()


class Readiness:
    """All checks together; a change is logged."""

    def __init__(self, checks: Mapping[str, RunCheck], tasks: TaskGroup) -> None:
        self._checks = [CachedCheck(name, check, tasks) for name, check in checks.items()]
        self._was_ready = True

    async def find(self) -> list[Finding]:
        """Return the findings of all checks."""
        found: dict[int, Sequence[Finding]] = {}

        async def find_one(number: int, check: CachedCheck) -> None:
            found[number] = await check.find()

        async with anyio.create_task_group() as tasks:
            for number, check in enumerate(self._checks):
                tasks.start_soon(find_one, number, check)
        findings = [finding for number in sorted(found) for finding in found[number]]
        self._log_change(findings)
        return findings

    def _log_change(self, findings: Sequence[Finding]) -> None:
        problems = [f"{each.name}: {each.detail}" for each in findings if not each.is_ok]
        is_ready = not problems
        if is_ready != self._was_ready:
            self._was_ready = is_ready
            if is_ready:
                logger.info("the server is ready again")
            else:
                logger.warning("the server is not ready: %s", "; ".join(problems))


async def report_live(request: Request) -> Response:
    """Say that the event loop answers, and nothing else."""
    return PlainTextResponse("ok\n")


class ReadinessEndpoint:
    """Answers 200 or 503, with the reasons for those who may see them."""

    def __init__(
        self, readiness: Readiness, may_see_reasons: Callable[[Request], Awaitable[bool]]
    ) -> None:
        self._readiness = readiness
        self._may_see_reasons = may_see_reasons

    async def respond(self, request: Request) -> Response:
        """Return the state as JSON."""
        findings = await self._readiness.find()
        is_ready = all(finding.is_ok for finding in findings)
        body: dict[str, object] = {"status": "ready" if is_ready else "not ready"}
        if await self._may_see_reasons(request):
            body["checks"] = [
                {
                    "name": each.name,
                    "ok": each.is_ok,
                    "detail": each.detail,
                    **({} if each.is_ok else {"remedy": each.remedy}),
                }
                for each in findings
            ]
        return JSONResponse(body, 200 if is_ready else 503, {"Cache-Control": "no-store"})
