"""Write the source of a skill's module, and read and write what skills say about themselves.

Rule: docstrings and front matter may come from anybody. No text may end the line, docstring or
front matter that it stands in.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import TypeVar

from .signatures import FunctionNode, entry_of, format_signature, parse_source, signature_of

Tree = TypeVar("Tree", bound=ast.AST)

INDENT = " " * 4
PARAMETER_LINE = re.compile(
    r" *(?:[-*] +)?`?([A-Za-z_][A-Za-z0-9_]{0,80})`?(?: *\([^()]{0,80}\))? *: +(\S.{0,400})"
)
MAX_PARAMETER_CHARS = 160  # of what is said about a parameter
MAX_DOCSTRING_LINES = 500
MAX_LINE_CHARS = 600


def to_one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def to_front_matter_line(text: str, max_chars: int) -> str:
    """Return a text as one line that does not end front matter."""
    return re.sub("-{3,}", "--", to_one_line(text))[:max_chars]


def to_docstring_line(text: str, max_chars: int) -> str:
    """Return a text as one line that ends neither a docstring nor front matter."""
    line = to_one_line(text[: max_chars * 4]).replace("\\", "/").replace('"', "'")
    line = re.sub("-{3,}", "--", line)
    return line if len(line) <= max_chars else f"{line[: max_chars - 3].rstrip()}..."


def without_docstrings(tree: Tree) -> Tree:
    """Remove all docstrings from a tree, in place, and return it."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, FunctionNode)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            has_more = len(node.body) > 1 or isinstance(node, ast.Module)
            node.body[:1] = [] if has_more else [ast.Pass()]
    return tree


def parameter_descriptions(source: str) -> dict[str, str]:
    """Return what the docstring of a module's `run` says about each parameter, in one line."""
    entry = entry_of(parse_source(source))
    names = {each.name for each in signature_of(entry).parameters}
    found: dict[str, str] = {}
    docstring = ast.get_docstring(entry) or ""
    for line in docstring.splitlines()[:MAX_DOCSTRING_LINES]:
        match = PARAMETER_LINE.match(line[:MAX_LINE_CHARS])
        if match and match[1] in names:
            found.setdefault(match[1], to_one_line(match[2])[:MAX_PARAMETER_CHARS])
    return found


# modules ------------------------------------------------------------------------------------------


def render_module(summary: str, nodes: Iterable[ast.stmt]) -> str:
    """Return the source of a skill's module."""
    imports: list[str] = []
    rest: list[str] = []
    for node in nodes:
        is_import = isinstance(node, (ast.Import, ast.ImportFrom))
        (imports if is_import else rest).append(_render_statement(node))
    any_import = "from typing import Any"
    if any("Any" in text for text in rest) and any_import not in imports:
        imports.insert(0, any_import)
    head = [f'"""{summary}"""', "", "from __future__ import annotations"]
    if imports:
        head += ["", *imports]
    return "\n".join(head) + "".join(f"\n\n\n{text}" for text in rest) + "\n"


def _render_statement(node: ast.stmt) -> str:
    """Return a statement as source; a function's header has spaces where `ast.unparse` has none."""
    text = ast.unparse(ast.fix_missing_locations(node))
    if not isinstance(node, FunctionNode) or node.decorator_list:
        return text
    if node.args.vararg or node.args.kwarg or node.args.posonlyargs:
        return text
    _, _, body = text.partition("\n")
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{keyword} {node.name}{format_signature(signature_of(node))}:\n{body}"
