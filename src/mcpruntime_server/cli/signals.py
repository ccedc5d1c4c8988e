"""How a signal ends a server or a command: sandboxes are removed first, whatever else is sent.

Rule: the handlers stay until everything is cleaned up, so that a second signal does not abort that.
When a terminal is closed, several arrive: the shell and the kernel each send SIGHUP, and a client
sends SIGTERM if its server does not end at once. All clean-ups have time limits of their own.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import anyio
import click

from ..app.event_loop import create_event_loop
from ..config import Config

# After each system call, the event loop waits so long for a thread that computes. With the 5 ms of
# Python itself, one such thread makes a run take 50 ms longer.
SWITCH_INTERVAL_S = 0.0005
FATAL_SIGNAL_EXIT_CODE = 128  # the number of the signal is added, as shells do

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
ArgumentsT = TypeVarTuple("ArgumentsT")


def serve_until_signal(
    serve: Callable[[Config, anyio.Event, *ArgumentsT], Awaitable[None]],
    config: Config,
    *args: *ArgumentsT,
) -> None:
    """Run a server; a signal sets the event that it gets."""

    async def work() -> None:
        is_stopping = anyio.Event()
        await run_with_handler(lambda _: is_stopping.set(), serve, config, is_stopping, *args)

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    anyio.run(work, backend_options={"loop_factory": create_event_loop})


def run_until_signal(
    function: Callable[[*ArgumentsT], Awaitable[ResultT]], *args: *ArgumentsT
) -> ResultT:
    """Run an async function; a signal interrupts it, and it cleans up.

    Raises `click.exceptions.Exit` then.
    """
    received: list[signal.Signals] = []

    async def work() -> ResultT:
        task = asyncio.current_task()
        assert task is not None, "this is a coroutine"

        def interrupt(number: signal.Signals) -> None:
            received.append(number)
            task.cancel()  # once: a cancelled scope would cancel the clean-up, too

        return await run_with_handler(interrupt, function, *args)

    try:
        return anyio.run(work)
    except asyncio.CancelledError:
        if not received:
            raise
        raise click.exceptions.Exit(FATAL_SIGNAL_EXIT_CODE + received[0]) from None


async def run_with_handler(
    handle: Callable[[signal.Signals], None],
    function: Callable[[*ArgumentsT], Awaitable[ResultT]],
    *args: *ArgumentsT,
) -> ResultT:
    """Return what a function returns; `handle` gets the first signal, others are ignored."""
    with anyio.open_signal_receiver(*stopping_signals()) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call_at_signal, signals, handle)
            result = await function(*args)
            tasks.cancel_scope.cancel()
    return result


def stopping_signals() -> list[signal.Signals]:
    """Return the signals that end a process; `nohup` lets SIGHUP be ignored."""
    if threading.current_thread() is not threading.main_thread():
        return []  # Python handles signals in the main thread
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


async def call_at_signal(
    signals: AsyncIterator[signal.Signals], handle: Callable[[signal.Signals], None]
) -> None:
    """Call `handle` with the first signal."""
    async for number in signals:
        logger.info("stopping: %s", number.name)
        handle(number)
        return
