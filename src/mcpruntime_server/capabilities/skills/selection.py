"""Skills and guides as they are picked and listed, and what a store takes in of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...config.credentials import find_known_credential, find_named_credential
from ...errors import NotFound, SkillRefused
from ...protocol.suggestions import did_you_mean
from .guides import Guide
from .model import RecordedCase, Skill, format_signature
from .skill_names import parse_version
from .version_files import encode_case


def active_skills(found: Mapping[str, Sequence[Skill]]) -> dict[str, Skill]:
    """Return the newest active version of every skill that has one."""
    active = {
        name: [each for each in versions if each.state == "active"]
        for name, versions in found.items()
    }
    return {name: versions[-1] for name, versions in active.items() if versions}


def pick_version(found: Mapping[str, Sequence[Skill]], name: str) -> Skill:
    """Return the version in use of a skill, or an exact one ("weather_report@2"); raises `NotFound`, `InvalidRequest`.

    Where none is in use, it is the newest.
    """
    skill, number = parse_version(name)
    if skill not in found:
        hint = did_you_mean(skill, found)
        raise NotFound(
            f"There is no skill {skill!r:.80}. {hint}".rstrip(), remedy="list_skills shows them."
        )
    versions = found[skill]
    if number is None:
        return next((each for each in reversed(versions) if each.state == "active"), versions[-1])
    for version in versions:
        if version.version == number:
            return version
    raise NotFound(
        f"There is no version {number} of the skill {skill}; the last is {versions[-1].version}."
    )


def content_identity(found: Skill | Guide) -> str:
    """Return what changes when what is found is another."""
    return str(hash(found.text)) if isinstance(found, Guide) else found.id + found.digest


def listing_entry(skill: Skill | Guide) -> dict[str, Any]:
    """Return a skill as listings have it."""
    if isinstance(skill, Guide):
        return {
            "name": skill.name,
            "version": 0,
            "signature": "",
            "summary": skill.summary,
            "state": "guide",
        }
    return {
        "name": skill.name,
        "version": skill.version,
        "signature": format_signature(skill.signature),
        "summary": skill.summary,
        "state": skill.state,
    }


def describe_state(state: str) -> str:
    """Return a state as a sentence has it."""
    return {"draft": "a draft", "active": "in use"}.get(state, state)


def check_case(case: RecordedCase) -> None:
    """Raise `SkillRefused` if a recording cannot be kept: it is too large, or holds credentials."""
    given = (
        find_named_credential(value, name)
        for name, value in case.inputs.items()
        if isinstance(value, str)
    )
    kind = find_known_credential(encode_case(case).decode("utf-8", "replace")) or next(
        filter(None, given), ""
    )
    if kind:
        raise SkillRefused(
            f"What the run got from its calls, or was given, holds what looks like {kind}.",
            remedy="Skills are kept with what they were recorded with: save a run that does not see credentials.",
        )


def check_dependency_cycle(
    name: str, uses: Collection[str], found: Mapping[str, Sequence[Skill]]
) -> None:
    """Raise `SkillRefused` if a skill would use itself."""
    left, seen = [each.partition("@")[0] for each in uses], set[str]()
    while left:
        each = left.pop()
        if each == name:
            raise SkillRefused(
                f"{name} would use itself, through {', '.join(sorted(seen | {each}))}.",
                remedy="Give it another name, or do without that skill.",
            )
        if each not in seen:
            seen.add(each)
            left += [
                below.partition("@")[0]
                for skill in found.get(each, ())
                for below in skill.skill_digests
            ]
