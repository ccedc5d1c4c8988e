"""Select versions of skills, find those that do the same, and check what a new one may contain."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

from ...config.credentials import find_known_credential, find_named_credential
from ...errors import NotFound, SkillRefused
from ...protocol.suggestions import did_you_mean
from .guides import Guide
from .model import RecordedCase, Skill
from .module_source import without_docstrings
from .signatures import FunctionNode, format_signature
from .skill_names import parse_version
from .version_files import encode_case

VersionsByName = Mapping[str, Sequence[Skill]]  # oldest first


def active_skills(skills: VersionsByName) -> dict[str, Skill]:
    """Return the newest active version of every skill that has one."""
    return {
        version.name: version
        for versions in skills.values()
        for version in versions
        if version.state == "active"
    }


def pick_version(skills: VersionsByName, reference: str) -> Skill:
    """Return an exact version ("weather_report@2"), or a skill's active or else newest version.

    Raises `NotFound`, `InvalidRequest`.
    """
    name, number = parse_version(reference)
    if name not in skills:
        hint = did_you_mean(name, skills)
        message = f"There is no skill {name!r:.80}. {hint}".rstrip()
        raise NotFound(message, remedy="list_skills shows them.")
    versions = skills[name]
    if number is None:
        return active_skills({name: versions}).get(name, versions[-1])
    for version in versions:
        if version.version == number:
            return version
    newest = versions[-1].version
    raise NotFound(f"There is no version {number} of the skill {name}; the newest is {newest}.")


def content_identity(found: Skill | Guide) -> str:
    """Return a text that changes with the content of a skill or a guide."""
    return str(hash(found.text)) if isinstance(found, Guide) else found.id + found.digest


def listing_entry(found: Skill | Guide) -> dict[str, Any]:
    """Return a skill or a guide as listings show it."""
    entry = {
        "name": found.name,
        "version": 0,
        "signature": "",
        "summary": found.summary,
        "state": "guide",
    }
    if isinstance(found, Skill):
        entry["version"] = found.version
        entry["signature"] = format_signature(found.signature)
        entry["state"] = found.state
    return entry


def describe_state(state: str) -> str:
    """Return a state as a sentence has it."""
    return {"draft": "a draft", "active": "in use"}.get(state, state)


def check_case(case: RecordedCase) -> None:
    """Raise `SkillRefused` if a recorded case is too large to be saved, or holds credentials."""
    kinds = [find_known_credential(encode_case(case).decode("utf-8", "replace"))]
    for name, value in case.inputs.items():
        if isinstance(value, str):
            kinds.append(find_named_credential(value, name))
    if kind := next(filter(None, kinds), ""):
        raise SkillRefused(
            f"An input of the run, or an answer to one of its calls, holds what looks like {kind}.",
            remedy="Recorded cases are saved, too: save a run that does not see credentials.",
        )


def check_dependency_cycle(skill: Skill, skills: VersionsByName) -> None:
    """Raise `SkillRefused` if a skill would use itself, through others."""
    name, remaining, seen = skill.name, list(skill.used_skills), set[str]()
    while remaining:
        other = remaining.pop().partition("@")[0]
        if other == name:
            raise SkillRefused(
                f"{name} would use itself, through {', '.join(sorted({*seen, other}))}.",
                remedy="Give it another name, or do without that skill.",
            )
        if other not in seen:
            seen.add(other)
            remaining += [each for used in skills.get(other, ()) for each in used.used_skills]


# skills that do the same --------------------------------------------------------------------------


@lru_cache(maxsize=2000)  # each save compares with every source in the store
def source_shape(source: str) -> str:
    """Return a digest of source without its docstrings, defaults and return types."""
    try:
        tree = without_docstrings(ast.parse(source))
        for node in tree.body:
            if isinstance(node, FunctionNode):
                node.args.defaults = [ast.Constant(0) for _ in node.args.defaults]
                node.args.kw_defaults = [each and ast.Constant(0) for each in node.args.kw_defaults]
                node.returns = None
        text = ast.dump(tree)
    except RecursionError:  # code that somebody put into the store must not prevent a save
        text = source
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def find_duplicate(skill: Skill, skills: VersionsByName) -> Skill | None:
    """Return the last version of a skill that does the same; None if there is none."""
    shape = source_shape(skill.source)
    for versions in skills.values():
        if versions[-1].state != "retired" and source_shape(versions[-1].source) == shape:
            return versions[-1]
    return None


def merge_cases(skill: Skill, others: tuple[RecordedCase, ...], last: Skill | None) -> Skill:
    """Return a new version of a skill, with the case just recorded behind those that are known.

    `others` are known cases of other code, and `last` is the last version if that does the same.
    """
    if last is None:
        return replace(skill, cases=(*others, *skill.cases))
    known = last.cases
    if skill.cases and last.origin == "edit" and last.state == "draft":
        known = ()  # older cases were recorded with other code
    inputs = [case.inputs for case in skill.cases]
    known = tuple(case for case in known if case.inputs not in inputs)
    return replace(
        skill,
        source=last.source,
        summary=last.summary,
        described_by=last.described_by,
        cases=(*known, *skill.cases),
    )
