"""Parse the source of a skill's module, and find its function `run` and what that takes.

No code is executed. It is hostile and may be large.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import SkillRefused

ENTRY_FUNCTION = "run"  # of a skill's module
MAX_SOURCE_CHARS = 200_000
# characters that reorder code for readers, but not for Python
TEXT_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DEFINITIONS = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a skill; `annotation` and `default` are Python source."""

    name: str
    annotation: str = ""
    default: str | None = None  # None: the caller has to give it
    is_keyword_only: bool = False


@dataclass(frozen=True)
class Signature:
    """What a skill takes and returns; `return_annotation` is Python source, "" if unknown."""

    parameters: tuple[Parameter, ...] = ()
    return_annotation: str = ""
    is_async: bool = False


def format_signature(signature: Signature) -> str:
    """Return a signature as Python writes it: `(city: str = "Oslo") -> dict`."""
    parts: list[str] = []
    for parameter in signature.parameters:
        if parameter.is_keyword_only and "*" not in parts:
            parts.append("*")
        text = parameter.name
        if parameter.annotation:
            text += f": {parameter.annotation}"
        if parameter.default is not None:
            text += " = " if parameter.annotation else "="
            text += parameter.default
        parts.append(text)
    returns = f" -> {signature.return_annotation}" if signature.return_annotation else ""
    return f"({', '.join(parts)}){returns}"


def parse_source(source: str) -> ast.Module:
    """Return the tree of `source`; raises `SkillRefused` where Python cannot parse it."""
    if len(source) > MAX_SOURCE_CHARS:
        raise SkillRefused(
            f"The code has {len(source):,} characters.",
            remedy=f"A skill may have {MAX_SOURCE_CHARS:,}.",
        )
    if match := TEXT_DIRECTION.search(source):
        line = source.count("\n", 0, match.start()) + 1
        raise SkillRefused(f"Line {line} has characters that change the direction of text.")
    try:
        return ast.parse(source)
    except SyntaxError as exc:
        message = f"The code cannot be parsed: line {exc.lineno}: {exc.msg}."
        raise SkillRefused(message) from None
    except (ValueError, RecursionError, MemoryError) as exc:
        raise SkillRefused(f"The code cannot be parsed: {exc}.") from None


def entry_of(tree: ast.Module) -> FunctionNode:
    """Return the function `run` of a module, or the function that is assigned to `run`.

    Raises `SkillRefused`.
    """
    functions = {node.name: node for node in tree.body if isinstance(node, FunctionNode)}
    name = ENTRY_FUNCTION
    for node in tree.body:
        match node:
            case ast.Assign([ast.Name(id=target)], ast.Name(id=source)) if target == ENTRY_FUNCTION:
                name = source
    entry = functions.get(name)
    if entry is None:
        raise SkillRefused(
            "The code has no function `run`, and not a single public function.",
            remedy="Put the code into `def run(...)`, and return the result.",
        )
    returns = (ast.Return, ast.Yield, ast.YieldFrom)
    if not any(isinstance(node, returns) and node.value for node in _walk_own_nodes(entry)):
        raise SkillRefused(
            f"Line {entry.lineno}: {entry.name} returns nothing.",
            remedy="Return the result instead of printing it.",
        )
    return entry


def _walk_own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, except those of functions and classes within it."""
    remaining = list(ast.iter_child_nodes(function))
    while remaining:
        node = remaining.pop()
        yield node
        if not isinstance(node, (*DEFINITIONS, ast.Lambda)):
            remaining.extend(ast.iter_child_nodes(node))


def signature_of(function: FunctionNode) -> Signature:
    """Return what a function takes and returns, as written; raises `SkillRefused`."""
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    try:
        parameters = [
            *(_to_parameter(*each) for each in zip(positional, defaults, strict=True)),
            *(
                _to_parameter(*each, is_keyword_only=True)
                for each in zip(args.kwonlyargs, args.kw_defaults, strict=True)
            ),
        ]
        annotation = ast.unparse(function.returns) if function.returns else ""
    except RecursionError:
        raise SkillRefused("The code is nested too deeply.") from None
    return Signature(tuple(parameters), annotation, isinstance(function, ast.AsyncFunctionDef))


def _to_parameter(
    arg: ast.arg, default: ast.expr | None, *, is_keyword_only: bool = False
) -> Parameter:
    annotation = ast.unparse(arg.annotation) if arg.annotation else ""
    source = None if default is None else ast.unparse(default)
    return Parameter(arg.arg, annotation, source, is_keyword_only)
