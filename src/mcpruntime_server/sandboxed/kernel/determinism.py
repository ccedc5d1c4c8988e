"""Makes what code observes of randomness and time repeatable, so that a run can be replayed.

Randomness: all that Python code can draw from (`os.urandom`, `random`, `secrets`, `uuid`, and
numpy's generators, which seed themselves from `secrets`) is one stream that the seed of the run
determines. So the seed is all that has to be recorded.
Time: the readings of the clocks in `time` and `datetime` are recorded by clock, up to a limit,
before the call that may depend on them. A recording can be replayed. Both are separate for each
thread: `name@1.2` is the second thread that the first thread of the run started. In a thread pool
they are separate for each job: `name@j3` is the third job that the main thread submitted, whichever
thread executes it; in `tools.map`, for each item. How threads alternate cannot be repeated: after
`time.sleep`, two threads may append to a list in another order, which is then reported.
What wakes an event loop is recorded like the readings of a clock, under the name of the loop
(`loop1`); `event_loop` says what the numbers mean.

Rule: the runtime and the parts of the standard library that only wait see the real clocks.
Limit: C code that reads the system's clock or randomness directly is not covered.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
import time
from types import ModuleType

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, ClassVar, Dict, List, Optional, Sequence, Tuple

MAX_READINGS = 10_000  # recorded of one run; later ones are real and not recorded
MAX_WAKE_UPS = 20_000  # of event loops, likewise
LOOP_PREFIX = "loop"  # of the names under which the wake-ups of event loops are recorded
PROCESS_CLOCKS = ("process_time", "thread_time")  # start again in a fork of the process
MONOTONIC_CLOCKS = ("monotonic", "perf_counter", *PROCESS_CLOCKS)
CLOCK_NAMES = ("time", *MONOTONIC_CLOCKS)
ROUNDING_NS = 1_000  # more than a float of seconds loses
WAITING_MODULES = (
    "asyncio",
    "threading",
    "queue",
    "selectors",
    "subprocess",
    "concurrent",
    "multiprocessing",
    "socket",
)
REAL_CLOCKS = {
    name: getattr(time, name) for clock in CLOCK_NAMES for name in (clock, clock + "_ns")
}


class SeededRandomness:
    """A stream of bytes that a seed determines."""

    def __init__(self) -> None:
        self._seed = b""
        self._draws_by_thread: Dict[str, int] = {}
        self._lock = threading.Lock()

    def reseed(self, seed: str) -> None:
        """Start the stream of `seed`; generators that were seeded before are not affected."""
        with self._lock:
            self._seed, self._draws_by_thread = seed.encode(), {}

    def urandom(self, size: int, /) -> bytes:
        """Return the next `size` bytes."""
        if size < 0:
            raise ValueError("negative argument not allowed")
        import hashlib  # loads a cryptographic library, which most runs do not need

        with self._lock:
            thread = ThreadNames.current_name()
            count = self._draws_by_thread[thread] = self._draws_by_thread.get(thread, 0) + 1
            block = b"%d%s:%s" % (count, thread.encode(), self._seed)
        return hashlib.shake_256(block).digest(size)


class ThreadNames:
    """Names each thread by its parent and the number of threads that its parent started before it.

    The main thread has the name "".
    """

    children_started: ClassVar[Dict[str, int]] = {}  # by the name of the parent
    jobs_submitted: ClassVar[Dict[str, int]] = {}  # to thread pools, by the name of the submitter

    @classmethod
    def current_name(cls) -> str:
        """Return the name of the calling thread, or of the job that it executes."""
        thread = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]
        return getattr(thread, "_job_name", "") or getattr(thread, "_replay_name", "")

    @classmethod
    def install(cls) -> None:
        """Name all threads that are started from now on."""
        start = threading.Thread.start

        @functools.wraps(start)
        def named(self: Any) -> None:
            parent = cls.current_name()
            target = getattr(self, "_target", None)
            if getattr(target, "__module__", None) == "concurrent.futures.thread":
                self._replay_name = _child_name(parent, "pool")  # how many there are is a race
            else:
                number = cls.children_started[parent] = cls.children_started.get(parent, 0) + 1
                self._replay_name = _child_name(parent, str(number))
            start(self)

        threading.Thread.start = named  # type: ignore[method-assign]

    @classmethod
    def name_jobs(cls, module: Any) -> None:
        """Give the thread that executes a job of a `ThreadPoolExecutor` the job's name."""
        submit = module.ThreadPoolExecutor.submit

        @functools.wraps(submit)
        def named(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            parent = cls.current_name()
            number = cls.jobs_submitted[parent] = cls.jobs_submitted.get(parent, 0) + 1
            name = _child_name(parent, f"j{number}")

            def job() -> Any:
                threading.current_thread()._job_name = name  # type: ignore[attr-defined]
                return fn(*args, **kwargs)

            return submit(self, job)

        module.ThreadPoolExecutor.submit = named

    @classmethod
    def start_run(cls) -> None:
        """Count from 1 again."""
        cls.children_started.clear()
        cls.jobs_submitted.clear()


def _child_name(parent: str, part: str) -> str:
    return f"{parent}.{part}" if parent else f"@{part}"


class RecordedClocks:
    """The clocks that code reads, and their readings since the last `take_readings`.

    The wake-ups of event loops are among the readings. `traces` has, by thread, a function that
    returns the trace of the loop that is running there.
    """

    def __init__(self) -> None:
        self.readings: Dict[str, List[float]] = {}
        self.readings_left = MAX_READINGS
        self.wake_ups_left = MAX_WAKE_UPS
        self.run_count = 0
        self.traces: Dict[int, Callable[[], Any]] = {}
        self._loops_by_thread: Dict[str, int] = {}  # used in the run
        self._objects_by_thread: Dict[str, int] = {}  # numbered in the run
        self._replayed: Dict[str, List[float]] = {}  # readings to replay, the next one last
        self._replayed_loops: Dict[str, List[float]] = {}  # likewise, the first one first
        self._floors_ns: Dict[str, int] = {}  # which a monotonic clock must not fall below
        self._offsets_ns: Dict[str, int] = {}  # of a monotonic clock from the real one

    def start_run(self, recorded: Optional[Dict[str, Any]] = None) -> None:
        """Start a run: replay the `recorded` readings, by name, before those of real clocks."""
        self.readings, self.readings_left = {}, MAX_READINGS
        self.wake_ups_left = MAX_WAKE_UPS
        self.run_count += 1
        self._loops_by_thread, self._objects_by_thread = {}, {}
        ThreadNames.start_run()
        self._replayed = {}
        self._replayed_loops = {}
        for name, values in (recorded or {}).items():
            if type(values) is not list or not values:
                continue
            if name.partition("@")[0] in REAL_CLOCKS:
                self._replayed[name] = values[::-1]
            elif name.startswith(LOOP_PREFIX):
                self._replayed_loops[name] = values

    def take_readings(self) -> Dict[str, List[float]]:
        """Return the readings since the last call, by clock."""
        current_trace = self.traces.get(threading.get_ident())
        if current_trace is not None:
            current_trace().complete()  # what the caller does next follows from all of it
        readings, self.readings = self.readings, {}
        return readings

    def next_loop_name(self) -> str:
        """Return the name of an event loop that the calling thread uses for the first time."""
        thread = ThreadNames.current_name()
        number = self._loops_by_thread[thread] = self._loops_by_thread.get(thread, 0) + 1
        return f"{LOOP_PREFIX}{number}{thread}"

    def next_object_number(self) -> int:
        """Return the number of an object that the calling thread hashes for the first time."""
        thread = ThreadNames.current_name()
        number = self._objects_by_thread[thread] = self._objects_by_thread.get(thread, 0) + 1
        return number

    def replayed_readings(self, loop_name: str) -> List[Any]:
        """Return what was recorded of an event loop, once."""
        return self._replayed_loops.pop(loop_name, [])

    def record_wake_up(self, loop_name: str, numbers: Sequence[int]) -> bool:
        """Record what woke an event loop; return whether the limit allows that."""
        if self.wake_ups_left <= 0:
            return False
        self.wake_ups_left -= 1
        self.readings.setdefault(loop_name, []).extend(numbers)
        return True

    def monotonic_ms(self) -> int:
        """Return the monotonic clock in milliseconds, unrecorded."""
        return int(self._read_real_clock("monotonic_ns") // 1_000_000)

    def keep_process_clocks(self) -> None:
        """Let the process's own clocks continue from their present values in a fork of it."""
        for clock in PROCESS_CLOCKS:
            now_ns = REAL_CLOCKS[clock + "_ns"]() + self._offsets_ns.get(clock, 0)
            self._floors_ns[clock] = max(self._floors_ns.get(clock, 0), now_ns)

    def read_clock(self, name: str) -> Any:
        """Return a reading of the clock `name` for the caller of the function that calls this.

        It is recorded unless that caller is a module that only waits.
        """
        is_done = self.readings_left <= 0 and not self._replayed
        if is_done or _is_waiting_module(sys._getframe(2).f_globals.get("__name__")):
            return self._read_real_clock(name)
        by_thread = name + ThreadNames.current_name()
        recorded = self._replayed.get(by_thread)
        if recorded:
            value = self._replay_reading(name, recorded.pop())
        else:
            value = self._read_real_clock(name)
        if self.readings_left > 0:
            self.readings_left -= 1
            self.readings.setdefault(by_thread, []).append(value)
        return value

    def _replay_reading(self, name: str, value: Any) -> Any:
        clock, is_ns = _split_clock_name(name)
        if clock in MONOTONIC_CLOCKS:
            value_ns = int(value if is_ns else value * 1e9)
            self._floors_ns[clock] = max(self._floors_ns.get(clock, 0), value_ns)
        return value

    def _read_real_clock(self, name: str) -> Any:
        """Return the real reading, shifted so that a monotonic clock continues from a replay."""
        value = REAL_CLOCKS[name]()
        if not self._floors_ns and not self._offsets_ns:
            return value
        clock, is_ns = _split_clock_name(name)
        offset_ns = self._offsets_ns.get(clock, 0)
        missing_ns = self._floors_ns.pop(clock, 0) - int(value if is_ns else value * 1e9)
        if missing_ns > offset_ns:
            offset_ns = self._offsets_ns[clock] = missing_ns + ROUNDING_NS
        return value + (offset_ns if is_ns else offset_ns / 1e9)


def _split_clock_name(name: str) -> Tuple[str, bool]:
    """Return the clock that the function `name` reads, and whether it returns nanoseconds."""
    if name.endswith("_ns"):
        return name[: -len("_ns")], True
    return name, False


def _is_waiting_module(module: Optional[str]) -> bool:
    return module is not None and module.partition(".")[0] in WAITING_MODULES


def install_determinism() -> Tuple[SeededRandomness, RecordedClocks]:
    """Replace this process's randomness and clocks; once, before user code runs."""
    randomness, clocks = SeededRandomness(), RecordedClocks()
    ThreadNames.install()
    ImportHooks.run_after_import("concurrent.futures.thread", ThreadNames.name_jobs)
    os.urandom = randomness.urandom
    if hasattr(os, "getrandom"):
        os.getrandom = lambda size, flags=0: randomness.urandom(size)
    _patch_time(clocks)
    ImportHooks.run_after_import("random", _patch_random)
    ImportHooks.run_after_import("uuid", _patch_uuid)
    ImportHooks.run_after_import("datetime", lambda module: _patch_datetime(module, clocks))
    return randomness, clocks


def _patch_time(clocks: RecordedClocks) -> None:
    for name in REAL_CLOCKS:
        setattr(time, name, _recorded_clock(clocks, name))
    for name in ("localtime", "gmtime"):
        setattr(time, name, _with_recorded_now(clocks, getattr(time, name)))
    ctime, strftime, localtime = time.ctime, time.strftime, time.localtime
    time.ctime = lambda seconds=None, /: ctime(
        clocks.read_clock("time") if seconds is None else seconds
    )
    time.strftime = lambda format, when=None, /: strftime(
        format, localtime() if when is None else when
    )


def _recorded_clock(clocks: RecordedClocks, name: str) -> Callable[[], Any]:
    def read() -> Any:
        return clocks.read_clock(name)

    read.__name__ = read.__qualname__ = name
    read.__module__ = "time"
    return read


def _with_recorded_now(
    clocks: RecordedClocks, function: Callable[[float], Any]
) -> Callable[..., Any]:
    def convert(seconds: Optional[float] = None, /) -> Any:
        return function(clocks.read_clock("time") if seconds is None else seconds)

    convert.__name__ = convert.__qualname__ = function.__name__
    convert.__module__ = "time"
    return convert


def _patch_random(module: Any) -> None:
    seed = module.Random.seed

    def seeded(self: Any, a: Any = None, version: int = 2) -> None:
        seed(self, int.from_bytes(os.urandom(32), "big") if a is None else a, version)

    module.Random.seed = seeded
    module.seed = module._inst.seed
    module.seed()


def _patch_uuid(module: Any) -> None:
    module._generate_time_safe = None  # uuid1 then reads `time` and `random`
    module._UuidCreate = None


def _patch_datetime(module: Any, clocks: RecordedClocks) -> None:
    """Replace methods inside the types, so that the types stay the same objects."""
    utc = module.timezone.utc

    def now(cls: Any, tz: Any = None) -> Any:
        return cls.fromtimestamp(clocks.read_clock("time"), tz)

    def utcnow(cls: Any) -> Any:
        return cls.fromtimestamp(clocks.read_clock("time"), utc).replace(tzinfo=None)

    def today(cls: Any) -> Any:
        return cls.fromtimestamp(clocks.read_clock("time"))

    _replace_methods(
        module.datetime,
        {"now": classmethod(now), "utcnow": classmethod(utcnow), "today": classmethod(today)},
    )
    _replace_methods(module.date, {"today": classmethod(today)})


def _replace_methods(cls: type, methods: Dict[str, Any]) -> None:
    """Set attributes of a built-in type, which `setattr` refuses."""
    import ctypes

    namespace = gc.get_referents(cls.__dict__)[0]
    namespace.update(methods)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))


class ImportHooks:
    """A finder that runs functions right after modules have been imported for the first time."""

    pending_hooks: ClassVar[Dict[str, Callable[[ModuleType], None]]] = {}

    @classmethod
    def run_after_import(cls, name: str, function: Callable[[ModuleType], None]) -> None:
        """Call `function(module)` after the module is first imported, or now if it has been."""
        if name in sys.modules:
            function(sys.modules[name])
            return
        if cls not in sys.meta_path:
            sys.meta_path.insert(0, cls)
        cls.pending_hooks[name] = function

    @classmethod
    def find_spec(
        cls, name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Any:
        """Find the module with the other finders; let its loader call the function afterwards."""
        function = cls.pending_hooks.pop(name, None)
        if function is None:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not cls else None
            if spec is not None and spec.loader is not None:
                spec.loader = _HookedLoader(spec.loader, function)  # type: ignore[assignment]
                return spec
        return None


class _HookedLoader:
    """A loader that runs a function after the module's own code."""

    def __init__(self, loader: Any, function: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._function = function

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        """Make the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code, then the function."""
        self._loader.exec_module(module)
        self._function(module)
