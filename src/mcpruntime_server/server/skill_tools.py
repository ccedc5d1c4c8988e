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
from ..capabilities.skills.signing import is_held_back
from ..capabilities.skills.usage import UsageRecord
from ..errors import InvalidRequest, McpRuntimeError
from ..journal.rows import RunRow
from ..journal.store import Journal
from ..runtime.run import Run
from ..runtime.run_history import find_own_run
from .result_format import error_result, text_call_result
from .run_lookup import RUN_ID_REMEDY
from .run_progress import send_heartbeats
from .skill_summaries import skill_line, skill_summary
from .tool_schemas import build_tool

MAX_LISTED_SKILLS = 3  # the best results of a search
MAX_PROMPT_SKILLS = 8

LIST_SKILLS_DESCRIPTION = (
    "Tested code to import: `from skills.NAME import run`. query finds, name shows."
)
SAVE_SKILL_DESCRIPTION = (
    "Keep a run that worked as a tested skill; its literals become parameters. "
    "Or code with def run()."
)

SKILL_PROMPT_HEADER = (
    "Do it with run_code. Code that worked before, best match first "
    "(`from skills.NAME import run`; a guide's text is skills.NAME.__doc__, "
    "its files are in skills.NAME.folder):"
)


class SkillToolHandler:
    """Answers calls of `list_skills` and `save_skill`."""

    def __init__(
        self,
        library: SkillLibrary,
        saver: SkillSaver,
        journal: Journal,
        principal: str,
        max_chars: int,
    ) -> None:
        self._library = library
        self._max_chars = max_chars  # of the text of a guide, and of the source of a skill
        self._saver = saver
        self._journal = journal
        self._principal = principal

    async def list_skills(self, query: str | None, name: str | None) -> CallToolResult:
        """Return the best matches for `query`, or everything about the skill `name`."""
        if name is not None:
            return await self._show_skill(name)
        found, count = await self._library.search(query or "", MAX_LISTED_SKILLS)
        lines = [skill_line(skill) for skill in found]
        if count == 0:
            lines = ["There are no skills yet."]
        elif not found:
            lines = ["No skill matches."]
        if count > len(found):
            lines.append(f"{count} skills in all.")
        return text_call_result(
            "\n".join(lines), {"skills": [skill_summary(skill) for skill in found], "count": count}
        )

    async def _show_skill(self, name: str) -> CallToolResult:
        if guide := await self._library.find_guide(name.strip().replace("-", "_")):
            return build_guide_result(guide, self._max_chars)
        skill = await self._library.get(name)
        usage = await self._library.find_usage(skill)
        return build_skill_result(skill, usage, self._principal, self._max_chars)

    async def save_skill(
        self, run: str | None, code: str | None, name: str | None, description: str | None
    ) -> CallToolResult:
        """Save a run, or code, as a skill, and return its state."""
        if (run is None) == (code is None):
            raise InvalidRequest(
                "A skill is made from a run or from code.", remedy="Give `run` or `code`."
            )
        if run is not None:
            row = await self._find_run(run)
            saved = await self._saver.save_run(row, name or "", description or "")
        else:
            saved = await self._saver.save_code(code or "", name or "", description or "")
        skill = saved.skill
        already = " already" if saved.already_existed else ""
        lines = [f"{skill.id} is {skill.state_words}{already}.", *skill.reasons]
        data = {**skill.listing, "reasons": [*skill.reasons]}
        if saved.note:
            lines.append(saved.note)
            data["note"] = saved.note
        lines += [skill_line(skill), usage_code(skill)]
        return text_call_result("\n".join(lines), data)

    async def _find_run(self, run: str) -> RunRow:
        row, _ = await find_own_run(self._journal, run, self._principal, RUN_ID_REMEDY)
        return row


def build_guide_result(guide: Guide, max_chars: int) -> CallToolResult:
    """Return everything about a guide: the text that its author has written for agents."""
    text = limit_text(guide.body, max_chars, f"print(skills.{guide.name}.__doc__[{max_chars}:])")
    lines = [
        f"{guide.name} is a guide. In code its files are in skills.{guide.name}.folder.",
        text,
    ]
    return text_call_result("\n".join(lines), {**guide.listing, "source": text})


def usage_code(skill: Skill) -> str:
    """Return the code that uses a skill."""
    if skill.state == "active":
        return f"from skills.{skill.name} import run"
    exact = f"from skills.{skill.name}.v{skill.version} import run"
    if is_held_back(skill):
        return f"{exact}  # it has passed its test"
    return f"{exact}  # then save the run that calls run(...) with keywords, to test it"


def limit_text(text: str, max_chars: int, rest_code: str) -> str:
    """Return at most so many characters of a text, and the code that prints the rest."""
    omitted = len(text) - max_chars
    if omitted <= 0:
        return text
    return f"{text[:max_chars]}\n[{omitted:,} more characters; in run_code: {rest_code}]"


def build_skill_result(
    skill: Skill, record: UsageRecord, principal: str, max_chars: int
) -> CallToolResult:
    """Return everything that a principal may know about a skill."""
    print_rest = f"print(inspect.getsource(skills.{skill.name}.v{skill.version})[{max_chars}:])"
    source = limit_text(skill.source, max_chars, f"import inspect, skills; {print_rest}")
    targets = skill.call_targets
    cases = f"recorded cases: {len(skill.cases)}"
    if skill.owner != principal:
        cases = f"{skill.owner} shares it"
    lines = [
        f"{skill.id} is {skill.state_words}; {cases}; "
        f"runs that used it: {record.uses}, failed: {record.uses - record.successes}.",
        *skill.reasons,
        skill_line(skill),
        usage_code(skill),
    ]
    if targets:
        lines.append(f"It uses {', '.join(targets)}.")
    lines.append(source)
    data = {
        **skill.listing,
        "reasons": [*skill.reasons],
        "uses": targets,
        "source": source,
        "used": record.uses,
    }
    return text_call_result("\n".join(lines), data)


def build_skill_tools(handler: SkillToolHandler) -> list[Tool]:
    """Return the tools `list_skills` and `save_skill`."""

    async def list_skills(query: str | None = None, name: str | None = None) -> CallToolResult:
        try:
            return await handler.list_skills(query, name)
        except McpRuntimeError as exc:
            return error_result(exc)

    async def save_skill(
        ctx: Context[Any],
        run: str | None = None,
        code: str | None = None,
        name: str | None = None,
        description: str | None = None,
    ) -> CallToolResult:
        async with send_heartbeats(ctx, "testing the skill"):
            try:
                return await handler.save_skill(run, code, name, description)
            except McpRuntimeError as exc:
                return error_result(exc)

    return [
        build_tool(
            list_skills,
            LIST_SKILLS_DESCRIPTION,
            ToolAnnotations(title="Skills", read_only_hint=True),
        ),
        build_tool(
            save_skill,
            SAVE_SKILL_DESCRIPTION,
            ToolAnnotations(title="Save a skill", destructive_hint=False, open_world_hint=False),
        ),
    ]


def build_skill_prompt(library: SkillLibrary) -> Prompt:
    """Return the prompt that adds matching skills to a task."""

    async def with_skills(task: Annotated[str, Field(description="What is to be done")]) -> str:
        found, _ = await library.search(task, MAX_PROMPT_SKILLS)
        lines = [f"- {skill_line(skill)}" for skill in found]
        if not found:
            lines = ["- none: save what works with save_skill"]
        return "\n".join((task, "", SKILL_PROMPT_HEADER, *lines))

    return Prompt.from_function(
        with_skills, title="Task with skills", description="A task, and the skills that may help."
    )


async def keep_as_skill(saver: SkillSaver, journal: Journal, run: Run) -> str:
    """Save a finished run as a skill if that is enabled and worth it; return a note on it."""
    report = run.report
    if report.status != "ok" or run.spec.is_dry_run:
        return ""
    if not saver.should_consider(run.spec.code, report.value, len(report.calls)):
        return ""
    return await saver.consider_run(await journal.load_run(run.id))
