"""The bench measures servers as a client: it imports neither the package nor its tests."""

from __future__ import annotations

import ast
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def imported_packages(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    absolute = {
        node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    }
    return {name.partition(".")[0] for name in plain | absolute}


def test_the_bench_imports_neither_the_package_nor_its_tests() -> None:
    found = {file.name: imported_packages(file) for file in BENCH.rglob("*.py")}
    assert len(found) > 20
    for name, packages in found.items():
        assert not packages & {"mcpruntime_server", "tests"}, name
