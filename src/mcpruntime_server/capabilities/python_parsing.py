"""Parsing of Python, in any thread.

CPython before 3.12.2 counts the depth of the tree that it builds in one place for all threads, and
so refuses good source at times: "AST constructor recursion depth mismatch". Nothing is wrong then,
and parsing again works. Source: https://github.com/python/cpython/issues/106905
"""

from __future__ import annotations

import ast

ATTEMPTS = 5


def parse_module(source: str, feature_version: tuple[int, int] | None = None) -> ast.Module:
    """Return the tree of a module; raises what `ast.parse` raises."""
    tree = _parse(source, "exec", feature_version)
    assert isinstance(tree, ast.Module)
    return tree


def parse_expression(source: str, feature_version: tuple[int, int] | None = None) -> ast.Expression:
    """Return the tree of an expression; raises what `ast.parse` raises."""
    tree = _parse(source, "eval", feature_version)
    assert isinstance(tree, ast.Expression)
    return tree


def _parse(source: str, mode: str, feature_version: tuple[int, int] | None) -> ast.AST:
    for _ in range(ATTEMPTS - 1):
        try:
            return ast.parse(source, mode=mode, feature_version=feature_version)
        except SystemError:
            continue
    return ast.parse(source, mode=mode, feature_version=feature_version)
