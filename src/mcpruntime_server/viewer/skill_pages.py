"""The skills of a principal: versions with their code, cases and use, and what puts them in use.

A version of somebody else, who shares it, has code and use here, but no cases: those are records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..capabilities.skills.model import RecordedCase, Skill, active_skills
from ..capabilities.skills.saving import SkillSaver
from ..capabilities.skills.usage import UsageRecord
from ..errors import Forbidden, NotFound
from ..service.api_models import BodyModel
from ..service.authentication import find_principal
from ..service.requests import read_body
from .code_highlighting import highlight_python
from .page_rendering import PAGE_SECURITY_HEADERS, missing_page
from .text_diffs import DiffLine, compare_texts
from .value_views import ValueNode, build_tree
from .viewer_services import ViewerServices

MAX_SHOWN_CASES = 20
MAX_SHOWN_CASE_CALLS = 20
PAGE_RETIRED_REASON = "Retired by hand."


@dataclass(frozen=True)
class SkillItem:
    """A skill in the list, by its version in use or else its newest one."""

    skill: Skill
    version_count: int
    usage: UsageRecord
    is_own: bool


@dataclass(frozen=True)
class CaseView:
    """A recorded case: its arguments, its calls, and the text of its result."""

    arguments: ValueNode
    calls: tuple[tuple[str, ValueNode], ...]
    hidden_count: int
    result: str


@dataclass(frozen=True)
class VersionView:
    """A version with everything that its page shows."""

    skill: Skill
    state: str
    code: tuple[Markup, ...]
    diff: tuple[DiffLine, ...]
    previous: Skill | None
    cases: tuple[CaseView, ...]
    case_count: int
    usage: UsageRecord
    is_own: bool
    is_used: bool  # when code imports the skill by its name


class StateBody(BodyModel):
    """Whether a version is put in use or taken out of use."""

    version: int
    is_promoted: bool


class SkillPages:
    """The handlers of the pages of skills."""

    def __init__(self, services: ViewerServices) -> None:
        self._services = services

    def _find_saver(self, request: Request) -> SkillSaver:
        return self._services.find_saver(find_principal(request.scope))

    async def _render(self, request: Request, template: str, **values: Any) -> Response:
        context = self._services.access.describe_request(request)
        return await self._services.renderer.render_page(context, template, **values)

    async def show_skills(self, request: Request) -> Response:
        """Return the list of skills."""
        library = self._find_saver(request).library
        skills = await library.all_versions()
        in_use = active_skills(skills)
        items = [
            SkillItem(
                shown := in_use.get(name, versions[-1]),
                len(versions),
                await library.find_usage(shown),
                shown.owner == library.principal,
            )
            for name, versions in sorted(skills.items())
            if versions
        ]
        return await self._render(request, "skills.html", items=items)

    async def show_skill(self, request: Request) -> Response:
        """Return the page of a skill, with one of its versions."""
        library = self._find_saver(request).library
        skills = await library.all_versions()
        versions = skills.get(request.path_params["name"], ())
        if not versions:
            raise missing_page("skill of that name")
        wanted = request.query_params.get("version", "")
        in_use = active_skills(skills).get(versions[0].name)
        skill = next((each for each in versions if str(each.version) == wanted), None)
        skill = skill or in_use or versions[-1]
        earlier = [each for each in versions if each.version < skill.version]
        previous = earlier[-1] if earlier else None
        is_own = skill.owner == library.principal
        cases = skill.cases if is_own else ()
        diff: tuple[DiffLine, ...] = ()
        if previous is not None:
            turn = self._services.renderer.turn
            diff = await to_thread.run_sync(
                compare_texts, previous.source, skill.source, limiter=turn
            )
        view = VersionView(
            skill=skill,
            state=str(skill.state),
            code=await to_thread.run_sync(highlight_python, skill.source),
            diff=diff,
            previous=previous,
            cases=tuple(build_case(each) for each in cases[:MAX_SHOWN_CASES]),
            case_count=len(cases),
            usage=await library.find_usage(skill),
            is_own=is_own,
            is_used=in_use is not None and in_use.version == skill.version,
        )
        return await self._render(request, "skill.html", view=view, versions=versions[::-1])

    async def change_state(self, request: Request) -> Response:
        """Put a version in use, if it passes the gate, or take it out of use."""
        body = await read_body(request, StateBody)
        saver = self._find_saver(request)
        library, name = saver.library, request.path_params["name"]
        versions = (await library.all_versions()).get(name, ())
        skill = next((each for each in versions if each.version == body.version), None)
        if skill is None:
            raise NotFound(f"There is no version {body.version} of a skill {name!r:.80}.")
        if skill.owner != library.principal:
            raise Forbidden(f"{skill.id} belongs to somebody else, who shares it.")
        if body.is_promoted:
            skill = await saver.recheck(skill, is_promoted=True)
        else:
            skill = await library.record_event(skill, "retired", (PAGE_RETIRED_REASON,))
        answer = {"state": str(skill.state), "reasons": list(skill.reasons)}
        return JSONResponse(answer, headers=PAGE_SECURITY_HEADERS)


def build_case(case: RecordedCase) -> CaseView:
    """Return a case as its page shows it."""
    calls = tuple(
        (call.target, build_tree({"arguments": call.args, "answer": call.value}))
        for call in case.calls[:MAX_SHOWN_CASE_CALLS]
    )
    result = case.stdout if case.result is None else case.result["text"]
    hidden = len(case.calls) - len(calls)
    return CaseView(build_tree(dict(case.inputs)), calls, hidden, result)
