"""For whom a task works: the principal, and the run whose call it answers.

The principal is set where a request or a call arrives. The router enters the scope of a call before
it calls the handler. The sandbox that waits for the answer may not read it: a handler that gets a
large one from elsewhere asks `current_reply_room` first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from .events import ClientModelRequest
from .progress import ReportProgress, ignore_progress

MAX_MODEL_REQUEST_CHARS = 60_000  # of one request to the client's model


@dataclass(frozen=True)
class CredentialRequest:
    """A credential that a person has to store before a call can be made."""

    url: str  # of the page where a person stores it
    hints: list[str]  # what is missing, and what to do
    wait_until_stored: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Download:
    """An answer with bytes from the web; `value` names the blob in which they are stored."""

    value: Any
    data: bytes


async def ask_nobody(request: CredentialRequest) -> bool:
    """Return that a credential is not stored."""
    return False


def ignore_download(size: int) -> None:
    """Count no bytes."""


@dataclass(frozen=True)
class CallScope:
    """A run and its session, by their ids, their owner, and what a handler can do with the run.

    `ask_client_model` sends a request to the client's model and returns the answer.
    `ask_for_credential` lets the run wait for a person, if the client can show a page, and returns
    whether the credential is stored. Inside
    `release_slot` the run's clock stands still and other runs may use its slot.
    `set_agent_question` says what agents of the run wait for, and `report_progress` how far a call
    is; clients see both while the run is unfinished. `describe_call` sets the arguments
    and the outcome that the ledger shows, now and whenever the run is read from the journal.
    `count_download` counts bytes that are about to be stored, and raises `JournalLimitReached`.
    """

    session_id: str
    run_id: str
    principal: str
    ask_client_model: Callable[[ClientModelRequest], Awaitable[Any]]
    release_slot: Callable[[], AbstractAsyncContextManager[None]]
    set_agent_question: Callable[[str], None]
    describe_call: Callable[[dict[str, Any], str], None]
    data: bytes = b""  # that came with the call
    ask_for_credential: Callable[[CredentialRequest], Awaitable[bool]] = ask_nobody
    report_progress: ReportProgress = ignore_progress
    count_download: Callable[[int], None] = ignore_download


_principal: ContextVar[str | None] = ContextVar("principal", default=None)
_current_scope: ContextVar[CallScope | None] = ContextVar("scope", default=None)


def current_call_scope() -> CallScope:
    """Return the scope of the call that this task answers."""
    scope = _current_scope.get()
    assert scope is not None, "this task answers no call"
    return scope


def find_call_scope() -> CallScope | None:
    """Return the scope of the call that this task answers, or None if it answers none."""
    return _current_scope.get()


def enter_call_scope(scope: CallScope) -> None:
    """Set the scope for this task and the tasks that it starts."""
    _current_scope.set(scope)


def current_principal() -> str | None:
    """Return the principal for whom this task works, or None if it works for nobody."""
    return _principal.get()


def act_for(principal: str) -> None:
    """Let this task, and the tasks that it starts, work for a principal."""
    _principal.set(principal)


class ReplyRoom(Protocol):
    """Whether a sandbox may get more answers: it has read most of those that were sent."""

    @property
    def has_room(self) -> bool:
        """Whether an answer may be asked for now."""
        ...

    async def wait_for_room(self) -> None:
        """Wait until an answer may be asked for."""
        ...


class EndlessRoom:
    """The room of a call that no sandbox makes."""

    has_room = True

    async def wait_for_room(self) -> None:
        """Return at once."""


ENDLESS_ROOM = EndlessRoom()

_current_room: ContextVar[ReplyRoom] = ContextVar("room", default=ENDLESS_ROOM)


def current_reply_room() -> ReplyRoom:
    """Return the room for the answer to the call that this task answers."""
    return _current_room.get()


def begin_call(principal: str, room: ReplyRoom) -> None:
    """Let this task work on a call, with room for its answer, before the scope is known."""
    act_for(principal)
    _current_room.set(room)


def end_call() -> None:
    """Forget the call: a task that waits for the next one would keep its arguments."""
    _current_room.set(ENDLESS_ROOM)
    _current_scope.set(None)
