"""How a request watches a run: its progress, and what happens when the request is cancelled.

A request that its client cancels stops the run that it has started, if no other request watches the
run. A request that has only timed out, or whose token has expired, does not: its client asks again,
and finds the run.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from mcp.server.mcpserver import Context

from ..runtime.run import Run
from .connections import has_lost_token
from .delivery import DeliveryCursor

FIRST_HEARTBEAT_S = 1.0  # until a silent run sends a sign of life; the interval doubles each time
MAX_HEARTBEAT_INTERVAL_S = 15.0
MAX_PROGRESS_CHARS = 2_000  # of one progress message
GATHER_QUESTIONS_S = 0.1  # so that questions that come together are delivered together


async def watch_run(run: Run, ctx: Context[Any], cursor: DeliveryCursor) -> None:
    """Wait for the end of a run that this request has started."""
    with register_watcher(run, ctx, cursor):
        await wait_for_run(run, ctx, cursor)


@contextmanager
def register_watcher(
    run: Run, ctx: Context[Any], cursor: DeliveryCursor, *, is_owner: bool = True
) -> Iterator[None]:
    """Count this request among those that wait for `run`; the one that started it `is_owner`."""
    run.audience.join()
    try:
        yield
    except anyio.get_cancelled_exc_class():
        has_timed_out = cursor.take_timed_out(ctx.request_id) or has_lost_token(ctx)
        if is_owner and run.audience.is_last:
            if has_timed_out:
                run.audience.detach()
            else:
                run.cancel()
        raise
    finally:
        run.audience.leave()


async def wait_for_run(
    run: Run,
    ctx: Context[Any],
    cursor: DeliveryCursor,
    wait_s: float = math.inf,
    known_ids: Collection[str] = (),
) -> None:
    """Wait until `run` is finished or asks something that is not in `known_ids`, at most `wait_s`.

    New output does not end the wait: each result costs the client's model a turn.
    """
    with anyio.move_on_after(wait_s):
        if wants_progress(ctx):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(report_progress, run, ctx, cursor)
                await wait_until_reportable(run, known_ids)
                tasks.cancel_scope.cancel()
        else:
            await wait_until_reportable(run, known_ids)


def wants_progress(ctx: Context[Any]) -> bool:
    """Return whether the client has asked for progress notifications."""
    return (ctx.request_context.meta or {}).get("progress_token") is not None


@asynccontextmanager
async def send_heartbeats(ctx: Context[Any], activity: str) -> AsyncIterator[None]:
    """Send signs of life during an activity that raises nothing, if the client wants progress."""

    async def send() -> None:
        started_at, count, quiet_s = anyio.current_time(), 0, FIRST_HEARTBEAT_S
        while True:
            await anyio.sleep(quiet_s)
            count, quiet_s = count + 1, min(2 * quiet_s, MAX_HEARTBEAT_INTERVAL_S)
            await ctx.report_progress(
                count, None, f"{activity}, {anyio.current_time() - started_at:.0f} s"
            )

    async with anyio.create_task_group() as tasks:
        if wants_progress(ctx):
            tasks.start_soon(send)
        yield
        tasks.cancel_scope.cancel()


async def wait_until_reportable(run: Run, known_ids: Collection[str]) -> None:
    """Wait until `run` is finished, asks something that is not in `known_ids`, or is released."""
    while not run.finished.is_set() and not run.audience.is_released:
        if not run.pending_ids.difference(known_ids):
            await run.wait_for_update()
            continue
        with anyio.move_on_after(GATHER_QUESTIONS_S):
            await run.wait_until_finished()
        if run.pending_ids.difference(known_ids):
            return


async def report_progress(run: Run, ctx: Context[Any], cursor: DeliveryCursor) -> None:
    """Send new output as it comes, and a sign of life when there is none for long."""
    position = cursor.output_positions(run.id)
    count, quiet_s = 0, FIRST_HEARTBEAT_S
    stage = ""
    is_flushed = False
    while not run.finished.is_set():
        text = "".join(run.output.read_from(position).values()).strip("\n")
        position = run.output.positions()
        if text and not is_flushed:
            is_flushed = True
            await run.flush_start()
        if run.lifecycle.stage != stage:
            stage = run.lifecycle.stage
            text = f"{stage}\n{text}".strip("\n")
        if text:
            count += 1
            await ctx.report_progress(count, None, text[-MAX_PROGRESS_CHARS:])
            continue
        with anyio.move_on_after(quiet_s) as quiet:
            await run.wait_for_update()
        if quiet.cancelled_caught:
            count, quiet_s = count + 1, min(2 * quiet_s, MAX_HEARTBEAT_INTERVAL_S)
            elapsed_s = run.lifecycle.elapsed_s()
            await ctx.report_progress(count, None, f"still {run.status}, {elapsed_s:.0f} s")
