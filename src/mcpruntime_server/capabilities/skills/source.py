"""The source of a skill's module: its names, its function `run`, its docstrings, and its text.

Rule 1: no code is executed. Source is hostile and may be large.
Rule 2: docstrings and front matter may come from anybody. No text may end the line, docstring or
front matter that it stands in.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from inspect import Parameter, Signature
from itertools import islice
from typing import Any, TypeVar

from ...errors import SkillRefused
from ...protocol.library_names import (
    KNOWLEDGE_MODULE,
    SKILLS_PACKAGE,
    TOOLS_NAMES,
    TOOLS_PACKAGE,
)
from ..python_parsing import parse_module
from ..source_text import SourceText

Tree = TypeVar("Tree", bound=ast.AST)

ENTRY_FUNCTION = "run"  # of a skill's module
# sandboxed code has these packages also as names
PROVIDED_PACKAGES = frozenset({TOOLS_PACKAGE, SKILLS_PACKAGE, KNOWLEDGE_MODULE})
SKILLS_NAMES = frozenset({"search", "list", "load"})  # of the package itself
MAX_SOURCE_CHARS = 200_000
MAX_KNOWN_SHAPES = 2_000  # each save compares with every source in the store
MAX_SOURCE_WORDS = 15_000  # and signs: a parser, which lets nobody work, needs 2 us for each
# characters that reorder code for readers, but not for Python
TEXT_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
ABSOLUTE_PATH = re.compile(
    r"(?:/(?:[^/\s]+/)+[^/\s]*|/[a-z0-9_.-]+|~/\S*|[A-Za-z]:[\\/]\S*|\\\\\w+\\\S*)", re.IGNORECASE
)
SYSTEM_FOLDER = re.compile(
    r"/(?:home|Users|root|etc|var|opt|usr|tmp|mnt|srv|data|work\w*|private|Volumes|proc|sys|dev)"
    r"(?:/|$)"
)
WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")
MAX_PATH_CHARS = 4096
SCALARS = (str, int, float, bool)
MAX_TYPE_DEPTH = 3
MAX_TYPED_ITEMS = 100  # of one container
INDENT = " " * 4
PARAMETER_LINE = re.compile(
    r" *(?:[-*] +)?`?([A-Za-z_][A-Za-z0-9_]{0,80})`?(?: *\([^()]{0,80}\))? *: +(\S.{0,400})"
)
MAX_PARAMETER_CHARS = 160  # of what is said about a parameter
MAX_DOCSTRING_LINES = 500
MAX_LINE_CHARS = 600
TOO_DEEP = "The code is nested too deeply."

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
ImportNode = ast.Import | ast.ImportFrom
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_known_shapes: dict[str, str] = {}  # by the digest of a source, last used last


def parse_source(source: str) -> ast.Module:
    """Return the tree of `source`; raises `SkillRefused` where Python cannot parse it."""
    if len(source) > MAX_SOURCE_CHARS:
        raise SkillRefused(
            f"The code has {len(source):,} characters.",
            remedy=f"A skill may have {MAX_SOURCE_CHARS:,}.",
        )
    if count_words(source, MAX_SOURCE_WORDS + 1) > MAX_SOURCE_WORDS:
        raise SkillRefused(
            f"The code has more than {MAX_SOURCE_WORDS:,} words and signs.",
            remedy="Keep data in files, and make skills of the parts.",
        )
    if match := TEXT_DIRECTION.search(source):
        line = source.count("\n", 0, match.start()) + 1
        raise SkillRefused(f"Line {line} has characters that change the direction of text.")
    try:
        return parse_module(source)
    except SyntaxError as exc:
        message = f"The code cannot be parsed: line {exc.lineno}: {exc.msg}."
        raise SkillRefused(message) from None
    except (ValueError, RecursionError, MemoryError) as exc:
        raise SkillRefused(f"The code cannot be parsed: {exc}.") from None


# the function `run` -------------------------------------------------------------------------------


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
    if not any(isinstance(node, returns) and node.value for node in walk_own_nodes(entry)):
        raise SkillRefused(
            f"Line {entry.lineno}: {entry.name} returns nothing.",
            remedy="Return the result instead of printing it.",
        )
    return entry


def walk_own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one, except those of functions and classes within it."""
    remaining = list(ast.iter_child_nodes(node))
    while remaining:
        part = remaining.pop()
        yield part
        if not isinstance(part, (*DEFINITIONS, ast.Lambda)):
            remaining.extend(ast.iter_child_nodes(part))


def signature_of(function: FunctionNode) -> Signature:
    """Return what a function takes and returns, as written, without `*args` and `**kwargs`.

    Raises `SkillRefused`.
    """

    def to_text(node: ast.expr | None) -> Any:
        return Parameter.empty if node is None else SourceText(ast.unparse(node))

    args = function.args
    defaults = defaults_of(args)
    try:
        return Signature(
            [
                Parameter(
                    arg.arg,
                    Parameter.KEYWORD_ONLY
                    if arg in args.kwonlyargs
                    else Parameter.POSITIONAL_OR_KEYWORD,
                    default=to_text(defaults.get(arg.arg)),
                    annotation=to_text(arg.annotation),
                )
                for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)
            ],
            return_annotation=to_text(function.returns),
        )
    except RecursionError:
        raise SkillRefused(TOO_DEEP) from None


def defaults_of(args: ast.arguments) -> dict[str, ast.expr]:
    """Return the defaults of parameters by name."""
    positional = [*args.posonlyargs, *args.args]
    with_default = positional[len(positional) - len(args.defaults) :]
    pairs = [
        *zip(with_default, args.defaults, strict=True),
        *zip(args.kwonlyargs, args.kw_defaults, strict=True),
    ]
    return {arg.arg: default for arg, default in pairs if default is not None}


# names and values ---------------------------------------------------------------------------------


def dotted_name(node: ast.expr) -> str:
    """Return "a.b.c" for a name or an attribute of one; "" for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def find_imports(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Yield what code imports: the name, what it stands for, and the line.

    `from tools.git import log` is ("log", "tools.git.log", 1).
    """
    for node in ast.walk(tree):
        if isinstance(node, ImportNode):
            package = ""
            if isinstance(node, ast.ImportFrom):
                package = f"{'.' * node.level}{node.module or ''}."
            for alias in node.names:
                yield alias.asname or alias.name, package + alias.name, node.lineno


def split_import(node: ImportNode) -> list[ast.stmt]:
    """Return an import as one statement for each name."""
    if isinstance(node, ast.Import):
        parts: list[ast.stmt] = [ast.Import([alias]) for alias in node.names]
    else:
        parts = [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]
    return [ast.copy_location(each, node) for each in parts]


def join_imports(nodes: Iterable[ast.stmt]) -> list[ast.stmt]:
    """Return statements in which all names from a module are imported where the first one was."""
    joined: list[ast.stmt] = []
    known: dict[tuple[str | None, int], ast.ImportFrom] = {}  # by module and level
    for node in nodes:
        if not isinstance(node, ast.ImportFrom):
            joined.append(node)
        elif (origin := (node.module, node.level)) in known:
            known[origin].names += node.names
        else:
            known[origin] = ast.ImportFrom(node.module, list(node.names), node.level)
            joined.append(known[origin])
    return joined


def find_references(
    tree: ast.AST, packages: Iterable[str] = PROVIDED_PACKAGES
) -> Iterator[tuple[str, int]]:
    """Yield the dotted names of what code uses, by its origin, and the line.

    Code may use `packages` without importing them.
    """
    origins = {name: origin for name, origin, _ in find_imports(tree)}
    origins |= {package: package for package in packages}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and (dotted := dotted_name(node)):
            root, dot, rest = dotted.partition(".")
            if root in origins:
                yield f"{origins[root]}{dot}{rest}", node.lineno


def find_tool_names(source: str) -> list[str]:
    """Return the tools that code names: ["git.git_log"]; raises `SkillRefused`."""
    found = _find_members(source, TOOLS_PACKAGE, TOOLS_NAMES)
    return sorted(name for name in found if "." in name)  # others name a server only


def find_skill_names(source: str) -> list[str]:
    """Return the skills that code names; an exact version is "name@2"; raises `SkillRefused`."""
    found = set()
    for name in _find_members(source, SKILLS_PACKAGE, SKILLS_NAMES):
        skill, _, member = name.partition(".")
        exact = re.match(r"v([0-9]+)(?:\.|$)", member)
        found.add(f"{skill}@{exact[1]}" if exact else skill)
    return sorted(found)


def _find_members(source: str, package: str, own_names: Iterable[str]) -> set[str]:
    """Return what code names below a package, without its own names: {"git.git_log", "time"}."""
    tree = parse_source(source)
    found = {origin for _, origin, _ in find_imports(tree)}
    found |= {name for name, _ in find_references(tree)}
    members = {".".join(name.split(".")[1:3]) for name in found if name.startswith(f"{package}.")}
    members = {name for name in members if name.partition(".")[0] not in own_names}
    return {name for name in members if not any(other.startswith(f"{name}.") for other in members)}


def literal_value(node: ast.expr) -> Any:
    """Return the JSON value of a literal; raises `ValueError` if it is not one."""
    try:
        value = ast.literal_eval(node)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as exc:
        raise ValueError("not a literal") from exc
    return value


def is_literal(node: ast.expr) -> bool:
    """Return whether an expression is the literal of a JSON value."""
    try:
        literal_value(node)
    except ValueError:
        return False
    return True


def annotation_of(value: Any, depth: int = MAX_TYPE_DEPTH) -> str:
    """Return the type of a JSON value as Python source.

    What is nested deeper than `depth`, or of mixed types, is `Any`.
    """
    if value is None:
        return "None"
    if isinstance(value, SCALARS):
        return type(value).__name__
    if depth == 0 or not isinstance(value, (list, tuple, dict)):
        return "Any"
    items = list(value.values()) if isinstance(value, dict) else value
    inner = _union_of(annotation_of(each, depth - 1) for each in items[:MAX_TYPED_ITEMS])
    if isinstance(value, dict):
        return f"dict[str, {inner}]"
    return f"tuple[{inner}, ...]" if isinstance(value, tuple) else f"list[{inner}]"


def _union_of(annotations: Iterable[str]) -> str:
    """Return the type of values of some types, as far as it is one type or None."""
    kinds = set(annotations)
    if "float" in kinds:
        kinds.discard("int")
    others = kinds - {"None"}
    if not others and kinds:
        return "None"
    kind = others.pop() if len(others) == 1 else "Any"
    return f"{kind} | None" if "None" in kinds and kind != "Any" else kind


def is_absolute_path(text: str) -> bool:
    """Return whether a text is an absolute path, and not a route, a pattern or a sentence."""
    if len(text) > MAX_PATH_CHARS or "\n" in text or not ABSOLUTE_PATH.fullmatch(text):
        return False
    return not text.startswith("/") or bool(SYSTEM_FOLDER.match(text)) or text.count("/") > 2


# texts --------------------------------------------------------------------------------------------


def to_one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def to_front_matter_line(text: str, max_chars: int) -> str:
    """Return a text as one line that does not end front matter."""
    return re.sub("-{3,}", "--", to_one_line(text))[:max_chars]


def to_docstring_line(text: str, max_chars: int) -> str:
    """Return a text as one line that ends neither a docstring nor front matter."""
    line = to_one_line(text[: max_chars * 4]).replace("\\", "/").replace('"', "'")
    line = re.sub("-{3,}", "--", line)
    return line if len(line) <= max_chars else f"{line[: max_chars - 3].rstrip()}..."


def without_docstrings(tree: Tree) -> Tree:
    """Remove all docstrings from a tree, in place, and return it."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, FunctionNode)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            has_more = len(node.body) > 1 or isinstance(node, ast.Module)
            node.body[:1] = [] if has_more else [ast.Pass()]
    return tree


def parameter_descriptions(entry: FunctionNode) -> dict[str, str]:
    """Return what the docstring of a function says about each parameter, in one line."""
    names = signature_of(entry).parameters
    found: dict[str, str] = {}
    docstring = ast.get_docstring(entry) or ""
    for line in docstring.splitlines()[:MAX_DOCSTRING_LINES]:
        match = PARAMETER_LINE.match(line[:MAX_LINE_CHARS])
        if match and match[1] in names:
            found.setdefault(match[1], to_one_line(match[2])[:MAX_PARAMETER_CHARS])
    return found


def count_words(source: str, max_count: int) -> int:
    """Return how many words and signs source has, up to a limit; those in texts count, too."""
    return sum(1 for _ in islice(WORD_OR_SIGN.finditer(source), max_count))


def source_shape(source: str) -> str:
    """Return a digest of source without its docstrings, defaults and return types."""
    digest = _digest(source)
    shape = _known_shapes.pop(digest, None) or _compute_shape(source)
    _known_shapes[digest] = shape
    if len(_known_shapes) > MAX_KNOWN_SHAPES:
        _known_shapes.pop(next(iter(_known_shapes)), None)  # threads share it
    return shape


def _compute_shape(source: str) -> str:
    try:
        tree = without_docstrings(parse_source(source))
        for node in tree.body:
            if isinstance(node, FunctionNode):
                hide_defaults(node.args)
                node.returns = None
        text = ast.dump(tree)
    except (SkillRefused, RecursionError):  # what somebody put into the store prevents no save
        text = source
    return _digest(text)


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hide_defaults(args: ast.arguments) -> None:
    """Replace the defaults of parameters by `...`, in place."""
    args.defaults = [ast.Constant(...) for _ in args.defaults]
    args.kw_defaults = [each and ast.Constant(...) for each in args.kw_defaults]


def render_module(summary: str, nodes: Iterable[ast.stmt]) -> str:
    """Return the source of a skill's module."""
    imports: list[str] = []
    rest: list[str] = []
    for node in nodes:
        (imports if isinstance(node, ImportNode) else rest).append(_render_statement(node))
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
    return f"{keyword} {node.name}{signature_of(node)}:\n{body}"
