"""How a request watches a run: progress while it lasts, and what becomes of the run when the request is given up.

A request that its client cancels takes the run that it has started with it, if nobody else watches. One that a client
has let time out does not: such a client asks again, and finds the run.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection, Container, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from mcp.server.mcpserver import Context

from ..runtime.run import Run

FIRST_S, HEARTBEAT_S = 1.0, 15.0  # until a waiting client hears something, twice as long each time up to the second
PROGRESS_CHARS = 2_000  # of one progress message
GATHER_S = 0.1  # for questions that are asked at once to be told at once
MORE_S = 2.0  # for what comes right after something new to be told with it


async def watch(run: Run, ctx: Context[Any], timed_out: Container[str]) -> None:
    """Wait for the end of a run that this request has started, as one of those who watch it."""
    with watching(run, ctx, timed_out):
        await wait_for(run, ctx)


@contextmanager
def watching(run: Run, ctx: Context[Any], timed_out: Container[str], *, owns: bool = True) -> Iterator[None]:
    """Be one of those who wait for `run`; a request that `owns` it has started it.

    `timed_out` holds the ids of requests that clients have given up waiting for.
    """
    run.watchers += 1
    try:
        yield
    except anyio.get_cancelled_exc_class():
        if owns and run.watchers == 1 and not run.detached:
            if ctx.request_id in timed_out:
                run.detached = True
            else:
                run.cancel()
        raise
    finally:
        run.watchers -= 1


async def wait_for(
    run: Run, ctx: Context[Any], wait_s: float = math.inf, *, until_news: bool = False, known: Collection[str] = ()
) -> None:
    """Wait until `run` is over or asks what is not `known`, so long at most; with `until_news`, or prints something."""
    with anyio.move_on_after(wait_s):
        if asks_for_progress(ctx):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(report_output, run, ctx)
                await settled(run, known, until_news=until_news)
                tasks.cancel_scope.cancel()
        else:
            await settled(run, known, until_news=until_news)


def asks_for_progress(ctx: Context[Any]) -> bool:
    """Return whether the client wants to be told of progress."""
    return (ctx.request_context.meta or {}).get("progress_token") is not None


@asynccontextmanager
async def signs_of_life(ctx: Context[Any], what: str) -> AsyncIterator[None]:
    """Tell a client now and then that `what` goes on, if it wants to be told; for what raises nothing."""

    async def tell() -> None:
        began, count, quiet_s = anyio.current_time(), 0, FIRST_S
        while True:
            await anyio.sleep(quiet_s)
            count, quiet_s = count + 1, min(2 * quiet_s, HEARTBEAT_S)
            await ctx.report_progress(count, None, f"{what}, {anyio.current_time() - began:.0f} s")

    async with anyio.create_task_group() as tasks:
        if asks_for_progress(ctx):
            tasks.start_soon(tell)
        yield
        tasks.cancel_scope.cancel()


async def settled(run: Run, known: Collection[str], *, until_news: bool) -> None:
    """Wait until `run` is over or asks something that is not `known`; with `until_news`, or prints something."""
    while not run.finished.is_set():
        if run.asks.difference(known):
            with anyio.move_on_after(GATHER_S):
                await run.over()
            if run.asks.difference(known):
                return
        elif until_news and run.printed.has_since(run.told):
            with anyio.move_on_after(MORE_S):
                await settled(run, known, until_news=False)
            return
        else:
            await run.news()


async def report_output(run: Run, ctx: Context[Any]) -> None:
    """Send each new piece of output as it comes, and a sign of life where there is none for long."""
    seen = dict(run.told)
    count, quiet_s = 0, FIRST_S
    stage = ""
    is_heard = False
    while not run.finished.is_set():
        text = "".join(run.printed.since(seen).values()).strip("\n")
        if text and not is_heard:
            is_heard = True
            await run.begun_for_sure()
        if run.stage != stage:
            stage = run.stage
            text = f"{stage}\n{text}".strip("\n")
        if text:
            count += 1
            await ctx.report_progress(count, None, text[-PROGRESS_CHARS:])
            continue
        with anyio.move_on_after(quiet_s) as quiet:
            await run.news()
        if quiet.cancelled_caught:
            count, quiet_s = count + 1, min(2 * quiet_s, HEARTBEAT_S)
            await ctx.report_progress(count, None, f"still {run.state}, {run.elapsed_s():.0f} s")
