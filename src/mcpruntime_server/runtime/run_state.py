"""The states that a run goes through, as data.

Rule 1: a run is in one state. Every change of it is an event, and `TRANSITIONS` is the only place
that says which event is legal in which state, and where it leads. An event that the table does not
list is a mistake of ours, and raises `IllegalTransition`.

Rule 2: the table says what a run does, not how it ended. How it ended (ok, error, cancelled, ...)
is the status of its report.

        HEAD_REACHED         SLOT_ACQUIRED         CODE_STARTED
    QUEUED ──────> ADMITTING ──────────> PREPARING ─────────> RUNNING <──> PAUSED

Every state but the two final ones can also go to STOPPING (somebody wants the run to end) or to
SUSPENDING (the server ends, and the next one is to continue the run). A run that ended is FINISHED;
one that was left to the next server is SUSPENDED.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import Enum, auto

import anyio


class RunState(Enum):
    """What a run does at the moment."""

    QUEUED = auto()  # behind other runs of its session
    ADMITTING = auto()  # first of its session; waits for a slot to execute in
    PREPARING = auto()  # has a slot; its sandbox is brought to the state that it starts from
    RUNNING = auto()  # its code executes
    PAUSED = auto()  # its code waits for an answer, or for a call that takes slots of its own
    STOPPING = auto()  # it is to end: it was cancelled, or the host cannot let it continue
    SUSPENDING = auto()  # its server ends, and another one is to continue it
    FINISHED = auto()
    SUSPENDED = auto()


class LifecycleEvent(Enum):
    """What moves a run from one state to another."""

    HEAD_REACHED = auto()  # no other run of the session comes before it
    SLOT_ACQUIRED = auto()
    CODE_STARTED = auto()  # the sandbox has its code
    PAUSED = auto()  # its clock stands still, and its slot is free for others
    RESUMED = auto()
    STOP_REQUESTED = auto()
    SUSPEND_REQUESTED = auto()
    ENDED = auto()  # nothing more comes of it on this server


TRANSITIONS: Mapping[RunState, Mapping[LifecycleEvent, RunState]] = {
    RunState.QUEUED: {
        LifecycleEvent.HEAD_REACHED: RunState.ADMITTING,
        LifecycleEvent.STOP_REQUESTED: RunState.STOPPING,
        LifecycleEvent.SUSPEND_REQUESTED: RunState.SUSPENDING,
    },
    RunState.ADMITTING: {
        LifecycleEvent.SLOT_ACQUIRED: RunState.PREPARING,
        LifecycleEvent.STOP_REQUESTED: RunState.STOPPING,
        LifecycleEvent.SUSPEND_REQUESTED: RunState.SUSPENDING,
        LifecycleEvent.ENDED: RunState.FINISHED,  # its session was cancelled
    },
    RunState.PREPARING: {
        LifecycleEvent.CODE_STARTED: RunState.RUNNING,
        LifecycleEvent.STOP_REQUESTED: RunState.STOPPING,
        LifecycleEvent.SUSPEND_REQUESTED: RunState.SUSPENDING,
        LifecycleEvent.ENDED: RunState.FINISHED,  # no sandbox could be brought to its state
    },
    RunState.RUNNING: {
        LifecycleEvent.PAUSED: RunState.PAUSED,
        LifecycleEvent.RESUMED: RunState.RUNNING,  # two waits ended at once
        LifecycleEvent.STOP_REQUESTED: RunState.STOPPING,
        LifecycleEvent.SUSPEND_REQUESTED: RunState.SUSPENDING,
        LifecycleEvent.ENDED: RunState.FINISHED,
    },
    RunState.PAUSED: {
        LifecycleEvent.PAUSED: RunState.PAUSED,  # for one more reason
        LifecycleEvent.RESUMED: RunState.RUNNING,
        LifecycleEvent.STOP_REQUESTED: RunState.STOPPING,
        LifecycleEvent.SUSPEND_REQUESTED: RunState.SUSPENDING,
        LifecycleEvent.ENDED: RunState.FINISHED,  # its time was up, or its sandbox died
    },
    # A run that stops or is suspended still passes through the sandbox, but stays in its state.
    RunState.STOPPING: {
        LifecycleEvent.HEAD_REACHED: RunState.STOPPING,
        LifecycleEvent.SLOT_ACQUIRED: RunState.STOPPING,
        LifecycleEvent.CODE_STARTED: RunState.STOPPING,
        LifecycleEvent.PAUSED: RunState.STOPPING,
        LifecycleEvent.RESUMED: RunState.STOPPING,
        LifecycleEvent.STOP_REQUESTED: RunState.STOPPING,
        LifecycleEvent.SUSPEND_REQUESTED: RunState.SUSPENDING,
        LifecycleEvent.ENDED: RunState.FINISHED,
    },
    RunState.SUSPENDING: {
        LifecycleEvent.HEAD_REACHED: RunState.SUSPENDING,
        LifecycleEvent.SLOT_ACQUIRED: RunState.SUSPENDING,
        LifecycleEvent.CODE_STARTED: RunState.SUSPENDING,
        LifecycleEvent.PAUSED: RunState.SUSPENDING,
        LifecycleEvent.RESUMED: RunState.SUSPENDING,
        LifecycleEvent.STOP_REQUESTED: RunState.SUSPENDING,
        LifecycleEvent.SUSPEND_REQUESTED: RunState.SUSPENDING,
        LifecycleEvent.ENDED: RunState.SUSPENDED,
    },
    RunState.FINISHED: {},
    RunState.SUSPENDED: {},
}
FINAL_STATES = frozenset(state for state, events in TRANSITIONS.items() if not events)


class IllegalTransition(Exception):
    """An event came that is not legal in the state that a run is in."""

    def __init__(self, state: RunState, event: LifecycleEvent) -> None:
        super().__init__(f"A run that is {state.name} cannot take the event {event.name}.")


class RunLifecycle:
    """The state of one run, since when it exists, and the tasks that wait for a change of it."""

    def __init__(self) -> None:
        self.state = RunState.QUEUED
        self.stage = ""  # what is done before the code can start, for people; "" for nothing
        self.has_reached_head = False  # of its session's queue
        self.finished = anyio.Event()  # its report is complete
        self._requested_at = time.perf_counter()
        self._update: anyio.Event | None = None  # set at the next change, if somebody waits for it

    def apply(self, event: LifecycleEvent) -> None:
        """Change the state as `TRANSITIONS` says; raises `IllegalTransition`."""
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise IllegalTransition(self.state, event) from None
        if event is LifecycleEvent.HEAD_REACHED:
            self.has_reached_head = True
        if self.is_final:
            self.finished.set()
        self.notify_watchers()

    @property
    def is_final(self) -> bool:
        """Whether nothing more comes of the run on this server."""
        return self.state in FINAL_STATES

    @property
    def is_queued(self) -> bool:
        """Whether the run waits for other runs, of its session or of the server."""
        return self.state in (RunState.QUEUED, RunState.ADMITTING)

    def elapsed_s(self) -> float:
        """Return the seconds since the run was requested."""
        return time.perf_counter() - self._requested_at

    def set_stage(self, stage: str) -> None:
        """Tell the watchers what is done before the code can start; "" when it can."""
        self.stage = stage
        self.notify_watchers()

    def notify_watchers(self) -> None:
        """Wake every task that waits for an update."""
        if self._update is not None:
            self._update.set()
            self._update = None

    async def wait_for_update(self) -> None:
        """Wait until the run has new output, another state or stage, or is finished."""
        if not self.finished.is_set():
            self._update = self._update or anyio.Event()
            await self._update.wait()
