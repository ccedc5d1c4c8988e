"""A run that only used a skill: what it was used for is a case of the skill, and no skill of its own."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace

from ...errors import SkillRefused
from ...journal.events import canonical_json
from .lint import dotted_name, parse_source
from .model import ENTRY_FUNCTION, RecordedCase, RecordedStep
from .parameters import literal_value

MODULE = re.compile(r"skills\.(?P<name>[a-z0-9_]+?)(?:\.v(?P<version>[0-9]+))?")


def find_skill_call(step: RecordedStep) -> tuple[str, int | None, RecordedCase] | None:
    """Return the skill, the version and the case that a run is which calls a skill with plain values; None else.

    Positional values are not told apart from code's own: the skill's signature is not known here.
    """
    try:
        tree = parse_source(step.code)
    except SkillRefused:
        return None
    if not tree.body or not isinstance(last := tree.body[-1], (ast.Expr, ast.Assign)):
        return None
    call = last.value.value if isinstance(last.value, ast.Await) else last.value
    if (
        not isinstance(call, ast.Call)
        or call.args
        or not all(_is_import(node) for node in tree.body[:-1])
    ):
        return None
    name = (
        dotted_name(call.func)
        if isinstance(call.func, ast.Attribute)
        else getattr(call.func, "id", "")
    )
    found = MODULE.fullmatch(_imported(tree).get(name, name.removesuffix(f".{ENTRY_FUNCTION}")))
    if found is None:
        return None
    try:
        inputs = {str(each.arg): literal_value(each.value) for each in call.keywords if each.arg}
    except ValueError:
        return None
    calls = tuple(
        replace(each, call_id=number) for number, each in enumerate(step.calls, 1) if each.in_ledger
    )
    case = RecordedCase(
        json.loads(canonical_json(inputs)),
        calls,
        step.result,
        step.stdout,
        seed=step.seed,
        clock_readings=step.clock_readings,
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
                below = "" if alias.name == ENTRY_FUNCTION else f".{alias.name}"
                found[alias.asname or alias.name] = f"{node.module}{below}"
    return found
