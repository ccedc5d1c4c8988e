"""Runs code in a namespace, on an event loop if it awaits something, and finds its last value."""

from __future__ import annotations

import ast
import gc
import types

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .observation import Probe

PARSE_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
CO_COROUTINE = 0x80  # inspect.CO_COROUTINE; importing `inspect` is slow
TASK_CLEANUP_S = 1.0  # for the tasks of an interrupted run


class CodeRunner:
    """Runs the code of one run after the other in `namespace`."""

    def __init__(self, namespace: Dict[str, Any]) -> None:
        self.namespace = namespace
        self.initial_names = dict(namespace)  # what the runtime has put there
        self.event_loop: Any = None
        self._task: Any = None  # of a run that awaits something

    def evaluate(self, tree: ast.Module, name: str, probe: Optional[Probe] = None) -> Any:
        """Run code and return the value of its last expression or last assignment.

        A `probe` observes it; code in which there is nothing to observe is not run.
        """
        if probe is not None and not probe.insert(tree):
            return None
        last = _split_last_value(tree)
        parts = []
        if tree.body:
            parts.append(
                compile(tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            )
        if last is not None:
            parts.append(
                compile(last, name, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            )
        if probe is not None:
            parts = [probe.bind(part) for part in parts]
        if any(part.co_flags & CO_COROUTINE for part in parts):
            return self._run_in_event_loop(parts)
        value = None
        for part in parts:
            value = eval(part, self.namespace)
        return value

    def _run_in_event_loop(self, parts: List[types.CodeType]) -> Any:
        """Run code with a top-level `await` on the session's event loop, which stays open."""
        import asyncio

        if self.event_loop is None or self.event_loop.is_closed():
            self.event_loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.event_loop)
        self._task = self.event_loop.create_task(self._run_parts(parts))
        return self.event_loop.run_until_complete(self._task)

    async def _run_parts(self, parts: List[types.CodeType]) -> Any:
        """Run code objects one after the other and return the value of the last."""
        value = None
        for part in parts:
            value = eval(part, self.namespace)
            if part.co_flags & CO_COROUTINE:
                value = await value
        return value

    def cancel_task(self) -> None:
        """Cancel the task of an interrupted run; tasks that its code started stay."""
        task, self._task = self._task, None
        if task is None or task.done() or self.event_loop.is_closed():
            return
        import asyncio

        task.cancel()
        try:
            self.event_loop.run_until_complete(asyncio.wait([task], timeout=TASK_CLEANUP_S))
        except BaseException:  # noqa: BLE001, S110 - the interrupt again, from a task that it hit
            pass


def parse_code(code: str, name: str) -> ast.Module:
    """Return the syntax tree of `code`.

    Garbage collection is off meanwhile: a finaliser that reports an error parses source, too, and
    that makes the outer parse fail in CPython 3.11.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        tree = compile(code, name, "exec", PARSE_FLAGS, dont_inherit=True)
    finally:
        if collects:
            gc.enable()
    assert isinstance(tree, ast.Module)
    return tree


def _split_last_value(tree: ast.Module) -> Optional[ast.Expression]:
    """Return the expression for the run's value; a final expression is removed from `tree`."""
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        del tree.body[-1]
        return ast.Expression(last.value)
    if isinstance(last, ast.Assign):
        target: Any = last.targets[-1]
    elif isinstance(last, (ast.AnnAssign, ast.AugAssign)) and last.value is not None:
        target = last.target
    else:
        return None
    targets = target.elts if isinstance(target, ast.Tuple) else [target]
    names = [name for name in targets if isinstance(name, ast.Name)]
    if len(names) < len(targets):
        return None  # to read an attribute or an item again could run user code
    loaded: List[ast.expr] = [
        ast.copy_location(ast.Name(name.id, ast.Load()), name) for name in names
    ]
    if not isinstance(target, ast.Tuple):
        return ast.Expression(loaded[0])
    return ast.Expression(ast.copy_location(ast.Tuple(loaded, ast.Load()), target))
