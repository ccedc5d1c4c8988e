"""What code observes of chance and of time, so that a run can be replayed.

Chance: everything that Python code can draw from (`os.urandom`, `random`, `secrets`, `uuid`, numpy's generators, which
seed themselves from `secrets`) comes from one stream that a run's seed determines. Recording the seed records it all.
Time: what the clocks of `time` and `datetime` told the code is recorded by clock, up to a limit; and a recording can be
told again.
Both are by thread, as `name@1.2` for the second thread that the first one of the run has started: which of several
threads comes first is nobody's decision and cannot be repeated.
Rule: the runtime's own machinery and the parts of the standard library that only wait see the real clocks.
What this cannot see: C code that reads the system's clock or its randomness by itself.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
import time
from types import ModuleType

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Callable, ClassVar, Dict, List, Optional, Sequence, Tuple

MAX_READINGS = 10_000  # readings kept of one run; code that reads a clock in a loop is not told apart any further
CLOCK_NAMES = ("time", "monotonic", "perf_counter", "process_time", "thread_time")
MONOTONIC_CLOCKS = (
    "monotonic",
    "perf_counter",
    "process_time",
    "thread_time",
)  # never run backwards
PROCESS_CLOCKS = ("process_time", "thread_time")  # begin anew in a copy of the process
ROUNDING_NS = 1_000  # more than floats of seconds lose
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
        self._draws_by_thread: Dict[str, int] = {}  # by thread
        self._lock = threading.Lock()

    def reseed(self, seed: str) -> None:
        """Begin the stream of `seed`; what objects have drawn already stays theirs."""
        with self._lock:
            self._seed, self._draws_by_thread = seed.encode(), {}

    def urandom(self, size: int, /) -> bytes:
        """Return the next `size` bytes."""
        if size < 0:
            raise ValueError("negative argument not allowed")
        import hashlib  # only now: it loads a cryptographic library, which most runs do not need

        with self._lock:
            thread = ThreadNames.current_name()
            count = self._draws_by_thread[thread] = self._draws_by_thread.get(thread, 0) + 1
            block = b"%d%s:%s" % (count, thread.encode(), self._seed)
        return hashlib.shake_256(block).digest(size)


class ThreadNames:
    """Gives each thread a name by the order in which its parent has started its children; "" is the main thread."""

    children_started: ClassVar[Dict[str, int]] = {}  # children, by the name of their parent

    @classmethod
    def current_name(cls) -> str:
        """Return the name of the thread that asks."""
        return getattr(threading._active.get(threading.get_ident()), "_observed", "")  # type: ignore[attr-defined]

    @classmethod
    def install(cls) -> None:
        """Name the threads that are started from here on."""
        start = threading.Thread.start

        @functools.wraps(start)
        def named(self: Any) -> None:
            parent = cls.current_name()
            number = cls.children_started[parent] = cls.children_started.get(parent, 0) + 1
            self._observed = f"{parent}.{number}" if parent else f"@{number}"
            start(self)

        threading.Thread.start = named  # type: ignore[method-assign]


class RecordedClocks:
    """The clocks that code reads, and what they told it since the last `take`."""

    def __init__(self) -> None:
        self.readings: Dict[str, List[float]] = {}
        self.readings_left = MAX_READINGS
        self._replayed: Dict[str, List[float]] = {}  # still to be told, the next one last
        self._floors_ns: Dict[
            str, int
        ] = {}  # nanoseconds before which a steady clock must not fall back
        self._offsets_ns: Dict[
            str, int
        ] = {}  # nanoseconds by which a steady clock runs before the real one

    def start_run(self, recorded: Optional[Dict[str, Any]] = None) -> None:
        """Begin a run: tell it what is `recorded` (name to readings) and then go on with the real clocks."""
        self.readings, self.readings_left = {}, MAX_READINGS
        ThreadNames.children_started.clear()
        told_again = ((name, told) for name, told in (recorded or {}).items() if type(told) is list)
        known = ((name, told) for name, told in told_again if name.partition("@")[0] in REAL_CLOCKS)
        self._replayed = {name: told[::-1] for name, told in known if told}

    def take_readings(self) -> Dict[str, List[float]]:
        """Return what was read since the last time, by clock."""
        readings, self.readings = self.readings, {}
        return readings

    def keep_process_clocks(self) -> None:
        """Have a copy of this process go on with the process's own clocks where they stand now."""
        for clock in PROCESS_CLOCKS:
            self._floors_ns[clock] = max(
                self._floors_ns.get(clock, 0),
                REAL_CLOCKS[clock + "_ns"]() + self._offsets_ns.get(clock, 0),
            )

    def read_clock(self, name: str, frame_depth: int = 2) -> Any:
        """Return what the clock `name` says; it is recorded unless the caller only waits."""
        if (self.readings_left <= 0 and not self._replayed) or _is_waiting_module(
            sys._getframe(frame_depth).f_globals.get("__name__")
        ):
            return self._read_real_clock(name)
        by_thread = name + ThreadNames.current_name()
        recorded = self._replayed.get(by_thread)
        value = (
            self._replay_reading(name, recorded.pop()) if recorded else self._read_real_clock(name)
        )
        if self.readings_left > 0:
            self.readings_left -= 1
            self.readings.setdefault(by_thread, []).append(value)
        return value

    def _replay_reading(self, name: str, value: Any) -> Any:
        clock, is_ns = _split_clock_name(name)
        if clock in MONOTONIC_CLOCKS:
            self._floors_ns[clock] = max(
                self._floors_ns.get(clock, 0), int(value if is_ns else value * 1e9)
            )
        return value

    def _read_real_clock(self, name: str) -> Any:
        """Return what the real clock says, or what it would if it had run from what was told last."""
        value = REAL_CLOCKS[name]()
        if not self._floors_ns and not self._offsets_ns:
            return value
        clock, is_ns = _split_clock_name(name)
        ahead = self._offsets_ns.get(clock, 0)
        missing = self._floors_ns.pop(clock, 0) - int(value if is_ns else value * 1e9)
        if missing > ahead:
            ahead = self._offsets_ns[clock] = missing + ROUNDING_NS
        return value + (ahead if is_ns else ahead / 1e9)


def _split_clock_name(name: str) -> Tuple[str, bool]:
    """Return the clock that the function `name` reads, and whether it does so in nanoseconds."""
    return (name[:-3], True) if name.endswith("_ns") else (name, False)


def _is_waiting_module(module: Optional[str]) -> bool:
    return module is not None and module.partition(".")[0] in WAITING_MODULES


def install_determinism() -> Tuple[SeededRandomness, RecordedClocks]:
    """Put this process's chance and clocks under observation; before user code, once."""
    chance, clocks = SeededRandomness(), RecordedClocks()
    ThreadNames.install()
    os.urandom = chance.urandom
    if hasattr(os, "getrandom"):
        os.getrandom = lambda size, flags=0: chance.urandom(size)
    _patch_time(clocks)
    ImportHooks.run_after_import("random", _patch_random)
    ImportHooks.run_after_import("uuid", _patch_uuid)
    ImportHooks.run_after_import("datetime", lambda module: _patch_datetime(module, clocks))
    return chance, clocks


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
    """Replace the methods that read the clock in the types themselves, which stay what they are."""
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
    """Set attributes of a built-in type, which has no other way to be told."""
    import ctypes

    namespace = gc.get_referents(cls.__dict__)[0]
    namespace.update(methods)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))


class ImportHooks:
    """Runs a function right after a module is first imported, or now if it has been."""

    pending_hooks: ClassVar[Dict[str, Callable[[ModuleType], None]]] = {}

    @classmethod
    def run_after_import(cls, name: str, function: Callable[[ModuleType], None]) -> None:
        """Have `function(module)` run as soon as there is a module `name`."""
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
        """Find the module as the others would, and have its loader call the function afterwards."""
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
