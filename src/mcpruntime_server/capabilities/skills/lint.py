"""What the source of a skill must not be, and what it depends on, read off its syntax without running it.

Rule: what is refused here is refused with its line and with what to do instead; code is hostile and may be large.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import StringIO

from ...config.credentials import find_credential
from ...errors import SkillRefused
from .model import ENTRY_FUNCTION, Parameter, Signature

MAX_SOURCE_CHARS = 200_000  # characters
ABSOLUTE = re.compile(
    r"(?:/(?:[^/\s]+/)+[^/\s]*|/[a-z0-9_.-]+|~/\S*|[A-Za-z]:[\\/]\S*|\\\\\w+\\\S*)", re.IGNORECASE
)
PLACES = re.compile(
    r"/(?:home|Users|root|etc|var|opt|usr|tmp|mnt|srv|data|work\w*|private|Volumes|proc|sys|dev)(?:/|$)"
)
PROVIDED = frozenset({"tools", "skills", "knowledge"})  # packages that every sandbox has as names
MODELS = "llm"  # the package of what asks models, whose members code has as names
OTHERS = {  # names that packages are imported by, where those are not their own
    "pandas": ("dateutil", "pytz", "six"),
    "matplotlib": ("mpl_toolkits", "PIL", "dateutil"),
    "scikit_learn": ("sklearn", "scipy", "joblib"),
    "pillow": ("PIL",),
    "beautifulsoup4": ("bs4",),
    "pyyaml": ("yaml",),
    "python_dateutil": ("dateutil",),
    "opencv_python": ("cv2",),
}
ENVIRONMENT = frozenset({"environ", "getenv", "environb"})  # of these modules
SYSTEM = frozenset({"os", "posix", "nt"})
TURNED = re.compile(
    "[\u202a-\u202e\u2066-\u2069]"
)  # what has readers see code in another order than Python does
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class CheckedSource:
    """Source that may be a skill: its tree, its entry, and what it depends on ("git.git_log"; names of skills)."""

    tree: ast.Module
    entry: FunctionNode
    signature: Signature
    tools: frozenset[str] = frozenset()
    skills: frozenset[str] = frozenset()
    packages: frozenset[str] = field(default_factory=frozenset)


def parse_source(source: str) -> ast.Module:
    """Return the tree of `source`; raises `SkillRefused` where Python cannot."""
    if len(source) > MAX_SOURCE_CHARS:
        raise SkillRefused(
            f"The code has {len(source):,} characters.",
            remedy=f"A skill has {MAX_SOURCE_CHARS:,} at most.",
        )
    if turned := TURNED.search(source):
        line = source.count("\n", 0, turned.start()) + 1
        raise SkillRefused(
            f"Line {line} has characters that turn text around: it would be read as other code."
        )
    try:
        return ast.parse(source)
    except SyntaxError as exc:
        raise SkillRefused(f"The code cannot be parsed: line {exc.lineno}: {exc.msg}.") from None
    except (ValueError, RecursionError, MemoryError) as exc:
        raise SkillRefused(f"The code cannot be parsed: {exc}.") from None


def check_source(source: str, packages: Collection[str] | None) -> CheckedSource:
    """Return what there is to know of a skill's source; raises `SkillRefused`.

    `packages` are what is installed in sandboxes, as installers name it; None where that is not known.
    """
    tree = parse_source(source)
    _check_comments(source)
    try:
        return _check(tree, packages)
    except RecursionError:
        raise SkillRefused("The code is nested too deeply.") from None


def _check(tree: ast.Module, packages: Collection[str] | None) -> CheckedSource:
    _check_module_level(
        tree.body,
        {node.name for node in tree.body if isinstance(node, (FunctionNode, ast.ClassDef))},
    )
    _check_texts(tree)
    _check_environment(tree)
    entry = entry_of(tree)
    used = imports_of(tree)
    allowed = sys.stdlib_module_names | PROVIDED | {MODELS} | importable_names(packages or ())
    for package, line in used:
        if packages is not None and package.partition(".")[0] not in allowed:
            raise SkillRefused(
                f"Line {line} imports {package!r:.80}, which sandboxes do not have.",
                remedy="Do without it, or have it added to [sandbox] packages.",
            )
    return CheckedSource(
        tree,
        entry,
        signature_of(entry),
        frozenset(find_tool_names(tree)),
        frozenset(find_skill_names(tree)),
        frozenset(package.partition(".")[0] for package, _ in used)
        - sys.stdlib_module_names
        - PROVIDED
        - {MODELS},
    )


def entry_of(tree: ast.Module) -> FunctionNode:
    """Return the function `run` of a module, also where it is another name of one; raises `SkillRefused`."""
    functions = {node.name: node for node in tree.body if isinstance(node, FunctionNode)}
    names = {ENTRY_FUNCTION: ENTRY_FUNCTION}
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Name)
            and len(node.targets) == 1
        ):
            target = node.targets[0]
            if isinstance(target, ast.Name):
                names[target.id] = node.value.id
    entry = functions.get(names[ENTRY_FUNCTION])
    if entry is None:
        raise SkillRefused(
            "The code has no function `run`, and not a single public function.",
            remedy="Put what it does into `def run(...)`, which returns the result.",
        )
    if not any(
        isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)) and node.value
        for node in own_nodes(entry)
    ):
        raise SkillRefused(
            f"Line {entry.lineno}: {entry.name} returns nothing.",
            remedy="Have it return its result instead of printing.",
        )
    return entry


def check_entry_signature(tree: ast.Module) -> Signature:
    """Return the signature of a module's `run`; raises `SkillRefused` if there is none."""
    return signature_of(entry_of(tree))


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of functions and classes in it."""
    left = list(ast.iter_child_nodes(function))
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, (*DEFINITIONS, ast.Lambda)):
            left.extend(ast.iter_child_nodes(node))


def signature_of(function: FunctionNode) -> Signature:
    """Return what a function takes and returns, as it is written; raises `SkillRefused`."""
    try:
        return _signature_of(function)
    except RecursionError:
        raise SkillRefused("The code is nested too deeply.") from None


def _signature_of(function: FunctionNode) -> Signature:
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    parameters = [
        _parameter(arg, default) for arg, default in zip(positional, defaults, strict=True)
    ]
    parameters += [
        _parameter(arg, default, keyword_only=True)
        for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    returns = ast.unparse(function.returns) if function.returns else ""
    return Signature(tuple(parameters), returns, isinstance(function, ast.AsyncFunctionDef))


def _parameter(arg: ast.arg, default: ast.expr | None, *, keyword_only: bool = False) -> Parameter:
    annotation = ast.unparse(arg.annotation) if arg.annotation else ""
    return Parameter(
        arg.arg, annotation, ast.unparse(default) if default is not None else None, keyword_only
    )


# what it depends on -------------------------------------------------------------------------------


def imports_of(tree: ast.AST) -> list[tuple[str, int]]:
    """Return the modules that code imports anywhere, with their lines."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or ".", node.lineno))
    return found


def find_tool_names(tree: ast.AST) -> set[str]:
    """Return the tools that code names ("git.git_log"), and the servers ("git") of which it does not say which."""
    return _members(tree, "tools", {"search", "list", "map", "shim"})


def find_skill_names(tree: ast.AST) -> set[str]:
    """Return the skills that code names, an exact version as "name@2"."""
    found = set()
    for name in _members(tree, "skills", {"search", "list", "load"}):
        skill, _, member = name.partition(".")
        exact = re.match(r"v([0-9]+)(?:\.|$)", member)
        found.add(f"{skill}@{exact[1]}" if exact else skill)
    return found


def _members(tree: ast.AST, package: str, own: Collection[str]) -> set[str]:
    modules: dict[str, str] = {package: ""}  # what names stand for, below the package
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{package}."):
                    below = alias.name.removeprefix(f"{package}.")
                    found.add(below)
                    if alias.asname:
                        modules[alias.asname] = below
                elif alias.name == package and alias.asname:
                    modules[alias.asname] = ""
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            modules.update(
                {
                    alias.asname or alias.name: alias.name
                    for alias in node.names
                    if alias.name not in own
                }
            )
            found.update(alias.name for alias in node.names if alias.name not in own)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.update(
                f"{(node.module or '').removeprefix(f'{package}.')}.{alias.name}"
                for alias in node.names
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (dotted := dotted_name(node)):
            first, _, rest = dotted.partition(".")
            below = ".".join(part for part in (modules.get(first, "?"), rest) if part)
            if (
                not below.startswith("?")
                and below.partition(".")[0] not in own
                and not below.startswith("Tool")
            ):
                found.add(".".join(below.split(".")[:2]))
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def dotted_name(node: ast.expr) -> str:
    """Return "a.b.c" for the attribute that it is; "" for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def importable_names(packages: Collection[str]) -> frozenset[str]:
    """Return the names under which packages, and what is known to come with them, are imported."""
    names = {
        re.split(r"[^A-Za-z0-9_.-]", package, maxsplit=1)[0].lower().replace("-", "_")
        for package in packages
    }
    return frozenset(names).union(*(OTHERS.get(name, ()) for name in names))


# what is refused ----------------------------------------------------------------------------------


def _check_module_level(body: Sequence[ast.stmt], own: Collection[str]) -> None:
    """Raise `SkillRefused` if importing a module, which defines `own` names, would do anything but define."""
    for node in body:
        if not isinstance(node, DEFINITIONS) and not _is_constant(node):
            raise SkillRefused(
                f"Line {node.lineno} does work when the skill is imported.",
                remedy="A skill's module has imports, functions, classes and constants; move the rest into `run`.",
            )
        if isinstance(node, ast.ClassDef):
            _check_module_level(node.body, own)
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        at_work = [part for part in _run_at_import(node) if not is_harmless(part)]
        at_work += [each for each in decorators if not _is_known_decorator(each, own)]
        if at_work:
            raise SkillRefused(
                f"Line {at_work[0].lineno} does work when the skill is imported.",
                remedy="Move it into `run`.",
            )


def _is_constant(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, or gives names to something."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    named = all(
        isinstance(part, (ast.Name, ast.Tuple, ast.expr_context))
        for each in targets
        for part in ast.walk(each)
    )
    return isinstance(node, (ast.Assign, ast.AnnAssign, ast.Pass)) and named


def _run_at_import(node: ast.stmt) -> list[ast.expr]:
    """Return the expressions of a definition or an assignment that are evaluated at once."""
    if isinstance(node, FunctionNode):
        args = node.args
        every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
        notes = [node.returns, *(arg.annotation for arg in every if arg)]
        return [
            each
            for each in (*node.decorator_list, *args.defaults, *args.kw_defaults, *notes)
            if each
        ]
    if isinstance(node, ast.ClassDef):
        return [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
    parts = (getattr(node, name, None) for name in ("value", "annotation"))
    return [part for part in parts if isinstance(part, ast.expr)]


def _is_known_decorator(decorator: ast.expr, own: Collection[str]) -> bool:
    """Return whether a decorator is one that only defines, as far as it is the module's own or well known."""
    name = dotted_name(decorator.func if isinstance(decorator, ast.Call) else decorator)
    name = (
        name or getattr(decorator, "id", "") or getattr(getattr(decorator, "func", None), "id", "")
    )
    return name in own or name.rpartition(".")[2] in DECORATORS


DECORATORS = frozenset(
    {
        *(
            "dataclass",
            "staticmethod",
            "classmethod",
            "property",
            "setter",
            "getter",
            "deleter",
            "cached_property",
        ),
        *(
            "cache",
            "lru_cache",
            "wraps",
            "total_ordering",
            "singledispatch",
            "contextmanager",
            "asynccontextmanager",
        ),
        *(
            "abstractmethod",
            "overload",
            "override",
            "final",
            "runtime_checkable",
            "unique",
            "vectorize",
        ),
    }
)
MAKERS = frozenset(
    {
        *(
            "re.compile",
            "frozenset",
            "set",
            "dict",
            "list",
            "tuple",
            "range",
            "field",
            "dataclass",
            "TypeVar",
        ),
        *(
            "dataclasses.dataclass",
            "dataclasses.field",
            "lru_cache",
            "functools.lru_cache",
            "functools.wraps",
        ),
        *(
            "auto",
            "enum.auto",
            "timedelta",
            "datetime.timedelta",
            "Decimal",
            "decimal.Decimal",
            "namedtuple",
            "collections.namedtuple",
        ),
    }
)  # what may be called at import


def is_harmless(expression: ast.expr) -> bool:
    """Return whether an expression only makes something, and may stand where it is evaluated at import."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Call) and dotted_name(node.func) not in MAKERS:
            return False
        if isinstance(node, (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)):
            return False
    return True


def _check_comments(source: str) -> None:
    """Raise `SkillRefused` for credentials in comments, which are kept as they are."""
    with suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(StringIO(source).readline):
            if token.type == tokenize.COMMENT and (kind := find_credential(token.string)):
                raise _holds(kind, token.start[0])


def _holds(kind: str, line: int) -> SkillRefused:
    remedy = "A skill holds no credentials: MCP servers have their own, from the settings."
    return SkillRefused(f"Line {line} holds what looks like {kind}.", remedy=remedy)


def _check_texts(tree: ast.AST) -> None:
    """Raise `SkillRefused` for credentials and absolute paths in the texts of code."""
    names = dict(_named_texts(tree))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, (str, bytes)):
            continue
        text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        if kind := find_credential(text, names.get(id(node), "")):
            raise _holds(kind, node.lineno)
        if id(node) not in docstrings and is_absolute(text):
            raise SkillRefused(
                f"Line {node.lineno} holds the absolute path {text!r:.120}, which is not there elsewhere.",
                remedy="Make it a parameter without a default.",
            )


def is_absolute(text: str) -> bool:
    """Return whether a text is an absolute path, and not a route, a pattern or a sentence."""
    if len(text) > 4096 or "\n" in text or not ABSOLUTE.fullmatch(text):
        return False
    return not text.startswith("/") or bool(PLACES.match(text)) or text.count("/") > 2


def _named_texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the nodes of texts that have a name: what is assigned, a keyword, a default, the value of a key."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield id(node.value), _last_name(target)
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    for each, value in zip(target.elts, node.value.elts, strict=False):
                        yield id(value), _last_name(each)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            yield id(node.value), _last_name(node.target)
        elif isinstance(node, ast.keyword) and node.arg:
            yield id(node.value), node.arg
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield id(value), key.value
        elif isinstance(node, FunctionNode):
            positional = [*node.args.posonlyargs, *node.args.args]
            for arg, default in zip(
                reversed(positional), reversed(node.args.defaults), strict=False
            ):
                yield id(default), arg.arg
            for arg, given in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                yield id(given), arg.arg


def _last_name(target: ast.expr) -> str:
    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        return str(target.slice.value)
    return (
        target.id
        if isinstance(target, ast.Name)
        else target.attr
        if isinstance(target, ast.Attribute)
        else ""
    )


def _check_environment(tree: ast.AST) -> None:
    """Raise `SkillRefused` if code reads the environment, which holds what belongs to the machine."""
    modules, names = set(SYSTEM), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {
                alias.asname for alias in node.names if alias.name in SYSTEM and alias.asname
            }
        elif isinstance(node, ast.ImportFrom) and node.module in SYSTEM:
            names |= {
                alias.asname or alias.name for alias in node.names if alias.name in ENVIRONMENT
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module, _, name = dotted_name(node).partition(".")
            reads = module in modules and name in ENVIRONMENT
        else:
            reads = isinstance(node, ast.Name) and node.id in names
        if reads:
            raise SkillRefused(
                f"Line {getattr(node, 'lineno', 0)} reads the environment.",
                remedy="Make what it needs a parameter of `run`.",
            )
