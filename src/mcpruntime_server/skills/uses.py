"""A run that only used a skill: what it was used for is a case of the skill, and no skill of its own."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace

from ..errors import SkillRefused
from ..journal.events import canonical_json
from .lint import dotted_name, parse
from .literals import value_of
from .model import ENTRY, Case, Step

MODULE = re.compile(r"skills\.(?P<name>[a-z0-9_]+?)(?:\.v(?P<version>[0-9]+))?")


def use_of(step: Step) -> tuple[str, int | None, Case] | None:
    """Return the skill, the version and the case that a run is which calls a skill with plain values; None else.

    Positional values are not told apart from code's own: the skill's signature is not known here.
    """
    try:
        tree = parse(step.code)
    except SkillRefused:
        return None
    if not tree.body or not isinstance(last := tree.body[-1], (ast.Expr, ast.Assign)):
        return None
    call = last.value.value if isinstance(last.value, ast.Await) else last.value
    if not isinstance(call, ast.Call) or call.args or not all(_is_import(node) for node in tree.body[:-1]):
        return None
    name = dotted_name(call.func) if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    found = MODULE.fullmatch(_imported(tree).get(name, name.removesuffix(f".{ENTRY}")))
    if found is None:
        return None
    try:
        inputs = {str(each.arg): value_of(each.value) for each in call.keywords if each.arg}
    except ValueError:
        return None
    calls = tuple(replace(each, call=number) for number, each in enumerate(step.calls, 1) if each.listed)
    case = Case(
        json.loads(canonical_json(inputs)), calls, step.value, step.printed, seed=step.seed, readings=step.readings
    )
    return found["name"], int(found["version"]) if found["version"] else None, case


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _imported(tree: ast.Module) -> dict[str, str]:
    """Return the modules of skills that names stand for."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "skills":
            for alias in node.names:
                below = "" if alias.name == ENTRY else f".{alias.name}"
                found[alias.asname or alias.name] = f"{node.module}{below}"
    return found
