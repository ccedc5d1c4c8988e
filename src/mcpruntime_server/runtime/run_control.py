"""A run's hold on what executes it: its slot of the server, and the sandbox that it is in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from ..errors import McpRuntimeError
from ..sandbox.link import SandboxLink
from .run_scheduler import RunSlot


@dataclass
class StopRequest:
    """Why a run is to end before its code does; more than one reason may come."""

    is_cancelled: bool = False  # a client or the server has cancelled or suspended it
    undo: bool = False  # what the code has done until then is undone
    failure: McpRuntimeError | None = None  # why the host does not let it continue


class RunControl:
    """The slot and the sandbox of one run, while it has them."""

    def __init__(self, slot: RunSlot) -> None:
        self.slot = slot
        self.link: SandboxLink | None = None
        self.stop_request = StopRequest()
        self._admission = anyio.CancelScope()  # cancelled when the run no longer needs to execute
        self._resume_lock = anyio.Lock()

    async def acquire_slot(self) -> bool:
        """Wait for a slot; return False if the run was stopped first."""
        with self._admission:
            await self.slot.acquire()
        return self.slot.is_held

    def attach_link(self, link: SandboxLink) -> None:
        """Stop, pause and resume what `link` executes from here on: it is for this run."""
        self.link = link

    def stop_code(self) -> None:
        """Interrupt what the sandbox executes, or give up the wait for a slot."""
        self._admission.cancel()
        if self.link is not None:
            self.link.stop_run("cancelled")

    def abandon_sandbox(self, reason: str) -> None:
        """Give up the sandbox without waiting for its code, or the wait for a slot."""
        self._admission.cancel()
        if self.link is not None:
            self.link.fail(reason)

    def pause(self) -> None:
        """Stop the run's clock, and let others use its slot."""
        self.slot.release()
        if self.link is not None:
            self.link.pause_timeout()

    async def resume(self, is_paused: Callable[[], bool]) -> bool:
        """Wait for a slot and start the clock again; return False if the run is paused again."""
        async with self._resume_lock:
            if not self.slot.is_held and not is_paused():
                await self.slot.acquire()
        if is_paused():
            self.slot.release()
            return False
        if self.link is not None:
            self.link.resume_timeout()
        return True

    def detach_link(self) -> None:
        """Note that the sandbox is for other runs from here on."""
        self.link = None
