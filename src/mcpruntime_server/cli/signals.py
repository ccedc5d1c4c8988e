"""How a signal ends a command that has sandboxes: they are removed first, whatever else is sent.

Rule: the handlers stay until everything is cleaned up, so that a second signal does not abort that.
Whoever closes a terminal sends several: the shell and the kernel each send SIGHUP, and a client
sends SIGTERM if its server does not end at once. All clean-ups have time limits of their own.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import anyio
import click

FATAL_SIGNAL_EXIT_CODE = 128  # the number of the signal is added, as shells do

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")


def run_until_signal(
    function: Callable[[*ArgumentsT], Awaitable[ResultT]], *args: *ArgumentsT
) -> ResultT:
    """Run an async function; a signal cancels it.

    Raises `click.exceptions.Exit` after a signal, when the function has cleaned up.
    """
    received: list[signal.Signals] = []
    results: list[ResultT] = []

    async def work() -> None:
        with anyio.open_signal_receiver(*stopping_signals()) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_at_signal, signals, tasks.cancel_scope, received)
                results.append(await function(*args))
                tasks.cancel_scope.cancel()

    anyio.run(work)
    if not results:
        raise click.exceptions.Exit(FATAL_SIGNAL_EXIT_CODE + received[0])
    return results[0]


def stopping_signals() -> list[signal.Signals]:
    """Return the signals that end a process; `nohup` lets SIGHUP be ignored."""
    if threading.current_thread() is not threading.main_thread():
        return []  # Python handles signals in the main thread
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


async def cancel_at_signal(
    signals: AsyncIterator[signal.Signals],
    scope: anyio.CancelScope,
    received: list[signal.Signals],
) -> None:
    """Cancel `scope` at the first signal, and note which it was."""
    async for number in signals:
        logger.info("stopping: %s", number.name)
        received.append(number)
        scope.cancel()
        return
