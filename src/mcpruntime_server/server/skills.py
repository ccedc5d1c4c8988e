"""The tools `list_skills` and `save_skill`."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.tools import Tool
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from ..errors import InvalidRequest, McpRuntimeError
from ..journal.rows import RunRow
from ..journal.store import Journal
from ..runtime.history import find_run, find_session
from ..skills.guides import Guide
from ..skills.library import Library
from ..skills.listing import a, entry
from ..skills.model import Skill
from ..skills.record import Record
from .brief import brief, line
from .results import plain, refusal
from .schemas import compact
from .watch import signs_of_life

LISTED = 3  # a search tells the best; `name` tells all of one
PROMPTED = 8  # skills that a prompt names

LIST = "Tested code to import: `from skills.NAME import run`. query finds, name shows."
SAVE = "Keep a run that worked as a tested skill; its literals become parameters. Or code with def run()."

SKILLS_FOR = (
    "Do it with run_code. Code that worked before, in the order in which it may help (`from skills.NAME import run`; "
    "a guide's text is skills.NAME.__doc__, its files are in skills.NAME.folder):"
)


class Skills:
    """Carries out the tools."""

    def __init__(self, library: Library, journal: Journal, principal: str) -> None:
        self._library = library
        self._journal = journal
        self._principal = principal

    async def list(self, query: str | None, name: str | None) -> CallToolResult:
        """Tell the skills that fit best, or all of one."""
        if name is not None:
            if guide := (await self._library.guides()).get(name.strip().replace("-", "_")):
                return told_guide(guide)
            skill = await self._library.get(name)
            return told(skill, (await self._library.records()).get((skill.name, skill.version), Record()))
        found = await self._library.find(query or "", LISTED)
        count = await self._library.count()
        lines = [line(skill) for skill in found] or ["No skill fits." if count else "There are no skills yet."]
        if count > len(found):
            lines.append(f"{count} skills in all.")
        return plain("\n".join(lines), {"skills": [brief(skill) for skill in found], "count": count})

    async def save(self, run: str | None, code: str | None, name: str | None) -> CallToolResult:
        """Keep a run, or code, as a skill, and tell what became of it."""
        if (run is None) == (code is None):
            raise InvalidRequest("A skill is made of a run or of code.", remedy="Give `run` or `code`.")
        if run is not None:
            row = await self._run(run)
            saved = await self._library.save_run(row, name or "")
        else:
            saved = await self._library.save_code(code or "", name or "")
        skill = saved.skill
        lines = [
            f"{skill.id} is {a(skill.state)}" + (" already." if saved.is_known else "."),
            *skill.reasons,
            *([saved.note] if saved.note else []),
            line(skill),
            how_to_use(skill),
        ]
        note = {"note": saved.note} if saved.note else {}
        return plain("\n".join(lines), {**entry(skill), "reasons": [*skill.reasons], **note})

    async def _run(self, run: str) -> RunRow:
        row = await self._journal.run(run)
        session = await find_session(self._journal, row.session, self._principal)
        return await find_run(self._journal, session, run)


def told_guide(guide: Guide) -> CallToolResult:
    """Tell all of a guide: the text that its author has written for agents."""
    lines = [f"{guide.name} is a guide. In code its files are in skills.{guide.name}.folder.", guide.text]
    return plain("\n".join(lines), {**entry(guide), "source": guide.text})


def how_to_use(skill: Skill) -> str:
    """Return the code that uses a skill."""
    if skill.state == "active":
        return f"from skills.{skill.name} import run"
    exact = f"from skills.{skill.name}.v{skill.version} import run"
    return f"{exact}  # then save the run that calls run(...) with keywords, to have it checked"


def told(skill: Skill, record: Record) -> CallToolResult:
    """Tell all of one skill."""
    used = skill.uses
    lines = [
        f"{skill.id} is {a(skill.state)}; recorded cases: {len(skill.cases)}; runs that used it: {record.uses}, "
        f"of which it failed in {record.uses - record.well}.",
        *skill.reasons,
        line(skill),
        how_to_use(skill),
        *([f"It uses {', '.join(used)}."] if used else []),
        skill.source,
    ]
    data = {**entry(skill), "reasons": [*skill.reasons], "uses": used, "source": skill.source, "used": record.uses}
    return plain("\n".join(lines), data)


def skill_tools(skills: Skills) -> list[Tool]:
    """Return the tools."""

    async def list_skills(query: str | None = None, name: str | None = None) -> CallToolResult:
        try:
            return await skills.list(query, name)
        except McpRuntimeError as exc:
            return refusal(exc)

    async def save_skill(
        ctx: Context[Any], run: str | None = None, code: str | None = None, name: str | None = None
    ) -> CallToolResult:
        async with signs_of_life(ctx, "the skill is being checked"):
            try:
                return await skills.save(run, code, name)
            except McpRuntimeError as exc:
                return refusal(exc)

    tools = [
        Tool.from_function(
            list_skills, description=LIST, annotations=ToolAnnotations(title="Skills", read_only_hint=True)
        ),
        Tool.from_function(
            save_skill,
            description=SAVE,
            annotations=ToolAnnotations(title="Save a skill", destructive_hint=False, open_world_hint=False),
        ),
    ]
    for tool in tools:
        tool.parameters = compact(tool.parameters)
    return tools


def skill_prompt(library: Library) -> Prompt:
    """Return the prompt that begins a task with the skills which may help."""

    async def with_skills(task: Annotated[str, Field(description="What is to be done")]) -> str:
        found = await library.find(task, PROMPTED)
        lines = [f"- {line(skill)}" for skill in found] or ["- none: save what works with save_skill"]
        return "\n".join((task, "", SKILLS_FOR, *lines))

    return Prompt.from_function(
        with_skills, title="Task with skills", description="A task, and the skills that may help."
    )
