"""After-the-fact prints, questions to a state, and variables: what they see, and what they change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcpruntime_server.errors import Conflict, InvalidRequest
from mcpruntime_server.journal.rows import RunRow
from mcpruntime_server.runtime.inspector import Inspector, ProbeRequest, ProbeResult
from mcpruntime_server.runtime.run import Run
from mcpruntime_server.runtime.runtime import Runtime

from .test_journaled_runs import CALL, finish, running


@pytest.fixture(scope="module")
async def runtime(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    folder: Path = tmp_path_factory.mktemp("inspector")
    async with running(folder) as (runtime, _):
        yield runtime


@pytest.fixture(scope="module")
async def inspector(runtime: Runtime) -> Inspector:
    return Inspector(runtime)


async def row_of(runtime: Runtime, run: Run) -> RunRow:
    return await runtime.journal.load_run(run.id)


def texts(result: ProbeResult) -> list[str]:
    return [hit.value["text"] for hit in result.hits]


async def probe(
    runtime: Runtime, inspector: Inspector, code: str, line: int, expression: str
) -> ProbeResult:
    session = await runtime.open_session(None, "me")
    run = await finish(session, code)
    return await inspector.probe(
        await row_of(runtime, run), "me", ProbeRequest(line, expression)
    )


LOOP = """\
total = 0
for n in range(4):
    total += n * n
print(total)
total
"""


async def test_a_probe_shows_the_value_of_each_execution_of_a_line(
    runtime: Runtime, inspector: Inspector
) -> None:
    result = await probe(runtime, inspector, LOOP, 3, "n, total")
    assert texts(result) == ["[0, 0]", "[1, 0]", "[2, 1]", "[3, 5]"]
    assert [hit.number for hit in result.hits] == [1, 2, 3, 4]
    assert (result.line, result.hit_count, result.is_faithful) == (3, 4, True)
    assert result.report.stdout == "14\n"
