"""Skills that do the same: they become one, with one more case, instead of piling up."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256

from .docstrings import without_docstrings
from .lint import check_entry_signature, parse_source
from .model import ExtractedSkill, RecordedCase, Skill


@lru_cache(maxsize=2000)  # sources of a store, which are looked at with every save
def source_shape(source: str) -> str:
    """Return what the sources share that do the same: not their texts for people, and not their defaults."""
    try:
        return _shape_of(without_docstrings(ast.parse(source)))
    except (
        RecursionError
    ):  # nobody is kept from saving by code that somebody has put into the store
        return sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _shape_of(tree: ast.Module) -> str:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.args.defaults = [ast.Constant(0) for _ in node.args.defaults]
            node.args.kw_defaults = [each and ast.Constant(0) for each in node.args.kw_defaults]
            node.returns = None
    return sha256(ast.dump(tree).encode()).hexdigest()


def find_duplicate(made: ExtractedSkill, found: Mapping[str, Sequence[Skill]]) -> str:
    """Return the name of a skill that does the same as `made`; "" if there is none."""
    shape = source_shape(made.source)
    for name, versions in found.items():
        if versions[-1].state != "retired" and source_shape(versions[-1].source) == shape:
            return name
    return ""


def merge_cases(
    made: ExtractedSkill, others: tuple[RecordedCase, ...], versions: Sequence[Skill]
) -> tuple[tuple[RecordedCase, ...], str, Skill | None]:
    """Return the cases and the source that a new version has, and the version that does the same already."""
    own = (made.case,) if made.case is not None else ()
    twin = (
        versions[-1]
        if versions and source_shape(versions[-1].source) == source_shape(made.source)
        else None
    )
    if twin is None:
        return (*others, *own), made.source, None
    if (
        own and twin.origin == "edit" and twin.state == "draft"
    ):  # a person has changed what others recorded
        return own, twin.source, twin
    known = tuple(case for case in twin.cases if not own or case.inputs != own[0].inputs)
    return (*known, *own), twin.source, twin


def replace_source(made: ExtractedSkill, source: str) -> ExtractedSkill:
    """Return `made` with the source of the skill that it becomes a version of."""
    return (
        made
        if source == made.source
        else replace(made, source=source, signature=check_entry_signature(parse_source(source)))
    )
