"""The rooms of the package import only what they may, as ARCHITECTURE.md says."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "mcpruntime_server"
SOURCE = ROOT / "src" / PACKAGE

RECORDS = frozenset({"errors", "protocol", "config", "journal"})
CAPABILITIES = ("tools", "skills", "llm", "knowledge", "inputs", "agent", "web", "packages")
CAPABILITY_ROOMS = frozenset(f"capabilities.{name}" for name in CAPABILITIES)
TABLE: Mapping[str, frozenset[str]] = {
    "errors": frozenset(),
    "fair_turns": frozenset(),
    "protocol": frozenset(),
    "sandboxed": frozenset({"protocol"}),
    "config": frozenset({"errors"}),
    "client_files": frozenset({"errors", "config"}),
    "journal": frozenset({"errors"}),
    "sandbox": frozenset({"errors", "fair_turns", "protocol", "config"}),
    "capabilities": RECORDS,
    "capabilities.tools": RECORDS | {"capabilities"},
    "capabilities.skills": RECORDS | {"capabilities"},
    "capabilities.llm": RECORDS | {"capabilities"},
    "capabilities.knowledge": RECORDS | {"capabilities"},
    "capabilities.inputs": RECORDS | {"capabilities"},
    "capabilities.agent": RECORDS | {"capabilities"},
    "capabilities.web": RECORDS | {"capabilities"},
    "capabilities.packages": RECORDS | {"capabilities"},
    "runtime": RECORDS | {"sandbox"},
    "server": RECORDS
    | {"fair_turns", "runtime", "capabilities"}
    | {"capabilities.skills", "capabilities.knowledge", "capabilities.inputs"},
    "exports": RECORDS | {"runtime"},
    "service": RECORDS | {"fair_turns", "capabilities", "runtime", "server", "exports"},
    "viewer": RECORDS | {"capabilities", "capabilities.skills", "runtime", "server", "service"},
    "app": RECORDS
    | CAPABILITY_ROOMS
    | {"fair_turns", "client_files", "sandbox", "capabilities", "runtime", "server", "service"}
    | {"viewer"},
    "client": RECORDS
    | {"capabilities.agent", "capabilities.llm", "capabilities"}
    | {"server", "app"},
    "cli": RECORDS
    | {"sandbox", "capabilities", "capabilities.skills", "capabilities.agent", "capabilities.llm"}
    | {"capabilities.packages"}
    | {"runtime", "server", "service", "exports", "viewer", "app", "client", "client_files"},
}
EXPORTED = frozenset({"errors", "config", "client"})  # what the package itself exports
NEWER_THAN_39 = {"tomllib"}

Imported = tuple[int, str]  # line, dotted name


def room_of(module: str) -> str:
    """Return the room of a module of ours, given by its dotted name.

    Each package in `capabilities` is a room of its own; the package itself has the room "".
    """
    first, second = (*module.split(".")[1:], "", "")[:2]
    if first == "capabilities" and second in CAPABILITIES:
        return f"{first}.{second}"
    return first


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST, package: str) -> Iterator[Imported]:
    """Yield what a module of `package` imports anywhere in it, relative names resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


@cache
def all_imports() -> Mapping[Path, Sequence[Imported]]:
    """Return what each module of ours imports. Parsing all of them takes seconds."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = module_of(path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found[path] = tuple(imports_of(ast.parse(path.read_text("utf-8")), package))
    return found


@cache
def rooms() -> frozenset[str]:
    return frozenset(room_of(module_of(path)) for path in SOURCE.rglob("*.py")) - {""}


def find_violations(table: Mapping[str, frozenset[str]]) -> list[str]:
    """Return a line for each import that `table` does not allow."""
    violations = []
    for path, imports in all_imports().items():
        room = room_of(module_of(path))
        forbidden = rooms() - {room} - (table[room] if room else EXPORTED)
        for line, name in imports:
            imported = room_of(name) if name.split(".")[0] == PACKAGE else room
            if imported in forbidden:
                importer = room or "the package itself"
                violations.append(f"{path.relative_to(ROOT)}:{line}: {importer} imports {imported}")
    return violations


def written_table(text: str) -> Mapping[str, frozenset[str]] | None:
    """Return the table under the header `| room | may import |`; None if there is none."""
    found = re.search(
        r"^\| *room *\| *may import *\|.*\n\|[-:| ]+\n((?:\|.*\n?)*)",
        text,
        re.MULTILINE | re.IGNORECASE,
    )
    if found is None:
        return None
    rows = [line.split("|")[1:3] for line in found[1].splitlines()]
    names = re.compile(r"[a-z_.]+")
    return {
        room: frozenset(names.findall(allowed)) - {"nothing"}
        for left, allowed in rows
        for room in names.findall(left)
    }


def test_every_room_is_in_the_table() -> None:
    assert rooms() - set(TABLE) == set()


def test_no_room_imports_what_it_may_not() -> None:
    assert find_violations(TABLE) == []


def test_an_import_that_is_not_allowed_is_named_with_its_line() -> None:
    found = find_violations(dict.fromkeys(TABLE, frozenset()))
    assert any(
        re.fullmatch(r"src/mcpruntime_server/journal/store\.py:\d+: journal imports errors", line)
        for line in found
    )


def test_the_table_goes_one_way() -> None:
    order = list(TABLE)
    for room, allowed in TABLE.items():
        assert allowed <= set(order[: order.index(room)])


def test_architecture_md_has_the_same_table() -> None:
    assert written_table((ROOT / "ARCHITECTURE.md").read_text("utf-8")) == TABLE


def test_a_table_in_markdown_is_read() -> None:
    header = "# A\n\n| Room | May import |\n|---|:--|\n"
    text = f"{header}| `a`, b | nothing |\n| c | `a`, `b` |\n\nmore | text |\n"
    assert written_table(text) == {"a": frozenset(), "b": frozenset(), "c": frozenset("ab")}
    assert written_table("no table") is None


def test_relative_and_hidden_imports_are_seen() -> None:
    function = "def f():\n    from ..runtime.run import Run\n    from . import a\n"
    code = f"import x.y\nfrom .. import errors\n{function}"
    assert [name for _, name in imports_of(ast.parse(code), "mcpruntime_server.server")] == [
        "x.y",
        "mcpruntime_server.errors",
        "mcpruntime_server.runtime.run.Run",
        "mcpruntime_server.server.a",
    ]


def module_imports() -> dict[str, set[str]]:
    """Return the package's modules that each of its modules imports, anywhere in its code."""
    names = {module_of(path) for path in SOURCE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for path, imports in all_imports().items():
        imported = {name if name in names else name.rpartition(".")[0] for _, name in imports}
        found[module_of(path)] = imported & names - {PACKAGE}
    return found


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the nodes of one cycle, in order; empty if there is none."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in finished:
            return []
        for other in sorted(graph[node]):
            if cycle := visit(other, [*path, node]):
                return cycle
        finished.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), [])


def test_no_modules_import_each_other() -> None:
    assert find_cycle(module_imports()) == []


def test_a_cycle_of_imports_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def shipped_sources() -> list[Path]:
    """Return the modules that are shipped into sandboxes."""
    return sorted(
        path for room in ("protocol", "sandboxed") for path in (SOURCE / room).rglob("*.py")
    )


@pytest.mark.parametrize("path", shipped_sources(), ids=lambda path: path.stem)
def test_shipped_code_is_standard_library_python_39(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 9))
    available = set(sys.stdlib_module_names) - NEWER_THAN_39
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        assert {name.split(".")[0] for name in names} <= available, f"line {node.lineno}"
