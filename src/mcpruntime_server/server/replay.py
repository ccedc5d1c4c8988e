"""The tool `replay`: a session's steps listed, shown and compared, gone back to, forked, and executed again."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from mcp.types import CallToolResult

from ..config import Config
from ..errors import InvalidRequest
from ..journal.rows import RunRow, SessionRow
from ..kernel.present import json_text, shorten
from ..runtime import history, timeline
from ..runtime.diff import as_data, diff_lines, diff_runs
from ..runtime.run import Run
from ..runtime.sessions import Runtime
from .results import answer_of, plain, result_of

Action = Literal["list", "show", "rewind", "fork", "rerun", "diff"]
LISTED_STEPS = 50  # the last ones; the command line lists them all

DESCRIPTION = (
    "A session's recorded steps: list; show (code, calls, output); rewind (calls are not undone; cancel= stops what "
    "runs); fork (to a new session, name=); rerun (with recorded answers; code= other code, live= "
    "servers to call); diff (with other= run or session)."
)


NOTES: Mapping[str, str] = {
    "parked": "The next run begins from there.",
    "rebuild": "The next run begins from there, after the steps up to it have been executed again from the journal.",
    "files-only": "The files are there; whether variables can be had back is not certain.",
}


class Replay:
    """Carries out the actions, each a method of its name."""

    def __init__(self, config: Config, runtime: Runtime, packages: Collection[str], principal: str) -> None:
        self._config = config
        self._packages = packages
        self._runtime = runtime
        self._journal = runtime.journal
        self._principal = principal

    async def list(self, handle: str) -> CallToolResult:
        """Tell the last steps of the session's line, and the runs beside it that can be returned to."""
        session = await self._session(handle)
        tree = await history.load_tree(self._journal, session)
        steps = [
            {
                "step": each.row.step,
                "run": each.row.id,
                "status": each.row.status,
                "tier": timeline.known_tier(self._runtime, each.row.id, each.tier) or "undone",
                "code": each.code[:80],
                **({} if each.row.id in tree.line else {"left": True}),
            }
            for each in tree.runs[-LISTED_STEPS:]
        ]
        lines = [
            f"{'left ' if step.get('left') else ''}step {step['step']} | {step['status']} | {step['tier']} | "
            f"run {step['run']} | {step['code']}"
            for step in steps
        ]
        heading = f"session {handle} | {len(tree.runs)} runs | at step {len(tree.line)}"
        return plain("\n".join([heading, *lines]), {"session": handle, "at": len(tree.line), "steps": steps})

    async def show(self, handle: str, step: int | None, run: str | None) -> CallToolResult:
        """Tell one run as it was told when it ran, and its code."""
        target = await self._target(handle, step, run)
        past = await history.load_run(self._journal, target)
        report = past.report
        report.notes += past.damage
        result = result_of(report, handle, self._config)
        return answer_of(result, code=shorten(past.code, self._config.server.result_chars)[0])

    async def rewind(self, handle: str, step: int | None, run: str | None, *, cancel: bool) -> CallToolResult:
        """Have the session go on from an earlier step."""
        if step is None and run is None:
            raise InvalidRequest("rewind needs `step` or `run`.")
        session = await self._runtime.known_session(handle, self._principal)
        target = await timeline.rewind(self._runtime, session, step, run, cancel=cancel)
        return await self._arrival(session.handle, target)

    async def fork(self, handle: str, step: int | None, run: str | None, name: str | None) -> CallToolResult:
        """Make a new session that goes on from a step."""
        row = await self._session(handle)
        forked = await timeline.fork(self._runtime, row, step, run, name, self._principal)
        return await self._arrival(forked.handle, await self._journal.run(str(forked.tip)))

    async def _arrival(self, handle: str, at: RunRow | None) -> CallToolResult:
        tier = await timeline.tier_of(self._runtime, at) if at else "parked"
        told = {"session": handle, "step": at.step if at else 0, "run": at.id if at else None, "tier": tier}
        text = f"session {handle} | at step {told['step']} | {tier}: {NOTES[tier]}"
        return plain(text, {**told, "note": NOTES[tier]})

    async def rerun(
        self,
        handle: str,
        step: int | None,
        run: str | None,
        code: str | None,
        live: Sequence[str],
        watch: Callable[[Run], Awaitable[None]],
    ) -> CallToolResult:
        """Execute one run again, or the session's whole line."""
        timeline.check_live(live, self._packages)
        session = await self._session(handle)
        targets = await timeline.rerun_targets(self._journal, session, step, run, only_last=code is not None)
        made = await timeline.rerun(self._runtime, targets, self._principal, code=code, live=live, watch=watch)
        result = result_of(made.reports[-1], made.session.handle, self._config)
        result.note = " ".join(filter(None, (result.note, verdict(targets, made.differences))))
        return answer_of(result)

    async def diff(self, handle: str, step: int | None, run: str | None, other: str | None) -> CallToolResult:
        """Compare two runs, or the lines of two sessions."""
        if other is None:
            raise InvalidRequest("diff needs `other`: a run, or a session.")
        if other.startswith("r_"):
            second = await self._journal.run(other)
            await self._check_mine(second)
            found: Any = await diff_runs(self._journal, await self._target(handle, step, run), second)
        else:
            a = await self._session(handle)
            b = await self._session(other)
            found = await diff_lines(self._journal, a.tip, b.tip)
        return self._told(as_data(found))

    def _told(self, data: dict[str, Any]) -> CallToolResult:
        """Tell a difference, within the limit of what a client is shown."""
        limit = self._config.server.result_chars
        text, cut = json_text(data, limit, self._config.server.result_items)
        return plain(text, json.loads(text) if cut else data)

    async def _session(self, handle: str) -> SessionRow:
        """Return a session of the principal's, with all that its runs have left in the journal."""
        row = await history.find_session(self._journal, handle, self._principal)
        await self._runtime.settle(row.id)
        return row

    async def _check_mine(self, run: RunRow) -> None:
        await self._session(run.session)

    async def _target(self, handle: str, step: int | None, run: str | None) -> RunRow:
        session = await self._session(handle)
        target = await timeline.target_of(self._journal, session, step, run)
        if target is None:
            raise InvalidRequest("Nothing was executed in step 0.")
        return target


def verdict(targets: Sequence[RunRow], differences: Mapping[str, list[str]]) -> str:
    """Return in a sentence how runs that were executed again compare with their recordings."""
    other = [
        f"step {row.step} (run {row.id}) in {', '.join(found)}" for row in targets if (found := differences[row.id])
    ]
    if other:
        return f"Differs from the recording: {'; '.join(other)}. `diff` shows how."
    what = f"step {targets[0].step}" if len(targets) == 1 else f"all {len(targets)} steps"
    return f"The same as recorded in {what}: output, value, calls and files."
