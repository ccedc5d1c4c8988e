"""Refuse source that cannot be a skill, and find what it depends on; no code is executed.

Rule: a refusal names the line and what to do instead.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Collection, Iterator
from contextlib import suppress
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
from .signatures import DEFINITIONS, entry_of, parse_source, signature_of

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


def check_source(source: str, packages: Collection[str] | None) -> None:
    """Raise `SkillRefused` for source that cannot be a skill.

    `packages` are what sandboxes have installed, as installers name it; None if that is unknown.
    """
    tree = parse_source(source)
    _check_comments(source)
    try:
        _check_statements(tree)
        _check_texts(tree)
        _check_environment(tree)
        signature_of(entry_of(tree))
        if packages is not None:
            _check_imports(_find_import_lines(tree), packages)
    except RecursionError:
        raise SkillRefused("The code is nested too deeply.") from None


# dependencies -------------------------------------------------------------------------------------


def _find_import_lines(tree: ast.AST) -> dict[str, tuple[str, int]]:
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


def find_tool_names(source: str) -> list[str]:
    """Return the tools that code names: ["git.git_log"]; raises `SkillRefused`."""
    found = _find_members(parse_source(source), TOOLS_PACKAGE, TOOLS_NAMES)
    return sorted(name for name in found if "." in name)  # others name a server only


def find_skill_names(source: str) -> list[str]:
    """Return the skills that code names; an exact version is "name@2"; raises `SkillRefused`."""
    found = set()
    for name in _find_members(parse_source(source), SKILLS_PACKAGE, {"search", "list", "load"}):
        skill, _, member = name.partition(".")
        exact = re.match(r"v([0-9]+)(?:\.|$)", member)
        found.add(f"{skill}@{exact[1]}" if exact else skill)
    return sorted(found)


def _find_members(tree: ast.AST, package: str, own_names: Collection[str]) -> set[str]:
    """Return what code names below a package, without its own names: {"git.git_log", "time"}."""
    imported = [each for each in find_imports(tree) if each[1].startswith(f"{package}.")]
    origins = {**dict(imported), package: package}
    found = {origin for _, origin in imported}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (dotted := dotted_name(node)):
            root, _, rest = dotted.partition(".")
            if root in origins:
                found.add(f"{origins[root]}.{rest}")
    members = {".".join(name.split(".")[1:3]) for name in found}
    members = {name for name in members if name.partition(".")[0] not in own_names}
    return {name for name in members if not any(other.startswith(f"{name}.") for other in members)}


def find_imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield names that code imports, and what they stand for: ("log", "tools.git.git_log")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


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
