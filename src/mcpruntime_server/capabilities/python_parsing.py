"""Parsing of Python, in any thread.

CPython before 3.12.2 counts the depth of the tree that it builds in one place for all threads, and
so refuses good source at times: "AST constructor recursion depth mismatch". One thread parses at a
time here, which costs nothing, because a parser holds the interpreter's lock; only finalizers let
others work. Libraries that parse meanwhile can still disturb the count. Nothing is wrong then, and
parsing again works. Source: https://github.com/python/cpython/issues/106905
"""

from __future__ import annotations

import ast
import threading

ATTEMPTS = 5

_parser_lock = threading.RLock()  # a finalizer that runs while a thread parses may parse, too


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
    with _parser_lock:
        for _ in range(ATTEMPTS - 1):
            try:
                return ast.parse(source, mode=mode, feature_version=feature_version)
            except SystemError:
                continue
        return ast.parse(source, mode=mode, feature_version=feature_version)
