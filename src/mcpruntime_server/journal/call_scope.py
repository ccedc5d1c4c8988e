"""For which run a call is answered, for handlers that need to know; whoever answers a call enters its scope first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

MAX_MODEL_REQUEST_CHARS = 60_000  # of one question that is put before the client's model


@dataclass(frozen=True)
class CallScope:
    """A run and its session, by their ids; `put` puts a question before the client's model and returns the answer.

    While the call is `away`, the run's time stands still, others may execute in its turn, and whoever looks at the run
    is told what `tell` has been given last.
    """

    session_id: str
    run_id: str
    ask_client_model: Callable[[Mapping[str, Any]], Awaitable[Any]]
    release_slot: Callable[[], AbstractAsyncContextManager[None]]
    report_progress: Callable[[str], None]


_current_scope: ContextVar[CallScope] = ContextVar("scope")


def current_call_scope() -> CallScope:
    """Return the scope of the call under way."""
    return _current_scope.get()


def enter_call_scope(found: CallScope) -> None:
    """Have this task, and those that it starts, answer a call in a scope."""
    _current_scope.set(found)
