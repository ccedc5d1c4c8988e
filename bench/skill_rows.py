"""The rows about skills: the cost of `[skills] auto` for a run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from .harness import BenchmarkRow, TestServer, measure_ms, sample_in_turns, start_server
from .rows import BenchContext, unique_numbers

RUN_CODE = """from tools.bare import noop
rows = [noop(n=n).n for n in range(3, 6)]
total = sum(rows) * 7 + {number}
[total, len(rows)]"""


async def auto_kept(bench: BenchContext) -> BenchmarkRow:
    """Runs that each become another draft."""
    row = BenchmarkRow(
        "auto-kept",
        "a run with 3 calls, kept as a draft by itself",
        'the same with auto = "off"',
        "ratio",
        None,
    )
    async with _start_servers() as (ours, baseline):
        first = partial(_run_new_code, ours)
        return await sample_in_turns(
            row, first, partial(_run_new_code, baseline), bench.samples(40, 10), warm_up=3
        )


async def auto_known(bench: BenchContext) -> BenchmarkRow:
    """The same code again, which has been examined before."""
    row = BenchmarkRow(
        "auto-known", "the same run once more", 'the same with auto = "off"', "ratio", None
    )
    code = RUN_CODE.format(number=0)
    async with _start_servers() as (ours, baseline):
        first = partial(measure_ms, ours.run_code, code)
        return await sample_in_turns(
            row,
            first,
            partial(measure_ms, baseline.run_code, code),
            bench.samples(40, 10),
            warm_up=3,
        )


async def auto_plain(bench: BenchContext) -> BenchmarkRow:
    """A run without calls, which is not examined."""
    row = BenchmarkRow(
        "auto-plain", 'run_code("1+1") with auto', 'the same with auto = "off"', "ratio", None
    )
    async with _start_servers() as (ours, baseline):
        first = partial(measure_ms, ours.run_code, "1+1")
        return await sample_in_turns(
            row,
            first,
            partial(measure_ms, baseline.run_code, "1+1"),
            bench.samples(100, 20),
            warm_up=3,
        )


async def _run_new_code(server: TestServer) -> float:
    return await measure_ms(server.run_code, RUN_CODE.format(number=next(unique_numbers)))


@asynccontextmanager
async def _start_servers() -> AsyncIterator[tuple[TestServer, TestServer]]:
    async with (
        start_server(sections={"skills": {"auto": "active-on-second-success"}}) as ours,
        start_server() as baseline,
    ):
        yield ours, baseline


SKILL_ROWS: Sequence[Callable[[BenchContext], Awaitable[BenchmarkRow]]] = (
    auto_kept,
    auto_known,
    auto_plain,
)
