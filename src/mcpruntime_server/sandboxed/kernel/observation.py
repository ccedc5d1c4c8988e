"""Looking at a run or at a state without changing it: probes, and the list of variables.

What is looked at is evaluated in a fork of the worker (`forks.observe_in_fork`). So an expression
that changes objects, draws randomness, reads clocks, prints, exits or never ends changes nothing in
the run that it observes: the run executes as if nobody looked.

A probe is a call that is inserted before the statement of a line. Line numbers, tracebacks, names
and docstrings of the code stay as they are.
"""

from __future__ import annotations

import ast
import sys
from _thread import allocate_lock
from json import dumps, loads
from os import environ, getpid
from time import perf_counter
from types import CodeType

from ...protocol import wire
from ..library import display
from . import forks

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

    Observer = Callable[[Callable[[bytes], None]], None]

    from ...protocol.payloads import Inspection, InspectionResult, ShownValue, VariableData
    from .worker_channel import WorkerChannel

PROBE_NAME = "<probe>"  # of the expression, in its tracebacks
CALLEE_MARK = b"mcpruntime: the call of a probe"  # constants in inserted code, which are replaced
ERROR_MARK = b"mcpruntime: the error of a probe"
VALUE_TIMEOUT_S = 2.0  # to evaluate and show one value; shorter than the grace of an interrupt
PROBE_BUDGET_S = 10.0  # for all values of a probe
EXTRA_MEMORY_BYTES = 512 * 1024 * 1024  # that an observer may take beyond what there is
MAX_ERROR_CHARS = 500
MAX_VARIABLES = 1_000
MAX_NAME_CHARS = 200
MAX_LISTED_CHARS = 200_000  # of all variables together
MAX_LOST_VARIABLES = 5  # whose values end or block an observer; then no more are looked at
MAX_DIGESTED_BYTES = 64 * 1024 * 1024  # of one variable
NO_CALLS_MESSAGE = "A probe only looks: it cannot call tools, models or agents."
NO_WEB_MESSAGE = "A probe only looks: it cannot connect to anything."
PROXY_SUFFIX = "_proxy"  # of the variables that name the web proxy


# probes -------------------------------------------------------------------------------------------


class Probe:
    """Evaluates an expression each time that a line of one run is about to be executed."""

    def __init__(self, inspection: Inspection, channel: WorkerChannel) -> None:
        self._inspection = inspection
        self._channel = channel
        self._run_number = channel.run_number
        self._lock = allocate_lock()
        self._pid = getpid()
        self._is_active = True
        self._left_s = PROBE_BUDGET_S
        self._expression: Optional[CodeType] = None
        self.result: InspectionResult = {"line": 0, "hit_count": 0, "problem": ""}
        try:
            self._expression = compile(
                inspection["expression"].strip(), PROBE_NAME, "eval", dont_inherit=True
            )
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
            reason = exc.msg if isinstance(exc, SyntaxError) else str(exc)
            self.result["problem"] = f"The expression is not valid Python: {reason}."

    def insert(self, tree: ast.Module) -> bool:
        """Insert the probe into the code of its run; return False if that is impossible."""
        if self._expression is None:
            return False
        found = find_statement(tree, self._inspection["line"])
        if found is None:
            line = self._inspection["line"]
            self.result["problem"] = f"There is no statement on line {line} or after it."
            return False
        block, position = found
        self.result["line"] = first_line(block[position])
        position = skip_fixed_statements(tree, block, position)
        block.insert(position, _build_call(block[min(position, len(block) - 1)]))
        return True

    def bind(self, code: CodeType) -> CodeType:
        """Return compiled code whose inserted call calls this probe."""
        return code.replace(co_consts=tuple(map(self._bind_constant, code.co_consts)))

    def _bind_constant(self, constant: Any) -> Any:
        if type(constant) is CodeType:
            return self.bind(constant)
        if type(constant) is bytes:
            if constant == CALLEE_MARK:
                return self.record_hit
            if constant == ERROR_MARK:
                return RecursionError
        return constant

    def record_hit(self) -> None:
        """Evaluate the expression in the frame of the caller, and send its value."""
        if not self._is_active or getpid() != self._pid:
            return
        first_hit = self._inspection["first_hit"]
        with self._lock:
            self.result["hit_count"] += 1
            number = self.result["hit_count"]
            if not first_hit <= number < first_hit + self._inspection["max_hits"]:
                return
            if self._left_s <= 0:
                self.result["problem"] = (
                    f"The values took more than {PROBE_BUDGET_S:g} s: the others were only counted."
                )
                return
            started_at = perf_counter()
            try:
                value = self._evaluate(sys._getframe(1))
            except (OSError, ValueError) as exc:  # no process is left, or it wrote into the pipe
                value = describe_error_value(exc)
            self._left_s -= perf_counter() - started_at
            self._channel.send(wire.ProbeHit(self._run_number, number, dict(value)))

    def _evaluate(self, frame: FrameType) -> ShownValue:
        expression = self._expression
        assert expression is not None, "only then it is inserted"

        def observe(write: Callable[[bytes], None]) -> None:
            restrict_observer()
            self._channel.foreign_call_message = NO_CALLS_MESSAGE
            names = {**frame.f_globals, **frame.f_locals}  # so that inner scopes see all of them
            value = present_safely(lambda: eval(expression, names), self._inspection)
            write(dumps(value).encode())

        return read_value(observe)

    def finish(self) -> InspectionResult:
        """Stop the probe and return its result."""
        self._is_active = False
        return self.result


def find_statement(tree: ast.Module, line: int) -> Optional[Tuple[List[ast.stmt], int]]:
    """Return the block and the position of the statement on a line, or of the next one.

    On a line inside a statement of several lines, it is that statement.
    """
    return _find_in_block(tree.body, line)


def _find_in_block(block: List[ast.stmt], line: int) -> Optional[Tuple[List[ast.stmt], int]]:
    for position, statement in enumerate(block):
        start = first_line(statement)
        if line <= start:
            return block, position
        if line > (statement.end_lineno or start):
            continue
        inner = list(inner_blocks(statement))
        if not inner or line < min(first_line(each[0]) for each in inner):
            return block, position
        for each in inner:
            found = _find_in_block(each, line)
            if found is not None:
                return found
    return None


def inner_blocks(statement: ast.stmt) -> Iterator[List[ast.stmt]]:
    """Yield the blocks of statements of a compound statement, as they stand in the code."""
    for name in ("body", "handlers", "cases", "orelse", "finalbody"):
        parts = getattr(statement, name, None) or []
        if parts and isinstance(parts[0], ast.stmt):
            yield parts
        else:
            for part in parts:  # a handler or a case
                yield part.body


def first_line(statement: ast.stmt) -> int:
    """Return the line on which a statement begins; decorators belong to it."""
    decorators = getattr(statement, "decorator_list", None) or []
    lines: List[int] = [statement.lineno, *(each.lineno for each in decorators)]
    return min(lines)


def skip_fixed_statements(tree: ast.Module, block: List[ast.stmt], position: int) -> int:
    """Return the first position, from `position` on, before which a statement may be inserted.

    A docstring and imports from `__future__` must stay at the beginning.
    """
    is_value = block is tree.body and len(block) == 1  # and no docstring
    if position == 0 and not is_value and _is_text(block[0]):
        position = 1
    while position < len(block) and _is_future_import(block[position]):
        position += 1
    return position


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _is_future_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _build_call(place: ast.stmt) -> ast.stmt:
    """Return the statement that calls the probe, on the lines of `place`.

    Code that recurses to its limit must fail in its own statement, not in the probe.
    """
    callee = ast.Attribute(ast.Constant(CALLEE_MARK), "__call__", ast.Load())
    call = ast.Expr(ast.Call(callee, [], []))
    handler = ast.ExceptHandler(ast.Constant(ERROR_MARK), None, [ast.Pass()])
    inserted = ast.Try([call], [handler], [], [])
    for node in ast.walk(inserted):
        ast.copy_location(node, place)
    return inserted


# values -------------------------------------------------------------------------------------------


def present_safely(get_value: Callable[[], Any], inspection: Inspection) -> ShownValue:
    """Return a value as it is shown, or the error of getting or showing it."""
    try:
        shown = display.Display().present(
            get_value(), inspection["max_chars"], inspection["max_items"], 0
        )
    except BaseException as exc:  # noqa: BLE001 - user code may raise anything
        return describe_error_value(exc)
    return {
        "kind": shown["kind"],
        "text": wire.escape_surrogates(shown["text"]),
        "type": shown["type"],
        "cut": shown["cut"],
    }


def describe_error_value(exc: BaseException) -> ShownValue:
    """Return what is shown in place of a value that could not be read."""
    name = type(exc).__name__
    try:
        message = str(exc)
    except BaseException:  # noqa: BLE001 - a hostile __str__
        message = "(not printable)"
    return error_value(f"{name}: {message}"[:MAX_ERROR_CHARS], name)


def error_value(message: str, kind: str = "") -> ShownValue:
    """Return an error in place of a value."""
    text = wire.escape_surrogates(f"error: {message}")
    return {"kind": "error", "text": text, "type": kind, "cut": False}


def read_value(observe: Observer) -> ShownValue:
    """Return the value that an observer writes, or why there is none."""
    started_at = perf_counter()
    records = list(forks.observe_in_fork(observe, VALUE_TIMEOUT_S, 1))
    if records:
        value: ShownValue = loads(records[0])
        return value
    if perf_counter() - started_at >= VALUE_TIMEOUT_S:
        return error_value(f"it took longer than {VALUE_TIMEOUT_S:g} s", "TimeoutError")
    return error_value("the interpreter ended while it was evaluated", "InterpreterDied")


def restrict_observer() -> None:
    """Limit the memory of this process, and let it connect to nothing.

    A web request would reach the proxy of the sandbox, which cannot know that an observer sends it,
    and would take the recorded answer to a request of the run.
    """
    limit_memory()
    sys.addaudithook(refuse_connection)
    for name in [each for each in environ if each.lower().endswith(PROXY_SUFFIX)]:
        del environ[name]  # for programs that it starts


def refuse_connection(event: str, _: Tuple[Any, ...]) -> None:
    """Raise `PermissionError` when Python code connects a socket."""
    if event == "socket.connect":
        raise PermissionError(NO_WEB_MESSAGE)


def limit_memory() -> None:
    """Let this process take only so much more memory, so that the others of the sandbox survive."""
    import resource

    try:
        with open("/proc/self/statm", "rb") as file:
            present_bytes = int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return  # no such file: the sandbox has its own limit
    limit = present_bytes + EXTRA_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# variables ----------------------------------------------------------------------------------------


def list_variables(
    namespace: Dict[str, Any], initial: Dict[str, Any], inspection: Inspection
) -> List[VariableData]:
    """Return the variables that code has set, in their order; without those of the runtime."""
    names = [
        name
        for name, value in list(namespace.items())
        if isinstance(name, str)
        and not (name.startswith("__") and name.endswith("__"))
        and not (name in initial and initial[name] is value)
    ]
    described: List[VariableData] = []
    size = lost = 0
    del names[MAX_VARIABLES:]
    while len(described) < len(names) and lost <= MAX_LOST_VARIABLES and size < MAX_LISTED_CHARS:
        rest = names[len(described) :]
        for record in _observe_variables(namespace, rest, inspection):
            variable: VariableData = loads(record)
            described.append(variable)
            size += len(record)
            if size >= MAX_LISTED_CHARS:
                break
        else:
            if len(described) < len(names):
                lost += 1
                value = error_value("it could not be shown in time")
                described.append(_build_variable(names[len(described)], value))
    return described


def _observe_variables(
    namespace: Dict[str, Any], names: List[str], inspection: Inspection
) -> Iterator[bytes]:
    def observe(write: Callable[[bytes], None]) -> None:
        restrict_observer()
        for name in names:
            write(dumps(_describe_variable(name, namespace[name], inspection)).encode())

    return forks.observe_in_fork(observe, VALUE_TIMEOUT_S, len(names))


def _describe_variable(name: str, value: Any, inspection: Inspection) -> VariableData:
    shown = present_safely(lambda: value, inspection)
    variable = _build_variable(name, shown)
    shape = getattr(value, "shape", None)
    if type(shape) is tuple and all(type(each) is int for each in shape):
        variable["shape"] = list(shape)
    try:
        variable["length"] = None if isinstance(value, type) else len(value)
    except BaseException:  # noqa: BLE001, S110 - it has none, or user code raises anything
        pass
    variable["digest"] = digest_value(value, shown["text"])
    return variable


def _build_variable(name: str, value: ShownValue) -> VariableData:
    shown_name = wire.escape_surrogates(name[:MAX_NAME_CHARS])
    return {"name": shown_name, "value": value, "length": None, "shape": None, "digest": ""}


class DigestWriter:
    """A file that keeps only a digest of what is written into it."""

    def __init__(self) -> None:
        import hashlib

        self.digest = hashlib.blake2b(digest_size=16)
        self._left = MAX_DIGESTED_BYTES

    def write(self, data: Any) -> int:
        """Add data to the digest; raises `OverflowError` if there is too much of it."""
        size = memoryview(data).nbytes
        self._left -= size
        if self._left < 0:
            raise OverflowError
        self.digest.update(data)
        return size


def digest_value(value: Any, shown: str) -> str:
    """Return a digest of the content of a value: of all of it if it can be pickled."""
    import pickle
    import re

    writer = DigestWriter()
    try:
        if isinstance(value, type):
            for name, member in sorted(vars(value).items()):
                writer.write(name.encode())
                _digest_function(member, writer)
        elif not _digest_function(value, writer):
            pickle.Pickler(writer, 5).dump(value)
    except BaseException:  # noqa: BLE001 - user code may raise anything
        writer = DigestWriter()
        writer.write(re.sub(r"0x[0-9a-f]+", "", shown).encode("utf-8", "backslashreplace"))
    return str(writer.digest.hexdigest())


def _digest_function(value: Any, writer: DigestWriter) -> bool:
    """Add a function of Python code; return False for anything else."""
    import marshal

    code = getattr(value, "__code__", None)
    if type(code) is not CodeType:
        return False
    writer.write(marshal.dumps(code, 2))  # later versions depend on counts of references
    return True
