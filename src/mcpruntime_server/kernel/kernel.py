"""The worker: one interpreter, one namespace, one run at a time. User code lives in this process.

It is forked from the supervisor and speaks with it over a socket (`channel`). What user code prints goes into pipes on
fds 1 and 2 that the supervisor drains, so that output of C code and of child processes arrives like everybody's.
Rule: whatever user code raises, closes or leaves behind, `serve` sends exactly one `Done` a run and waits for the next.
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
from time import perf_counter, process_time  # the real ones: `observe` replaces those in the module

from . import forks, guest, llm, observe, planned, providers, skills, wire
from .channel import USER_FILE, Channel, Interrupts
from .present import SKILL_FILE, describe_error, present

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Set, Tuple

FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
SETTLE_S = 0.002  # between two looks whether a process that has little left to do is gone
DRAIN_S = 1.0  # how long the tasks of an interrupted run get to finish their clean-up


class Worker:
    """Executes runs in the namespace of `__main__`."""

    def __init__(
        self, sock: socket.socket, stdout: int, stderr: int, setup: wire.Setup, generation: int, parked_score: int
    ) -> None:
        self.pid = os.getpid()
        self.value_limit = setup.value_limit
        self.parks = setup.checkpoints > 0
        self.parked_score = parked_score
        self.pipes = {1: stdout, 2: stderr}
        self.streams: Dict[str, io.TextIOWrapper] = {}
        self.chance, self.clocks = observe.install()
        self.meter = Meter()
        self.interrupts = Interrupts()
        self.channel = Channel(sock, self.interrupts, generation, self.clocks)
        self.sources: Dict[str, Any] = {}  # of code, until `linecache` is imported
        observe.AfterImport.add("linecache", lambda module: module.cache.update(self.sources))
        self.has_inputs = False
        self.loop: Any = None
        self.task: Any = None  # the run's, while it awaits something
        self.workspace = os.getcwd()
        self.own_files = (USER_FILE, SKILL_FILE, self.workspace)
        self.main = types.ModuleType("__main__")
        sys.modules["__main__"] = self.main
        guest.install(self.channel.call, self.channel.acall)
        self.main.__dict__["tools"] = sys.modules["tools"]
        self.main.__dict__["skills"] = skills.install()
        self.main.__dict__.update(llm.install())
        self.main.__dict__["context"] = providers.install()
        builtins.input = _no_input
        if hasattr(os, "sched_getaffinity"):
            os.cpu_count = lambda: len(os.sched_getaffinity(0))  # the host's, else, whatever the container may use
        sys.stdin = _NoStdin()
        forks.guard()
        self.fresh_streams()

    def fresh_streams(self) -> None:
        """Point fds 1 and 2, sys.stdout and sys.stderr at the supervisor's pipes, whatever earlier code did to them."""
        for fd, name in ((1, "stdout"), (2, "stderr")):
            if not _same_file(fd, self.pipes[fd]):
                os.dup2(self.pipes[fd], fd)
            stream = self.streams.get(name)
            if stream is None or stream.closed:
                raw = io.FileIO(fd, "w", closefd=False)
                stream = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)
                self.streams[name] = stream
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

    def serve(self) -> None:
        """Run what the host sends until it closes the channel; never returns."""
        while True:
            self.settle()
            message = self.channel.command()
            if isinstance(message, wire.Execute):
                try:
                    done = self.execute(message)
                except BaseException:  # noqa: BLE001 - code broke what this module needs: a fresh start helps
                    os._exit(wire.BROKEN)
                self.channel.send(done)
                if message.park and self.parks:
                    self.park(message.run)

    def settle(self) -> None:
        """Clear up after a fork, unless a command comes first."""
        while not forks.settled(os.WNOHANG) and not select([self.channel.sock], [], [], SETTLE_S)[0]:
            pass

    def park(self, run: int) -> None:
        """Leave a copy of this process behind, or say why there is none; the copies of it that are woken return too."""
        generation = 0
        try:
            reason, places = forks.survey(self.own_descriptors(), self.workspace)
            if not reason:
                self.clocks.hold()
                generation = forks.park(self.channel.sock, run, self.parked_score)
        except Exception as exc:  # noqa: BLE001 - code may have changed anything; its run is over and told
            reason = f"the interpreter could not be copied: {exc}"
        if reason:
            self.channel.send(wire.Unparkable(run, reason))
        elif generation:
            try:
                self.revive(generation, places)
            except BaseException:  # noqa: BLE001 - half a worker is none
                os._exit(wire.BROKEN)

    def own_descriptors(self) -> Set[int]:
        """Return the descriptors of this process that are the runtime's."""
        return {
            1,
            2,
            self.channel.sock.fileno(),
            *self.pipes.values(),
            self.meter.peak,
            *forks.loop_descriptors(self.loop),
        }

    def revive(self, generation: int, places: Dict[int, int]) -> None:
        """Go on as worker number `generation` in a copy of the process that this was."""
        self.pid = os.getpid()
        self.meter.revive()
        forks.reopen(places)
        forks.renew_loop(self.loop)
        self.channel.revive(generation)

    # one run --------------------------------------------------------------------------------------

    def execute(self, message: wire.Execute) -> wire.Done:
        """Run the code of `message` and say how it went; no exception leaves."""
        self.fresh_streams()
        self.channel.run, self.channel.code = message.run, message.name
        if message.stale:
            guest.refresh(message.stale)
        skills.begin_run()
        if message.inputs or self.has_inputs:
            self.provide_inputs(message.inputs or [])
        self.remember_source(message.name, message.code)
        planned.Planned.ended = None
        llm.Submitted.ended = None
        self.chance.reseed(message.seed)
        self.clocks.begin(message.clocks)
        self.meter.start()
        status, value, error = self.outcome(message)
        for stream in self.streams.values():
            try:
                stream.flush()
            except (ValueError, OSError):
                pass  # closed by the code
        if os.getpid() != self.pid:
            os._exit(status != "ok")  # a copy that code made with `fork`: the result is its parent's to tell
        return wire.Done(message.run, status, value, error, self.meter.usage(), self.clocks.take())

    def provide_inputs(self, told: List[Any]) -> None:
        """Have `CONTEXT` be what the host says; the module is imported by the first run that has an input."""
        from . import inputs

        inputs.provide(self.main.__dict__, told)
        self.has_inputs = bool(told)

    def remember_source(self, name: str, code: str) -> None:
        """Have tracebacks and `inspect` find the lines of `code`, once somebody imports what looks for them."""
        self.sources[name] = (len(code), None, code.splitlines(keepends=True), name)
        if "linecache" in sys.modules:
            sys.modules["linecache"].cache.update(self.sources)
            self.sources.clear()

    def outcome(self, message: wire.Execute) -> Tuple[str, Optional[Dict[str, Any]], Optional[Dict[str, Any]]]:
        """Return status, value and error of one run; an interrupt strikes between arming and disarming only."""
        try:
            try:
                self.interrupts.armed = True
                value = self.evaluate(message.code, message.name)
                if llm.Submitted.ended is not None:
                    raise llm.Submitted.ended
                shown = None if value is None else present(value, self.value_limit)
            finally:
                self.interrupts.disarm()
            if planned.Planned.ended is not None:
                raise planned.Planned.ended
            return "ok", shown, None
        except SystemExit as exc:
            end = planned.cause(exc)
            if end is exc and exc.code in (None, 0):
                submitted = llm.Submitted.ended
                return "ok", present(submitted.value, self.value_limit) if submitted is not None else None, None
            return "error", None, self.describe(end)
        except KeyboardInterrupt as exc:
            self.interrupts.disarm()
            return "interrupted", None, self.describe(exc)
        except BaseException as exc:  # noqa: BLE001 - user code may raise anything, and that is its result
            return "error", None, self.describe(planned.cause(exc))
        finally:
            self.settle_loop()

    def describe(self, exc: BaseException) -> Dict[str, Any]:
        """Return `exc` as the host gets it, even if describing it fails."""
        try:
            return describe_error(exc, self.own_files)
        except BaseException as failure:  # noqa: BLE001 - hostile __str__, or no memory or stack left to format with
            return {
                "type": type(exc).__name__,
                "message": f"(not printable: {type(failure).__name__})",
                "traceback": "",
            }

    def evaluate(self, code: str, name: str) -> Any:
        """Run `code` and return the value of its last expression or last assignment."""
        tree = _parsed(code, name)
        last = _last_value(tree)
        parts = []
        if tree.body:
            parts.append(compile(tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True))
        if last is not None:
            parts.append(compile(last, name, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True))
        if any(part.co_flags & CO_COROUTINE for part in parts):
            return self.run_in_loop(parts)
        value = None
        for part in parts:
            value = eval(part, self.main.__dict__)
        return value

    def run_in_loop(self, parts: List[types.CodeType]) -> Any:
        """Run code that awaits something at its top level on the session's own event loop, which stays."""
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        self.task = self.loop.create_task(self.run_parts(parts))
        return self.loop.run_until_complete(self.task)

    async def run_parts(self, parts: List[types.CodeType]) -> Any:
        """Run pieces of code one after the other and return the value of the last."""
        value = None
        for part in parts:
            value = eval(part, self.main.__dict__)
            if part.co_flags & CO_COROUTINE:
                value = await value
        return value

    def settle_loop(self) -> None:
        """Cancel the code that an interrupt left waiting; tasks that it started on purpose stay."""
        task, self.task = self.task, None
        if task is None or task.done() or self.loop.is_closed():
            return
        import asyncio

        task.cancel()
        try:
            self.loop.run_until_complete(asyncio.wait([task], timeout=DRAIN_S))
        except BaseException:  # noqa: BLE001, S110 - the interrupt again, out of a task that it struck
            pass


CO_COROUTINE = 0x80  # inspect.CO_COROUTINE, without the cost of importing inspect


def _parsed(code: str, name: str) -> ast.Module:
    """Return the syntax tree of `code`.

    Finalisers wait meanwhile: one that reports an error parses source too, and CPython 3.11 then fails the outer parse.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        tree = compile(code, name, "exec", FLAGS, dont_inherit=True)
    finally:
        if collects:
            gc.enable()
    assert isinstance(tree, ast.Module)
    return tree


def _last_value(tree: ast.Module) -> Optional[ast.Expression]:
    """Return the expression whose value is the run's value, taking it out of `tree` if it stands alone there."""
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
        return None  # reading an attribute or an item again could run code of its own
    loaded: List[ast.expr] = [ast.copy_location(ast.Name(name.id, ast.Load()), name) for name in names]
    value = ast.copy_location(ast.Tuple(loaded, ast.Load()), target) if isinstance(target, ast.Tuple) else loaded[0]
    return ast.Expression(value)


def _same_file(fd: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(fd, other)
    except OSError:
        return False


def _no_input(prompt: object = "") -> str:
    raise RuntimeError("input() is not available here: nobody can type. Pass the value in the code instead.")


class _NoStdin(io.TextIOBase):
    """A stdin that says why it cannot be read."""

    def readable(self) -> bool:
        return True

    def read(self, size: Optional[int] = -1, /) -> str:
        return _no_input()

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        return _no_input()


class Meter:
    """What one run uses, from `start` until `usage`."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0
        try:
            self.peak = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            self.peak = -1  # not Linux, or /proc is masked: the peak is then the worker's since its start

    def revive(self) -> None:
        """Measure the process that this one has become, through the same descriptor."""
        if self.peak >= 0:
            own = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(own, self.peak, inheritable=False)
            os.close(own)

    def start(self) -> None:
        """Begin to count."""
        if self.peak >= 0:
            try:
                os.pwrite(self.peak, b"5", 0)  # forget the peak so far
            except OSError:
                self.peak = -1  # closed by user code
        self.cpu = _cpu_seconds()
        self.wall = perf_counter()

    def usage(self) -> Dict[str, float]:
        """Return wall and processor time (children included) in milliseconds and peak memory in MB."""
        return {
            "wall_ms": round((perf_counter() - self.wall) * 1e3, 3),
            "cpu_ms": round((_cpu_seconds() - self.cpu) * 1e3, 3),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + children.ru_utime + children.ru_stime
