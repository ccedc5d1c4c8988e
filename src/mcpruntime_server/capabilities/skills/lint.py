"""Refuse source that cannot be a skill, and find what it depends on; no code is executed.

Rule: a refusal names the line and what to do instead. Code is hostile and may be large.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO

from ...config.credentials import find_credential
from ...errors import SkillRefused
from ...protocol.library_names import (
    KNOWLEDGE_MODULE,
    MODELS_MODULE,
    SKILLS_PACKAGE,
    TOOLS_NAMES,
    TOOLS_PACKAGE,
)
from .model import ENTRY_FUNCTION, Parameter, Signature

MAX_SOURCE_CHARS = 200_000
# sandboxed code has these packages also as names, and the functions of the last
PROVIDED_PACKAGES = frozenset({TOOLS_PACKAGE, SKILLS_PACKAGE, KNOWLEDGE_MODULE})
MODEL_PACKAGE = MODELS_MODULE
IMPORTED_AS = {  # modules of packages that have another name, or that a package always brings along
    "pandas": ("dateutil", "pytz", "six"),
    "matplotlib": ("mpl_toolkits", "PIL", "dateutil"),
    "scikit_learn": ("sklearn", "scipy", "joblib"),
    "pillow": ("PIL",),
    "beautifulsoup4": ("bs4",),
    "pyyaml": ("yaml",),
    "python_dateutil": ("dateutil",),
    "opencv_python": ("cv2",),
}
ABSOLUTE_PATH = re.compile(
    r"(?:/(?:[^/\s]+/)+[^/\s]*|/[a-z0-9_.-]+|~/\S*|[A-Za-z]:[\\/]\S*|\\\\\w+\\\S*)", re.IGNORECASE
)
SYSTEM_FOLDER = re.compile(
    r"/(?:home|Users|root|etc|var|opt|usr|tmp|mnt|srv|data|work\w*|private|Volumes|proc|sys|dev)(?:/|$)"
)
MAX_PATH_CHARS = 4096
SYSTEM_MODULES = frozenset({"os", "posix", "nt"})
ENVIRONMENT_NAMES = frozenset({"environ", "getenv", "environb"})  # of these modules
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
class CheckedSource:
    """Source that may be a skill: its signature, and what it depends on."""

    signature: Signature
    tools: frozenset[str] = frozenset()  # "git.git_log", or "git" where only the server is known
    skills: frozenset[str] = frozenset()  # "weather_report", or "weather_report@2"
    packages: frozenset[str] = frozenset()


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


def check_source(source: str, packages: Collection[str] | None) -> CheckedSource:
    """Return what is known of a skill's source; raises `SkillRefused`.

    `packages` are what sandboxes have installed, as installers name it; None if that is unknown.
    """
    tree = parse_source(source)
    _check_comments(source)
    try:
        _check_statements(tree)
        _check_texts(tree)
        _check_environment(tree)
        entry = entry_of(tree)
        imported = _find_imports(tree)
        if packages is not None:
            _check_imports(imported, packages)
        return CheckedSource(
            signature_of(entry),
            frozenset(find_tool_names(tree)),
            frozenset(find_skill_names(tree)),
            frozenset(imported) - sys.stdlib_module_names - PROVIDED_PACKAGES - {MODEL_PACKAGE},
        )
    except RecursionError:
        raise SkillRefused("The code is nested too deeply.") from None


# the entry function -------------------------------------------------------------------------------


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


def check_entry_signature(tree: ast.Module) -> Signature:
    """Return the signature of a module's `run`; raises `SkillRefused` if it has none."""
    return signature_of(entry_of(tree))


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


# dependencies -------------------------------------------------------------------------------------


def _find_imports(tree: ast.AST) -> dict[str, tuple[str, int]]:
    """Return the modules that code imports anywhere and the line of each, by top-level package."""
    found: dict[str, tuple[str, int]] = {}
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "."]
        for module in modules:
            found.setdefault(module.partition(".")[0], (module, getattr(node, "lineno", 0)))
    return found


def _check_imports(imported: dict[str, tuple[str, int]], packages: Collection[str]) -> None:
    names = {re.split(r"[^A-Za-z0-9_.-]", each, maxsplit=1)[0] for each in packages}
    names = {name.lower().replace("-", "_") for name in names}
    names = names.union(*(IMPORTED_AS.get(name, ()) for name in names))
    allowed = sys.stdlib_module_names | PROVIDED_PACKAGES | {MODEL_PACKAGE} | names
    for package, (module, line) in imported.items():
        if package not in allowed:
            raise SkillRefused(
                f"Line {line} imports {module!r:.80}, which sandboxes do not have.",
                remedy="Do without it, or add it to [sandbox] packages.",
            )


def find_tool_names(tree: ast.AST) -> set[str]:
    """Return the tools that code names ("git.git_log"), or only their servers ("git")."""
    return _find_members(tree, TOOLS_PACKAGE, TOOLS_NAMES)


def find_skill_names(tree: ast.AST) -> set[str]:
    """Return the skills that code names; an exact version is "name@2"."""
    found = set()
    for name in _find_members(tree, SKILLS_PACKAGE, {"search", "list", "load"}):
        skill, _, member = name.partition(".")
        exact = re.match(r"v([0-9]+)(?:\.|$)", member)
        found.add(f"{skill}@{exact[1]}" if exact else skill)
    return found


def _find_members(tree: ast.AST, package: str, own_names: Collection[str]) -> set[str]:
    """Return what code names below a package, without its own names: {"git.git_log", "time"}."""
    origins: dict[str, str] = {package: package}  # of names: {"log": "tools.git.git_log"}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
        else:
            continue
        for name, origin in names.items():
            if origin.startswith(f"{package}."):
                origins[name] = origin
                found.add(origin)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (dotted := dotted_name(node)):
            root, _, rest = dotted.partition(".")
            if root in origins:
                found.add(f"{origins[root]}.{rest}")
    members = {".".join(name.split(".")[1:3]) for name in found}
    members = {name for name in members if name.partition(".")[0] not in own_names}
    return {name for name in members if not any(other.startswith(f"{name}.") for other in members)}


def dotted_name(node: ast.expr) -> str:
    """Return "a.b.c" for a name or an attribute of one; "" for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


# refusals ---------------------------------------------------------------------------------------


def _check_statements(tree: ast.Module) -> None:
    """Raise `SkillRefused` for statements beside `run` that do more than define something.

    What expressions in definitions do at import is left to the gate.
    """
    bodies = [tree.body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.ClassDef):
                bodies.append(node.body)
            if not _is_definition(node):
                raise SkillRefused(
                    f"Line {node.lineno} does work when the skill is imported.",
                    remedy="Move it into `run`. Beside `run`, there may be imports, functions, "
                    "classes and constants.",
                )


def _is_definition(node: ast.stmt) -> bool:
    """Return whether a statement defines or names something, is a docstring or does nothing."""
    match node:
        case ast.Assign(targets=targets):
            return all(isinstance(each, (ast.Name, ast.Tuple)) for each in targets)
        case ast.AnnAssign(target=ast.Name()) | ast.Expr(ast.Constant()) | ast.Pass():
            return True
    return isinstance(node, DEFINITIONS)


def _check_comments(source: str) -> None:
    """Raise `SkillRefused` for credentials in comments, which are kept."""
    with suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(StringIO(source).readline):
            if token.type == tokenize.COMMENT and (kind := find_credential(token.string)):
                raise _holds_credential(kind, token.start[0])


def _holds_credential(kind: str, line: int) -> SkillRefused:
    return SkillRefused(
        f"Line {line} holds what looks like {kind}.",
        remedy="A skill holds no credentials: MCP servers have their own, from the settings.",
    )


def _check_texts(tree: ast.AST) -> None:
    """Raise `SkillRefused` for credentials and absolute paths in the texts of code."""
    names = dict(_find_text_names(tree))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, (str, bytes)):
            continue
        text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        if kind := find_credential(text, names.get(id(node), "")):
            raise _holds_credential(kind, node.lineno)
        if id(node) not in docstrings and is_absolute_path(text):
            raise SkillRefused(
                f"Line {node.lineno} holds the absolute path {text!r:.120}, "
                "which does not exist elsewhere.",
                remedy="Make it a parameter without a default.",
            )


def is_absolute_path(text: str) -> bool:
    """Return whether a text is an absolute path, and not a route, a pattern or a sentence."""
    if len(text) > MAX_PATH_CHARS or "\n" in text or not ABSOLUTE_PATH.fullmatch(text):
        return False
    return not text.startswith("/") or bool(SYSTEM_FOLDER.match(text)) or text.count("/") > 2


def _find_text_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the ids of nodes that have a name, with it: by assignment, keyword, default or key."""
    for node in ast.walk(tree):
        pairs: list[tuple[ast.AST | None, str]] = []
        match node:
            case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)):
                pairs = [
                    (value, _last_name(target))
                    for target, value in zip(targets, values, strict=False)
                ]
            case ast.Assign(targets=targets, value=value):
                pairs = [(value, _last_name(target)) for target in targets]
            case ast.AnnAssign(target=target, value=value) | ast.NamedExpr(target, value):
                pairs = [(value, _last_name(target))]
            case ast.keyword(arg=str(name), value=value):
                pairs = [(value, name)]
            case ast.Dict(keys=keys, values=values):
                pairs = [
                    (value, str(key.value))
                    for key, value in zip(keys, values, strict=True)
                    if isinstance(key, ast.Constant)
                ]
            case ast.arguments():
                positional = [*node.posonlyargs, *node.args]
                defaults = node.defaults
                with_default = positional[len(positional) - len(defaults) :]
                pairs = [
                    (default, arg.arg)
                    for arg, default in (
                        *zip(with_default, defaults, strict=True),
                        *zip(node.kwonlyargs, node.kw_defaults, strict=True),
                    )
                ]
        yield from ((id(value), name) for value, name in pairs if value is not None)


def _last_name(target: ast.expr) -> str:
    match target:
        case ast.Subscript(slice=ast.Constant(value)):
            return str(value)
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
    return ""


def _check_environment(tree: ast.AST) -> None:
    """Raise `SkillRefused` if code reads environment variables, which belong to the machine."""
    modules, names = set(SYSTEM_MODULES), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {
                alias.asname
                for alias in node.names
                if alias.name in SYSTEM_MODULES and alias.asname
            }
        elif isinstance(node, ast.ImportFrom) and node.module in SYSTEM_MODULES:
            names |= {
                alias.asname or alias.name
                for alias in node.names
                if alias.name in ENVIRONMENT_NAMES
            }
    for node in ast.walk(tree):
        is_read = isinstance(node, ast.Name) and node.id in names
        if isinstance(node, ast.Attribute):
            module, _, name = dotted_name(node).partition(".")
            is_read = module in modules and name in ENVIRONMENT_NAMES
        if is_read:
            raise SkillRefused(
                f"Line {getattr(node, 'lineno', 0)} reads the environment.",
                remedy="Make what it needs a parameter of `run`.",
            )
