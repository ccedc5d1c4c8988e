"""What a sandbox has reported about its interpreter and the forks that it could not park."""

from __future__ import annotations

from ..protocol import wire

MAX_PARK_FAILURES = 64  # remembered reasons; older ones are of no use
MAX_RESTART_REASONS = 8
MAX_REASON_CHARS = 1_000  # a supervisor that is damaged may send any text


class InterpreterState:
    """The run whose end state the interpreter is in, and why states are missing."""

    def __init__(self) -> None:
        self.live_run = 0  # 0: it is empty
        self.restart_reasons: list[str] = []  # of interpreters that died
        self.park_failures: dict[int, str] = {}  # run number -> why its end state is not parked

    def finish_run(self, message: wire.RunDone) -> None:
        """Note that the interpreter is in the state at the end of a run, or has died in it."""
        self.live_run = 0 if message.status == "died" else message.run_number

    def promote(self, message: wire.Promoted) -> None:
        """Note that another state is live, or an empty one."""
        self.live_run = message.run_number if message.ok else 0

    def restart(self, message: wire.WorkerRestarted) -> None:
        """Note that the interpreter has died and is empty."""
        self.restart_reasons.append(message.reason[:MAX_REASON_CHARS])
        del self.restart_reasons[:-MAX_RESTART_REASONS]
        self.live_run = 0

    def fail_parking(self, message: wire.ParkFailed) -> None:
        """Note why the state at the end of a run is not parked."""
        self.park_failures[message.run_number] = message.reason[:MAX_REASON_CHARS]
        while len(self.park_failures) > MAX_PARK_FAILURES:
            del self.park_failures[next(iter(self.park_failures))]
