"""The tool `replay`: lists, shows, compares, rewinds, forks and reruns the steps of sessions."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Literal

from mcp.types import CallToolResult

from ..config import Config
from ..errors import InvalidRequest
from ..journal.rows import RunRow, SessionRow
from ..protocol.payloads import JsonObject
from ..protocol.presentation import truncate_json
from ..protocol.truncation import truncate_text
from ..runtime import run_history, time_travel
from ..runtime.call_ledger import LedgerEntry
from ..runtime.run import Run
from ..runtime.run_diff import diff_lineages, diff_runs, diff_to_json
from ..runtime.runtime import Runtime
from .result_format import (
    MAX_LISTED_CALLS,
    MAX_LISTED_WRITES,
    build_lines,
    build_run_result,
    run_call_result,
    select_listed_calls,
    text_call_result,
)
from .session_resolver import CLIENT_PURPOSES, format_minute

ReplayAction = Literal["list", "show", "rewind", "fork", "rerun", "diff"]
MAX_LISTED_SESSIONS = 50  # the last used ones
MAX_LISTED_STEPS = 50  # the last ones; the command line lists all
MAX_LISTED_CODE_CHARS = 80

REPLAY_DESCRIPTION = (
    "A session's recorded steps: list (without session: all sessions); show (code, calls, output); "
    "rewind (calls are not undone; cancel= stops what runs); fork (to a new session, name=); rerun "
    "(with recorded answers; code= other code, live= servers to call); diff (with other= run or "
    "session)."
)


TIER_NOTES: Mapping[str, str] = {
    "parked": "The next run starts from there.",
    "rebuild": "The next run starts from there; first, the journal's steps are executed again.",
    "files-only": "The files are there; it is not certain that variables can be restored.",
}


class ReplayToolHandler:
    """Carries out the actions of the tool; each has a method."""

    def __init__(
        self, config: Config, runtime: Runtime, packages: Collection[str], principal: str
    ) -> None:
        self._config = config
        self._packages = packages
        self._runtime = runtime
        self._journal = runtime.journal
        self._principal = principal

    async def find_handle(self, run: str) -> str:
        """Return what a client calls the session of a run; raises `NotFound`."""
        _, session = await self._find_own_run(run)
        return session.name or session.id

    async def list_sessions(self) -> CallToolResult:
        """List the sessions, the one used last on top."""
        rows = await self._journal.list_sessions(self._principal)
        own = [row for row in rows if row.purpose in CLIENT_PURPOSES]
        sessions, lines = [], []
        for row in own[:MAX_LISTED_SESSIONS]:
            handle, time = row.name or row.id, format_minute(row.last_used_at)
            sessions.append({"session": handle, "runs": row.run_count, "last_used": time})
            lines.append(f"session {handle} | {count_runs(row.run_count)} | last used {time}")
        if len(own) > len(sessions):
            lines.append(f"and {len(own) - len(sessions):,} more")
        return text_call_result(
            "\n".join(lines) or "There are no sessions yet.",
            {"sessions": sessions, "count": len(own)},
        )

    async def list_steps(self, handle: str) -> CallToolResult:
        """List the last steps of a session, abandoned runs included."""
        session = await self._find_session(handle)
        tree = await run_history.load_tree(self._journal, session)
        steps: list[JsonObject] = []
        lines = []
        for each in tree.runs[-MAX_LISTED_STEPS:]:
            row, code = each.row, each.code[:MAX_LISTED_CODE_CHARS]
            tier = self._runtime.current_tier(row.id, each.tier) or "undone"
            step = {
                "step": row.step,
                "run": row.id,
                "status": row.status,
                "tier": tier,
                "code": code,
            }
            prefix = ""
            if row.id not in tree.lineage:
                step["left"] = True
                prefix = "left "
            steps.append(step)
            lines.append(f"{prefix}step {row.step} | {row.status} | {tier} | run {row.id} | {code}")
        heading = f"session {handle} | {count_runs(len(tree.runs))} | at step {len(tree.lineage)}"
        return text_call_result(
            "\n".join([heading, *lines]),
            {"session": handle, "at": len(tree.lineage), "steps": steps},
        )

    async def show_run(self, handle: str, step: int | None, run: str | None) -> CallToolResult:
        """Return one run as its client saw it, and its code."""
        target = await self._find_run(handle, step, run)
        past = await run_history.load_recorded_run(self._journal, target)
        report = past.report
        report.notes += past.damage
        result = build_run_result(report, handle, self._config)
        return run_call_result(
            result, code=truncate_text(past.code, self._config.server.result_chars)[0]
        )

    async def rewind_session(
        self, handle: str, step: int | None, run: str | None, *, cancel: bool
    ) -> CallToolResult:
        """Continue a session from another step."""
        if step is None and run is None:
            raise InvalidRequest("rewind needs `step` or `run`.")
        session = await self._runtime.find_session(handle, self._principal)
        rewound = await time_travel.rewind_session(self._runtime, session, step, run, cancel=cancel)
        return await self._build_position_result(
            session.handle, rewound.run, rewound.remaining_writes
        )

    async def fork_session(
        self, handle: str, step: int | None, run: str | None, name: str | None
    ) -> CallToolResult:
        """Create a session that starts from a step."""
        row = await self._find_session(handle)
        forked = await time_travel.fork_session(
            self._runtime, row, step, run, name, self._principal
        )
        tip = await self._journal.load_run(str(forked.tip))
        return await self._build_position_result(forked.handle, tip)

    async def _build_position_result(
        self, handle: str, at: RunRow | None, remaining_writes: Sequence[LedgerEntry] = ()
    ) -> CallToolResult:
        """Return at which step a session is, how that state is restored, and what is not undone."""
        step, run_id, tier = 0, None, "parked"
        if at is not None:
            step, run_id = at.step, at.id
            tier = await time_travel.restore_tier(self._runtime, at)
        note = TIER_NOTES[tier]
        text = f"session {handle} | at step {step} | {tier}: {note}"
        data = {"session": handle, "step": step, "run": run_id, "tier": tier, "note": note}
        if remaining_writes:
            calls = describe_writes(remaining_writes)
            text = "\n".join([text, "These calls are not undone:", *calls])
            data["not_undone"] = calls
        return text_call_result(text, data)

    async def rerun_steps(
        self,
        handle: str,
        step: int | None,
        run: str | None,
        code: str | None,
        live: Sequence[str],
        watch: Callable[[Run], Awaitable[None]],
    ) -> CallToolResult:
        """Execute one run again, or all steps of the session."""
        time_travel.check_live_targets(live, self._packages)
        session = await self._find_session(handle)
        targets = await time_travel.find_rerun_targets(
            self._journal, session, step, run, only_last=code is not None
        )
        rerun = await time_travel.rerun_runs(
            self._runtime, targets, self._principal, code=code, live=live, watch=watch
        )
        result = build_run_result(rerun.reports[-1], rerun.session.handle, self._config)
        comparison = comparison_note(targets, rerun.differences)
        result.note = " ".join(filter(None, (result.note, comparison)))
        return run_call_result(result)

    async def compare_runs(
        self, handle: str, step: int | None, run: str | None, other: str | None
    ) -> CallToolResult:
        """Compare two runs, or two sessions."""
        if other is None:
            raise InvalidRequest("diff needs `other`: a run, or a session.")
        if other.startswith("r_"):
            second, owner = await self._find_own_run(other)
            await self._runtime.wait_for_files(owner.id)
            first = await self._find_run(handle, step, run)
            data = diff_to_json(await diff_runs(self._journal, first, second))
        else:
            a = await self._find_session(handle)
            b = await self._find_session(other)
            data = diff_to_json(await diff_lineages(self._journal, a.tip, b.tip))
        settings = self._config.server
        text, is_truncated = truncate_json(data, settings.result_chars, settings.result_items)
        return text_call_result(text, json.loads(text) if is_truncated else data)

    async def _find_own_run(self, run: str) -> tuple[RunRow, SessionRow]:
        remedy = "replay(action='list') lists the sessions."
        return await run_history.find_own_run(self._journal, run, self._principal, remedy)

    async def _find_session(self, handle: str) -> SessionRow:
        """Return a session of the principal, when the journal has the files of its runs."""
        row = await run_history.find_any_session(self._journal, handle, self._principal)
        await self._runtime.wait_for_files(row.id)
        return row

    async def _find_run(self, handle: str, step: int | None, run: str | None) -> RunRow:
        session = await self._find_session(handle)
        target = await time_travel.find_target(self._journal, session, step, run)
        if target is None:
            raise InvalidRequest("Nothing was executed in step 0.")
        return target


def count_runs(count: int) -> str:
    """Return a number of runs in words."""
    return "1 run" if count == 1 else f"{count:,} runs"


def describe_writes(writes: Sequence[LedgerEntry]) -> list[str]:
    """Return a line for each call, up to a limit for each tool, and how many more there are."""
    lines = []
    listed = select_listed_calls(writes, MAX_LISTED_WRITES)[:MAX_LISTED_CALLS]
    for line in build_lines(listed):
        unsure = " (no answer came: it may have been made)" if line.status == "started" else ""
        lines.append(f"{line.call} x{line.times}" if line.times > 1 else f"{line.call}{unsure}")
    return lines


def comparison_note(runs: Sequence[RunRow], differences: Mapping[str, list[str]]) -> str:
    """Return in a sentence how runs that were executed again compare with their recordings."""
    different = [
        f"step {row.step} (run {row.id}) in {', '.join(differences[row.id])}"
        for row in runs
        if differences[row.id]
    ]
    if different:
        return f"Differs from the recording: {'; '.join(different)}. `diff` shows how."
    what = f"step {runs[0].step}" if len(runs) == 1 else f"all {len(runs)} steps"
    return f"The same as recorded in {what}: output, value, calls and files."
