"""The tool `replay`: a session's steps listed, shown and compared, gone back to, forked, and executed again."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from mcp.types import CallToolResult

from ..config import Config
from ..errors import InvalidRequest
from ..journal.rows import RunRow, SessionRow
from ..protocol.presentation import truncate_json, truncate_text
from ..runtime import run_history, time_travel
from ..runtime.run import Run
from ..runtime.run_diff import diff_lineages, diff_runs, diff_to_json
from ..runtime.runtime import Runtime
from .result_format import build_run_result, run_call_result, text_call_result

ReplayAction = Literal["list", "show", "rewind", "fork", "rerun", "diff"]
MAX_LISTED_STEPS = 50  # the last ones; the command line lists them all

REPLAY_DESCRIPTION = (
    "A session's recorded steps: list; show (code, calls, output); rewind (calls are not undone; cancel= stops what "
    "runs); fork (to a new session, name=); rerun (with recorded answers; code= other code, live= "
    "servers to call); diff (with other= run or session)."
)


TIER_NOTES: Mapping[str, str] = {
    "parked": "The next run begins from there.",
    "rebuild": "The next run begins from there, after the steps up to it have been executed again from the journal.",
    "files-only": "The files are there; whether variables can be had back is not certain.",
}


class ReplayToolHandler:
    """Carries out the actions, each a method of its name."""

    def __init__(
        self, config: Config, runtime: Runtime, packages: Collection[str], principal: str
    ) -> None:
        self._config = config
        self._packages = packages
        self._runtime = runtime
        self._journal = runtime.journal
        self._principal = principal

    async def list_steps(self, handle: str) -> CallToolResult:
        """Tell the last steps of the session's line, and the runs beside it that can be returned to."""
        session = await self._find_session(handle)
        tree = await run_history.load_tree(self._journal, session)
        steps = [
            {
                "step": each.row.step,
                "run": each.row.id,
                "status": each.row.status,
                "tier": self._runtime.current_tier(each.row.id, each.tier) or "undone",
                "code": each.code[:80],
                **({} if each.row.id in tree.lineage else {"left": True}),
            }
            for each in tree.runs[-MAX_LISTED_STEPS:]
        ]
        lines = [
            f"{'left ' if step.get('left') else ''}step {step['step']} | {step['status']} | {step['tier']} | "
            f"run {step['run']} | {step['code']}"
            for step in steps
        ]
        heading = f"session {handle} | {len(tree.runs)} runs | at step {len(tree.lineage)}"
        return text_call_result(
            "\n".join([heading, *lines]),
            {"session": handle, "at": len(tree.lineage), "steps": steps},
        )

    async def show_run(self, handle: str, step: int | None, run: str | None) -> CallToolResult:
        """Tell one run as it was told when it ran, and its code."""
        target = await self._find_run(handle, step, run)
        past = await run_history.load_run(self._journal, target)
        report = past.report
        report.notes += past.damage
        result = build_run_result(report, handle, self._config)
        return run_call_result(
            result, code=truncate_text(past.code, self._config.server.result_chars)[0]
        )

    async def rewind_session(
        self, handle: str, step: int | None, run: str | None, *, cancel: bool
    ) -> CallToolResult:
        """Have the session go on from an earlier step."""
        if step is None and run is None:
            raise InvalidRequest("rewind needs `step` or `run`.")
        session = await self._runtime.find_session(handle, self._principal)
        target = await time_travel.rewind_session(self._runtime, session, step, run, cancel=cancel)
        return await self._build_position_result(session.handle, target)

    async def fork_session(
        self, handle: str, step: int | None, run: str | None, name: str | None
    ) -> CallToolResult:
        """Make a new session that goes on from a step."""
        row = await self._find_session(handle)
        forked = await time_travel.fork_session(
            self._runtime, row, step, run, name, self._principal
        )
        return await self._build_position_result(
            forked.handle, await self._journal.load_run(str(forked.tip))
        )

    async def _build_position_result(self, handle: str, at: RunRow | None) -> CallToolResult:
        tier = await time_travel.restore_tier(self._runtime, at) if at else "parked"
        told = {
            "session": handle,
            "step": at.step if at else 0,
            "run": at.id if at else None,
            "tier": tier,
        }
        text = f"session {handle} | at step {told['step']} | {tier}: {TIER_NOTES[tier]}"
        return text_call_result(text, {**told, "note": TIER_NOTES[tier]})

    async def rerun_steps(
        self,
        handle: str,
        step: int | None,
        run: str | None,
        code: str | None,
        live: Sequence[str],
        watch: Callable[[Run], Awaitable[None]],
    ) -> CallToolResult:
        """Execute one run again, or the session's whole line."""
        time_travel.check_live_targets(live, self._packages)
        session = await self._find_session(handle)
        targets = await time_travel.find_rerun_targets(
            self._journal, session, step, run, only_last=code is not None
        )
        made = await time_travel.rerun_runs(
            self._runtime, targets, self._principal, code=code, live=live, watch=watch
        )
        result = build_run_result(made.reports[-1], made.session.handle, self._config)
        result.note = " ".join(
            filter(None, (result.note, comparison_note(targets, made.differences)))
        )
        return run_call_result(result)

    async def compare_runs(
        self, handle: str, step: int | None, run: str | None, other: str | None
    ) -> CallToolResult:
        """Compare two runs, or the lines of two sessions."""
        if other is None:
            raise InvalidRequest("diff needs `other`: a run, or a session.")
        if other.startswith("r_"):
            second = await self._journal.load_run(other)
            await self._check_ownership(second)
            found: Any = await diff_runs(
                self._journal, await self._find_run(handle, step, run), second
            )
        else:
            a = await self._find_session(handle)
            b = await self._find_session(other)
            found = await diff_lineages(self._journal, a.tip, b.tip)
        return self._build_difference_result(diff_to_json(found))

    def _build_difference_result(self, data: dict[str, Any]) -> CallToolResult:
        """Tell a difference, within the limit of what a client is shown."""
        limit = self._config.server.result_chars
        text, cut = truncate_json(data, limit, self._config.server.result_items)
        return text_call_result(text, json.loads(text) if cut else data)

    async def _find_session(self, handle: str) -> SessionRow:
        """Return a session of the principal's, with all that its runs have left in the journal."""
        row = await run_history.find_session(self._journal, handle, self._principal)
        await self._runtime.wait_for_files(row.id)
        return row

    async def _check_ownership(self, run: RunRow) -> None:
        await self._find_session(run.session_id)

    async def _find_run(self, handle: str, step: int | None, run: str | None) -> RunRow:
        session = await self._find_session(handle)
        target = await time_travel.find_target(self._journal, session, step, run)
        if target is None:
            raise InvalidRequest("Nothing was executed in step 0.")
        return target


def comparison_note(runs: Sequence[RunRow], differences: Mapping[str, list[str]]) -> str:
    """Return in a sentence how runs that were executed again compare with their recordings."""
    other = [
        f"step {row.step} (run {row.id}) in {', '.join(found)}"
        for row in runs
        if (found := differences[row.id])
    ]
    if other:
        return f"Differs from the recording: {'; '.join(other)}. `diff` shows how."
    what = f"step {runs[0].step}" if len(runs) == 1 else f"all {len(runs)} steps"
    return f"The same as recorded in {what}: output, value, calls and files."
