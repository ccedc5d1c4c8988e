"""Opening the journal for a command, and finding the runs and sessions that its arguments name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ..config import Config
from ..errors import NotFound
from ..journal.rows import RunRow, SessionRow
from ..journal.server_lease import is_server_alive
from ..journal.store import Journal, open_journal
from ..runtime.run_history import find_any_session, find_own_run, find_run

T = TypeVar("T")

ANSWERED_BY = "a person, on the command line"  # who answers a question, or cancels a run
RUNS_REMEDY = "`mcpruntime-server replay list SESSION` shows the runs of a session."


def read_journal(config: Config, work: Callable[[Journal], Awaitable[T]]) -> T:
    """Return what `work` makes of the journal."""

    async def open_and_work() -> T:
        async with open_journal(config.server.data_dir) as journal:
            return await work(journal)

    return anyio.run(open_and_work)


def has_living_server(journal: Journal, session: SessionRow) -> bool:
    """Return whether a server that is alive owns `session`."""
    return session.owner is not None and is_server_alive(journal.data_dir, session.owner)


async def resolve_run(journal: Journal, name: str, principal: str) -> RunRow:
    """Return the run of a principal that a run id or SESSION:STEP names; raises `NotFound`."""
    session, colon, step = name.rpartition(":")
    if colon:
        return await find_run(journal, await find_any_session(journal, session, principal), step)
    row, _ = await find_own_run(journal, name, principal, RUNS_REMEDY)
    return row


async def resolve_run_or_session(
    journal: Journal, name: str, principal: str
) -> RunRow | SessionRow:
    """Return the run or the session of a principal with this name; raises `NotFound`."""
    try:
        return await resolve_run(journal, name, principal)
    except NotFound:
        session_names = {row.name for row in await journal.list_sessions(principal)}
        if ":" in name or (name.startswith("r_") and name not in session_names):
            raise
    return await find_any_session(journal, name, principal)
