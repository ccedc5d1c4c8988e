"""The reference agent's session: it runs programs, finds skills and saves them.

It uses the tools like any other client, and knows nothing else about the server.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

from ...capabilities.agent.program_result import ProgramResult
from ...errors import McpRuntimeError
from ..outcomes import RunOutcome, merge_outcomes
from ..runtime_client import RuntimeClient

PACKAGES_PATTERN = re.compile(r"servers as packages: (?!none)([\w, ]+?)(?: and \d+ more)?\.")
SUB_AGENT_WAITS_MARK = "sub-agent waits"  # in the note of a run whose sub-agents wait
SKILL_QUERY_CHARS = 300  # of a task
VALUE_CUT_MARK = "value is cut"  # in the note of a run
VALUE_TOO_LARGE = "So it was not submitted: submit less, or write it to a file and submit its name."


class SessionClient:
    """A client of one session on a server; `on_wait` receives what a run waits for."""

    def __init__(self, client: RuntimeClient, on_wait: Callable[[str], None]) -> None:
        self.session_id = f"agent-{secrets.token_hex(4)}"
        self._client = client
        self._session = client.session(self.session_id)
        self._on_wait = on_wait

    async def run_program(self, code: str, inputs: Sequence[Any] = ()) -> ProgramResult:
        """Run a program to its end, through all its waits; raises `McpRuntimeError`."""
        outcome = await self._session.run(code, context=inputs, on_update=self._report_wait)
        while not outcome.is_finished:
            self._report_wait(outcome)
            outcome = merge_outcomes(outcome, await self._client.wait(outcome.run))
        if outcome.submitted and VALUE_CUT_MARK in outcome.note:
            outcome.submitted = False
            outcome.note = f"{outcome.note} {VALUE_TOO_LARGE}"
        data = outcome.model_dump(mode="json", exclude_defaults=True, exclude={"media", "text"})
        return cast(ProgramResult, data)

    def _report_wait(self, outcome: RunOutcome) -> None:
        if outcome.status == "waiting":
            calls = ", ".join(question.call for question in outcome.waiting_for)
            self._on_wait(f"run {outcome.run} waits for an approval: {calls}. {outcome.note}")
        elif SUB_AGENT_WAITS_MARK in outcome.note:
            self._on_wait(outcome.note)

    async def find_skills(self, task: str) -> str:
        """Return the skills that may help, one per line; "" if there are none."""
        skills = await self._client.list_skills(task[:SKILL_QUERY_CHARS])
        return "\n".join(f"{skill['name']}: {skill.get('summary', '')}" for skill in skills)

    async def save_skill(self, run_id: str) -> str:
        """Save a run as a skill and return the outcome in one line."""
        try:
            skill = await self._client.save_skill(run_id)
        except McpRuntimeError as exc:
            return f"not saved as a skill: {exc}"
        saved = f"saved as the skill {skill.name} ({skill.state})"
        reasons = " ".join(skill.reasons)
        return f"{saved}: {reasons}" if reasons else saved


async def list_package_names(client: RuntimeClient) -> tuple[str, ...]:
    """Return the tool packages that the description of `run_code` names."""
    for tool in (await client.mcp.list_tools()).tools:
        if tool.name == "run_code" and (found := PACKAGES_PATTERN.search(tool.description or "")):
            return tuple(re.findall(r"\w+", found[1]))
    return ()
