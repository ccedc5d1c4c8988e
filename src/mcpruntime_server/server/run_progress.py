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

FIRST_HEARTBEAT_S, MAX_HEARTBEAT_INTERVAL_S = (
    1.0,
    15.0,
)  # until a waiting client hears something, twice as long each time up to the second
MAX_PROGRESS_CHARS = 2_000  # of one progress message
GATHER_QUESTIONS_S = 0.1  # for questions that are asked at once to be told at once
GATHER_OUTPUT_S = 2.0  # for what comes right after something new to be told with it


async def watch_run(run: Run, ctx: Context[Any], timed_out: Container[str]) -> None:
    """Wait for the end of a run that this request has started, as one of those who watch it."""
    with register_watcher(run, ctx, timed_out):
        await wait_for_run(run, ctx)


@contextmanager
def register_watcher(
    run: Run, ctx: Context[Any], timed_out: Container[str], *, is_owner: bool = True
) -> Iterator[None]:
    """Be one of those who wait for `run`; a request that `owns` it has started it.

    `timed_out` holds the ids of requests that clients have given up waiting for.
    """
    run.watchers += 1
    try:
        yield
    except anyio.get_cancelled_exc_class():
        if is_owner and run.watchers == 1 and not run.is_detached:
            if ctx.request_id in timed_out:
                run.is_detached = True
            else:
                run.cancel()
        raise
    finally:
        run.watchers -= 1


async def wait_for_run(
    run: Run,
    ctx: Context[Any],
    wait_s: float = math.inf,
    *,
    until_update: bool = False,
    known_ids: Collection[str] = (),
) -> None:
    """Wait until `run` is over or asks what is not `known`, so long at most; with `until_news`, or prints something."""
    with anyio.move_on_after(wait_s):
        if wants_progress(ctx):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(report_progress, run, ctx)
                await wait_until_reportable(run, known_ids, until_update=until_update)
                tasks.cancel_scope.cancel()
        else:
            await wait_until_reportable(run, known_ids, until_update=until_update)


def wants_progress(ctx: Context[Any]) -> bool:
    """Return whether the client wants to be told of progress."""
    return (ctx.request_context.meta or {}).get("progress_token") is not None


@asynccontextmanager
async def send_heartbeats(ctx: Context[Any], activity: str) -> AsyncIterator[None]:
    """Tell a client now and then that `what` goes on, if it wants to be told; for what raises nothing."""

    async def tell() -> None:
        began, count, quiet_s = anyio.current_time(), 0, FIRST_HEARTBEAT_S
        while True:
            await anyio.sleep(quiet_s)
            count, quiet_s = count + 1, min(2 * quiet_s, MAX_HEARTBEAT_INTERVAL_S)
            await ctx.report_progress(
                count, None, f"{activity}, {anyio.current_time() - began:.0f} s"
            )

    async with anyio.create_task_group() as tasks:
        if wants_progress(ctx):
            tasks.start_soon(tell)
        yield
        tasks.cancel_scope.cancel()


async def wait_until_reportable(
    run: Run, known_ids: Collection[str], *, until_update: bool
) -> None:
    """Wait until `run` is over or asks something that is not `known`; with `until_news`, or prints something."""
    while not run.finished.is_set():
        if run.pending_ids.difference(known_ids):
            with anyio.move_on_after(GATHER_QUESTIONS_S):
                await run.wait_until_finished()
            if run.pending_ids.difference(known_ids):
                return
        elif until_update and run.output.has_output_since(run.delivered_output):
            with anyio.move_on_after(GATHER_OUTPUT_S):
                await wait_until_reportable(run, known_ids, until_update=False)
            return
        else:
            await run.wait_for_update()


async def report_progress(run: Run, ctx: Context[Any]) -> None:
    """Send each new piece of output as it comes, and a sign of life where there is none for long."""
    seen = dict(run.delivered_output)
    count, quiet_s = 0, FIRST_HEARTBEAT_S
    stage = ""
    is_heard = False
    while not run.finished.is_set():
        text = "".join(run.output.read_since(seen).values()).strip("\n")
        if text and not is_heard:
            is_heard = True
            await run.flush_start()
        if run.stage != stage:
            stage = run.stage
            text = f"{stage}\n{text}".strip("\n")
        if text:
            count += 1
            await ctx.report_progress(count, None, text[-MAX_PROGRESS_CHARS:])
            continue
        with anyio.move_on_after(quiet_s) as quiet:
            await run.wait_for_update()
        if quiet.cancelled_caught:
            count, quiet_s = count + 1, min(2 * quiet_s, MAX_HEARTBEAT_INTERVAL_S)
            await ctx.report_progress(count, None, f"still {run.status}, {run.elapsed_s():.0f} s")
