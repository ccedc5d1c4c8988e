"""How a request watches a run: progress while it lasts, and what becomes of the run when the request is given up.

A request that its client cancels takes the run with it, if nobody else watches. One that a client has let time out does
not: such a client asks again, and finds the run.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import anyio
from mcp.server.mcpserver import Context

from ..runtime.run import Run

HEARTBEAT_S = 15.0  # at least this often a waiting client hears something
PROGRESS_CHARS = 2_000  # of one progress message


async def watch(run: Run, ctx: Context[Any], timed_out: Container[str]) -> None:
    """Wait for the end of `run`; `timed_out` holds the ids of requests that clients have given up waiting for."""
    run.watchers += 1
    try:
        if (ctx.request_context.meta or {}).get("progress_token") is not None:
            await report_output(run, ctx)
        await run.over()
    except anyio.get_cancelled_exc_class():
        if run.watchers == 1 and ctx.request_id not in timed_out:
            run.cancel()
        raise
    finally:
        run.watchers -= 1


async def report_output(run: Run, ctx: Context[Any]) -> None:
    """Send each new piece of output as it comes, and a sign of life where there is none for long."""
    seen: dict[str, int] = {}
    count = 0
    stage = ""
    while not run.finished.is_set():
        text = "".join(run.output_since(seen).values()).strip("\n")
        if run.stage != stage:
            stage = run.stage
            text = f"{stage}\n{text}".strip("\n")
        if text:
            count += 1
            await ctx.report_progress(count, None, text[-PROGRESS_CHARS:])
            continue
        with anyio.move_on_after(HEARTBEAT_S) as quiet:
            await run.news()
        if quiet.cancelled_caught:
            count += 1
            await ctx.report_progress(count, None, f"still running, {run.elapsed_s():.0f} s")
