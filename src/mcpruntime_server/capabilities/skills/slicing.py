"""Which statements of a session reach its result.

Statements are looked at whole, as they stand at the top of a run. What a statement binds and reads is Python's own
answer (`symtable`); what it may change is guessed, and rather too much than too little: a method may change its object,
a function that code defines its arguments, and whatever two names may share is changed for both.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ...errors import SkillRefused
from ...protocol.library_names import KNOWLEDGE_MODULE, MODEL_NAMES, TOOLS_PACKAGE
from .lint import DEFINITIONS, dotted_name, parse_source
from .model import RecordedStep

ASKING = frozenset(MODEL_NAMES)  # what code asks models with
AFAR = frozenset(
    {TOOLS_PACKAGE, KNOWLEDGE_MODULE}
)  # packages whose functions are executed elsewhere
PACKAGES = AFAR | {"skills"}
GIVEN = (
    frozenset(dir(builtins)) | ASKING | PACKAGES | {"__name__", "__file__", "__doc__"}
)  # need no statement
DYNAMIC = frozenset(
    {"exec", "eval", "globals", "locals", "vars", "__import__", "setattr", "delattr"}
)
CHANGERS = frozenset(
    {"heappush", "heappop", "heapify", "heapreplace", "heappushpop", "shuffle", "insort"}
)
HARMLESS = frozenset(
    {
        *(
            "get",
            "items",
            "keys",
            "values",
            "split",
            "rsplit",
            "splitlines",
            "strip",
            "lstrip",
            "rstrip",
            "lower",
        ),
        *(
            "upper",
            "title",
            "join",
            "startswith",
            "endswith",
            "format",
            "replace",
            "encode",
            "decode",
            "copy",
            "count",
        ),
        *(
            "index",
            "find",
            "read_text",
            "mean",
            "median",
            "sum",
            "min",
            "max",
            "head",
            "tail",
            "groupby",
            "describe",
        ),
        *(
            "to_dict",
            "tolist",
            "isoformat",
            "strftime",
            "timestamp",
            "total_seconds",
            "most_common",
            "group",
            "groups",
        ),
        *(
            "match",
            "search",
            "findall",
            "casefold",
            "capitalize",
            "zfill",
            "union",
            "intersection",
            "difference",
        ),
        *(
            "isdigit",
            "partition",
            "rpartition",
            "astype",
            "merge",
            "sort_values",
            "reset_index",
            "nlargest",
            "aio",
        ),
        *("value_counts", "agg", "round", "size"),
    }
)  # methods that leave their object as it is
WRITERS = frozenset(
    {
        *(
            "write",
            "writelines",
            "write_text",
            "write_bytes",
            "writerow",
            "writerows",
            "dump",
            "mkdir",
            "makedirs",
        ),
        *(
            "touch",
            "rename",
            "symlink_to",
            "unlink",
            "rmtree",
            "copyfile",
            "copytree",
            "move",
            "extractall",
            "commit",
        ),
        *(
            "to_csv",
            "to_json",
            "to_excel",
            "to_parquet",
            "to_sql",
            "savefig",
            "savetxt",
            "execute",
            "executemany",
        ),
    }
)  # what changes files, or a database in one
SAME_ITEMS = frozenset(
    {"enumerate", "zip", "sorted", "list", "reversed", "filter"}
)  # what they return has these


@dataclass(frozen=True)
class Statement:
    """A statement at the top of step `step`'s code, from line `first` to `last`."""

    step: int
    node: ast.stmt
    first: int
    last: int
    binds: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    touches: frozenset[str] = frozenset()  # names of what it may change
    tells: frozenset[str] = (
        frozenset()
    )  # and of what tools are told, which may change what that stands for
    shares: tuple[frozenset[str], ...] = ()  # names that may be of the same thing after it
    is_total: bool = False  # whatever it binds, it binds always, and anew
    is_dynamic: bool = False  # what it does cannot be read off it


@dataclass(frozen=True)
class Names:
    """What code calls by name: functions and classes of its `own`, what it `imported`, and what is executed `afar`."""

    own: frozenset[str]
    imported: frozenset[str]
    afar: frozenset[str]  # and so changes nothing that it is given: tools, providers, models

    @classmethod
    def of(cls, trees: Sequence[ast.Module]) -> Names:
        """Return the names of all that code is."""
        own = {
            node.name for tree in trees for node in tree.body if isinstance(node, DEFINITIONS[:3])
        }
        bound, imported, afar = set(own), set(), {*ASKING, *AFAR}
        for node in (part for tree in trees for part in ast.walk(tree)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.add(node.id)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.asname or alias.name.partition(".")[0] for alias in node.names}
                imported |= names
                package = (
                    (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
                )
                afar = afar | names if package.partition(".")[0] in AFAR else afar - names
        return cls(frozenset(own), frozenset(imported), frozenset(afar - bound))


@dataclass
class Groups:
    """Names that may be of the same thing."""

    parents: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        """Return the name that stands for the group of `name`."""
        while (parent := self.parents.get(name, name)) != name:
            self.parents[name] = self.parents.get(parent, parent)
            name = parent
        return name

    def join(self, names: Iterable[str]) -> None:
        """Make one group of the groups of `names`."""
        roots = [self.find(name) for name in names]
        for root in roots[1:]:
            self.parents[root] = roots[0]


def statements_of(steps: Sequence[RecordedStep]) -> list[Statement]:
    """Return the statements of all steps that were executed; raises `SkillRefused` where code cannot be parsed."""
    trees = [executed(step) for step in steps]
    names = Names.of(trees)
    return [
        statement(number, node, names)
        for number, tree in enumerate(trees)
        for node in main_code(tree.body)
    ]


def executed(step: RecordedStep) -> ast.Module:
    """Return the tree of what a step has executed to its end."""
    if step.succeeded:
        return unsubmitted(parse_source(step.code))
    try:
        tree = parse_source(step.code)
    except SkillRefused:
        return ast.Module([], [])
    return ast.Module(
        [node for node in tree.body if (node.end_lineno or node.lineno) < step.failed_line], []
    )


def unsubmitted(tree: ast.Module) -> ast.Module:
    """Return the tree of code that ends by submitting a value as that of code whose result this is."""
    match tree.body[-1:]:
        case [ast.Expr(ast.Call(ast.Name("SUBMIT"), [value], [])) as last]:
            tree.body[-1] = ast.copy_location(ast.Expr(value), last)
    return tree


def main_code(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Return statements with those under `if __name__ == "__main__"` in its place.

    All that give names to plain values are alike in them: types of these are recorded.
    """
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) in (
            "__name__ == '__main__'",
            "'__main__' == __name__",
        ):
            found += main_code(node.body)
        elif (
            isinstance(node, ast.Assign)
            and len(node.targets) == 1
            and _is_row(node.targets[0], node.value)
        ):
            pairs = zip(node.targets[0].elts, node.value.elts, strict=True)  # type: ignore[attr-defined]
            found += [
                ast.copy_location(ast.Assign([target], value), node) for target, value in pairs
            ]
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and _is_plain(node.value)
        ):
            assert node.value is not None
            found.append(ast.copy_location(ast.Assign([node.target], node.value), node))
        else:
            found.append(node)
    return found


def _is_plain(node: ast.expr | None) -> bool:
    """Return whether an expression is made of constants alone."""
    parts = (
        ast.Constant,
        ast.List,
        ast.Tuple,
        ast.Set,
        ast.Dict,
        ast.UnaryOp,
        ast.unaryop,
        ast.expr_context,
    )
    return node is not None and all(isinstance(part, parts) for part in ast.walk(node))


def _is_row(target: ast.expr, value: ast.expr) -> bool:
    """Return whether an assignment gives each of some names a constant."""
    if (
        not isinstance(target, ast.Tuple)
        or not isinstance(value, ast.Tuple)
        or len(target.elts) != len(value.elts)
    ):
        return False
    return all(isinstance(each, ast.Name) for each in target.elts) and all(
        isinstance(each, ast.Constant) for each in value.elts
    )


def statement(step: int, node: ast.stmt, known: Names) -> Statement:
    """Return what a statement does."""
    last = node.end_lineno or node.lineno
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    if any(
        isinstance(part, ast.ImportFrom) and part.names[0].name == "*" for part in ast.walk(node)
    ):
        return Statement(step, node, first, last, is_dynamic=True)
    binds, reads = names_of(node)
    touches, tells, shares = changes_of(node, known)
    dynamic = bool(DYNAMIC & reads)
    total = isinstance(node, DEFINITIONS) or (
        isinstance(node, (ast.Assign, ast.AnnAssign))
        and not binds & reads
        and getattr(node, "value", None) is not None
    )
    return Statement(
        step,
        node,
        first,
        last,
        binds,
        reads,
        touches - known.imported,
        tells,
        shares,
        total,
        dynamic,
    )


def names_of(node: ast.stmt) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that a statement binds, and those that it reads, now or when what it defines is called."""
    wrapper = ast.parse("async def _(): pass")
    function = wrapper.body[0]
    assert isinstance(function, ast.AsyncFunctionDef)
    function.body = [node]
    try:
        table = symtable.symtable(ast.unparse(wrapper), "<code>", "exec").get_children()[0]
    except SyntaxError as exc:
        raise SkillRefused(f"Line {node.lineno} cannot be part of a skill: {exc.msg}.") from None
    deleted = {
        part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Del)
    }
    binds = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }
    return frozenset(binds | _declared(table)), frozenset(_unresolved(table, is_top=True) | deleted)


def _unresolved(table: symtable.SymbolTable, *, is_top: bool = False) -> set[str]:
    own = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_local() or symbol.is_parameter()
    }
    found = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    below: set[str] = set()
    for child in table.get_children():
        below |= _unresolved(child)
    return found | below if is_top else (found | below) - own


def _declared(table: symtable.SymbolTable) -> set[str]:
    """Return the names that functions in it bind outside themselves."""
    symbols = table.get_symbols()
    found = {
        symbol.get_name()
        for symbol in symbols
        if symbol.is_declared_global() and symbol.is_assigned()
    }
    return found.union(*(_declared(child) for child in table.get_children()))


def changes_of(
    node: ast.stmt, known: Names
) -> tuple[frozenset[str], frozenset[str], tuple[frozenset[str], ...]]:
    """Return the names of what a statement may change, those that it tells, and those of one thing after it."""
    touches: set[str] = set()
    tells: set[str] = set()
    shares: list[frozenset[str]] = []
    if isinstance(node, DEFINITIONS):
        return frozenset(), frozenset(), ()
    for part in ast.walk(node):
        if isinstance(part, (ast.Attribute, ast.Subscript)) and isinstance(
            part.ctx, (ast.Store, ast.Del)
        ):
            touches |= roots(part)
        elif isinstance(part, ast.AugAssign):
            touches |= roots(part.target)
        elif isinstance(part, ast.Call):
            changed = _changed_by(
                part, known, is_statement=isinstance(node, ast.Expr) and node.value is part
            )
            (tells if called_name(part).partition(".")[0] in known.afar else touches).update(
                changed
            )
        if isinstance(part, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and part.value is not None:
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            shares.append(frozenset().union(*map(roots, targets), roots(part.value)))
        elif isinstance(part, (ast.For, ast.AsyncFor, ast.comprehension)):
            shares.append(frozenset(roots(part.target) | roots(part.iter)))
    return frozenset(touches), frozenset(tells), tuple(shares)


def _changed_by(call: ast.Call, known: Names, *, is_statement: bool) -> set[str]:
    """Return the names of what a call may change."""
    changed: set[str] = set()
    function = call.func
    name = called_name(call)
    first, last = name.partition(".")[0], name.rpartition(".")[2]
    if isinstance(function, ast.Attribute) and function.attr not in HARMLESS:
        changed |= roots(function.value) - known.imported
    is_builtin = isinstance(function, ast.Name) and name in GIVEN and name not in known.own
    if not is_builtin and (is_statement or first in known.own or last in CHANGERS):
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            changed |= roots(argument)
    return changed


def writes_files(node: ast.stmt) -> bool:
    """Return whether a statement seems to be there for what it does to files, which others may read."""
    if isinstance(node, (*DEFINITIONS, ast.Assign, ast.AnnAssign)):
        return False
    names = (called_name(part).split(".") for part in ast.walk(node) if isinstance(part, ast.Call))
    return any(name[-1] in WRITERS and name[0] != "sys" for name in names)


def called_name(call: ast.Call) -> str:
    """Return the name of what is called, with dots, or at least of the method; "" if it has none."""
    return dotted_name(call.func) or (
        call.func.attr if isinstance(call.func, ast.Attribute) else ""
    )


def roots(node: ast.expr) -> set[str]:
    """Return the names through which an expression, without what it calls, gets what it is."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred, ast.Await)):
        return roots(node.value)
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return set().union(*map(roots, node.elts))
    if isinstance(node, ast.Dict):
        return set().union(*map(roots, node.values))
    if isinstance(node, ast.IfExp):
        return roots(node.body) | roots(node.orelse)
    if isinstance(node, ast.BoolOp):
        return set().union(*map(roots, node.values))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return roots(node.func.value) if node.func.attr in ("get", "values", "items") else set()
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in SAME_ITEMS
    ):
        return set().union(*map(roots, node.args))
    return set()


def groups_of(statements: Sequence[Statement]) -> Groups:
    """Return which names may be of the same thing when all statements are executed."""
    groups = Groups()
    for each in statements:
        for shared in each.shares:
            groups.join(shared)
    return groups


def touched_by(statements: Sequence[Statement]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of what statements may change, and all names that may be of the same things."""
    groups = groups_of(statements)
    touched = frozenset(name for each in statements for name in each.touches)
    changed = {groups.find(name) for name in touched}
    names = {name for each in statements for name in each.binds}
    return touched, frozenset(name for name in names if groups.find(name) in changed)


def slice_of(
    statements: Sequence[Statement], steps: Sequence[RecordedStep], forced: set[int]
) -> list[Statement]:
    """Return the statements that the last one needs, itself included, and those whose numbers are `forced`.

    Raises `SkillRefused` if it needs a name that no statement binds.
    """
    if any(each.is_dynamic for each in statements):
        return list(statements)
    groups = groups_of(statements)
    free: dict[str, frozenset[str]] = {}  # what functions and classes read when they are called
    for each in statements:
        if isinstance(each.node, DEFINITIONS[:3]):
            free[each.node.name] = free.get(each.node.name, frozenset()) | each.reads
    kept: list[Statement] = []
    needed: set[str] = set()
    reader: dict[str, Statement] = {}
    for number in range(len(statements) - 1, -1, -1):
        each = statements[number]
        touched = {groups.find(name) for name in each.touches | each.tells}
        if not (
            number == len(statements) - 1
            or number in forced
            or each.binds & needed
            or touched & {groups.find(name) for name in needed}
        ):
            continue
        kept.append(each)
        if each.is_total:
            needed -= each.binds
        for name in reach(each.reads, free):
            needed.add(name)
            reader.setdefault(name, each)
    missing = sorted(needed - GIVEN - {name for each in kept for name in each.binds})
    if missing:
        line = reader[missing[0]].first
        failed = any(not step.succeeded and missing[0] in step.code for step in steps)
        why = (
            "only code that failed has defined" if failed else "no step of this session has defined"
        )
        raise SkillRefused(
            f"Line {line} needs {missing[0]!r}, which {why}.",
            remedy="Run it once more as a whole, and save that run.",
        )
    return kept[::-1]


def reach(names: Iterable[str], free: dict[str, frozenset[str]]) -> set[str]:
    """Return `names` and all that is read when those of them that are functions are called."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += free.get(name, ())
    return found
