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
from ..runtime.diff import RunDiff, as_data, diff_runs
from ..runtime.history import find_session, is_step
from . import views
from .printing import Screen, print_json, printer, safe

if TYPE_CHECKING:
    from ..app import App

Options = argparse.Namespace


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[App]:
    """Bring a server up that starts a sandbox only where one is needed, and leaves alone what other servers left."""
    from ..app import open_app

    alone = config.model_copy(update={"sandbox": config.sandbox.model_copy(update={"pool_size": 0})})
    async with open_app(alone, resumes=False) as app:
        yield app


def split(which: str | None) -> tuple[int | None, str | None]:
    """Return what people type as a step or a run as either."""
    return (int(which), None) if which is not None and is_step(which) else (None, which)


def rewind(config: Config, options: Options) -> int:
    """Have a session go on from an earlier step."""
    from ..runtime import timeline

    async def move() -> tuple[SessionRow, RunRow | None]:
        async with opened(config) as app:
            row = await find_session(app.journal, options.session)
            if not options.cancel:
                await _check_over(app.journal, row)
            session = await app.runtime.known_session(row.id, row.principal)
            return row, await timeline.rewind(app.runtime, session, *split(options.step), cancel=options.cancel)

    row, at = anyio.run(move)
    if options.json:
        print_json({"session": row.id, "run": at.id if at else None, "step": at.step if at else 0})
        return 0
    place = f"the end of step {at.step} ({at.id})" if at else "the beginning"
    Screen(printer()).line(f"{safe(views.handle_of(row))} goes on from {place}")
    return 0


async def _check_over(journal: Journal, row: SessionRow) -> None:
    """Raise `InvalidRequest` if the session has a run that the death of a server has interrupted."""
    if any(session.id == row.id for session, _ in await journal.interrupted()):
        handle = views.handle_of(row)
        raise InvalidRequest(
            f"A run of the session {handle} was under way when its server died; the next one goes on with it.",
            remedy="Start a server and wait for its end, or give it up with --cancel.",
        )


def fork(config: Config, options: Options) -> int:
    """Make a session that begins at the end of a step."""
    from ..runtime import timeline

    async def make() -> tuple[SessionRow, RunRow]:
        async with opened(config) as app:
            row = await find_session(app.journal, options.session)
            made = await timeline.fork(app.runtime, row, *split(options.step), options.name, row.principal)
            return await find_session(app.journal, made.id), await app.journal.run(str(made.tip))

    row, at = anyio.run(make)
    if options.json:
        print_json({"session": row.id, "name": row.name, "run": at.id, "step": at.step})
    else:
        Screen(printer()).line(f"{safe(views.handle_of(row))} begins at the end of step {at.step} ({at.id})")
    return 0


def rerun(config: Config, options: Options) -> int:
    """Execute runs again; what was not as recorded is shown, and without other code or live calls it is a failure."""
    code = read_code(options.code)
    pairs = anyio.run(_rerun, config, options, code)
    equal = all(found.equal for found, _ in pairs)
    if options.json:
        runs = [{"differs": differs, **as_data(found)} for found, differs in pairs]
        print_json({"session": pairs[0][0].b.session, "equal": equal, "runs": runs})
    else:
        screen = Screen(printer(), full=options.full)
        for found, _ in pairs:
            show_rerun(screen, found)
        screen.end()
    return 0 if equal or code is not None or options.live else 1


async def _rerun(config: Config, options: Options, code: str | None) -> list[tuple[RunDiff, list[str]]]:
    """Return how each run differs from its repetition, and the fields that do."""
    from ..runtime import timeline

    async with opened(config) as app:
        journal = app.journal
        timeline.check_live(options.live, app.catalog.package_names())
        session = await find_session(journal, options.session)
        step, run = split(options.step)
        targets = await timeline.rerun_targets(journal, session, step, run, only_last=code is not None)
        made = await timeline.rerun(app.runtime, targets, session.principal, code=code, live=options.live)
        again = [await journal.run(report.run) for report in made.reports]
        pairs = zip(targets, again, strict=True)
        return [(await diff_runs(journal, a, b), made.differences[a.id]) for a, b in pairs]


def show_rerun(screen: Screen, found: RunDiff) -> None:
    """Show what came out otherwise when a run was executed again."""
    state = "as recorded" if found.equal else "differs"
    screen.heading(f"step {found.a.step} · {found.a.id} → {found.b.id} · {state}", "green" if found.equal else "yellow")
    views.show_changes(screen, found)
    for text in found.damage:
        screen.warn(text)


def read_code(file: Path | None) -> str | None:
    """Return the code in a file; raises `InvalidRequest`."""
    try:
        return None if file is None else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"The code in {file} cannot be read: {reason}.", remedy="Name a file of Python.") from exc
