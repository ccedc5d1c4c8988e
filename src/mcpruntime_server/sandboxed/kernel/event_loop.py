"""The event loop of sandboxed code: what woke it is recorded, so that a replay can repeat it.

`asyncio` code is determined by its randomness and by what it observes at certain moments: each wait
of the loop, and each reading of its clock. `LoopTrace` counts these moments and keeps what happened
at each: the clock advanced, the reply to a call arrived, a job of an executor ended, another thread
used `call_soon_threadsafe`, or a descriptor became ready. A moment at which nothing happened costs
nothing. In a replay the same happens at the same moments: the loop waits for it, holds back what
arrives earlier, sets its clock and does not sleep. Where the trace ends, the loop continues live,
and its clock continues without a jump.

Guaranteed for a loop that `asyncio` makes: a replay (rerun, rebuild, crash resume) repeats the
order in which tasks, timers, replies, executor jobs and other threads' callbacks ran, and
`loop.time()`.
Not covered: what follows after `MAX_WAKE_UPS` in a run, signals, asynchronous generators that only
the garbage collector closes, the order of sets of the program's own objects (it depends on
addresses), `recv_into` and TLS, a loop in a thread that outlives its run. Then the result of a
replay may differ, which is reported.
A program that sets a policy, or makes a loop of another class, keeps it. Replies then arrive one at
a time in the recorded order, but their order relative to timers is not repeated.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import sys
import threading
import zlib
from asyncio import base_events, events
from collections import deque
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from fcntl import ioctl
from termios import FIONREAD

from .determinism import RecordedClocks, ThreadNames

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, Iterable, List, Optional, Set, Tuple

    from .worker_channel import WorkerChannel

    Arrival = Tuple[int, int, events.Handle]  # kind, number, and what it makes the loop do

# What can happen at a moment. The number that goes with it:
CLOCK = 0  # milliseconds since the last reading; the first one of a run is absolute
REPLY = 1  # of the call, among those that tasks of the loop have made in the run
JOB = 2  # of the job, among those that the loop has given to executors in the run
THREAD = 3  # a checksum of the name of the thread that used `call_soon_threadsafe`
DESCRIPTOR = 4  # its registration, the bytes that can be read, and the kind of readiness
NOTHING = 5  # the trace is complete up to here
KINDS = range(6)

MAX_READ_BYTES = 256 * 1024  # at a time, as `asyncio` has it
SIZE_BITS = 20
MASK_BITS = 2
MAX_BUSY_ROUNDS = 32  # of a loop that always has work, before the next reply is read
MAX_WAIT_S = 60.0  # in a replay, for a thread or a descriptor that was ready when it was recorded
NUMBERED_CLASSES = (  # whose objects programs put into sets: subscribers, clients, waiters
    "Queue",
    "Event",
    "Lock",
    "Condition",
    "Semaphore",
    "Barrier",
    "StreamReader",
    "StreamWriter",
)
MAX_SELECT_S = 24 * 3600.0  # more than a selector takes is an error
POLL_MS = 2  # for bytes that arrive in pieces
RUN_ONCE_CODE = base_events.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]


class LoopTrace:
    """What one loop observed in one run: groups of (moments since the last group, kind, number)."""

    def __init__(self, clocks: RecordedClocks, name: str) -> None:
        self._clocks = clocks
        self._name = name
        self._moments = 0  # since the last group
        self._replayed = _parse_groups(clocks.replayed_readings(name))  # the next one last

    @property
    def is_replaying(self) -> bool:
        """Whether anything of the recording is left."""
        return bool(self._replayed)

    def count_moment(self) -> None:
        """Note that something may happen now."""
        self._moments += 1

    def record(self, kind: int, number: int) -> None:
        """Record what happens at this moment, unless the run has recorded too much."""
        if self._clocks.record_wake_up(self._name, (self._moments, kind, number)):
            self._moments = 0

    def complete(self) -> None:
        """Record that nothing has happened since the last group."""
        if self._moments and not self._replayed:
            self.record(NOTHING, 0)

    def next_event(self) -> Optional[Tuple[int, int]]:
        """Return the kind and number of what the recording has for this moment, if anything."""
        if self._replayed and self._replayed[-1][0] <= self._moments:
            return self._replayed[-1][1:]
        return None

    def confirm_event(self) -> None:
        """Note that what `next_event` returned has happened again."""
        _, kind, number = self._replayed.pop()
        self.record(kind, number)

    def abandon(self) -> None:
        """Forget the recording: the code does not do what it did then."""
        self._replayed.clear()


def _parse_groups(values: List[Any]) -> List[Tuple[int, int, int]]:
    """Return the groups in recorded numbers, the first one last; nonsense ends them."""
    groups: List[Tuple[int, int, int]] = []
    for at in range(0, len(values) - 2, 3):
        group = values[at : at + 3]
        if any(type(value) is not int for value in group) or group[1] not in KINDS:
            break
        groups.append((group[0], group[1], group[2]))
    return groups[::-1]


class LoopClock:
    """The clock of one loop: it advances in milliseconds, in steps that are recorded."""

    def __init__(self, clocks: RecordedClocks) -> None:
        self.now_ms = 0
        self._clocks = clocks
        self._last_recorded_ms = 0  # in the run
        self._offset_ms = 0  # of a live reading from the real clock

    def start_run(self) -> None:
        """Let the first reading of a run be recorded as it is."""
        self._last_recorded_ms = 0

    def read_live(self) -> int:
        """Return the present time without recording it."""
        return max(self.now_ms, self._clocks.monotonic_ms() + self._offset_ms)

    def advance(self, trace: LoopTrace, now_ms: int) -> None:
        """Set the time to what was read live, and record that."""
        if now_ms != self._last_recorded_ms:
            trace.record(CLOCK, now_ms - self._last_recorded_ms)
            self.now_ms = self._last_recorded_ms = now_ms

    def repeat_advance(self, step_ms: int) -> None:
        """Set the time to what the recording has."""
        self.now_ms = self._last_recorded_ms = self._last_recorded_ms + step_ms

    def continue_live(self) -> None:
        """Go on from where the recording has left the time."""
        self._offset_ms = self.now_ms - self._clocks.monotonic_ms() if self.now_ms else 0


class LoopSelector(selectors.BaseSelector):
    """A selector that lets its loop decide what has happened.

    It numbers registrations, so that a descriptor is known by the same number in a replay.
    """

    def __init__(self, loop: ReplayableEventLoop, inner: Optional[selectors.BaseSelector]) -> None:
        self.inner = inner or selectors.DefaultSelector()
        self._loop = loop
        self._numbers: Dict[int, int] = {}  # by descriptor
        self._last_number = 0

    def renew(self) -> None:
        """Use a new selector: all forks of a process share the present one."""
        self.inner.close()
        self.inner = type(self.inner)()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Register a descriptor and give it the next number."""
        key = self.inner.register(fileobj, events, data)
        if not self._loop.is_wakeup_pipe(key.fd):
            self._last_number += 1
            self._numbers[key.fd] = self._last_number
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Forget a descriptor."""
        key = self.inner.unregister(fileobj)
        self._numbers.pop(key.fd, None)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Change what is awaited from a descriptor."""
        return self.inner.modify(fileobj, events, data)

    def select(self, timeout: Optional[float] = None) -> List[Tuple[selectors.SelectorKey, int]]:
        """Return what the loop says is ready."""
        return self._loop.wait_for_events(timeout)

    def get_map(self) -> Any:
        """Return the registered descriptors."""
        return self.inner.get_map()

    def close(self) -> None:
        """Close the selector."""
        self.inner.close()

    def fileno(self) -> int:
        """Return the selector's own descriptor."""
        number: int = self.inner.fileno()  # type: ignore[attr-defined]
        return number

    def number_of(self, key: selectors.SelectorKey) -> int:
        """Return the number of a registration."""
        return self._numbers.get(key.fd, 0)

    def find_key(self, number: int) -> Optional[selectors.SelectorKey]:
        """Return the registration with this number."""
        for fd, known in self._numbers.items():
            if known == number:
                return self.inner.get_map().get(fd)
        return None


class NumberedFuture(asyncio.Future):  # type: ignore[type-arg] # no parameters in Python 3.9
    """A future whose place in a set depends on its number instead of its address."""

    __slots__ = ("_number",)
    _number: int

    def __new__(cls, *, loop: ReplayableEventLoop) -> NumberedFuture:
        future = super().__new__(cls)
        future._number = loop.next_object_number()
        return future

    def __hash__(self) -> int:
        return self._number


class NumberedTask(asyncio.Task):  # type: ignore[type-arg] # likewise
    """A task whose place in a set depends on its number instead of its address."""

    __slots__ = ("_number",)
    _number: int

    def __new__(cls, coro: Any, *, loop: ReplayableEventLoop, **options: Any) -> NumberedTask:
        task = super().__new__(cls)
        task._number = loop.next_object_number()
        return task

    def __hash__(self) -> int:
        return self._number


NumberedFuture.__name__ = NumberedFuture.__qualname__ = "Future"
NumberedTask.__name__ = NumberedTask.__qualname__ = "Task"


class ReplayableEventLoop(asyncio.SelectorEventLoop):
    """A selector loop that records what wakes it in a run, or replays what did."""

    clocks: RecordedClocks
    channel: WorkerChannel

    if TYPE_CHECKING:  # attributes of the base classes that their stubs leave out
        _check_closed: Callable[[], None]
        _check_default_executor: Callable[[], None]
        _clock_resolution: float
        _csock: Any
        _default_executor: Any
        _internal_fds: int
        _make_self_pipe: Callable[[], None]
        _read_from_self: Callable[[], None]
        _ready: Deque[events.Handle]
        _scheduled: List[asyncio.TimerHandle]
        _selector: LoopSelector
        _ssock: Any
        _thread_id: Optional[int]
        _write_to_self: Callable[[], None]

    def __init__(self, selector: Optional[selectors.BaseSelector] = None) -> None:
        self._trace: Optional[LoopTrace] = None
        self._run_count = -1  # of the run that `_trace` belongs to
        self._owner_id = threading.get_ident()
        self._clock = LoopClock(self.clocks)
        self._object_count = 0
        self._call_count = self._job_count = 0  # in the run
        self._open_calls: Set[int] = set()
        self._jobs: Dict[ThreadFuture[Any], int] = {}  # that have not ended
        self._arrivals: Deque[Arrival] = deque()  # that the loop has not acted on
        self._busy_rounds = 0
        super().__init__(LoopSelector(self, selector))

    # runs -----------------------------------------------------------------------------------------

    def run_forever(self) -> None:
        """Run until `stop` is called."""
        thread_id = self._owner_id = threading.get_ident()
        self._current_trace()
        self.clocks.traces[thread_id] = self._current_trace
        try:
            super().run_forever()
        finally:
            self.clocks.traces.pop(thread_id, None)
            self._current_trace().complete()

    def _current_trace(self) -> LoopTrace:
        """Return the trace of the present run; the loop may be older than the run."""
        if self._trace is None or self._run_count != self.clocks.run_count:
            self._run_count = self.clocks.run_count
            self._trace = LoopTrace(self.clocks, self.clocks.next_loop_name())
            self._clock.start_run()
            self._call_count = self._job_count = 0
            self._object_count = 0
        return self._trace

    def renew_selector(self) -> None:
        """Use a selector and a wake-up pipe of this process, which is a fork."""
        self._selector.renew()
        self._ssock.close()
        self._csock.close()
        self._internal_fds -= 1
        self._make_self_pipe()
        if self._open_calls:
            self._selector.inner.register(self.channel.sock, selectors.EVENT_READ)

    def is_wakeup_pipe(self, fd: int) -> bool:
        """Return whether a descriptor is the end of the pipe with which threads wake the loop."""
        return bool(fd == self._ssock.fileno())

    # the clock ------------------------------------------------------------------------------------

    def time(self) -> float:
        """Return the time of the loop's clock in seconds; it advances in milliseconds."""
        if sys._getframe(1).f_code is RUN_ONCE_CODE:
            return self._clock.now_ms / 1000
        if threading.get_ident() != self._owner_id:  # when is a race
            is_replaying = self._trace is not None and self._trace.is_replaying
            return (self._clock.now_ms if is_replaying else self._clock.read_live()) / 1000
        trace = self._current_trace()
        trace.count_moment()
        if trace.is_replaying:
            self._replay_moment(trace, is_reading=True)
        else:
            self._clock.advance(trace, self._clock.read_live())
        return self._clock.now_ms / 1000

    def _is_timer_due(self, now_ms: int) -> bool:
        end = now_ms / 1000 + self._clock_resolution
        return bool(self._scheduled) and self._scheduled[0].when() < end

    # waiting --------------------------------------------------------------------------------------

    def wait_for_events(self, timeout: Optional[float]) -> List[Tuple[selectors.SelectorKey, int]]:
        """Wait until the loop has something to do; return the descriptors that are ready.

        A positive `timeout` or None means that it has nothing to do now.
        """
        trace = self._current_trace()
        trace.count_moment()
        is_idle = timeout is None or timeout > 0
        if trace.is_replaying:
            events = self._replay_moment(trace)
            if events or self._ready or self._is_timer_due(self._clock.now_ms) or not is_idle:
                return events
            if trace.is_replaying:  # it cannot have been idle at this moment
                trace.abandon()
                self._clock.continue_live()
        return self._wait_live(trace, is_idle=is_idle)

    def _wait_live(
        self, trace: LoopTrace, *, is_idle: bool
    ) -> List[Tuple[selectors.SelectorKey, int]]:
        while True:
            events = self._poll(trace, is_idle=is_idle)
            self._admit_arrivals(trace)
            if self._is_timer_due(now_ms := self._clock.read_live()):
                self._clock.advance(trace, now_ms)
                return events
            if events or self._ready or not is_idle:
                return events

    def _poll(self, trace: LoopTrace, *, is_idle: bool) -> List[Tuple[selectors.SelectorKey, int]]:
        """Wait until something may have happened; return and record the descriptors."""
        selector = self._selector
        ready = []
        has_reply = False
        for key, mask in selector.inner.select(self._time_left(is_idle=is_idle)):
            if key.fileobj is self.channel.sock:
                has_reply = True
            elif self.is_wakeup_pipe(key.fd):
                self._read_from_self()
            else:
                ready.append((key, mask))
                size = _readable_bytes(key, mask)
                _limit_read(key, size)
                number = (selector.number_of(key) << SIZE_BITS | size) << MASK_BITS | mask
                trace.record(DESCRIPTOR, number)
        if has_reply and self._is_reply_due():
            self.channel.read_available()
        return ready

    def _time_left(self, *, is_idle: bool) -> Optional[float]:
        if not is_idle or self._arrivals:
            return 0
        if not self._scheduled:
            return None
        left = self._scheduled[0].when() - self._clock.read_live() / 1000
        return min(max(left, 0), MAX_SELECT_S)

    def _is_reply_due(self) -> bool:
        """Return whether the loop has finished its work for the last reply, or has had its turn."""
        if self._ready and self._busy_rounds < MAX_BUSY_ROUNDS:
            self._busy_rounds += 1
            return False
        self._busy_rounds = 0
        return True

    def _admit_arrivals(self, trace: LoopTrace) -> None:
        """Record and schedule what has arrived and still matters."""
        while self._arrivals:
            kind, number, handle = self._arrivals.popleft()
            if not _is_obsolete(kind, handle):
                trace.record(kind, number)
                self._ready.append(handle)

    # replay ---------------------------------------------------------------------------------------

    def _replay_moment(
        self, trace: LoopTrace, *, is_reading: bool = False
    ) -> List[Tuple[selectors.SelectorKey, int]]:
        """Let happen what happened at this moment; return the descriptors that were ready."""
        ready: List[Tuple[selectors.SelectorKey, int]] = []
        while True:
            event = trace.next_event()
            if event is None:
                break
            kind, number = event
            if kind == CLOCK:
                self._clock.repeat_advance(number)
            elif kind != NOTHING and (is_reading or not self._repeat_event(kind, number, ready)):
                trace.abandon()
                break
            trace.confirm_event()
        if not trace.is_replaying:
            self._clock.continue_live()
        return ready

    def _repeat_event(
        self, kind: int, number: int, ready: List[Tuple[selectors.SelectorKey, int]]
    ) -> bool:
        """Wait until something has happened again; return whether it has."""
        if kind == DESCRIPTOR:
            key = self._await_descriptor(number)
            if key is not None:
                ready.append((key, number & ((1 << MASK_BITS) - 1)))
            return key is not None
        handle = self._await_arrival(kind, number)
        if handle is not None:
            self._ready.append(handle)
        return handle is not None

    def _await_arrival(self, kind: int, number: int) -> Optional[events.Handle]:
        deadline = _real_time() + MAX_WAIT_S
        while True:
            for arrival in self._arrivals:
                if arrival[:2] == (kind, number):
                    self._arrivals.remove(arrival)
                    return arrival[2]
            if kind == REPLY:
                can_come = number in self._open_calls
            elif kind == JOB:
                can_come = number in self._jobs.values()
            else:
                can_come = threading.active_count() > 1 and _real_time() < deadline
            if not can_come:
                return None
            self._wait_for_arrivals()

    def _wait_for_arrivals(self) -> None:
        poller = select.poll()
        poller.register(self._ssock.fileno(), select.POLLIN)
        if self._open_calls:
            poller.register(self.channel.sock.fileno(), select.POLLIN)
        readable = [fd for fd, _ in poller.poll(1000)]
        if self._ssock.fileno() in readable:
            self._read_from_self()
        if self.channel.sock.fileno() in readable:
            self.channel.read_available()

    def _await_descriptor(self, number: int) -> Optional[selectors.SelectorKey]:
        """Wait until a descriptor is ready, with as many bytes to read as were there."""
        mask = number & ((1 << MASK_BITS) - 1)
        size = number >> MASK_BITS & ((1 << SIZE_BITS) - 1)
        key = self._selector.find_key(number >> MASK_BITS + SIZE_BITS)
        if key is None or not mask & key.events:
            return None
        poller = select.poll()
        poller.register(
            key.fd,
            (select.POLLIN if mask & selectors.EVENT_READ else 0)
            | (select.POLLOUT if mask & selectors.EVENT_WRITE else 0),
        )
        deadline = _real_time() + MAX_WAIT_S
        while _real_time() < deadline:
            if poller.poll(1000):
                if _readable_bytes(key, mask) >= size:
                    _limit_read(key, size)
                    return key
                select.poll().poll(POLL_MS)
        return None

    # what arrives ---------------------------------------------------------------------------------

    def open_call(self) -> int:
        """Return the number of a call that a task makes now."""
        self._current_trace()
        self._call_count += 1
        if not self._open_calls:
            self._selector.inner.register(self.channel.sock, selectors.EVENT_READ)
        self._open_calls.add(self._call_count)
        return self._call_count

    def close_call(self, number: int) -> bool:
        """Stop waiting for the reply to a call; return whether the loop waits for others."""
        self._open_calls.discard(number)
        if not self._open_calls and not self.is_closed():
            self._selector.inner.unregister(self.channel.sock)
        return bool(self._open_calls)

    def deliver_reply(self, number: int, callback: Callable[..., Any], *args: Any) -> None:
        """Let the loop call `callback` when it is the reply's turn. Safe in any thread."""
        self._deliver(REPLY, number, events.Handle(callback, args, self, None))

    def _deliver(self, kind: int, number: int, handle: events.Handle) -> None:
        self._arrivals.append((kind, number, handle))
        if threading.get_ident() != self._thread_id:
            self._write_to_self()

    def call_soon_threadsafe(  # type: ignore[override] # a type variable would need Python 3.11
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> events.Handle:
        """Call `callback` soon. Safe in any thread."""
        number = self._take_job(args)
        if number is None and threading.get_ident() == self._owner_id:
            return super().call_soon_threadsafe(callback, *args, context=context)
        self._check_closed()
        handle = events.Handle(callback, args, self, context)
        if number is not None:
            self._deliver(JOB, number, handle)
        else:
            self._deliver(THREAD, zlib.crc32(ThreadNames.current_name().encode()), handle)
        return handle

    def _take_job(self, args: Tuple[Any, ...]) -> Optional[int]:
        """Return the number of the job whose end `wrap_future` reports with `args`."""
        if len(args) == 2 and asyncio.isfuture(args[0]) and isinstance(args[1], ThreadFuture):
            return self._jobs.pop(args[1], None)
        return None

    def run_in_executor(  # type: ignore[override] # likewise
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        """Run `func` in an executor and return a future of its result."""
        self._check_closed()
        if executor is None:
            self._check_default_executor()
            executor = self._default_executor
            if executor is None:
                executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
                self._default_executor = executor
        self._current_trace()
        job = executor.submit(func, *args)
        self._job_count += 1
        self._jobs[job] = self._job_count
        return asyncio.wrap_future(job, loop=self)

    # tasks and futures ----------------------------------------------------------------------------

    def next_object_number(self) -> int:
        """Return the number of a new task or future."""
        self._object_count += 1
        return self._object_count

    def create_future(self) -> asyncio.Future[Any]:
        """Return a new future of this loop."""
        return NumberedFuture(loop=self)

    def create_task(self, coro: Any, **options: Any) -> Any:
        """Start a coroutine as a task."""
        if self.get_task_factory() is not None:
            return super().create_task(coro, **options)
        self._check_closed()
        task: Any = NumberedTask(coro, loop=self, **options)
        if task._source_traceback:
            del task._source_traceback[-1]
        return task


def _real_time() -> float:
    return ReplayableEventLoop.clocks.monotonic_ms() / 1e3


def _is_obsolete(kind: int, handle: events.Handle) -> bool:
    """Return whether a handle would do nothing: it or the future that it resolves is done."""
    if handle.cancelled() or kind == THREAD:
        return handle.cancelled()
    future: asyncio.Future[Any] = handle._args[0]
    return future.done()


def _readable_bytes(key: selectors.SelectorKey, mask: int) -> int:
    """Return how many bytes can be read at once; 0 at the end, or if that has no meaning."""
    if not mask & selectors.EVENT_READ:
        return 0
    try:
        answer = ioctl(key.fd, FIONREAD, b"\0\0\0\0")
    except OSError:
        return 0
    return min(int.from_bytes(answer, sys.byteorder), MAX_READ_BYTES)


def _limit_read(key: selectors.SelectorKey, size: int) -> None:
    """Let a transport read exactly so many bytes, so that a replay reads the same pieces."""
    reader = key.data[0] if isinstance(key.data, tuple) else None
    transport: Any = getattr(getattr(reader, "_callback", None), "__self__", None)
    if size and hasattr(transport, "max_size"):
        transport.max_size = size


def install_event_loop(clocks: RecordedClocks, channel: WorkerChannel) -> None:
    """Let `asyncio` make loops of this class."""
    ReplayableEventLoop.clocks, ReplayableEventLoop.channel = clocks, channel
    module: Any = asyncio
    module.DefaultEventLoopPolicy._loop_factory = ReplayableEventLoop
    for name in ("SelectorEventLoop", "EventLoop"):
        if hasattr(module, name):
            setattr(module, name, ReplayableEventLoop)
    for name in NUMBERED_CLASSES:
        if hasattr(module, name):
            getattr(module, name).__hash__ = _hash_by_number
    names = ("as_completed",) if sys.version_info >= (3, 11) else ("as_completed", "wait")
    for name in names:
        setattr(module, name, _with_tasks(getattr(module.tasks, name)))
        setattr(module.tasks, name, getattr(module, name))


def _hash_by_number(self: Any) -> int:
    """Return a number that depends on when the object was first put into a set or dict."""
    number: Optional[int] = getattr(self, "_replay_number", None)
    if number is None:
        number = self._replay_number = ReplayableEventLoop.clocks.next_object_number()
    return number


def _with_tasks(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `as_completed` or `wait`, but starting coroutines in the order of their list.

    They put them into a set first, whose order depends on addresses.
    """

    def call(fs: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        is_list = not asyncio.iscoroutine(fs) and not asyncio.isfuture(fs)
        if is_list and asyncio._get_running_loop() is not None:
            fs = [asyncio.ensure_future(each) for each in dict.fromkeys(fs)]
        return function(fs, *args, **kwargs)

    call.__name__ = call.__qualname__ = function.__name__
    call.__doc__ = function.__doc__
    return call
