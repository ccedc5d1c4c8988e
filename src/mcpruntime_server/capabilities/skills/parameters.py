"""Find the literals in code that came from the task, and make them parameters.

Three kinds of literals become parameters: those that code gives a name to (`city = "Oslo"`),
arguments of tools, skills, models and the code's own functions (named after their parameters), and
those that code compares with, cuts at or iterates over (`row["status"] == "open"`, `rows[:5]`,
`for n in [2]`).

Rule: a text that is a parameter is that parameter everywhere, or a result would name what the
caller did not ask for.
"""

from __future__ import annotations

import ast
import builtins
import json
import keyword
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...journal.recording import RecordedCall
from ...protocol.library_names import MODELS_MODULE, SHOW_NAME
from .model import CONTEXT_NAME
from .slicing import HOST_FUNCTIONS, Statement, find_changed_names
from .source import (
    DEFINITIONS,
    PROVIDED_PACKAGES,
    SCALARS,
    FunctionNode,
    ImportNode,
    annotation_of,
    dotted_name,
    find_imports,
    is_absolute_path,
    is_literal,
    literal_value,
)

MAX_PARAMETERS = 8
MAX_TEXT_CHARS = 120  # a longer text is code in another language, or data of the program
MAX_EXAMPLE_CHARS = 60  # of a value in a docstring
MIN_SHARED_CHARS = 3  # a shorter text may be equal by accident
COMMON_LITERALS = (0, 1, -1, "")  # these are in all code
BUILTIN_NAMES = frozenset([*dir(builtins), SHOW_NAME])
ITEMS, LIMIT = "items", "limit"
AFFIX_NAMES = {"startswith": "prefix", "endswith": "suffix"}


@dataclass
class FoundParameter:
    """A parameter with the literals that it replaces; `value` is what they are.

    It `needs_copy` if the code changes the object. A changed default would stay changed in the
    calls that follow.
    """

    name: str
    value: Any
    nodes: list[ast.expr] = field(default_factory=list)
    needs_copy: bool = False
    variable: str = ""  # that the code assigns it to
    is_input: bool = False  # it stands for CONTEXT, not for literals

    @property
    def is_required(self) -> bool:
        """Whether it has no default: an absolute path, or an input, does not exist elsewhere."""
        return self.is_input or (isinstance(self.value, str) and is_absolute_path(self.value))

    @property
    def example(self) -> str:
        """The value as a docstring shows it; "" if it cannot."""
        text = repr(self.value)
        is_unsafe = "\\" in text or '"""' in text
        return "" if self.is_required or is_unsafe or len(text) > MAX_EXAMPLE_CHARS else text

    @property
    def expression(self) -> ast.expr:
        """What replaces the literals."""
        name = ast.Name(self.name, ast.Load())
        return ast.Call(ast.Name("deepcopy", ast.Load()), [name], []) if self.needs_copy else name

    @property
    def declaration(self) -> str:
        """The parameter with its type and default, as a function's header has it."""
        if self.is_input:
            return self.name
        default = "" if self.is_required else f" = {self.value!r}"
        return f"{self.name}: {annotation_of(self.value)}{default}"


def find_parameters(
    kept: Sequence[Statement],
    calls: Sequence[RecordedCall],
    fixed: Collection[str],
    context: Mapping[str, Any] | None = None,
) -> list[FoundParameter]:
    """Return at most `MAX_PARAMETERS` parameters of the code, the likeliest first.

    If the code reads CONTEXT, which was `context`, that is one more.

    Those named in `fixed` stay literals. Code that calls nothing would be a constant without
    parameters, so it may have long texts, and parts of what it assigns, as parameters.
    """
    collected = _collect_parameters(kept, calls)
    if context is not None:
        readers = (each.node for each in kept if CONTEXT_NAME in each.reads)
        names = (part for node in readers for part in ast.walk(node) if isinstance(part, ast.Name))
        reads: list[ast.expr] = [name for name in names if name.id == CONTEXT_NAME]
        collected.insert(0, FoundParameter("context", context, reads, is_input=True))
    found = _name_parameters(collected, kept, fixed)
    for is_part in (False, True):
        if not found and not calls:
            data = _find_assigned(kept, may_be_long=True, is_part=is_part)
            found = _name_parameters(data, kept, fixed)
    return found


def _collect_parameters(
    kept: Sequence[Statement], calls: Sequence[RecordedCall]
) -> list[FoundParameter]:
    found = _find_assigned(kept)
    seen = {id(part) for each in found for node in each.nodes for part in ast.walk(node)}
    finder = _LiteralFinder(kept, calls)
    for each in kept:
        if not isinstance(each.node, ImportNode):
            finder.search(each)
    for name, node in (*finder.arguments, *finder.operands, *finder.paths):
        if id(node) in seen:
            continue
        seen |= {id(part) for part in ast.walk(node)}
        _add_literal(found, name, node)
    _share_texts(found, kept, seen)
    return found


def _add_literal(found: list[FoundParameter], name: str, node: ast.expr) -> None:
    """Add a literal to the parameter with its value, or with that of an item, or as a new one."""
    value = literal_value(node)
    texts = _shared_texts(found)
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [
            each for each in node.elts if isinstance(each, ast.Constant) and each.value in texts
        ]
        for item in items:
            texts[item.value].nodes.append(item)
        if items:
            return
    for each in found:
        is_equal = type(each.value) is type(value) and each.value == value
        is_same_text = isinstance(value, str) and value in texts
        if is_equal and (is_same_text or each.name == name):
            each.nodes.append(node)
            return
    if len(found) < MAX_PARAMETERS:
        found.append(FoundParameter(name, value, [node]))


def _shared_texts(found: Iterable[FoundParameter]) -> dict[Any, FoundParameter]:
    return {
        each.value: each
        for each in found
        if isinstance(each.value, str) and len(each.value) >= MIN_SHARED_CHARS
    }


def _share_texts(
    found: Sequence[FoundParameter], kept: Sequence[Statement], seen: Collection[int]
) -> None:
    """Replace all other occurrences of parameters' texts, except in definitions and patterns."""
    texts = _shared_texts(found)
    for each in kept:
        if isinstance(each.node, DEFINITIONS):
            continue
        parts = list(ast.walk(each.node))
        patterns = [part for part in parts if isinstance(part, ast.pattern)]
        occupied = {id(part) for pattern in patterns for part in ast.walk(pattern)}.union(seen)
        for part in parts:
            match part:
                case ast.Constant(str(text)) if text in texts and id(part) not in occupied:
                    texts[text].nodes.append(part)


# names --------------------------------------------------------------------------------------------


def _name_parameters(
    found: Sequence[FoundParameter], kept: Sequence[Statement], fixed: Collection[str]
) -> list[FoundParameter]:
    """Give each parameter a unique name in its scope, and return those that are not `fixed`."""
    names: set[str] = set()
    for each in found:
        is_own_variable = each.name == each.variable
        taken = names if is_own_variable else names | _names_in_scope(each.nodes, kept)
        while each.name in taken or keyword.iskeyword(each.name):
            each.name += "_"
        names.add(each.name)
    return [each for each in found if each.is_input or each.name not in fixed]


def _names_in_scope(nodes: Iterable[ast.expr], kept: Sequence[Statement]) -> set[str]:
    """Return the names that a parameter cannot have which replaces `nodes`.

    Local variables of a function are out of its way, unless the function holds one of the nodes.
    """
    ids = set(map(id, nodes))
    taken: set[str] = set()
    for each in kept:
        taken |= each.binds | each.reads
        parts = list(ast.walk(each.node))
        if not each.is_definition or any(id(part) in ids for part in parts):
            taken |= {part.id for part in parts if isinstance(part, ast.Name)}
            taken |= {part.arg for part in parts if isinstance(part, ast.arg)}
    return taken


def _clean_name(text: str) -> str:
    """Return a text as an identifier in snake case; "" if it cannot be one."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", text)
    name = words.lower().strip("_")
    return name if name.isidentifier() else ""


def plural_of(name: str) -> str:
    """Return what to call a list whose items code calls `name`."""
    name = _clean_name(name)
    if len(name) < 3:
        return ITEMS
    if re.search("[^aeiou]y$", name):
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith("s") else f"{name}s"


# literals with a name -----------------------------------------------------------------------------


def _find_assigned(
    kept: Sequence[Statement], *, may_be_long: bool = False, is_part: bool = False
) -> list[FoundParameter]:
    """Return the literals that code assigns to a variable once.

    With `is_part`, they are the only literal within what is assigned.
    """
    bindings = Counter(name for each in kept for name in each.binds)
    changed, changed_aliases = find_changed_names(kept)
    schemas = _schema_names(kept)
    found: list[FoundParameter] = []
    for each in kept[:-1]:
        match each.node:
            case ast.Assign([ast.Name(variable)], value=node) if bindings[variable] == 1:
                literals = _inner_literals(node) if is_part else [node]
            case _:
                continue
        if len(literals) != 1 or not is_literal(literals[0]) or variable in schemas:
            continue
        value = literal_value(literals[0])
        is_scalar = isinstance(value, SCALARS)
        needs_copy = not is_scalar and variable in changed_aliases
        if not is_part and not is_scalar and variable in changed:
            continue  # such as a list that collects results
        if value == "" or not (is_scalar or (isinstance(value, (list, dict)) and value)):
            continue
        if (needs_copy and "deepcopy" in bindings) or (_is_long(value) and not may_be_long):
            continue
        name = _clean_name(variable) or variable
        name = variable if variable == variable.lower() else name
        found.append(FoundParameter(name, value, literals, needs_copy, variable))
    return found[:MAX_PARAMETERS]


def _schema_names(kept: Sequence[Statement]) -> frozenset[str]:
    """Return the variables that describe what models answer; these belong to the code."""
    keywords = (
        part.value
        for each in kept
        for part in ast.walk(each.node)
        if isinstance(part, ast.keyword) and part.arg == "schema"
    )
    return frozenset(each.id for each in keywords if isinstance(each, ast.Name))


def _inner_literals(node: ast.expr) -> list[ast.expr]:
    """Return the largest literals within an expression, except those that all code has."""
    if is_literal(node):
        value = literal_value(node)
        return [node] if value and value not in COMMON_LITERALS else []
    children = (each for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr))
    return [literal for child in children for literal in _inner_literals(child)]


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and (len(value) > MAX_TEXT_CHARS or "\n" in value)


# literals without a name --------------------------------------------------------------------------


class _LiteralFinder(ast.NodeVisitor):
    """Collects the literals that may have come from the task, each with a name for it."""

    def __init__(self, kept: Sequence[Statement], calls: Sequence[RecordedCall]) -> None:
        self.arguments: list[tuple[str, ast.expr]] = []
        self.operands: list[tuple[str, ast.expr]] = []
        self.paths: list[tuple[str, ast.expr]] = []
        self._origins = _find_origins(kept)
        self._functions = _find_parameter_names(kept)
        self._calls = calls
        self._is_in_definition = False  # where only what tools are asked came from the task

    def search(self, statement: Statement) -> None:
        """Collect the literals of a statement."""
        self._is_in_definition = statement.is_definition
        self.visit(statement.node)

    def visit_Call(self, node: ast.Call) -> None:
        name = dotted_name(node.func)
        root, _, rest = name.partition(".")
        if root in self._origins:
            origin = ".".join(filter(None, (self._origins[root], rest))).removesuffix(".aio")
            self._add_remote_arguments(origin, node)
        elif name in self._functions:
            for each in node.keywords:
                self._add_argument(each.arg or "", each.value)
            for parameter, argument in zip(self._functions[name], node.args, strict=False):
                self._add_argument(parameter, argument)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in AFFIX_NAMES:
            for argument in node.args[:1]:
                self._add_operand(AFFIX_NAMES[node.func.attr], argument)
        self.generic_visit(node)

    def _add_remote_arguments(self, origin: str, node: ast.Call) -> None:
        """Add the arguments of a tool, a skill, or a function that asks a model."""
        if origin.startswith(f"{MODELS_MODULE}."):
            given = dict(zip(("prompt", "data"), node.args, strict=False))
            given |= {each.arg: each.value for each in node.keywords if each.arg}
            for name in ("data",) if "data" in given else ("prompt", "prompts"):
                if name in given:
                    self._add_argument(name, given[name])
            return
        for each in node.keywords:
            self._add_argument(each.arg or "", each.value)
        for position, argument in enumerate(node.args):
            is_items = origin == "tools.map" and position == 1
            self._add_argument(
                ITEMS if is_items else self._recorded_name(origin, argument, node), argument
            )

    def _recorded_name(self, target: str, argument: ast.expr, node: ast.Call) -> str:
        """Return the parameter that has the value of a positional argument in a recorded call."""
        if not is_literal(argument):
            return ""
        value = literal_value(argument)
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for call in self._calls:
            if call.target == target and (call.line_number is None or call.line_number in lines):
                for name, given in json.loads(call.args).items():
                    if given == value and type(given) is type(value):
                        return str(name)
        return ""

    def _add_argument(self, name: str, node: ast.expr) -> None:
        if not is_literal(node):
            if isinstance(node, (ast.List, ast.Tuple)):
                for each in node.elts:
                    if isinstance(each, ast.Constant):
                        self._add_argument(name.removesuffix("s") or "value", each)
            return
        value = literal_value(node)
        is_empty = not isinstance(value, (int, float)) and not value
        if _clean_name(name) and not is_empty and not _is_long(value):
            self.arguments.append((_clean_name(name), node))

    def visit_Constant(self, node: ast.Constant) -> None:
        if (
            isinstance(node.value, str)
            and is_absolute_path(node.value)
            and not self._is_in_definition
        ):
            self.paths.append(("path", node))

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            if name := _operand_name(left):
                self._add_operand(_bound_name(name, operator, is_upper=(ast.Lt, ast.LtE)), right)
            if name := _operand_name(right):
                self._add_operand(_bound_name(name, operator, is_upper=(ast.Gt, ast.GtE)), left)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._visit_loop(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._visit_loop(node)

    def _visit_loop(self, node: ast.For | ast.comprehension) -> None:
        has_items = isinstance(node.iter, ast.List) and node.iter.elts and is_literal(node.iter)
        if has_items and not self._is_in_definition:
            name = plural_of(node.target.id) if isinstance(node.target, ast.Name) else ITEMS
            self.operands.append((name, node.iter))
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        if node.upper is not None and node.lower is None and node.step is None:
            self._add_operand(LIMIT, node.upper)
        self.generic_visit(node)

    def _add_operand(self, name: str, node: ast.expr) -> None:
        """Add a literal that says more than those which all code has."""
        if self._is_in_definition or not is_literal(node):
            return
        value = literal_value(node)
        is_scalar = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        is_char = isinstance(value, str) and len(value) < 2
        if is_scalar and not is_char and value not in COMMON_LITERALS and not _is_long(value):
            self.operands.append((name, node))


def _find_origins(kept: Sequence[Statement]) -> Mapping[str, str]:
    """Return what names stand for in packages of the sandbox: {"log": "tools.git.log"}."""
    packages = PROVIDED_PACKAGES | {MODELS_MODULE}
    imported = {
        name: origin
        for each in kept
        for name, origin, _ in find_imports(each.node)
        if origin.partition(".")[0] in packages and name != origin
    }
    own_names = {
        "tools": "tools",
        "skills": "skills",
        **{name: f"{MODELS_MODULE}.{name}" for name in HOST_FUNCTIONS},
    }
    return own_names | imported


def _find_parameter_names(kept: Sequence[Statement]) -> Mapping[str, Sequence[str]]:
    """Return the names of the positional parameters of functions and classes that code defines."""
    found: dict[str, Sequence[str]] = {}
    for node in (each.node for each in kept):
        if isinstance(node, FunctionNode):
            found[node.name] = _positional_names(node)
        elif isinstance(node, ast.ClassDef):
            fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
            found[node.name] = [each.id for each in fields if isinstance(each, ast.Name)]
            for method in node.body:
                if isinstance(method, FunctionNode) and method.name == "__init__":
                    found[node.name] = _positional_names(method)[1:]
    return found


def _positional_names(function: FunctionNode) -> list[str]:
    return [each.arg for each in (*function.args.posonlyargs, *function.args.args)]


def _operand_name(node: ast.expr) -> str:
    """Return what to call an expression: its key, attribute, variable or function; "" if none."""
    match node:
        case ast.Subscript(slice=ast.Constant(str(name))):
            pass
        case ast.Call(ast.Attribute(attr="get"), [ast.Constant(str(name)), *_]):
            pass
        case ast.Call(ast.Attribute(value)):
            return _operand_name(value)
        case ast.Call(ast.Name("len")):
            name = "count"
        case ast.Attribute(attr=name) | ast.Call(ast.Name(name)) | ast.Name(name):
            pass
        case _:
            return ""
    name = _clean_name(name)
    return "" if name in BUILTIN_NAMES or keyword.iskeyword(name) else name


def _bound_name(name: str, operator: ast.cmpop, *, is_upper: tuple[type[ast.cmpop], ...]) -> str:
    """Return what to call the bound that a value is compared with."""
    if isinstance(operator, is_upper):
        return f"max_{name}"
    return f"min_{name}" if isinstance(operator, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) else name


# replacing ----------------------------------------------------------------------------------------


class _Replacer(ast.NodeTransformer):
    def __init__(self, found: Sequence[FoundParameter]) -> None:
        self._parameters = {id(node): each for each in found for node in each.nodes}

    def visit(self, node: ast.AST) -> ast.AST:
        parameter = self._parameters.get(id(node))
        if parameter is not None:
            return parameter.expression
        if isinstance(node, ast.JoinedStr):
            for place, part in enumerate(node.values):
                if inner := self._parameters.get(id(part)):
                    node.values[place] = ast.FormattedValue(inner.expression, -1)
        return self.generic_visit(node)


def replace_literals(
    nodes: Iterable[ast.stmt], found: Sequence[FoundParameter]
) -> Iterator[ast.stmt]:
    """Yield statements with parameters for their literals, except those that then do nothing.

    The trees are changed in place.
    """
    replacer = _Replacer(found)
    for node in nodes:
        replacer.visit(node)
        match node:
            case ast.Assign([ast.Name(target)], ast.Name(source)) if target == source:
                continue
        yield node
