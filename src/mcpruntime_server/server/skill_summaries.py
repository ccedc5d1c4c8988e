"""Summarises each skill in one line of fewer than 60 tokens.

Rule: models pay for every token. Texts are cut by estimates.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import Parameter, Signature
from typing import TypedDict

from ..capabilities.skills.guides import Guide
from ..capabilities.skills.model import Skill
from ..capabilities.skills.source import to_one_line
from ..capabilities.source_text import SourceText
from .token_estimates import bound_tokens

MAX_LINE_TOKENS = 56  # estimated
MAX_SIGNATURE_TOKENS = 48  # of these, for name and signature
MAX_DEFAULT_CHARS = 12  # of a default in a shortened signature


class SkillSummary(TypedDict):
    """The parts of the line about a skill."""

    name: str
    signature: str
    summary: str


def skill_line(skill: Skill | Guide) -> str:
    """Return a skill in one line: name, signature and summary."""
    parts = skill_summary(skill)
    return f"{parts['name']}{parts['signature']}  # {parts['summary']}"


def skill_summary(skill: Skill | Guide) -> SkillSummary:
    """Return name, signature and summary of a skill, shortened to fit into one line."""
    signature = ""
    summary = to_one_line(skill.summary)
    if isinstance(skill, Guide):
        summary = f"guide: {summary}"
    else:
        fitting = (
            each
            for each in shrinking_signatures(skill)
            if bound_tokens(skill.name + each) <= MAX_SIGNATURE_TOKENS
        )
        signature = next(fitting, "(...)")
    remaining_tokens = MAX_LINE_TOKENS - bound_tokens(f"{skill.name}{signature}  # ")
    return {
        "name": skill.name,
        "signature": signature,
        "summary": truncate_to_tokens(summary, remaining_tokens),
    }


def shrinking_signatures(skill: Skill) -> Iterator[str]:
    """Yield a skill's signature in shorter and shorter forms.

    Long defaults are hidden first, then the types, the defaults and the last parameters.
    """
    whole = skill.signature
    yield str(whole)
    brief = whole.replace(parameters=[*map(hide_long_default, whole.parameters.values())])
    yield str(brief)
    yield str(brief.replace(return_annotation=Signature.empty))
    untyped = [each.replace(annotation=Parameter.empty) for each in brief.parameters.values()]
    yield str(whole.replace(parameters=untyped))
    names = list(whole.parameters)
    for count in range(len(names), 0, -1):
        yield f"({', '.join(names[:count])}{', ...' if count < len(names) else ''})"


def hide_long_default(parameter: Parameter) -> Parameter:
    """Return `parameter` with `...` in place of a long default."""
    has_default = parameter.default is not Parameter.empty
    if has_default and len(parameter.default) > MAX_DEFAULT_CHARS:
        return parameter.replace(default=SourceText("..."))
    return parameter


def truncate_to_tokens(text: str, max_tokens: int) -> str:
    """Return as much of a text as fits, up to the end of a word."""
    if bound_tokens(text) <= max_tokens:
        return text
    words = text[: max_tokens * 8].split(" ")
    while words and bound_tokens(" ".join(words)) + 1 > max_tokens:
        words.pop()
    if words:
        return f"{' '.join(words)}..."
    end = len(text[: max_tokens * 2])
    while end and bound_tokens(text[:end]) + 1 > max_tokens:
        end -= 1
    return f"{text[:end]}..."
