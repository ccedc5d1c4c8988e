"""Save a step as a skill: what would be saved, and the test that decides whether it is used.

Both are those of the tool `save_skill`: the page shows what it does, and decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter
from itertools import groupby
from typing import Annotated

from anyio import to_thread
from markupsafe import Markup
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ..capabilities.skills.descriptions import MAX_GIVEN_SUMMARY_CHARS
from ..capabilities.skills.model import Skill, is_input_value
from ..capabilities.skills.saving import LeftOutCode, SaveResult, SkillPreview, SkillSaver
from ..capabilities.skills.skill_names import MAX_NAME_CHARS
from ..journal.progress import ReportProgress
from ..protocol.truncation import truncate_text
from ..server.skill_tools import usage_code
from ..service.api_models import BodyModel
from ..service.authentication import find_principal
from ..service.requests import read_body
from .code_highlighting import highlight_python
from .progress_stream import ProgressResponse
from .viewer_services import ViewerServices

MAX_SHOWN_CHARS = 200  # of the recorded value of a parameter
MAX_LEFT_OUT = 200  # statements that are listed


class SavingBody(BodyModel):
    """What a person wants a skill to be called; empty: what the code says."""

    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)] = ""
    summary: Annotated[str, Field(max_length=MAX_GIVEN_SUMMARY_CHARS)] = ""


@dataclass(frozen=True)
class ParameterView:
    """A parameter of a skill; `recorded` is the value in the step that it is made of."""

    name: str
    type: str
    default: str
    recorded: str


@dataclass(frozen=True)
class LeftOutView:
    """What is left out of a step."""

    step: int
    run_id: str
    statements: tuple[LeftOutCode, ...]


@dataclass(frozen=True)
class PreviewView:
    """What a step would be saved as."""

    skill: Skill
    known: Skill | None
    adds_case: bool
    code: tuple[Markup, ...]
    parameters: tuple[ParameterView, ...]
    returns: str
    left_out: tuple[LeftOutView, ...]
    left_out_count: int
    hidden_count: int


class SavingPages:
    """The handlers of the dialog."""

    def __init__(self, services: ViewerServices) -> None:
        self._services = services

    def _find_saver(self, request: Request) -> SkillSaver:
        return self._services.find_saver(find_principal(request.scope))

    async def preview_skill(self, request: Request) -> Response:
        """Return the part of a page that shows what a step would be saved as."""
        row, _ = await self._services.find_run(request)
        found = await self._find_saver(request).preview_run(row)
        context = self._services.access.describe_request(request)
        return await self._services.renderer.render_page(
            context,
            "skill_preview.html",
            preview=await to_thread.run_sync(build_preview, found),
        )

    async def save_skill(self, request: Request) -> Response:
        """Test a step as a skill, save it, and stream what the test does and its verdict."""
        row, _ = await self._services.find_run(request)
        body = await read_body(request, SavingBody)
        saver = self._find_saver(request)

        async def save(report: ReportProgress) -> str:
            return describe_saved(await saver.save_run(row, body.name, body.summary, report))

        return ProgressResponse(save, self._services.api.is_stopping)


def build_preview(found: SkillPreview) -> PreviewView:
    """Return what a step would be saved as, as its page shows it."""
    skill, listed = found.candidate, found.left_out[:MAX_LEFT_OUT]
    return PreviewView(
        skill=skill,
        known=found.known,
        adds_case=found.adds_case,
        code=highlight_python(skill.source),
        parameters=list_parameters(skill),
        returns=write_annotation(skill.signature.return_annotation),
        left_out=group_left_out(listed),
        left_out_count=len(found.left_out),
        hidden_count=len(found.left_out) - len(listed),
    )


def list_parameters(skill: Skill) -> tuple[ParameterView, ...]:
    """Return the parameters of a skill with the values of its last case."""
    recorded = skill.cases[-1].inputs if skill.cases else {}
    return tuple(
        ParameterView(
            each.name,
            write_annotation(each.annotation),
            "" if each.default is Parameter.empty else str(each.default),
            write_recorded(recorded[each.name]) if each.name in recorded else "",
        )
        for each in skill.signature.parameters.values()
    )


def write_annotation(annotation: object) -> str:
    """Return a type as it stands in the source; "" if there is none."""
    return "" if annotation is Parameter.empty else str(annotation)


def write_recorded(value: object) -> str:
    """Return the recorded value of a parameter, shortened."""
    if is_input_value(value):
        return "the input of the run"
    return truncate_text(repr(value), MAX_SHOWN_CHARS)[0]


def group_left_out(left_out: Sequence[LeftOutCode]) -> tuple[LeftOutView, ...]:
    """Return what is left out, by step."""
    return tuple(
        LeftOutView(step, run_id, tuple(statements))
        for (step, run_id), statements in groupby(left_out, lambda each: (each.step, each.run_id))
    )


def describe_saved(saved: SaveResult) -> str:
    """Return JSON about what was saved, and what its test says."""
    skill = saved.skill
    return json.dumps(
        {
            "name": skill.name,
            "version": skill.version,
            "state": skill.state,
            "state_words": skill.state_words,
            "already_existed": saved.already_existed,
            "reasons": list(skill.reasons),
            "note": saved.note,
            "usage": usage_code(skill),
            "parameters": list(skill.signature.parameters),
        }
    )
