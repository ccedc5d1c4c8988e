"""The actions `rewind`, `fork`, `rerun` and `delete` of `replay`.

They need the runtime, so each of them opens an app of its own, which serves no client.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import Config
from ..errors import InvalidRequest
from ..journal.rows import RunRow, SessionRow
from ..journal.store import Journal
from ..protocol.presentation import format_call
from ..runtime.run_history import find_any_session, is_step_number
from .console import ConsoleWriter
from .options import full_option, json_option, pass_config, principal_option
from .progress import show_progress
from .signals import run_until_signal
from .terminal_text import print_json

MAX_LEFT_CALL_CHARS = 300  # of the arguments of a call that a rewind does not undo

if TYPE_CHECKING:
    from ..app.composition import App
    from ..runtime.run_diff import RunDiff
    from ..runtime.time_travel import ChangedAnswer, Rewound


@asynccontextmanager
async def open_standalone_app(config: Config) -> AsyncIterator[App]:
    """Open an app that starts sandboxes only on demand and ignores what other servers left."""
    from ..app.composition import open_app

    alone = replace(config, sandbox=replace(config.sandbox, pool_size=0))
    async with open_app(alone, resume_runs=False) as app:
        yield app


def parse_step_or_run(name: str | None) -> tuple[int | None, str | None]:
    """Return an argument as (step, run id); at least one is None."""
    if name is not None and is_step_number(name):
        return int(name), None
    return None, name


@click.command("rewind")
@click.argument("session")
@click.argument("step")
@click.option("--cancel", is_flag=True, help="Cancel the run that is under way, if there is one.")
@principal_option
@json_option
@pass_config
def rewind_command(
    config: Config, *, session: str, step: str, cancel: bool, principal: str, as_json: bool
) -> int:
    """Let SESSION continue from an earlier STEP; nothing is deleted.

    STEP is a step of the session's lineage or a run id (r_...); 0 is the beginning.
    """
    from ..runtime import time_travel

    async def rewind() -> tuple[SessionRow, Rewound]:
        async with open_standalone_app(config) as app:
            row = await find_any_session(app.journal, session, principal)
            if not cancel:
                await check_not_interrupted(app.journal, row)
            opened = await app.runtime.find_session(row.id, row.principal)
            target = parse_step_or_run(step)
            return row, await time_travel.rewind_session(
                app.runtime, opened, *target, cancel=cancel
            )

    with show_progress(f"Restoring step {step} of {session}"):
        row, rewound = run_until_signal(rewind)
    run = rewound.run
    calls = [
        format_call(entry.target, entry.args, MAX_LEFT_CALL_CHARS)
        for entry in rewound.remaining_writes
    ]
    if as_json:
        step_number = run.step if run else 0
        print_json(
            {"session": row.id, "run": run and run.id, "step": step_number, "not_undone": calls}
        )
        return 0
    position = f"the end of step {run.step} ({run.id})" if run else "the beginning"
    writer = ConsoleWriter()
    writer.write_line(f"{row.name or row.id} continues from {position}")
    for call in calls:
        writer.write_line(f"not undone: {call}")
    return 0


async def check_not_interrupted(journal: Journal, row: SessionRow) -> None:
    """Raise `InvalidRequest` if the session has a run that a killed server left unfinished."""
    interrupted = await journal.list_interrupted_runs()
    if any(session.id == row.id for session, _ in interrupted):
        raise InvalidRequest(
            f"A run of the session {row.name or row.id} is not finished: its server died, "
            "and the next one resumes it.",
            remedy="Start a server and wait until the run has finished, or use --cancel.",
        )


@click.command("fork")
@click.argument("session")
@click.argument("step", required=False)
@click.option("--name", help="Name of the new session.")
@principal_option
@json_option
@pass_config
def fork_command(
    config: Config,
    *,
    session: str,
    step: str | None,
    name: str | None,
    principal: str,
    as_json: bool,
) -> int:
    """Create a session that starts at the end of a STEP of SESSION, by default the last one.

    STEP is a step of the session's lineage or a run id (r_...).
    """
    from ..runtime import time_travel

    async def fork() -> tuple[SessionRow, RunRow]:
        async with open_standalone_app(config) as app:
            row = await find_any_session(app.journal, session, principal)
            target = parse_step_or_run(step)
            made = await time_travel.fork_session(app.runtime, row, *target, name, row.principal)
            made_row = await find_any_session(app.journal, made.id)
            return made_row, await app.journal.load_run(str(made.tip))

    with show_progress(f"Forking {session}"):
        row, run = run_until_signal(fork)
    if as_json:
        print_json({"session": row.id, "name": row.name, "run": run.id, "step": run.step})
    else:
        label = row.name or row.id
        ConsoleWriter().write_line(f"{label} starts at the end of step {run.step} ({run.id})")
    return 0


@click.command("delete")
@click.argument("session")
@click.option("--yes", is_flag=True, help="Do not ask.")
@principal_option
@json_option
@pass_config
def delete_command(
    config: Config, *, session: str, yes: bool, principal: str, as_json: bool
) -> int:
    """Delete SESSION for good, with its attempts and agents.

    It is refused while a run is unfinished or pinned, or while a fork needs its steps.
    """
    if not yes:
        click.confirm(f"Delete the session {session!r:.80} for good?", abort=True, err=True)

    async def delete() -> SessionRow:
        async with open_standalone_app(config) as app:
            row = await find_any_session(app.journal, session, principal)
            await check_not_interrupted(app.journal, row)
            await app.runtime.delete_session(row)
            return row

    row = run_until_signal(delete)
    if as_json:
        print_json({"session": row.id, "deleted": True})
    else:
        ConsoleWriter().write_line(f"{row.name or row.id} is deleted")
    return 0


@click.command("rerun")
@click.argument("session")
@click.argument("step", required=False)
@click.option(
    "--code",
    "code_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Execute this file in place of the (last) step's own code.",
)
@click.option(
    "--live",
    multiple=True,
    metavar="SERVER",
    help="Call this server, or tool (server.tool), instead of the recording. May be repeated.",
)
@click.option(
    "--answer",
    "answers",
    multiple=True,
    metavar="CALL=JSON",
    help="Give the step's call of this number another answer. May be repeated.",
)
@click.option("--following", is_flag=True, help="Execute the steps after STEP again, too.")
@principal_option
@json_option
@full_option
@pass_config
def rerun_command(
    config: Config,
    *,
    session: str,
    step: str | None,
    code_file: Path | None,
    live: tuple[str, ...],
    answers: tuple[str, ...],
    following: bool,
    principal: str,
    as_json: bool,
    show_full: bool,
) -> int:
    """Execute a STEP of SESSION, or all, again in a fresh sandbox with recorded answers.

    Shows what differs from the recording. Exits with 1 if something differs, unless --code,
    --answer or --live asks for a difference. STEP is a step of the session's lineage or a run id
    (r_...).
    """
    from ..runtime.run_diff import diff_to_json
    from . import views

    code = load_code(code_file)
    with show_progress(f"Executing {session} again"):
        diffs = run_until_signal(
            rerun_session,
            config,
            principal,
            session,
            step,
            code,
            live,
            [parse_answer_option(each) for each in answers],
            following,
        )
    is_equal = all(diff.is_equal for diff, _ in diffs)
    if as_json:
        runs = [{"differs": fields, **diff_to_json(diff)} for diff, fields in diffs]
        print_json({"session": diffs[0][0].b.session_id, "equal": is_equal, "runs": runs})
    else:
        writer = ConsoleWriter(show_full=show_full)
        for diff, _ in diffs:
            state, style = ("as recorded", "green") if diff.is_equal else ("differs", "yellow")
            heading = f"step {diff.a.step} · {diff.a.id} → {diff.b.id} · {state}"
            writer.write_heading(heading, style)
            views.show_changes(writer, diff)
            for text in diff.damage:
                writer.write_warning(text)
        writer.write_footer()
    return 0 if is_equal or code is not None or live or answers else 1


def parse_answer_option(text: str) -> ChangedAnswer:
    """Return an answer that an option gives as CALL=JSON; raises `InvalidRequest`."""
    from ..runtime.time_travel import ChangedAnswer

    number, _, answer = text.partition("=")
    try:
        return ChangedAnswer(int(number), json.loads(answer))
    except ValueError:
        raise InvalidRequest(
            f"{text!r:.80} is no answer of a call.", remedy="Write it as 2='{\"found\": 3}'."
        ) from None


async def rerun_session(
    config: Config,
    principal: str,
    name: str,
    target: str | None,
    code: str | None,
    live: tuple[str, ...],
    answers: Sequence[ChangedAnswer],
    following: bool,
) -> list[tuple[RunDiff, list[str]]]:
    """Return how each run differs from its repetition, and the names of the fields that do."""
    from ..runtime import time_travel
    from ..runtime.run_diff import diff_runs

    async with open_standalone_app(config) as app:
        journal = app.journal
        time_travel.check_live_targets(live, app.catalog.package_names())
        session = await find_any_session(journal, name, principal)
        step, run = parse_step_or_run(target)
        originals = await time_travel.find_rerun_targets(
            journal,
            session,
            step,
            run,
            only_last=code is not None or bool(answers),
            following=following,
        )
        rerun = await time_travel.rerun_runs(
            app.runtime,
            originals,
            session.principal,
            code=code,
            answers=answers,
            changed=0 if following else -1,
            live=live,
        )
        diffs = []
        for original, report in zip(originals, rerun.reports, strict=True):
            repetition = await journal.load_run(report.run_id)
            diff = await diff_runs(journal, original, repetition)
            diffs.append((diff, rerun.differences[original.id]))
        return diffs


def load_code(file: Path | None) -> str | None:
    """Return the code in a file; raises `InvalidRequest`."""
    if file is None:
        return None
    remedy = "Name a file of Python."
    try:
        return file.read_text("utf-8")
    except OSError as exc:
        message = f"The code in {file} cannot be read: {exc.strerror}."
        raise InvalidRequest(message, remedy=remedy) from exc
    except UnicodeDecodeError as exc:
        message = f"The code in {file} cannot be read: it is not UTF-8."
        raise InvalidRequest(message, remedy=remedy) from exc
