"""Where variables come from: the step and the line that set each of them, as the code says.

It is read from the recorded code, not observed: what code does to names that it computes (`exec`,
`globals()`, `import *`), and what functions do to global names, is not known, and then no step is
named. A change of an object is guessed generously, as for skills.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..capabilities.skills.model import RecordedCase, RecordedStep
from ..capabilities.skills.slicing import Statement, read_statements
from ..capabilities.skills.source import parse_source
from ..errors import SkillRefused
from ..journal import overviews
from ..journal.overviews import ExecutedCode
from .page_rendering import PAGE_SECURITY_HEADERS
from .viewer_services import ViewerServices

MAX_TRACED_STEPS = 200
MAX_TRACED_CHARS = 4_000_000
COMPOUND_STATEMENTS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try)


@dataclass(frozen=True)
class CodePlace:
    """A line of the code of a step."""

    run: str
    step: int
    line: int


@dataclass(frozen=True)
class VariableSource:
    """Where a variable was set, and where its object may have been changed last, if it was."""

    set_in: CodePlace
    changed_in: CodePlace | None = None


class VariableSources:
    """The handler that finds the sources of variables."""

    def __init__(self, services: ViewerServices) -> None:
        self._services = services

    async def list_sources(self, request: Request) -> Response:
        """Return where the variables after a step were set, as far as that is known."""
        row, _ = await self._services.find_run(request)
        journal = self._services.journal
        async with self._services.renderer.turn:  # the code of many steps may be megabytes
            executed = await journal.read(
                lambda rows: overviews.load_executed_code(
                    rows, journal.blobs, row.id, MAX_TRACED_STEPS, MAX_TRACED_CHARS
                )
            )
            found = await anyio.to_thread.run_sync(find_sources, executed)
        sources = {name: asdict(source) for name, source in found.items()}
        return JSONResponse({"sources": sources}, headers=PAGE_SECURITY_HEADERS)


def find_sources(executed: Sequence[ExecutedCode]) -> Mapping[str, VariableSource]:
    """Return the sources of variables by name; the code is that of steps, the newest first."""
    fresh = next((at + 1 for at, each in enumerate(executed) if each.is_fresh), len(executed))
    steps = executed[:fresh][::-1]
    try:
        statements = read_statements([as_recorded_step(each) for each in steps])
    except (SkillRefused, RecursionError):
        return {}
    sources: dict[str, VariableSource] = {}
    for each in statements:
        step = steps[each.step]
        place = CodePlace(step.run_id, step.step, each.lines[0])
        if each.is_dynamic:
            sources.clear()  # it may have set any of them
            continue
        for name in each.changes & sources.keys():
            sources[name] = replace(sources[name], changed_in=place)
        for name in each.binds - hidden_globals(each):
            sources[name] = VariableSource(place)
    for name in set().union(*map(hidden_globals, statements)):
        sources.pop(name, None)  # the caller of the function sets it
    return sources


def hidden_globals(statement: Statement) -> frozenset[str]:
    """Return the global names that a definition sets when it is called."""
    if not statement.is_definition:
        return frozenset()
    return frozenset(
        name
        for part in ast.walk(statement.node)
        if isinstance(part, ast.Global)
        for name in part.names
    )


def as_recorded_step(executed: ExecutedCode) -> RecordedStep:
    """Return a step as the analysis of skills takes it; a loop that failed has set names, too."""
    failed_line = executed.failed_line
    if not executed.succeeded:
        for node in parse_body(executed.code):
            end = node.end_lineno or node.lineno
            if isinstance(node, COMPOUND_STATEMENTS) and node.lineno <= failed_line <= end:
                failed_line = end + 1
                break
    case = RecordedCase({})
    return RecordedStep(executed.run_id, executed.code, case, executed.succeeded, failed_line)


def parse_body(code: str) -> Sequence[ast.stmt]:
    """Return the statements of code; none if it is not valid."""
    try:
        return parse_source(code).body
    except (SkillRefused, RecursionError):
        return ()
