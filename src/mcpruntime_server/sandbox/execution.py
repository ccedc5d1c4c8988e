"""One execution of code in a sandbox: its end, why it was stopped, and the clock of its timeout."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import anyio

from ..protocol import wire
from .execution_listener import ExecutionListener
from .open_calls import OpenCalls

StopReason = Literal["timeout", "cancelled"]


@dataclass
class Execution:
    """The run that a link executes. Cancelling `timeout_scope` interrupts it."""

    run_number: int
    listener: ExecutionListener
    calls: OpenCalls
    timeout_scope: anyio.CancelScope
    finished: anyio.Event = field(default_factory=anyio.Event)
    paused_time_left_s: float | None = None  # until its timeout; None while the clock runs
    done: wire.RunDone | None = None
    stop_reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        """Interrupt the code, unless that has been done."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self.timeout_scope.cancel()

    def pause_timeout(self) -> None:
        """Stop the clock."""
        if self.paused_time_left_s is None:
            self.paused_time_left_s = self.timeout_scope.deadline - anyio.current_time()
            self.timeout_scope.deadline = math.inf

    def resume_timeout(self) -> None:
        """Start the clock again where it was stopped."""
        if self.paused_time_left_s is not None:
            self.timeout_scope.deadline = anyio.current_time() + self.paused_time_left_s
            self.paused_time_left_s = None
