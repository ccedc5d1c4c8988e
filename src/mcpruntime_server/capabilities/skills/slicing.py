"""Select the statements of a session that its result needs.

Only whole top-level statements are selected. What a statement binds and reads is exact: it comes
from `symtable`. What it may change is guessed generously: a method may change its object, a
function of the code's own its arguments, and a change to one object counts for every name that may
refer to it. Tools get copies of their arguments, so a call changes none of the code's objects.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from ...errors import SkillRefused
from ...protocol.library_names import (
    EXPORT_NAME,
    KNOWLEDGE_MODULE,
    MODEL_NAMES,
    SHOW_NAME,
    SKILLS_PACKAGE,
    TOOLS_PACKAGE,
)
from .model import CONTEXT_NAME, MAX_INPUT_BYTES, RecordedStep
from .source import (
    DEFINITIONS,
    FunctionNode,
    dotted_name,
    find_imports,
    is_literal,
    parse_source,
    split_import,
)

# sandboxed code has them without an import
HOST_FUNCTIONS = frozenset((*MODEL_NAMES, EXPORT_NAME))
REMOTE_PACKAGES = frozenset({TOOLS_PACKAGE, KNOWLEDGE_MODULE})  # they run outside the sandbox
PREDEFINED_NAMES = frozenset([*dir(builtins), SHOW_NAME]) | HOST_FUNCTIONS | REMOTE_PACKAGES
PREDEFINED_NAMES |= {SKILLS_PACKAGE, "__name__", "__file__", "__doc__"}
DYNAMIC_BUILTINS = frozenset(
    {"exec", "eval", "globals", "locals", "vars", "__import__", "setattr", "delattr"}
)
# methods that do not change their object
PURE_METHODS = frozenset(
    """
    agg aio astype capitalize casefold copy count decode describe difference encode endswith
    find findall format get group groupby groups head index intersection isdigit isoformat items
    join keys lower lstrip match max mean median merge min most_common nlargest partition
    read_text replace reset_index round rpartition rsplit rstrip search size sort_values split
    splitlines startswith strftime strip sum tail timestamp title to_dict tolist total_seconds
    union upper value_counts values zfill
    """.split()  # noqa: SIM905
)
# library functions that change an argument
ARGUMENT_CHANGERS = frozenset(
    {"heapify", "heappop", "heappush", "heappushpop", "heapreplace", "insort", "shuffle"}
)
# functions and methods that change files or databases
FILE_WRITERS = frozenset(
    """
    commit copyfile copytree dump execute executemany extractall makedirs mkdir move rename
    rmtree savefig savetxt symlink_to to_csv to_excel to_json to_parquet to_sql touch unlink
    write write_bytes write_text writelines writerow writerows
    """.split()  # noqa: SIM905
)
ITEM_KEEPING_BUILTINS = frozenset({"enumerate", "filter", "list", "reversed", "sorted", "zip"})


@dataclass(frozen=True)
class Statement:
    """A top-level statement in the code of step number `step`.

    `changes` are the names of objects that it may change. Each set in `aliases` has names that may
    refer to one object once the statement has run.
    """

    step: int
    node: ast.stmt
    binds: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()
    aliases: tuple[frozenset[str], ...] = ()
    always_rebinds: bool = False  # every name in `binds` refers to a new object afterwards
    is_dynamic: bool = False  # its names cannot be known, as with `exec` or `import *`

    @property
    def lines(self) -> range:
        """The lines of the step's code that it spans, decorators included."""
        decorators: list[ast.expr] = getattr(self.node, "decorator_list", [])
        first = min([self.node.lineno, *(each.lineno for each in decorators)])
        return range(first, (self.node.end_lineno or self.node.lineno) + 1)

    @property
    def is_definition(self) -> bool:
        """Whether it defines a function or a class."""
        return isinstance(self.node, (FunctionNode, ast.ClassDef))


# reading ------------------------------------------------------------------------------------------


def read_statements(steps: Sequence[RecordedStep]) -> list[Statement]:
    """Return the statements that ran to their end, in all steps; raises `SkillRefused`."""
    trees = [parse_executed_code(step) for step in steps]
    names = _CalledNames.find_in(trees)
    return [
        analyse_statement(number, node, names)
        for number, tree in enumerate(trees)
        for node in normalise_statements(tree.body)
    ]


def parse_executed_code(step: RecordedStep) -> ast.Module:
    """Return the tree of what a step ran to its end; `SUBMIT(x)` at the end becomes `x`."""
    if step.succeeded:
        tree = parse_source(step.code)
        match tree.body[-1:]:
            case [ast.Expr(ast.Call(ast.Name("SUBMIT"), [value], [])) as last]:
                tree.body[-1] = ast.copy_location(ast.Expr(value), last)
        return tree
    try:
        body = parse_source(step.code).body
    except SkillRefused:
        return ast.Module([], [])
    executed = [node for node in body if (node.end_lineno or node.lineno) < step.failed_line]
    return ast.Module(executed, [])


def normalise_statements(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Return statements that can be selected one by one: each constant and each import its own.

    `a, b = 1, 2`, `a: int = 1` and `import a, b` are rewritten, and the body of
    `if __name__ == "__main__"` replaces that statement.
    """
    found: list[ast.stmt] = []
    for node in body:
        match node:
            case ast.If(test=test) if ast.unparse(test) == "__name__ == '__main__'":
                found += normalise_statements(node.body)
            case ast.Import() | ast.ImportFrom():
                found += split_import(node)
            case ast.AnnAssign(ast.Name(), value=ast.expr() as value) if is_literal(value):
                found.append(ast.copy_location(ast.Assign([node.target], value), node))
            case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)) if _are_constants(
                targets, values
            ):
                found += [
                    ast.copy_location(ast.Assign([target], value), node)
                    for target, value in zip(targets, values, strict=True)
                ]
            case _:
                found.append(node)
    return found


def _are_constants(targets: Sequence[ast.expr], values: Sequence[ast.expr]) -> bool:
    return (
        len(targets) == len(values)
        and all(isinstance(each, ast.Name) for each in targets)
        and all(isinstance(each, ast.Constant) for each in values)
    )


@dataclass(frozen=True)
class _CalledNames:
    """What names stand for in calls."""

    local: frozenset[str]  # functions and classes that the code defines
    imported: frozenset[str]
    remote: frozenset[str]  # run outside the sandbox, so they change no argument

    @classmethod
    def find_in(cls, trees: Sequence[ast.Module]) -> _CalledNames:
        local = {
            node.name
            for tree in trees
            for node in tree.body
            if isinstance(node, (FunctionNode, ast.ClassDef))
        }
        bound, imported, remote = set(local), set[str](), {*HOST_FUNCTIONS, *REMOTE_PACKAGES}
        for tree in trees:
            bound |= {
                node.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            for name, origin, _ in find_imports(tree):
                root = name.partition(".")[0]
                imported.add(root)
                if origin.partition(".")[0] in REMOTE_PACKAGES:
                    remote.add(root)
                else:
                    remote.discard(root)
        return cls(frozenset(local), frozenset(imported), frozenset(remote - bound))


def analyse_statement(step: int, node: ast.stmt, names: _CalledNames) -> Statement:
    """Return what a statement binds, reads and may change."""
    if any(
        isinstance(part, ast.ImportFrom) and part.names[0].name == "*" for part in ast.walk(node)
    ):
        return Statement(step, node, is_dynamic=True)
    binds, reads = find_names(node)
    changes: frozenset[str] = frozenset()
    aliases: tuple[frozenset[str], ...] = ()
    if not isinstance(node, DEFINITIONS):
        changes, aliases = find_changes(node, names), find_aliases(node)
    is_assignment = isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
    return Statement(
        step,
        node,
        binds,
        reads,
        changes,
        aliases,
        always_rebinds=isinstance(node, DEFINITIONS) or (is_assignment and not binds & reads),
        is_dynamic=bool(DYNAMIC_BUILTINS & reads),
    )


def find_names(node: ast.stmt) -> tuple[frozenset[str], frozenset[str]]:
    """Return the global names that a statement binds, and those that it reads, now or later."""
    try:
        table = symtable.symtable(ast.unparse(node), "<code>", "exec")
    except (SyntaxError, ValueError) as exc:
        raise SkillRefused(f"Line {node.lineno} cannot be part of a skill: {exc}.") from None
    binds: set[str] = set()
    reads = {
        part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Del)
    }
    for symbol in table.get_symbols():
        if symbol.is_assigned() or symbol.is_imported():
            binds.add(symbol.get_name())
        if symbol.is_referenced():
            reads.add(symbol.get_name())
    inner = table.get_children()
    while inner:
        scope = inner.pop()
        inner += scope.get_children()
        for symbol in scope.get_symbols():
            if symbol.is_referenced() and symbol.is_global():
                reads.add(symbol.get_name())
            if symbol.is_assigned() and symbol.is_declared_global():
                binds.add(symbol.get_name())
    return frozenset(binds), frozenset(reads)


def find_changes(node: ast.stmt, names: _CalledNames) -> frozenset[str]:
    """Return the names of the objects that a statement may change."""
    changes: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, (ast.Attribute, ast.Subscript)) and not isinstance(part.ctx, ast.Load):
            changes |= base_names(part)
        elif isinstance(part, ast.AugAssign):
            changes |= base_names(part.target)
        elif isinstance(part, ast.Call):
            changes |= _find_changes_by_call(part, names, is_statement=_is_expression(node, part))
    return frozenset(changes - names.imported)


def _is_expression(node: ast.stmt, part: ast.expr) -> bool:
    return isinstance(node, ast.Expr) and node.value is part


def _find_changes_by_call(
    call: ast.Call, names: _CalledNames, *, is_statement: bool
) -> frozenset[str]:
    name = called_name(call)
    root, last = name.partition(".")[0], name.rpartition(".")[2]
    if root in names.remote:
        return frozenset()
    changes: set[str] = set()
    if isinstance(call.func, ast.Attribute) and last not in PURE_METHODS:
        changes |= base_names(call.func.value)
    is_builtin = name in PREDEFINED_NAMES and name not in names.local
    may_change_arguments = is_statement or root in names.local or last in ARGUMENT_CHANGERS
    if may_change_arguments and not is_builtin:
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            changes |= base_names(argument)
    return frozenset(changes)


def find_aliases(node: ast.stmt) -> tuple[frozenset[str], ...]:
    """Return sets of names that may refer to one object after a statement."""
    found: list[frozenset[str]] = []
    for part in ast.walk(node):
        match part:
            case ast.Assign(targets=targets, value=value):
                found.append(frozenset().union(base_names(value), *map(base_names, targets)))
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                found.append(base_names(target) | base_names(value))
            case ast.NamedExpr(target=target, value=value):
                found.append(base_names(target) | base_names(value))
            case ast.For() | ast.AsyncFor() | ast.comprehension():
                found.append(base_names(part.target) | base_names(part.iter))
    return tuple(found)


def base_names(node: ast.expr) -> frozenset[str]:
    """Return the names whose objects an expression may return, or return a part of."""
    parts: Sequence[ast.expr | None] = ()
    match node:
        case ast.Name(name):
            return frozenset({name})
        case ast.Attribute(value) | ast.Subscript(value) | ast.Starred(value) | ast.Await(value):
            parts = [value]
        case ast.Tuple(items) | ast.List(items) | ast.Set(items):
            parts = items
        case ast.Dict(values=values) | ast.BoolOp(values=values):
            parts = values
        case ast.IfExp(body=body, orelse=orelse):
            parts = [body, orelse]
        case ast.Call(ast.Attribute(value, "get" | "values" | "items")):
            parts = [value]
        case ast.Call(ast.Name(name), arguments) if name in ITEM_KEEPING_BUILTINS:
            parts = arguments
    return frozenset().union(*(base_names(part) for part in parts if part is not None))


def called_name(call: ast.Call) -> str:
    """Return the dotted name of a called function, or only the method's name; "" if none."""
    if name := dotted_name(call.func):
        return name
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def writes_files(node: ast.stmt) -> bool:
    """Return whether a statement seems to exist for what it does to files or databases."""
    if isinstance(node, (*DEFINITIONS, ast.Assign, ast.AnnAssign)):
        return False
    calls = (part for part in ast.walk(node) if isinstance(part, ast.Call))
    names = (called_name(call).split(".") for call in calls)
    return any(parts[-1] in FILE_WRITERS and parts[0] != "sys" for parts in names)


# selecting ----------------------------------------------------------------------------------------


def group_aliases(statements: Iterable[Statement]) -> Mapping[str, int]:
    """Return a number for each name with aliases; names that may refer to one object share it."""
    groups: dict[str, set[str]] = {}
    for names in (names for statement in statements for names in statement.aliases):
        for name in names:
            groups.setdefault(name, {name})
        largest = max((groups[name] for name in names), key=len, default=set[str]())
        for name in names - largest:
            largest |= groups[name]
            for alias in groups[name]:
                groups[alias] = largest
    return {name: id(group) for name, group in groups.items()}


def find_changed_names(statements: Sequence[Statement]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names through which objects may change, and these with all their aliases."""
    groups = group_aliases(statements)
    changed = frozenset(name for each in statements for name in each.changes)
    changed_groups = {groups.get(name, name) for name in changed}
    aliases = {name for name, group in groups.items() if group in changed_groups}
    return changed, changed | aliases


def select_statements(
    statements: Sequence[Statement], steps: Sequence[RecordedStep]
) -> list[Statement]:
    """Return what the last statement needs, and what else changes something in the same steps.

    Raises `SkillRefused` if a name is needed that no statement binds.
    """
    writing_lines = {
        (number, call.line_number)
        for number, step in enumerate(steps)
        for call in step.case.calls
        if call.effect != "read"
    }
    writing = [
        each
        for each in statements
        if writes_files(each.node) or any((each.step, line) in writing_lines for line in each.lines)
    ]
    selected_steps = {len(steps) - 1}
    while True:
        required = {id(each.node) for each in writing if each.step in selected_steps}
        kept = _select_needed(statements, steps, required)
        found = selected_steps | {
            each.step for each in kept if not isinstance(each.node, DEFINITIONS)
        }
        if found == selected_steps:
            return kept
        selected_steps = found


def _select_needed(
    statements: Sequence[Statement], steps: Sequence[RecordedStep], required: AbstractSet[int]
) -> list[Statement]:
    """Return what the last statement, and the nodes with an id in `required`, need."""
    if any(each.is_dynamic for each in statements):
        return list(statements)
    groups = group_aliases(statements)
    read_in_calls: dict[str, frozenset[str]] = {}  # by function or class
    for each in statements:
        if each.is_definition:
            for name in each.binds:
                read_in_calls[name] = read_in_calls.get(name, frozenset()) | each.reads
    kept: list[Statement] = []
    needed: set[str] = set()
    needed_by: dict[str, Statement] = {}
    for each in reversed(statements):
        changed = {groups.get(name, name) for name in each.changes}
        is_needed = (
            not kept
            or id(each.node) in required
            or bool(each.binds & needed)
            or bool(changed and changed & {groups.get(name, name) for name in needed})
        )
        if not is_needed:
            continue
        kept.append(each)
        if each.always_rebinds:
            needed -= each.binds
        for name in _follow_calls(each.reads, read_in_calls):
            needed.add(name)
            needed_by.setdefault(name, each)
    found = PREDEFINED_NAMES | {name for each in kept for name in each.binds}
    if find_input(kept[::-1], steps) is not None:
        found |= {CONTEXT_NAME}
    missing = sorted(needed - found)
    if missing:
        raise _missing_name(missing[0], needed_by[missing[0]], steps)
    return kept[::-1]


def find_input(
    kept: Sequence[Statement], steps: Sequence[RecordedStep]
) -> Mapping[str, Any] | None:
    """Return the input that all `kept` statements read as CONTEXT; None if there is no such."""
    readers = [each for each in kept if CONTEXT_NAME in each.reads]
    if not readers or any(CONTEXT_NAME in each.binds for each in kept):
        return None
    # A definition reads it when it is called, in the last step as far as is known.
    numbers = {len(steps) - 1 if each.is_definition else each.step for each in readers}
    first, *others = (steps[number].input for number in sorted(numbers))
    return first if all(each == first for each in others) else None


def _follow_calls(names: Iterable[str], read_in_calls: Mapping[str, frozenset[str]]) -> set[str]:
    """Return names and what is read when those of them that are functions are called."""
    found: set[str] = set()
    remaining = list(names)
    while remaining:
        name = remaining.pop()
        if name not in found:
            found.add(name)
            remaining += read_in_calls.get(name, ())
    return found


def _missing_name(name: str, statement: Statement, steps: Sequence[RecordedStep]) -> SkillRefused:
    if name.startswith(CONTEXT_NAME):
        return SkillRefused(
            f"Line {statement.lines[0]} needs {name!r}, which cannot become a parameter: only "
            f"{CONTEXT_NAME} can, if it was one UTF-8 text of at most {MAX_INPUT_BYTES:,} bytes.",
            remedy="Save a run with one such input.",
        )
    if any(not step.succeeded and name in step.code for step in steps):
        reason = "only code that failed defines"
    else:
        reason = "no step of this session defines"
    return SkillRefused(
        f"Line {statement.lines[0]} needs {name!r}, which {reason}.",
        remedy="Run all of it in one step, and save that run.",
    )
