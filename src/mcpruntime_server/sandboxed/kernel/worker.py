"""The worker: the process that runs user code. One interpreter, one namespace, one run at a time.

The supervisor forks it and talks to it over a socket (`worker_channel`). Its fds 1 and 2 are pipes
that the supervisor reads, so that output of C code and of child processes arrives in the same way
as `print`.

Rule: whatever user code raises, closes or leaves behind, `serve` sends exactly one `RunDone` for
each run and then waits for the next one.
"""

from __future__ import annotations

import ast
import builtins
import gc
import io
import os
import resource
import socket
import sys
import types
from select import select
from time import perf_counter, process_time  # bound before `determinism` replaces them in `time`

from ...protocol import wire
from ...protocol.library_names import PACKAGES_MODULE
from ...protocol.presentation import SKILL_FILE_PREFIX, describe_error
from ..library import (
    display,
    exports,
    guidance,
    knowledge,
    models,
    packages,
    planned,
    skills,
    tools,
    web_libraries,
)
from . import determinism, forks
from .system_calls import OwnProcFiles
from .worker_channel import STEP_FILE_PREFIX, InterruptHandler, WorkerChannel

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Set, Tuple

PARSE_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
CO_COROUTINE = 0x80  # inspect.CO_COROUTINE; importing `inspect` is slow
REAP_POLL_S = 0.002
TASK_CLEANUP_S = 1.0  # for the tasks of an interrupted run


class Worker:
    """Executes runs in the namespace of `__main__`."""

    def __init__(
        self,
        sock: socket.socket,
        stdout: int,
        stderr: int,
        setup: wire.Setup,
        generation: int,
        parked_score: int,
    ) -> None:
        self.pid = os.getpid()
        self.setup = setup
        self.parked_score = parked_score
        self.output_pipes = {1: stdout, 2: stderr}
        self.streams: Dict[str, io.TextIOWrapper] = {}
        self.randomness, self.clocks = determinism.install_determinism()
        self.usage_meter = UsageMeter()
        self.interrupts = InterruptHandler()
        self.channel = WorkerChannel(sock, self.interrupts, generation, self.clocks)
        determinism.ImportHooks.run_after_import("asyncio", self.install_event_loop)
        if setup.web is not None:
            web_libraries.install_web_libraries(determinism.ImportHooks.run_after_import)
        self.pending_sources: Dict[str, Any] = {}  # entries for `linecache` until it is imported
        determinism.ImportHooks.run_after_import(
            "linecache", lambda module: module.cache.update(self.pending_sources)
        )
        self.has_inputs = False
        self.event_loop: Any = None
        self.run_task: Any = None  # of a run that awaits something
        self.workspace = os.getcwd()
        self.source_prefixes = (STEP_FILE_PREFIX, SKILL_FILE_PREFIX, self.workspace)
        self.main_module = types.ModuleType("__main__")
        sys.modules["__main__"] = self.main_module
        tools.install_tools(self.channel.call_host, self.channel.call_host_async)
        self.main_module.__dict__["tools"] = sys.modules["tools"]
        self.main_module.__dict__["skills"] = skills.install_skills()
        self.main_module.__dict__.update(models.install_models())
        self.display = display.install_display(determinism.ImportHooks.run_after_import)
        exports.install_export()
        self.main_module.__dict__["knowledge"] = knowledge.install_knowledge()
        self.packages = packages.install_packages((setup.facts or {}).get("packages_folder") or "")
        self.main_module.__dict__[PACKAGES_MODULE] = self.packages
        self.initial_names = dict(self.main_module.__dict__)
        self.probe: Any = None  # of the present run
        self.guide = guidance.SandboxGuide(setup.facts)
        builtins.help = self.guide.help  # type: ignore[assignment]
        builtins.input = _refuse_input
        if hasattr(os, "sched_getaffinity"):
            # The original returns the host's number, whatever the container may use.
            os.cpu_count = lambda: len(os.sched_getaffinity(0))
        sys.stdin = _UnreadableStdin()
        forks.install_guards()
        self.reset_streams()

    def install_event_loop(self, module: types.ModuleType) -> None:
        """Let `asyncio`, once it is imported, make event loops that can be replayed."""
        from . import event_loop

        event_loop.install_event_loop(self.clocks, self.channel)

    def reset_streams(self) -> None:
        """Connect fds 1 and 2, sys.stdout and sys.stderr to the pipes, as code may change them."""
        for fd, name in ((1, "stdout"), (2, "stderr")):
            if not _is_same_file(fd, self.output_pipes[fd]):
                os.dup2(self.output_pipes[fd], fd)
            stream = self.streams.get(name)
            if stream is None or stream.closed:
                raw = io.FileIO(fd, "w", closefd=False)
                stream = io.TextIOWrapper(
                    io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True
                )
                self.streams[name] = stream
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

    def serve(self) -> None:
        """Handle commands until the supervisor closes the channel; never returns."""
        while True:
            self.await_intermediate()
            message = self.channel.receive_command()
            if isinstance(message, wire.Execute):
                try:
                    done = self.execute_run(message)
                except BaseException:  # noqa: BLE001 - user code damaged what this module needs
                    os._exit(wire.BROKEN_EXIT_CODE)
                self.channel.send(done)
            elif isinstance(message, wire.Park):
                self.park_fork(message.run_number)

    def await_intermediate(self) -> None:
        """Reap the intermediate process of the last fork, unless a command arrives first."""
        while (
            not forks.reap_intermediate(os.WNOHANG)
            and not select([self.channel.sock], [], [], REAP_POLL_S)[0]
        ):
            pass

    def park_fork(self, run_number: int) -> None:
        """Leave a parked fork of this process behind, or report why that is impossible.

        Also returns in each process that is later promoted from that fork.
        """
        generation = 0
        try:
            reason, offsets = forks.find_park_obstacle(self.runtime_descriptors(), self.workspace)
            if not reason:
                self.clocks.keep_process_clocks()
                generation = forks.park_fork(self.channel.sock, run_number, self.parked_score)
        except Exception as exc:  # noqa: BLE001 - user code may have changed anything
            reason = f"the interpreter could not be forked: {exc}"
        if reason:
            self.channel.send(wire.ParkFailed(run_number, reason))
        elif generation:
            try:
                self.reinitialize(generation, offsets)
            except BaseException:  # noqa: BLE001 - must not continue half initialised
                os._exit(wire.BROKEN_EXIT_CODE)

    def runtime_descriptors(self) -> Set[int]:
        """Return the descriptors of this process that belong to the runtime."""
        return {
            1,
            2,
            self.channel.sock.fileno(),
            *self.output_pipes.values(),
            self.usage_meter.clear_refs_fd,
            *forks.event_loop_descriptors(self.event_loop),
        }

    def reinitialize(self, generation: int, file_offsets: Dict[int, int]) -> None:
        """Continue as worker `generation` in a promoted fork of the process that this was."""
        self.pid = os.getpid()
        self.usage_meter.reinitialize()
        forks.reopen_files(file_offsets)
        forks.renew_event_loop(self.event_loop)
        self.channel.reinitialize(generation)

    # one run --------------------------------------------------------------------------------------

    def execute_run(self, message: wire.Execute) -> wire.RunDone:
        """Run the code of `message` and return its outcome; raises nothing that the code raises."""
        self.reset_streams()
        self.channel.run_number, self.channel.filename = message.run_number, message.filename
        if message.stale_packages:
            tools.forget_stale_modules(message.stale_packages)
        self.guide.facts["fetchers"] = message.fetchers or []
        skills.reset_for_run()
        if message.inputs or self.has_inputs:
            self.provide_inputs(message.inputs or [])
        self.register_source(message.filename, message.code)
        planned.PlannedResult.first_end = None
        models.Submitted.first_of_run = None
        self.display.start_run()
        self.randomness.reseed(message.seed)
        self.clocks.start_run(message.clock_readings)
        self.prepare_probe(message.inspection)
        self.usage_meter.start()
        status, value, error = self.execute_code(message)
        observed = self.probe and self.probe.finish()
        for stream in self.streams.values():
            try:
                stream.flush()
            except (ValueError, OSError):
                pass  # user code closed it
        if os.getpid() != self.pid:
            os._exit(status != "ok")  # user code called `fork`; only the parent reports the outcome
        return wire.RunDone(
            message.run_number,
            status,
            value,
            error,
            self.usage_meter.measure_usage(),
            self.clocks.take_readings(),
            self.display.take_media(),
            observed,
        )

    def prepare_probe(self, inspection: Optional[Dict[str, Any]]) -> None:
        """Set the probe of the present run, if it is to have one."""
        self.probe = None
        if inspection is not None and inspection["kind"] == "probe":
            from . import observation

            self.probe = observation.Probe(inspection, self.channel)  # type: ignore[arg-type]

    def execute_inspection(self, inspection: Dict[str, Any]) -> Dict[str, Any]:
        """Return the `value` of a run that only looks at the state that it starts from."""
        from json import dumps

        from . import observation

        found = observation.list_variables(
            self.main_module.__dict__,
            self.initial_names,
            inspection,  # type: ignore[arg-type]
        )
        return {"kind": "json", "text": dumps(found), "type": "list", "cut": False}

    def provide_inputs(self, descriptions: List[Any]) -> None:
        """Set `CONTEXT`; its module is imported by the first run that has inputs."""
        from ..library import inputs

        inputs.set_context(self.main_module.__dict__, descriptions)
        self.has_inputs = bool(descriptions)

    def register_source(self, name: str, code: str) -> None:
        """Let tracebacks and `inspect` find the lines of `code`, once `linecache` is imported."""
        self.pending_sources[name] = (len(code), None, code.splitlines(keepends=True), name)
        if "linecache" in sys.modules:
            sys.modules["linecache"].cache.update(self.pending_sources)
            self.pending_sources.clear()

    def execute_code(
        self, message: wire.Execute
    ) -> Tuple[str, Optional[Dict[str, Any]], Optional[Dict[str, Any]]]:
        """Return status, value and error of one run. Interrupts are raised only while armed."""
        try:
            try:
                self.interrupts.is_armed = True
                if message.inspection is not None and message.inspection["kind"] == "variables":
                    return "ok", self.execute_inspection(message.inspection), None
                value = self.evaluate_code(message.code, message.filename)
                if models.Submitted.first_of_run is not None:
                    raise models.Submitted.first_of_run
                shown = None if value is None else self.present(value)
            finally:
                self.interrupts.disarm()
            if planned.PlannedResult.first_end is not None:
                raise planned.PlannedResult.first_end
            return "ok", shown, None
        except SystemExit as exc:
            end = planned.find_cause(exc)
            if end is exc and exc.code in (None, 0):
                submitted = models.Submitted.first_of_run
                if submitted is None:
                    return "ok", None, None
                return "ok", self.present(submitted.value), None
            return "error", None, self.describe_exception(end)
        except KeyboardInterrupt as exc:
            self.interrupts.disarm()
            return "interrupted", None, self.describe_exception(exc)
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything
            return "error", None, self.describe_exception(planned.find_cause(exc))
        finally:
            self.cancel_run_task()

    def present(self, value: Any) -> Dict[str, Any]:
        """Return the `value` of `RunDone`: whole, or cut to what a client is shown."""
        setup = self.setup
        return self.display.present(
            value, setup.max_shown_chars, setup.max_shown_items, setup.max_value_chars
        )

    def describe_exception(self, exc: BaseException) -> Dict[str, Any]:
        """Return the `error` of `RunDone`, even if `exc` cannot be formatted."""
        try:
            error = describe_error(exc, self.source_prefixes)
        except BaseException as failure:  # noqa: BLE001 - a hostile __str__, no memory, no stack
            return {
                "type": type(exc).__name__,
                "message": f"(not printable: {type(failure).__name__})",
                "traceback": "",
            }
        hint = self.guide.find_hint(exc, self.pending_sources)
        return {**error, "hint": hint} if hint else error

    def evaluate_code(self, code: str, name: str) -> Any:
        """Run `code` and return the value of its last expression or last assignment."""
        tree = _parse_code(code, name)
        dependencies = packages.find_script_dependencies(code)
        if dependencies:
            self.packages.install(*dependencies)
        if self.probe is not None and not self.probe.insert(tree):
            return None  # there is nothing to observe
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
        if self.probe is not None:
            parts = [self.probe.bind(part) for part in parts]
        if any(part.co_flags & CO_COROUTINE for part in parts):
            return self.run_in_event_loop(parts)
        value = None
        for part in parts:
            value = eval(part, self.main_module.__dict__)
        return value

    def run_in_event_loop(self, parts: List[types.CodeType]) -> Any:
        """Run code with a top-level `await` on the session's event loop, which stays open."""
        import asyncio

        if self.event_loop is None or self.event_loop.is_closed():
            self.event_loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.event_loop)
        self.run_task = self.event_loop.create_task(self.run_parts(parts))
        return self.event_loop.run_until_complete(self.run_task)

    async def run_parts(self, parts: List[types.CodeType]) -> Any:
        """Run code objects one after the other and return the value of the last."""
        value = None
        for part in parts:
            value = eval(part, self.main_module.__dict__)
            if part.co_flags & CO_COROUTINE:
                value = await value
        return value

    def cancel_run_task(self) -> None:
        """Cancel the task of an interrupted run; tasks that its code started stay."""
        task, self.run_task = self.run_task, None
        if task is None or task.done() or self.event_loop.is_closed():
            return
        import asyncio

        task.cancel()
        try:
            self.event_loop.run_until_complete(asyncio.wait([task], timeout=TASK_CLEANUP_S))
        except BaseException:  # noqa: BLE001, S110 - the interrupt again, from a task that it hit
            pass


def _parse_code(code: str, name: str) -> ast.Module:
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


def _is_same_file(fd: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(fd, other)
    except OSError:
        return False


def _refuse_input(prompt: object = "") -> str:
    raise RuntimeError("input() is not available here. Write the value into the code instead.")


class _UnreadableStdin(io.TextIOBase):
    """A stdin whose error explains why it cannot be read."""

    def readable(self) -> bool:
        return True

    def read(self, size: Optional[int] = -1, /) -> str:
        return _refuse_input()

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        return _refuse_input()


def _open_clear_refs() -> int:
    with OwnProcFiles():
        return os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)


class UsageMeter:
    """Measures what one run uses, from `start` to `measure_usage`."""

    def __init__(self) -> None:
        self.started_cpu_s = self.started_at = 0.0
        try:
            self.clear_refs_fd = _open_clear_refs()
        except OSError:
            self.clear_refs_fd = -1  # no such file: the peak is then that of all runs so far

    def reinitialize(self) -> None:
        """Let the descriptor refer to this process, which is a fork of the one that opened it."""
        if self.clear_refs_fd >= 0:
            own = _open_clear_refs()
            os.dup2(own, self.clear_refs_fd, inheritable=False)
            os.close(own)

    def start(self) -> None:
        """Start to measure."""
        if self.clear_refs_fd >= 0:
            try:
                os.pwrite(self.clear_refs_fd, b"5", 0)  # resets the peak memory
            except OSError:
                self.clear_refs_fd = -1  # user code closed it
        self.started_cpu_s = _cpu_seconds()
        self.started_at = perf_counter()

    def measure_usage(self) -> Dict[str, float]:
        """Return wall time, processor time (children included) and peak memory of the run."""
        return {
            "wall_ms": round((perf_counter() - self.started_at) * 1e3, 3),
            "cpu_ms": round((_cpu_seconds() - self.started_cpu_s) * 1e3, 3),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + children.ru_utime + children.ru_stime
