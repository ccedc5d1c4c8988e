"""The verbs that go through the runtime: `rewind`, `fork` and `rerun`, in a server of their own that serves nobody."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ..config import Config
from ..errors import InvalidRequest
from ..journal.rows import RunRow, SessionRow
from ..journal.store import Journal
from ..runtime.run_diff import RunDiff, diff_runs, diff_to_json
from ..runtime.run_history import find_session, is_step_number
from . import views
from .console import ConsoleWriter, escape_text, open_stdout, print_json

if TYPE_CHECKING:
    from ..app import App

Options = argparse.Namespace


@asynccontextmanager
async def open_standalone_app(config: Config) -> AsyncIterator[App]:
    """Bring a server up that starts a sandbox only where one is needed, and leaves alone what other servers left."""
    from ..app import open_app

    alone = config.model_copy(
        update={"sandbox": config.sandbox.model_copy(update={"pool_size": 0})}
    )
    async with open_app(alone, resume_runs=False) as app:
        yield app


def parse_step_or_run(which: str | None) -> tuple[int | None, str | None]:
    """Return what people type as a step or a run as either."""
    return (int(which), None) if which is not None and is_step_number(which) else (None, which)


def rewind_session(config: Config, options: Options) -> int:
    """Have a session go on from an earlier step."""
    from ..runtime import time_travel

    async def move() -> tuple[SessionRow, RunRow | None]:
        async with open_standalone_app(config) as app:
            row = await find_session(app.journal, options.session)
            if not options.cancel:
                await _check_not_interrupted(app.journal, row)
            session = await app.runtime.find_session(row.id, row.principal)
            return row, await time_travel.rewind_session(
                app.runtime, session, *parse_step_or_run(options.step), cancel=options.cancel
            )

    row, at = anyio.run(move)
    if options.json:
        print_json({"session": row.id, "run": at.id if at else None, "step": at.step if at else 0})
        return 0
    place = f"the end of step {at.step} ({at.id})" if at else "the beginning"
    ConsoleWriter(open_stdout()).write_line(
        f"{escape_text(views.session_label(row))} goes on from {place}"
    )
    return 0


async def _check_not_interrupted(journal: Journal, row: SessionRow) -> None:
    """Raise `InvalidRequest` if the session has a run that the death of a server has interrupted."""
    if any(session.id == row.id for session, _ in await journal.list_interrupted_runs()):
        handle = views.session_label(row)
        raise InvalidRequest(
            f"A run of the session {handle} was under way when its server died; the next one goes on with it.",
            remedy="Start a server and wait for its end, or give it up with --cancel.",
        )


def fork_session(config: Config, options: Options) -> int:
    """Make a session that begins at the end of a step."""
    from ..runtime import time_travel

    async def make() -> tuple[SessionRow, RunRow]:
        async with open_standalone_app(config) as app:
            row = await find_session(app.journal, options.session)
            made = await time_travel.fork_session(
                app.runtime, row, *parse_step_or_run(options.step), options.name, row.principal
            )
            return await find_session(app.journal, made.id), await app.journal.load_run(
                str(made.tip)
            )

    row, at = anyio.run(make)
    if options.json:
        print_json({"session": row.id, "name": row.name, "run": at.id, "step": at.step})
    else:
        ConsoleWriter(open_stdout()).write_line(
            f"{escape_text(views.session_label(row))} begins at the end of step {at.step} ({at.id})"
        )
    return 0


def rerun_steps(config: Config, options: Options) -> int:
    """Execute runs again; what was not as recorded is shown, and without other code or live calls it is a failure."""
    code = load_code(options.code)
    pairs = anyio.run(_rerun_targets, config, options, code)
    equal = all(found.is_equal for found, _ in pairs)
    if options.json:
        runs = [{"differs": differs, **diff_to_json(found)} for found, differs in pairs]
        print_json({"session": pairs[0][0].b.session_id, "equal": equal, "runs": runs})
    else:
        screen = ConsoleWriter(open_stdout(), show_full=options.full)
        for found, _ in pairs:
            show_rerun_diff(screen, found)
        screen.write_footer()
    return 0 if equal or code is not None or options.live else 1


async def _rerun_targets(
    config: Config, options: Options, code: str | None
) -> list[tuple[RunDiff, list[str]]]:
    """Return how each run differs from its repetition, and the fields that do."""
    from ..runtime import time_travel

    async with open_standalone_app(config) as app:
        journal = app.journal
        time_travel.check_live_targets(options.live, app.catalog.package_names())
        session = await find_session(journal, options.session)
        step, run = parse_step_or_run(options.step)
        targets = await time_travel.find_rerun_targets(
            journal, session, step, run, only_last=code is not None
        )
        made = await time_travel.rerun_runs(
            app.runtime, targets, session.principal, code=code, live=options.live
        )
        again = [await journal.load_run(report.run_id) for report in made.reports]
        pairs = zip(targets, again, strict=True)
        return [(await diff_runs(journal, a, b), made.differences[a.id]) for a, b in pairs]


def show_rerun_diff(screen: ConsoleWriter, found: RunDiff) -> None:
    """Show what came out otherwise when a run was executed again."""
    state = "as recorded" if found.is_equal else "differs"
    screen.write_heading(
        f"step {found.a.step} · {found.a.id} → {found.b.id} · {state}",
        "green" if found.is_equal else "yellow",
    )
    views.show_changes(screen, found)
    for text in found.damage:
        screen.write_warning(text)


def load_code(file: Path | None) -> str | None:
    """Return the code in a file; raises `InvalidRequest`."""
    try:
        return None if file is None else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise InvalidRequest(
            f"The code in {file} cannot be read: {reason}.", remedy="Name a file of Python."
        ) from exc
