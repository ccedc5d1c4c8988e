"""Runs programs of tasks in this process, with the tools as plain functions of their servers.

It takes milliseconds where a sandbox takes seconds, so every program of every task can be tried.
The same tools behind MCP and a sandbox are tested with a few tasks.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import chdir, contextmanager
from types import ModuleType
from typing import Any

from bench.mrbs.world import SERVERS
from bench.servers.base import ToolError

LOOP = asyncio.new_event_loop()
RESULTS: list[Any] = []  # what the calls of the last program returned


@contextmanager
def install_tools() -> Iterator[None]:
    """Make `tools` importable; the servers use the environment of this process."""
    modules = {"tools": ModuleType("tools")}
    modules["tools"].__dict__["ToolError"] = ToolError
    for name in SERVERS:
        path = f"bench.servers.{name}"
        sys.modules.pop(path, None)  # it reads the environment when it is imported
        server = importlib.import_module(path)
        module = modules[f"tools.{name}"] = ModuleType(f"tools.{name}")
        for tool in server.server.mcp._tool_manager.list_tools():
            module.__dict__[tool.name] = make_function(tool.fn)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module_before in before.items():
            if module_before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module_before


def make_function(tool: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """Return a tool as a function that does not need to be awaited."""

    def call(*args: Any, **kwargs: Any) -> Any:
        RESULTS.append(LOOP.run_until_complete(tool(*args, **kwargs)))
        return RESULTS[-1]

    return call


def run_program(code: str) -> Any:
    """Return the value of the last expression of a program; None if it fails.

    It runs in a folder of its own, because wrong programs write into the working directory.
    """
    RESULTS.clear()
    tree = ast.parse(code)
    last = None
    if tree.body and isinstance(end := tree.body[-1], ast.Expr):
        last = end
        tree.body.pop()
    names: dict[str, Any] = {"__name__": "program"}
    with tempfile.TemporaryDirectory() as workspace, chdir(workspace):
        return evaluate_program(tree, last, names)


def evaluate_program(tree: ast.Module, last: ast.Expr | None, names: dict[str, Any]) -> Any:
    """Execute `tree` and return the value of `last`; None if there is none, or if one fails."""
    try:
        exec(compile(tree, "program", "exec"), names)
        if last is None:
            return None
        return eval(compile(ast.Expression(last.value), "program", "eval"), names)
    except Exception:  # noqa: BLE001 - a program may fail in any way
        return None
