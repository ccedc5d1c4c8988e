"""What skills say about themselves: lines that end nothing which they stand in, and docstrings.

Rule: texts come from anybody, and trees are changed in place.
"""

from __future__ import annotations

import ast
import re
from typing import TypeVar

from .lint import FunctionNode, check_entry_signature, entry_of, parse_source

Tree = TypeVar("Tree", bound=ast.AST)

ABOUT = re.compile(
    r" *(?:[-*] +)?`?([A-Za-z_][A-Za-z0-9_]{0,80})`?(?: *\([^()]{0,80}\))? *: +(\S.{0,400})"
)
ABOUT_CHARS = 160


def to_one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def front_line(text: str, limit: int) -> str:
    """Return a text as a line in which no reader of front matter finds its end."""
    return re.sub("-{3,}", "--", to_one_line(text))[:limit]


def without_docstrings(tree: Tree) -> Tree:
    """Return a tree without its docstrings."""
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, FunctionNode))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body[:1] = (
                [] if len(node.body) > 1 or isinstance(node, ast.Module) else [ast.Pass()]
            )
    return tree


def parameter_descriptions(source: str) -> dict[str, str]:
    """Return what the docstring of a module's `run` says about its parameters, by name, each in one line."""
    tree = parse_source(source)
    names = {each.name for each in check_entry_signature(tree).parameters}
    found: dict[str, str] = {}
    for line in (ast.get_docstring(entry_of(tree)) or "").splitlines()[:500]:
        if (match := ABOUT.match(line[:600])) and match[1] in names:
            found.setdefault(match[1], to_one_line(match[2])[:ABOUT_CHARS])
    return found
