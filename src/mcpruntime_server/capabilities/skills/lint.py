"""Refuse what cannot be a skill: code, recorded cases, and skills that use themselves.

Rule: a refusal names the line or the value, and what to do instead. No code is executed.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Collection, Iterator
from contextlib import suppress
from io import StringIO

from ...config.credentials import find_credential, find_known_credential, find_named_credential
from ...errors import SkillRefused
from ...protocol.library_names import MODELS_MODULE
from .model import RecordedCase, Skill, VersionsByName
from .skill_packages import find_packages
from .source import (
    DEFINITIONS,
    PROVIDED_PACKAGES,
    TOO_DEEP,
    defaults_of,
    entry_of,
    find_imports,
    find_references,
    is_absolute_path,
    parse_source,
    signature_of,
)
from .version_files import encode_case

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
SYSTEM_MODULES = frozenset({"os", "posix", "nt"})
ENVIRONMENT = re.compile(r"(?:os|posix|nt)\.(?:environ|getenv|environb)")


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
        if packages is not None and not find_packages(source):  # else the gate sees what is missing
            _check_imports(tree, packages)
    except RecursionError:
        raise SkillRefused(TOO_DEEP) from None


def _check_imports(tree: ast.Module, packages: Collection[str]) -> None:
    """Raise `SkillRefused` for imports that sandboxes do not have."""
    for module, origin, line in find_missing_modules(tree, packages):
        raise SkillRefused(
            f"Line {line} imports {origin!r:.80}, which sandboxes do not have.",
            remedy=f"Save a run of a session that has installed {module}, do without it, or add it "
            "to [sandbox] packages.",
        )


def find_missing_modules(
    tree: ast.Module, packages: Collection[str]
) -> Iterator[tuple[str, str, int]]:
    """Yield the modules that sandboxes with `packages` do not have, how and where they are named.

    Only the first part of a dotted name is looked at.
    """
    names = {re.split(r"[^A-Za-z0-9_.-]", each, maxsplit=1)[0] for each in packages}
    names = {name.lower().replace("-", "_") for name in names}
    names = names.union(*(IMPORTED_AS.get(name, ()) for name in names))
    allowed = sys.stdlib_module_names | PROVIDED_PACKAGES | {MODELS_MODULE} | names
    for _, origin, line in find_imports(tree):
        module = origin.partition(".")[0]
        if module not in allowed:
            yield module, origin, line


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


def _find_text_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the ids of nodes that have a name, with it: by assignment, keyword, default or key."""
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr | None, ast.expr | None]] = []
        match node:
            case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)):
                pairs = [*zip(targets, values, strict=False)]
            case ast.Assign(targets=targets, value=value):
                pairs = [(target, value) for target in targets]
            case ast.AnnAssign(target=target, value=value) | ast.NamedExpr(target, value):
                pairs = [(target, value)]
            case ast.Dict(keys=keys, values=values):
                pairs = [*zip(keys, values, strict=True)]
            case ast.keyword(arg=str(name), value=value):
                yield id(value), name
            case ast.arguments():
                yield from ((id(value), name) for name, value in defaults_of(node).items())
        yield from ((id(value), _last_name(target)) for target, value in pairs)


def _last_name(target: ast.expr | None) -> str:
    match target:
        case ast.Subscript(slice=ast.Constant(value)) | ast.Constant(value):
            return str(value)
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
    return ""


def _check_environment(tree: ast.AST) -> None:
    """Raise `SkillRefused` if code reads environment variables, which belong to the machine."""
    for name, line in find_references(tree, SYSTEM_MODULES):
        if ENVIRONMENT.fullmatch(name):
            raise SkillRefused(
                f"Line {line} reads the environment.",
                remedy="Make what it needs a parameter of `run`.",
            )


def check_case(case: RecordedCase) -> None:
    """Raise `SkillRefused` if a recorded case is too large to be saved, or holds credentials."""
    kinds = [find_known_credential(encode_case(case).decode("utf-8", "replace"))]
    for name, value in case.inputs.items():
        if isinstance(value, str):
            kinds.append(find_named_credential(value, name))
    if kind := next(filter(None, kinds), ""):
        raise SkillRefused(
            f"An input of the run, or an answer to one of its calls, holds what looks like {kind}.",
            remedy="Recorded cases are saved, too: save a run that does not see credentials.",
        )


def check_skill(skill: Skill, skills: VersionsByName, packages: Collection[str] | None) -> None:
    """Raise `SkillRefused` if code or cases cannot be those of a skill beside `skills`."""
    check_source(skill.source, packages)
    check_dependency_cycle(skill, skills)
    for case in skill.cases:
        check_case(case)


def check_dependency_cycle(skill: Skill, skills: VersionsByName) -> None:
    """Raise `SkillRefused` if a skill would use itself, through others."""
    name, remaining, seen = skill.name, list(skill.used_skills), set[str]()
    while remaining:
        other = remaining.pop().partition("@")[0]
        if other == name:
            raise SkillRefused(
                f"{name} would use itself, through {', '.join(sorted({*seen, other}))}.",
                remedy="Give it another name, or do without that skill.",
            )
        if other not in seen:
            seen.add(other)
            remaining += [each for used in skills.get(other, ()) for each in used.used_skills]
