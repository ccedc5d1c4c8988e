"""What `[skills] auto` costs a run that makes calls, against a server that keeps nothing by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from harness import Ours, Row, in_turns, our_server, timed
from rows import Bench, numbers

CODE = """from tools.bare import noop
rows = [noop(n=n).n for n in range(3, 6)]
total = sum(rows) * 7 + {number}
[total, len(rows)]"""


async def auto_kept(bench: Bench) -> Row:
    """A run that becomes a draft, each time another one."""
    row = Row("auto-kept", "a run with 3 calls, kept as a draft by itself", 'the same with auto = "off"', "ratio", None)
    async with _both() as (ours, baseline):
        first = partial(_new, ours)
        return await in_turns(row, first, partial(_new, baseline), bench.samples(40, 10), warm_up=3)


async def auto_known(bench: Bench) -> Row:
    """The same code once more, which was looked at before."""
    row = Row("auto-known", "the same run once more", 'the same with auto = "off"', "ratio", None)
    code = CODE.format(number=0)
    async with _both() as (ours, baseline):
        first = partial(timed, ours.run, code)
        return await in_turns(row, first, partial(timed, baseline.run, code), bench.samples(40, 10), warm_up=3)


async def auto_plain(bench: Bench) -> Row:
    """A run without calls, which is not looked at."""
    row = Row("auto-plain", 'run_code("1+1") with auto', 'the same with auto = "off"', "ratio", None)
    async with _both() as (ours, baseline):
        first = partial(timed, ours.run, "1+1")
        return await in_turns(row, first, partial(timed, baseline.run, "1+1"), bench.samples(100, 20), warm_up=3)


async def _new(server: Ours) -> float:
    return await timed(server.run, CODE.format(number=next(numbers)))


@asynccontextmanager
async def _both() -> AsyncIterator[tuple[Ours, Ours]]:
    async with our_server(more={"skills": {"auto": "active-on-second-success"}}) as ours, our_server() as baseline:
        yield ours, baseline


SKILL_ROWS: Sequence[Callable[[Bench], Awaitable[Row]]] = (auto_kept, auto_known, auto_plain)
