"""Which run a call is made for, for handlers that need to know; whoever answers a call sets it first."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """A run and its session, by their ids."""

    session: str
    run: str


_current: ContextVar[Scope] = ContextVar("scope")


def scope() -> Scope:
    """Return the run that the call under way is made for."""
    return _current.get()


def enter(session: str, run: str) -> None:
    """Note for which run this task answers a call."""
    _current.set(Scope(session, run))
