"""The tools `list_skills` and `save_skill`."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.tools import Tool
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from ..capabilities.skills.guides import Guide
from ..capabilities.skills.library import SkillLibrary
from ..capabilities.skills.model import Skill
from ..capabilities.skills.saving import SkillSaver
from ..capabilities.skills.selection import describe_state, listing_entry
from ..capabilities.skills.usage import UsageRecord
from ..errors import InvalidRequest, McpRuntimeError
from ..journal.rows import RunRow
from ..journal.store import Journal
from ..runtime.run_history import find_run, find_session
from .result_format import error_result, text_call_result
from .run_progress import send_heartbeats
from .skill_summaries import skill_line, skill_summary
from .tool_schemas import compact_schema

MAX_LISTED_SKILLS = 3  # a search tells the best; `name` tells all of one
MAX_PROMPT_SKILLS = 8  # skills that a prompt names

LIST_SKILLS_DESCRIPTION = (
    "Tested code to import: `from skills.NAME import run`. query finds, name shows."
)
SAVE_SKILL_DESCRIPTION = "Keep a run that worked as a tested skill; its literals become parameters. Or code with def run()."

SKILL_PROMPT_HEADER = (
    "Do it with run_code. Code that worked before, in the order in which it may help (`from skills.NAME import run`; "
    "a guide's text is skills.NAME.__doc__, its files are in skills.NAME.folder):"
)


class SkillToolHandler:
    """Carries out the tools."""

    def __init__(
        self, library: SkillLibrary, saver: SkillSaver, journal: Journal, principal: str
    ) -> None:
        self._library = library
        self._saver = saver
        self._journal = journal
        self._principal = principal

    async def list_skills(self, query: str | None, name: str | None) -> CallToolResult:
        """Tell the skills that fit best, or all of one."""
        if name is not None:
            if guide := (await self._library.load_guides()).get(name.strip().replace("-", "_")):
                return build_guide_result(guide)
            skill = await self._library.get(name)
            return build_skill_result(
                skill,
                (await self._library.usage_records()).get(
                    (skill.name, skill.version), UsageRecord()
                ),
            )
        found = await self._library.search(query or "", MAX_LISTED_SKILLS)
        count = await self._library.count_available()
        lines = [skill_line(skill) for skill in found] or [
            "No skill fits." if count else "There are no skills yet."
        ]
        if count > len(found):
            lines.append(f"{count} skills in all.")
        return text_call_result(
            "\n".join(lines), {"skills": [skill_summary(skill) for skill in found], "count": count}
        )

    async def save_skill(
        self, run: str | None, code: str | None, name: str | None
    ) -> CallToolResult:
        """Keep a run, or code, as a skill, and tell what became of it."""
        if (run is None) == (code is None):
            raise InvalidRequest(
                "A skill is made of a run or of code.", remedy="Give `run` or `code`."
            )
        if run is not None:
            row = await self._find_run(run)
            saved = await self._saver.save_run(row, name or "")
        else:
            saved = await self._saver.save_code(code or "", name or "")
        skill = saved.skill
        lines = [
            f"{skill.id} is {describe_state(skill.state)}"
            + (" already." if saved.already_existed else "."),
            *skill.reasons,
            *([saved.note] if saved.note else []),
            skill_line(skill),
            usage_code(skill),
        ]
        note = {"note": saved.note} if saved.note else {}
        return text_call_result(
            "\n".join(lines), {**listing_entry(skill), "reasons": [*skill.reasons], **note}
        )

    async def _find_run(self, run: str) -> RunRow:
        row = await self._journal.load_run(run)
        session = await find_session(self._journal, row.session_id, self._principal)
        return await find_run(self._journal, session, run)


def build_guide_result(guide: Guide) -> CallToolResult:
    """Tell all of a guide: the text that its author has written for agents."""
    lines = [
        f"{guide.name} is a guide. In code its files are in skills.{guide.name}.folder.",
        guide.text,
    ]
    return text_call_result("\n".join(lines), {**listing_entry(guide), "source": guide.text})


def usage_code(skill: Skill) -> str:
    """Return the code that uses a skill."""
    if skill.state == "active":
        return f"from skills.{skill.name} import run"
    exact = f"from skills.{skill.name}.v{skill.version} import run"
    return f"{exact}  # then save the run that calls run(...) with keywords, to have it checked"


def build_skill_result(skill: Skill, record: UsageRecord) -> CallToolResult:
    """Tell all of one skill."""
    used = skill.call_targets
    lines = [
        f"{skill.id} is {describe_state(skill.state)}; recorded cases: {len(skill.cases)}; runs that used it: {record.uses}, "
        f"of which it failed in {record.uses - record.successes}.",
        *skill.reasons,
        skill_line(skill),
        usage_code(skill),
        *([f"It uses {', '.join(used)}."] if used else []),
        skill.source,
    ]
    data = {
        **listing_entry(skill),
        "reasons": [*skill.reasons],
        "uses": used,
        "source": skill.source,
        "used": record.uses,
    }
    return text_call_result("\n".join(lines), data)


def build_skill_tools(handler: SkillToolHandler) -> list[Tool]:
    """Return the tools."""

    async def list_skills(query: str | None = None, name: str | None = None) -> CallToolResult:
        try:
            return await handler.list_skills(query, name)
        except McpRuntimeError as exc:
            return error_result(exc)

    async def save_skill(
        ctx: Context[Any], run: str | None = None, code: str | None = None, name: str | None = None
    ) -> CallToolResult:
        async with send_heartbeats(ctx, "the skill is being checked"):
            try:
                return await handler.save_skill(run, code, name)
            except McpRuntimeError as exc:
                return error_result(exc)

    tools = [
        Tool.from_function(
            list_skills,
            description=LIST_SKILLS_DESCRIPTION,
            annotations=ToolAnnotations(title="Skills", read_only_hint=True),
        ),
        Tool.from_function(
            save_skill,
            description=SAVE_SKILL_DESCRIPTION,
            annotations=ToolAnnotations(
                title="Save a skill", destructive_hint=False, open_world_hint=False
            ),
        ),
    ]
    for tool in tools:
        tool.parameters = compact_schema(tool.parameters)
    return tools


def build_skill_prompt(library: SkillLibrary) -> Prompt:
    """Return the prompt that begins a task with the skills which may help."""

    async def with_skills(task: Annotated[str, Field(description="What is to be done")]) -> str:
        found = await library.search(task, MAX_PROMPT_SKILLS)
        lines = [f"- {skill_line(skill)}" for skill in found] or [
            "- none: save what works with save_skill"
        ]
        return "\n".join((task, "", SKILL_PROMPT_HEADER, *lines))

    return Prompt.from_function(
        with_skills, title="Task with skills", description="A task, and the skills that may help."
    )
