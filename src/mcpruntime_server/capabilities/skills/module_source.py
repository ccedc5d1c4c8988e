"""Render the source of a skill's module."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from .signatures import FunctionNode, format_signature, signature_of

INDENT = " " * 4


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
