"""The command `replay cancel`: ends a run, whichever server executes it.

The request is written to the journal. The server that owns the session reads it from there, at once
or when it is next started.
"""

from __future__ import annotations

import click

from ..config import Config
from ..journal.rows import RunRow
from ..journal.store import Journal
from .journal_access import ANSWERED_BY, has_living_server, read_journal, resolve_run
from .options import pass_config, principal_option
from .terminal_text import print_text


@click.command("cancel")
@click.argument("run")
@principal_option
@pass_config
def cancel_command(config: Config, *, run: str, principal: str) -> int:
    """Cancel RUN, a run id (r_...) or SESSION:STEP; one that has finished stays as it is."""

    async def request(journal: Journal) -> tuple[RunRow, bool]:
        row = await resolve_run(journal, run, principal)
        await journal.request_cancellation(row.id, ANSWERED_BY)
        session = await journal.load_session(row.session_id)
        return row, has_living_server(journal, session)

    row, is_alive = read_journal(config, request)
    if row.is_finished:
        print_text(f"Run {row.id} has finished already; its status is {row.status}.")
        return 0
    when = "in a moment" if is_alive else "when a server is started on this data folder"
    print_text(f"Run {row.id} is cancelled {when}.")
    return 0
