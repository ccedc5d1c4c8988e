"""Find skills that do the same: they become one skill with one more case."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from .docstrings import without_docstrings
from .lint import FunctionNode
from .model import ExtractedSkill, RecordedCase, Skill


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


def find_duplicate(extracted: ExtractedSkill, skills: Mapping[str, Sequence[Skill]]) -> str:
    """Return the name of a skill that does the same; "" if there is none."""
    shape = source_shape(extracted.source)
    for name, versions in skills.items():
        if versions[-1].state != "retired" and source_shape(versions[-1].source) == shape:
            return name
    return ""


@dataclass(frozen=True)
class Merged:
    """What a new version consists of; `duplicate` is the last version, if that does the same."""

    cases: tuple[RecordedCase, ...]
    source: str
    duplicate: Skill | None = None


def merge_cases(
    extracted: ExtractedSkill, others: tuple[RecordedCase, ...], versions: Sequence[Skill]
) -> Merged:
    """Return a new version of a skill that has `versions`, with the case just recorded last."""
    own = () if extracted.case is None else (extracted.case,)
    last = versions[-1] if versions else None
    if last is None or source_shape(last.source) != source_shape(extracted.source):
        return Merged((*others, *own), extracted.source)
    if own and last.origin == "edit" and last.state == "draft":
        return Merged(own, last.source, last)  # older cases were recorded with other code
    known = tuple(case for case in last.cases if not own or case.inputs != own[0].inputs)
    return Merged((*known, *own), last.source, last)
