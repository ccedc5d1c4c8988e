"""The run for which a call is being answered, for handlers that need to know it.

The router enters the scope before it calls a handler.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .events import ModelRequest

MAX_MODEL_REQUEST_CHARS = 60_000  # of one request to the client's model


@dataclass(frozen=True)
class CallScope:
    """A run and its session, by their ids, their owner, and what a handler can do with the run.

    `ask_client_model` sends a request to the client's model and returns the answer. Inside
    `release_slot` the run's clock stands still and other runs may use its slot. `report_progress`
    sets the text that clients see while the run is unfinished. `describe_call` sets the arguments
    and the outcome that the ledger shows, now and whenever the run is read from the journal.
    """

    session_id: str
    run_id: str
    principal: str
    ask_client_model: Callable[[ModelRequest], Awaitable[Any]]
    release_slot: Callable[[], AbstractAsyncContextManager[None]]
    report_progress: Callable[[str], None]
    describe_call: Callable[[dict[str, Any], str], None]
    data: bytes = b""  # that came with the call


_current_scope: ContextVar[CallScope] = ContextVar("scope")


def current_call_scope() -> CallScope:
    """Return the scope of the call that this task answers."""
    return _current_scope.get()


def find_call_scope() -> CallScope | None:
    """Return the scope of the call that this task answers, or None if it answers none."""
    return _current_scope.get(None)


def enter_call_scope(scope: CallScope) -> None:
    """Set the scope for this task and the tasks that it starts."""
    _current_scope.set(scope)
