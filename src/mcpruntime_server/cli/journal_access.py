"""Opening the journal for a command, and finding the runs and sessions that its arguments name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ..config import Config
from ..errors import NotFound
from ..journal.rows import RunRow, SessionRow
from ..journal.store import Journal, open_journal
from ..runtime.run_history import find_run, find_session

T = TypeVar("T")


def read_journal(config: Config, work: Callable[[Journal], Awaitable[T]]) -> T:
    """Return what `work` makes of the journal."""

    async def open_and_work() -> T:
        async with open_journal(config.server.data_dir) as journal:
            return await work(journal)

    return anyio.run(open_and_work)


async def resolve_run(journal: Journal, name: str) -> RunRow:
    """Return the run that a run id or SESSION:STEP names; raises `NotFound`."""
    session, colon, step = name.rpartition(":")
    if colon:
        return await find_run(journal, await find_session(journal, session), step)
    try:
        return await journal.load_run(name)
    except NotFound as exc:
        remedy = "`mcpruntime-server replay list SESSION` shows the runs of a session."
        raise NotFound(exc.message, remedy=remedy) from None


async def resolve_run_or_session(journal: Journal, name: str) -> RunRow | SessionRow:
    """Return the run or the session with this name; raises `NotFound`."""
    try:
        return await resolve_run(journal, name)
    except NotFound:
        session_names = {row.name for row in await journal.list_sessions()}
        if ":" in name or (name.startswith("r_") and name not in session_names):
            raise
    return await find_session(journal, name)
