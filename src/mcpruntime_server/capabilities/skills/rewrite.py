"""Rewrites code that becomes a skill: parameters for literals, and a name that is free for the skill itself.

Rule: trees are changed in place; who needs them as they were unparses them before.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .copies import copy_of
from .lint import DEFINITIONS
from .model import ENTRY_FUNCTION
from .parameters import Found
from .slicing import Statement


class _Replace(ast.NodeTransformer):
    def __init__(self, parameters: Mapping[int, Found]) -> None:
        self._parameters = parameters

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.JoinedStr):
            return self.visit_JoinedStr(node)
        found = self._parameters.get(id(node))
        return expression_of(found) if found is not None else self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        for place, part in enumerate(node.values):
            if id(part) in self._parameters:
                node.values[place] = ast.FormattedValue(
                    expression_of(self._parameters[id(part)]), -1
                )
        return self.generic_visit(node)


def expression_of(found: Found) -> ast.expr:
    """Return what has the value of a parameter."""
    if not found.is_copied:
        return ast.Name(found.name, ast.Load())
    return ast.parse(copy_of(found.name, found.value), mode="eval").body


def found_replaced(nodes: Sequence[ast.stmt], found: Sequence[Found]) -> list[Any]:
    """Return statements with parameters where their literals were, without those that gave them their names."""
    parameters = {id(node): each for each in found for node in each.nodes}
    gone = {id(each.assignment) for each in found if each.assignment is not None}
    return [_Replace(parameters).visit(node) for node in nodes if id(node) not in gone]


class _Rename(ast.NodeTransformer):
    """Has code call something by another name."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return (
            ast.copy_location(ast.Name(self._new, node.ctx), node) if node.id == self._old else node
        )

    def visit_alias(self, node: ast.alias) -> ast.AST:
        bound = node.asname or node.name
        return (
            ast.copy_location(ast.alias(node.name, self._new), node) if bound == self._old else node
        )


def with_free_entry(kept: Sequence[Statement]) -> list[Statement]:
    """Return statements in which `run` is free for the skill: what they import or assign as that has another name."""
    binding = [each.node for each in kept if ENTRY_FUNCTION in each.binds]
    if not binding or any(isinstance(node, DEFINITIONS[:3]) for node in binding):
        return list(kept)
    taken = {name for each in kept for name in each.binds | each.reads}
    origins = [
        node.module.rpartition(".")[2]
        for node in binding
        if isinstance(node, ast.ImportFrom) and node.module
    ]
    new = next((name for name in origins if name not in taken), f"{ENTRY_FUNCTION}_")
    while new in taken:
        new += "_"

    def free(names: frozenset[str]) -> frozenset[str]:
        return names - {ENTRY_FUNCTION} | {new} if ENTRY_FUNCTION in names else names

    rename = _Rename(ENTRY_FUNCTION, new)
    return [
        replace(
            each,
            node=rename.visit(each.node),
            binds=free(each.binds),
            reads=free(each.reads),
            touches=free(each.touches),
            tells=free(each.tells),
        )
        for each in kept
    ]
