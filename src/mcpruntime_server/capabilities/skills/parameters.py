"""Literals that came from the task, found in code that is to become a skill, with names for them as parameters.

Three kinds: what code gives a name to (`city = "Oslo"`), what it calls tools and skills with (named as the tool's
parameter), and what it compares with, cuts at or goes through (`row["status"] == "open"`, `rows[:5]`, `for n in [2]`).

Rule: a text that is a parameter is that wherever it stands. A result must not name what is not asked for any more.
"""

from __future__ import annotations

import ast
import builtins
import json
import keyword
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ...journal.recording import RecordedCall
from .copies import copy_of
from .lint import DEFINITIONS, MODELS, PROVIDED, FunctionNode, dotted_name, is_absolute
from .slicing import ASKING, Statement, touched_by

MAX_PARAMETERS = 8
MAX_TEXT = 120  # characters of a text that came from the task, and is not code in another language
PLAIN = (str, int, float, bool)
MAX_SHOWN = 60  # characters of a value in a docstring
SHARED = 3  # characters of a text that is one parameter wherever it stands
LIMIT, LEAST, MOST = "limit", "min", "max"
ITEMS = "items"  # of a list that is gone through
BUILTIN = frozenset(dir(builtins))
PACKAGES = PROVIDED | {MODELS}
MAP = "tools.map"
PROMPTS, DATA = ("prompt", "prompts"), "data"  # what models are asked, and about what
AFFIXES = {"startswith": "prefix", "endswith": "suffix"}


@dataclass
class Found:
    """A parameter: its `name`, the literal's `value`, where it stands, and the assignment that it stood for."""

    name: str
    value: Any
    nodes: list[ast.expr] = field(default_factory=list)
    assignment: ast.stmt | None = None
    is_copied: bool = (
        False  # code changes it: what changes a default changes it for all that follows
    )

    @property
    def is_required(self) -> bool:
        """Whether it can have no default."""
        return isinstance(self.value, str) and is_absolute(self.value)

    @property
    def shown(self) -> str:
        """The value as a docstring shows it; "" if that is nothing to show."""
        text = repr(self.value)
        is_hidden = (
            self.is_required or len(text) > MAX_SHOWN or any(each in text for each in ("\\", '"""'))
        )
        return "" if is_hidden else text


def literal_value(node: ast.expr) -> Any:
    """Return the plain value of a literal; raises `ValueError` if it is none."""
    try:
        value = ast.literal_eval(node)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as exc:
        raise ValueError("not a literal") from exc
    return value


def literals_in(kept: Sequence[Statement], calls: Sequence[RecordedCall]) -> list[Found]:
    """Return the parameters that code has, the surest first, at most `MAX_PARAMETERS`."""
    body = [each.node for each in kept]
    found = [*_named(body, kept, _schemas(body))]
    names = _taken(kept) | {each.name for each in found}
    places = _Places(_packages(kept), _functions(body), calls)
    for node in body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)) and not any(
            one.assignment is node for one in found
        ):
            places.look(node)
    seen: set[int] = set()
    for name, each in (*places.arguments, *places.compared, *places.paths):
        if id(each) in seen:
            continue
        seen |= {id(part) for part in ast.walk(each)}
        value = literal_value(each)
        if isinstance(each, (ast.List, ast.Tuple)) and (inner := _shared(each, found)):
            for item, one in inner:
                one.nodes.append(item)
            continue
        same = next((one for one in found if _is_same(one, value, name)), None)
        if same is not None:
            same.nodes.append(each)
            continue
        base = _free(name, names)
        if len(found) < MAX_PARAMETERS:
            names.add(base)
            found.append(Found(base, value, [each]))
    _share(body, found)
    _shorten(found, kept)
    return found


def _shorten(found: Sequence[Found], kept: Sequence[Statement]) -> None:
    """Let parameters be called like what is within functions that have nothing to do with them."""
    for one in found:
        nodes, base = {id(node) for node in one.nodes}, one.name.rstrip("_")
        met = [
            each
            for each in kept
            if not isinstance(each.node, DEFINITIONS[:3])
            or any(id(part) in nodes for part in ast.walk(each.node))
        ]
        taken = _taken(met).union(
            *(each.binds | each.reads for each in kept), (other.name for other in found)
        )
        if base not in taken and not keyword.iskeyword(base):
            one.name = base


def _taken(kept: Sequence[Statement]) -> set[str]:
    """Return all names that code has, those within its functions among them."""
    parts = [part for each in kept for part in ast.walk(each.node)]
    taken = {part.id for part in parts if isinstance(part, ast.Name)}
    taken |= {part.arg for part in parts if isinstance(part, ast.arg)}
    return taken.union(*(each.binds for each in kept))


def _free(name: str, taken: Collection[str]) -> str:
    """Return a name like `name` that code can have for something else than what it calls so."""
    while name in taken or keyword.iskeyword(name):
        name += "_"
    return name


def data_in(kept: Sequence[Statement]) -> list[Found]:
    """Return what code works on that would be a constant without: texts of any length, parts of what has a name."""
    body = [each.node for each in kept]
    if found := _named(body, kept, _schemas(body), is_code=lambda _: False):
        return found
    count = Counter(name for each in kept for name in each.binds)
    for node in body[:-1]:
        if (
            isinstance(node, ast.Assign)
            and len(node.targets) == 1
            and isinstance(node.targets[0], ast.Name)
        ):
            literals, name = _literals_of(node.value), node.targets[0].id
            if (
                len(literals) == 1
                and count[name] == 1
                and copy_of(name, value := literal_value(literals[0]))
            ):
                found.append(Found(name, value, literals, is_copied=not isinstance(value, PLAIN)))
    return found[:MAX_PARAMETERS]


def _literals_of(node: ast.expr) -> list[ast.expr]:
    """Return the literals in an expression, the largest of those within each other, without those that all code has."""
    try:
        value = literal_value(node)
    except ValueError:
        return [
            one
            for each in ast.iter_child_nodes(node)
            if isinstance(each, ast.expr)
            for one in _literals_of(each)
        ]
    return [node] if value and value not in (1, -1) else []


def _share(body: Sequence[ast.stmt], found: Sequence[Found]) -> None:
    """Have texts that are parameters be these wherever they stand, but in definitions, which cannot see them."""
    texts = {
        one.value: one for one in found if isinstance(one.value, str) and len(one.value) >= SHARED
    }
    known = {id(node) for one in found for node in one.nodes}
    named = {id(one.assignment) for one in found}
    for node in body:
        if id(node) in named or isinstance(node, (ast.Import, ast.ImportFrom, *DEFINITIONS)):
            continue
        parts = list(ast.walk(node))
        known |= {
            id(part) for each in parts if isinstance(each, ast.pattern) for part in ast.walk(each)
        }
        for each in parts:
            text = each.value if isinstance(each, ast.Constant) and id(each) not in known else None
            if isinstance(text, str) and text in texts:
                texts[text].nodes.append(each)  # type: ignore[arg-type]


def _shared(row: ast.List | ast.Tuple, found: Sequence[Found]) -> list[tuple[ast.expr, Found]]:
    """Return the items of a list that are parameters already, with these."""
    texts = {
        one.value: one for one in found if isinstance(one.value, str) and len(one.value) >= SHARED
    }
    return [
        (each, texts[each.value])
        for each in row.elts
        if isinstance(each, ast.Constant) and each.value in texts
    ]


def _functions(body: Sequence[ast.stmt]) -> Mapping[str, Sequence[str]]:
    """Return the names of the parameters of functions that code defines, and of what makes objects of its classes."""
    found = {node.name: _positional(node) for node in body if isinstance(node, FunctionNode)}
    for node in body:
        if isinstance(node, ast.ClassDef):
            made = [
                each
                for each in node.body
                if isinstance(each, FunctionNode) and each.name == "__init__"
            ]
            fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
            names = [each.id for each in fields if isinstance(each, ast.Name)]
            found[node.name] = _positional(made[0])[1:] if made else names
    return found


def _positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]


def _is_same(one: Found, value: Any, name: str) -> bool:
    if type(one.value) is not type(value) or one.value != value:
        return False
    return one.name.rstrip("_") == name or (isinstance(value, str) and len(value) >= SHARED)


def _schemas(body: Sequence[ast.stmt]) -> frozenset[str]:
    """Return the names of what answers of models have to be like, which is the code's affair."""
    given = (
        each.value
        for node in body
        for each in ast.walk(node)
        if isinstance(each, ast.keyword) and each.arg == "schema"
    )
    return frozenset(each.id for each in given if isinstance(each, ast.Name))


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and (len(value) > MAX_TEXT or "\n" in value)


def _named(
    body: Sequence[ast.stmt],
    kept: Sequence[Statement],
    schemas: Collection[str],
    is_code: Callable[[Any], bool] = _is_code,
) -> list[Found]:
    """Return what code gives a name to, once, and never changes."""
    count = Counter(name for each in kept for name in each.binds)
    touched, shared = touched_by(kept)
    taken = _taken(kept)
    found: list[Found] = []
    for node in body[:-1]:
        if (
            not isinstance(node, ast.Assign)
            or len(node.targets) != 1
            or not isinstance(node.targets[0], ast.Name)
        ):
            continue
        name = node.targets[0].id
        try:
            value = literal_value(node.value)
        except ValueError:
            continue
        is_plain = isinstance(value, PLAIN) or (isinstance(value, (list, dict)) and bool(value))
        is_kept = (
            isinstance(value, PLAIN) or name not in touched
        )  # nothing can change a plain value
        is_kept = is_kept and name not in schemas
        is_copied = name in shared and not isinstance(value, PLAIN)
        is_kept = is_kept and (not is_copied or bool(copy_of(name, value)))
        if is_plain and value != "" and not is_code(value) and count[name] == 1 and is_kept:
            lower = name.lower().strip("_")
            is_own = lower == name or not lower.isidentifier()
            one = Found(name if is_own else _free(lower, taken), value, _uses(name, body), node)
            found.append(
                replace(one, nodes=[node.value], assignment=None, is_copied=True)
                if is_copied
                else one
            )
            taken.add(found[-1].name)
    return found[:MAX_PARAMETERS]


def _uses(name: str, body: Sequence[ast.stmt]) -> list[ast.expr]:
    nodes = (each for node in body for each in ast.walk(node))
    return [
        each
        for each in nodes
        if isinstance(each, ast.Name) and each.id == name and isinstance(each.ctx, ast.Load)
    ]


def _packages(kept: Sequence[Statement]) -> Mapping[str, str]:
    """Return what names stand for in the packages that sandboxes have: {"git_log": "tools.git.git_log"}."""
    found = {"tools": "tools", "skills": "skills", **{name: f"{MODELS}.{name}" for name in ASKING}}
    for each in kept:
        for node in ast.walk(each.node):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").partition(".")[0] in PACKAGES
            ):
                found |= {
                    alias.asname or alias.name: f"{node.module}.{alias.name}"
                    for alias in node.names
                }
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] in PACKAGES and alias.asname:
                        found[alias.asname] = alias.name
    return found


class _Places(ast.NodeVisitor):
    """Where literals stand that may have come from the task."""

    def __init__(
        self,
        packages: Mapping[str, str],
        functions: Mapping[str, Sequence[str]],
        calls: Sequence[RecordedCall],
    ) -> None:
        self.arguments: list[tuple[str, ast.expr]] = []
        self.compared: list[tuple[str, ast.expr]] = []
        self.paths: list[tuple[str, ast.expr]] = []
        self._packages = packages
        self._functions = functions
        self._is_inside = (
            False  # a function or a class, where only what is asked of tools came from the task
        )
        self._calls = calls

    def look(self, node: ast.stmt) -> None:
        """Look at a statement."""
        self._is_inside = isinstance(node, DEFINITIONS)
        self.visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Note what tools and skills are called with."""
        first, _, rest = dotted_name(node.func).partition(".")
        if first in self._packages:
            target = ".".join(part for part in (self._packages[first], rest) if part).removesuffix(
                ".aio"
            )
            if target.startswith(f"{MODELS}."):
                self._note_asked(node)
                self.generic_visit(node)
                return
            for given in node.keywords:
                if given.arg is not None:
                    self._note(given.arg, given.value)
            for argument in node.args:
                self._note(self._parameter(target, argument, node), argument)
            if target == MAP:
                for argument in node.args[1:2]:
                    self._note(ITEMS, argument)
        elif first in self._functions and not rest:
            for given in node.keywords:
                self._note(given.arg or "", given.value)
            for name, argument in zip(self._functions[first], node.args, strict=False):
                self._note(name, argument)
        affix = AFFIXES.get(getattr(node.func, "attr", ""))
        if affix and node.args and not self._is_inside and _is_telling(node.args[0]):
            self.compared.append((affix, node.args[0]))
        self.generic_visit(node)

    def _note_asked(self, node: ast.Call) -> None:
        """Note what a model is asked about, and, where that is nothing but the question, the question."""
        given = dict(zip((PROMPTS[0], DATA), node.args, strict=False))
        given |= {each.arg: each.value for each in node.keywords if each.arg in (*PROMPTS, DATA)}
        about = given.pop(DATA, None)
        if about is not None:
            self._note(DATA, about)
        else:
            for each in given.values():
                is_text = isinstance(each, ast.Constant)
                self._note(PROMPTS[0] if is_text else PROMPTS[1], each)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Note paths, wherever they are."""
        if not self._is_inside and isinstance(node.value, str) and is_absolute(node.value):
            self.paths.append(("path", node))

    def _parameter(self, target: str, node: ast.expr, call: ast.Call) -> str:
        """Return the name of the parameter that a recorded call of `target` had the literal `node` for."""
        try:
            value = literal_value(node)
        except ValueError:
            return ""
        for each in self._calls:
            if each.target == target and (
                each.line_number is None
                or call.lineno <= each.line_number <= (call.end_lineno or each.line_number)
            ):
                for name, given in json.loads(each.args).items():
                    if given == value and type(given) is type(value):
                        return str(name)
        return ""

    def _note(self, name: str, node: ast.expr) -> None:
        try:
            value = literal_value(node)
        except ValueError:
            if isinstance(node, (ast.List, ast.Tuple)):
                for each in node.elts:
                    if isinstance(each, ast.Constant):
                        self._note(name.removesuffix("s") or "value", each)
            return
        clean = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower().strip("_")
        if (
            clean
            and clean.isidentifier()
            and (isinstance(value, PLAIN) or value)
            and value != ""
            and not _is_code(value)
        ):
            self.arguments.append((clean, node))

    def visit_Compare(self, node: ast.Compare) -> None:
        """Note what is compared with something that has a name."""
        if self._is_inside:
            self.generic_visit(node)
            return
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            for literal, other, is_right in ((right, left, True), (left, right, False)):
                name = _name_of(other)
                if name and _is_telling(literal):
                    self.compared.append((_bounded(name, operator, is_right=is_right), literal))
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        """Note what is gone through."""
        self._note_items(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Note what is gone through."""
        self._note_items(node.target, node.iter)
        self.generic_visit(node)

    def _note_items(self, target: ast.expr, items: ast.expr) -> None:
        if isinstance(items, ast.List) and items.elts and not self._is_inside:
            with suppress(ValueError):
                literal_value(items)
                self.compared.append(
                    (plural_of(target.id) if isinstance(target, ast.Name) else ITEMS, items)
                )

    def visit_Slice(self, node: ast.Slice) -> None:
        """Note where a list is cut."""
        is_head = node.lower is None and node.step is None
        if is_head and not self._is_inside and _is_telling(node.upper):
            assert node.upper is not None
            self.compared.append((LIMIT, node.upper))
        self.generic_visit(node)


def plural_of(name: str) -> str:
    """Return what a list is called whose items code calls `name`."""
    clean = name.lower().strip("_")
    if len(clean) < SHARED or not clean.isidentifier():
        return ITEMS
    return (
        f"{clean[:-1]}ies"
        if re.search("[^aeiou]y$", clean)
        else f"{clean}es"
        if clean.endswith("s")
        else f"{clean}s"
    )


def _is_telling(node: ast.expr | None) -> bool:
    """Return whether a literal is more than one of those that all code has."""
    if node is None:
        return False
    try:
        value = literal_value(node)
    except ValueError:
        return False
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False
    return (
        value not in (0, 1, -1, "")
        and not _is_code(value)
        and (not isinstance(value, str) or len(value) > 1)
    )


def _name_of(node: ast.expr) -> str:
    """Return what the thing is called that an expression gets: its key, its attribute or its variable."""
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    ):
        name = node.slice.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        is_get = node.func.attr == "get" and node.args and isinstance(node.args[0], ast.Constant)
        return str(node.args[0].value) if is_get else _name_of(node.func.value)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Attribute):
        name = node.attr
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = (
            node.func.id
            if node.func.id not in BUILTIN
            else "count"
            if node.func.id == "len"
            else ""
        )
    else:
        name = node.id if isinstance(node, ast.Name) else ""
    clean = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return (
        clean
        if clean.isidentifier() and clean not in BUILTIN and not keyword.iskeyword(clean)
        else ""
    )


def _bounded(name: str, operator: ast.cmpop, *, is_right: bool) -> str:
    if isinstance(operator, (ast.Gt, ast.GtE)):
        return f"{LEAST if is_right else MOST}_{name}"
    if isinstance(operator, (ast.Lt, ast.LtE)):
        return f"{MOST if is_right else LEAST}_{name}"
    return name
