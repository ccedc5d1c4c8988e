"""Recognise a run that only calls a skill: it is another case of that skill, not a new skill."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from typing import Any

from ...errors import SkillRefused
from ...journal.events import canonical_json
from .lint import dotted_name
from .literals import literal_value
from .model import CONTEXT_NAME, RecordedCase, RecordedStep
from .signatures import ENTRY_FUNCTION, parse_source

SKILL_MODULE = re.compile(r"skills\.(?P<name>[a-z0-9_]+?)(?:\.v(?P<version>[0-9]+))?")


def find_skill_call(step: RecordedStep) -> tuple[str, RecordedCase] | None:
    """Return the skill that a run only calls ("weather_report@2"), with that use as a case of it.

    Return None if it does more.

    Positional arguments would need the skill's signature, which is not known here.
    """
    try:
        body = parse_source(step.code).body
    except SkillRefused:
        return None
    match body[-1:]:
        case [ast.Expr(ast.Call() as call) | ast.Expr(ast.Await(ast.Call() as call))]:
            pass
        case [
            ast.Assign(value=ast.Call() as call) | ast.Assign(value=ast.Await(ast.Call() as call))
        ]:
            pass
        case _:
            return None
    origins: dict[str, str] = {}  # of imported names: {"run": "skills.weather_report"}
    for node in body[:-1]:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            return None
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                member = "" if alias.name == ENTRY_FUNCTION else f".{alias.name}"
                origins[alias.asname or alias.name] = f"{node.module}{member}"
    name = dotted_name(call.func)
    module = SKILL_MODULE.fullmatch(origins.get(name, name.removesuffix(f".{ENTRY_FUNCTION}")))
    if module is None or call.args:
        return None
    try:
        inputs = {
            str(each.arg): read_argument(each.value, step) for each in call.keywords if each.arg
        }
    except ValueError:
        return None
    listed = [(number, each) for number, each in enumerate(step.calls, 1) if each.in_ledger]
    case = RecordedCase(
        json.loads(canonical_json(inputs)),
        tuple(replace(each, call_id=number) for number, each in listed),
        step.result,
        step.stdout,
        seed=step.seed,
        clock_readings=step.clock_readings,
    )
    version = f"@{module['version']}" if module["version"] else ""
    return module["name"] + version, case


def read_argument(node: ast.expr, step: RecordedStep) -> Any:
    """Return a literal argument, or the input of the step; raises `ValueError` for others."""
    if isinstance(node, ast.Name) and node.id == CONTEXT_NAME and step.input is not None:
        return dict(step.input)
    return literal_value(node)
