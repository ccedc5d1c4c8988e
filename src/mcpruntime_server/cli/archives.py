"""The commands that decide what the journal keeps: `gc`, and `export`, `import`, `pin`, `unpin`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from ..config import Config
from ..errors import NotFound
from ..journal.rows import RunRow
from ..journal.store import Journal
from ..runtime.run_history import (
    RecordedRun,
    find_any_session,
    load_recorded_run,
    row_fields,
)
from .console import ConsoleWriter, format_count, format_size
from .inspection import inspect_run
from .journal_access import read_journal, resolve_run
from .options import json_option, pass_config, principal_option
from .progress import show_progress
from .terminal_text import print_json

if TYPE_CHECKING:
    from ..journal.archive_file import ArchiveManifest
    from ..runtime.inspector import Inspector


@click.command("export")
@click.argument("session")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--skip-damaged", is_flag=True, help="Leave out what is damaged.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["zip", "ipynb", "html", "csv"]),
    default="zip",
    show_default=True,
    help="An archive that can be imported, a Jupyter notebook, or the HTML page or the table of "
    "one run.",
)
@principal_option
@json_option
@pass_config
def export_session_command(
    config: Config,
    *,
    session: str,
    file: Path,
    force: bool,
    skip_damaged: bool,
    file_format: str,
    principal: str,
    as_json: bool,
) -> int:
    """Write a session into one self-contained file.

    For the formats html and csv, SESSION is a run: an id (r_...) or SESSION:STEP. A data frame is
    written in a sandbox, in the state after the step.
    """
    if file_format == "csv":
        return export_table(config, session, file, principal, force=force, as_json=as_json)
    if file_format != "zip":
        return export_document(
            config, session, file, file_format, principal, force=force, as_json=as_json
        )
    from ..journal.archive import export_session

    async def export(journal: Journal) -> ArchiveManifest:
        row = await find_any_session(journal, session, principal)
        return await export_session(journal, row.id, file, force=force, skip_damaged=skip_damaged)

    with show_progress(f"Writing {file}"):
        manifest = read_journal(config, export)
    file_bytes, skipped = file.stat().st_size, manifest.skipped_blobs
    if as_json:
        counts = {"bytes": file_bytes, "runs": manifest.run_count, "skipped": skipped}
        print_json({"file": str(file), **counts})
        return 0
    writer = ConsoleWriter()
    runs = format_count(manifest.run_count, "run")
    writer.write_line(f"{runs} in {file}, {format_size(file_bytes)}")
    for digest in skipped:
        writer.write_warning(f"left out, because it is damaged: {digest}")
    return 0


def export_document(
    config: Config,
    name: str,
    file: Path,
    file_format: str,
    principal: str,
    *,
    force: bool,
    as_json: bool,
) -> int:
    """Write a session as a notebook, or a run as a page."""
    from ..exports.notebook import NotebookWriter
    from ..exports.run_page import write_run_page
    from ..exports.text_output import open_text
    from ..journal.archive_file import open_draft

    async def write(journal: Journal, out: TextIO) -> None:
        if file_format == "html":
            row = await resolve_run(journal, name, principal)
            session = await journal.load_session(row.session_id)
            write_run_page(out, session, await load_recorded_run(journal, row))
            return
        session = await find_any_session(journal, name, principal)
        notebook = NotebookWriter(out, session)
        for row in await journal.load_lineage(session.tip):
            notebook.add_step(await load_recorded_run(journal, row))
        notebook.finish()

    with (
        show_progress(f"Writing {file}"),
        open_draft(file, force) as draft,
        open_text(draft) as out,
    ):
        read_journal(config, partial(write, out=out))
    show_file(file, as_json=as_json)
    return 0


def export_table(
    config: Config, name: str, file: Path, principal: str, *, force: bool, as_json: bool
) -> int:
    """Write the value of a run as CSV."""
    from ..exports.csv_table import write_csv
    from ..exports.frame_table import copy_guarded, is_frame, open_frame
    from ..exports.text_output import open_text
    from ..journal.archive_file import open_draft

    async def load(journal: Journal) -> RecordedRun:
        return await load_recorded_run(journal, await resolve_run(journal, name, principal))

    async def copy_frame(inspector: Inspector, _: RunRow, owner: str, out: TextIO) -> None:
        async with open_frame(inspector, run, owner) as table:
            copy_guarded(out, table)

    run = read_journal(config, load)
    value = run.finished.value if run.finished else None
    with open_draft(file, force) as draft, open_text(draft) as out:
        if is_frame(value):
            inspect_run(config, name, principal, partial(copy_frame, out=out))
        else:
            write_csv(out, value)
    show_file(file, as_json=as_json)
    return 0


def show_file(file: Path, *, as_json: bool) -> None:
    """Say what was written."""
    size = file.stat().st_size
    if as_json:
        print_json({"file": str(file), "bytes": size})
    else:
        ConsoleWriter().write_line(f"{file}, {format_size(size)}")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@principal_option
@json_option
@pass_config
def import_session_command(config: Config, *, file: Path, principal: str, as_json: bool) -> int:
    """Import a session from a file that `export` wrote."""
    from ..journal.archive import import_session
    from ..journal.principals import check_principal

    check_principal(principal)
    row = read_journal(config, lambda journal: import_session(journal, file, principal))
    if as_json:
        print_json(row_fields(row))
    else:
        label, runs = row.name or row.id, format_count(row.run_count, "run")
        ConsoleWriter().write_line(f"{label}  {row.id}  {runs}")
    return 0


@click.command("pin")
@click.argument("run")
@click.option("--reason", default="", metavar="TEXT", help="Shown by `replay list` and `gc`.")
@principal_option
@json_option
@pass_config
def pin_command(config: Config, *, run: str, reason: str, principal: str, as_json: bool) -> int:
    """Keep RUN, an id (r_...) or SESSION:STEP, and its session from `gc`."""

    async def pin(journal: Journal) -> RunRow:
        row = await resolve_run(journal, run, principal)
        await journal.pin_run(row.id, reason)
        return row

    row = read_journal(config, pin)
    if as_json:
        print_json({"run": row.id, "pinned": True})
    else:
        ConsoleWriter().write_line(f"{row.id} is pinned: `gc` keeps its session")
    return 0


@click.command("unpin")
@click.argument("run")
@principal_option
@json_option
@pass_config
def unpin_command(config: Config, *, run: str, principal: str, as_json: bool) -> int:
    """Let `gc` remove RUN, an id (r_...) or SESSION:STEP, again."""

    async def unpin(journal: Journal) -> RunRow:
        row = await resolve_run(journal, run, principal)
        if row.id not in await journal.load_pins():
            raise NotFound(f"The run {row.id} is not pinned.")
        await journal.unpin_run(row.id)
        return row

    row = read_journal(config, unpin)
    if as_json:
        print_json({"run": row.id, "pinned": False})
    else:
        ConsoleWriter().write_line(f"{row.id} is no longer pinned")
    return 0


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@pass_config
def gc_command(config: Config, *, dry_run: bool, as_json: bool) -> int:
    """Remove old sessions and unused blobs.

    `[server] keep_days` and `keep_mb` say which sessions are old; pinned ones stay.
    """
    from ..capabilities.packages.wheel_cache import list_wheel_digests
    from ..journal.retention import collect_garbage

    days, megabytes = config.server.keep_days, config.server.keep_mb
    cached = list_wheel_digests(config.server.packages_dir)
    with show_progress("Looking for what nobody needs"):
        removed = read_journal(
            config,
            lambda journal: collect_garbage(
                journal, days, megabytes, dry_run=dry_run, kept_blobs=cached
            ),
        )
    if as_json:
        print_json({**vars(removed), "kept": dict(removed.kept), "dry_run": dry_run})
        return 0
    writer = ConsoleWriter()
    sessions = format_count(len(removed.sessions), "session")
    events, blobs = format_count(removed.events, "event"), format_count(removed.blobs, "blob")
    verb, size = "would remove" if dry_run else "removed", format_size(removed.bytes)
    writer.write_line(f"{verb} {sessions}, {events}, {blobs}: {size}")
    for session, reason in removed.kept.items():
        writer.write_note(f"  kept {session}: {reason}")
    return 0
