"""For which run a call is answered, for handlers that need to know; whoever answers a call enters its scope first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

PUT_CHARS = 60_000  # of one question that is put before the client's model


@dataclass(frozen=True)
class Scope:
    """A run and its session, by their ids; `put` puts a question before the client's model and returns the answer.

    While the call is `away`, the run's time stands still, others may execute in its turn, and whoever looks at the run
    is told what `tell` has been given last.
    """

    session: str
    run: str
    put: Callable[[Mapping[str, Any]], Awaitable[Any]]
    away: Callable[[], AbstractAsyncContextManager[None]]
    tell: Callable[[str], None]


_current: ContextVar[Scope] = ContextVar("scope")


def scope() -> Scope:
    """Return the scope of the call under way."""
    return _current.get()


def enter(found: Scope) -> None:
    """Have this task, and those that it starts, answer a call in a scope."""
    _current.set(found)
