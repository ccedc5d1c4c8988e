"""The verbs of time: the journal's sessions listed, shown, compared, carried elsewhere, gone back to and run again.

A session is named by its id or name, whoever it belongs to; a run by its id, or by its step on the session's line.
Listing, showing and comparing read the journal alone; `rewind`, `fork` and `rerun` go through the runtime.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from ..config import Config
from ..errors import InvalidRequest, NotFound
from ..journal.rows import AGENT_PURPOSE, RunRow, SessionRow
from ..journal.store import Journal, open_journal
from ..runtime.run_diff import LineageDiff, RunDiff, diff_lineages, diff_runs, diff_to_json
from ..runtime.run_history import (
    AgentTree,
    RecordedRun,
    SessionTree,
    find_run,
    find_session,
    load_agents,
    load_run,
    load_tree,
    row_fields,
)
from . import views
from .console import ConsoleWriter, escape_text, format_count, format_size, open_stdout, print_json
from .time_travel import fork_session, rerun_steps, rewind_session

if TYPE_CHECKING:
    from ..journal.archive_file import ArchiveManifest

T = TypeVar("T")
Options = argparse.Namespace
Verb = Callable[[Config, Options], int]
AddAction = Callable[..., argparse.ArgumentParser]
JournalReader = Callable[[Journal], Awaitable[T]]

SESSION_HELP = "session id or name"
RUN_HELP = "step on the session's line, or run id (r_...)"
TARGET_HELP = "run id (r_...), or SESSION:STEP"
RUN_OR_SESSION_HELP = f"{TARGET_HELP}, or session"
HIDDEN_PURPOSES = {
    "rerun": "rerun",
    AGENT_PURPOSE: "agent",
}  # purposes of sessions that are not listed, and their names
OPTIONAL_MARK = "?"  # before the meaning of a word that may be left out


def read_journal(config: Config, work: JournalReader[T]) -> T:
    """Return what `work` makes of the journal."""

    async def opened() -> T:
        async with open_journal(config.server.data_dir) as journal:
            return await work(journal)

    return anyio.run(opened)


# the command line -----------------------------------------------------------------------------------


class ActionParser(argparse.ArgumentParser):
    """Parses a verb; one that has `actions` takes nothing for `list`, and what begins with none of them for `show`."""

    actions: Collection[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse `args` with the action put in that was left out."""
        words = [word for word in args or () if not word.startswith("-")]
        asks_help = bool(args) and args[0] in ("-h", "--help")
        if self.actions and not asks_help and not (words and words[0] in self.actions):
            args = ["show" if words else "list", *args]
        return super().parse_known_args(args, namespace)


def add_replay_command(verbs: Any) -> None:
    """Add the verb `replay` with its actions."""
    text = "list, show and compare what sessions did; go back in time, fork, run again"
    replay = verbs.add_parser(
        "replay",
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog="`replay` alone is `replay list`; `replay SESSION [STEP]` is `replay show SESSION [STEP]`. A session is "
        "named by its id or name, a run by its step on the session's line or by its id, r_...",
    )
    actions = replay.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, verb: Verb, text: str, **words: str) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        action: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=description
        )
        action.set_defaults(verb=verb)
        for word, meaning in words.items():
            nargs = "?" if meaning.startswith(OPTIONAL_MARK) else None
            action.add_argument(
                word, metavar=word.upper(), nargs=nargs, help=meaning.removeprefix(OPTIONAL_MARK)
            )
        action.add_argument("--json", action="store_true", help="for programs")
        return action

    _add_read_actions(add)
    _add_time_actions(add)
    _add_archive_actions(add)
    replay.actions = list(actions.choices)


def _add_read_actions(add: AddAction) -> None:
    text = "list the sessions, or draw the steps of one"
    listing = add("list", list_sessions_or_steps, text, session=OPTIONAL_MARK + SESSION_HELP)
    listing.add_argument(
        "--all", action="store_true", help="sessions too that only served to run something again"
    )
    text = "show the steps of a session, or one of them: code, calls, output, value, files"
    shown = add("show", show_steps, text, session=SESSION_HELP, step=OPTIONAL_MARK + RUN_HELP)
    text = "compare two runs, or the lines of two sessions; exits with 1 if they differ"
    compared = add("diff", show_diff, text, a=RUN_OR_SESSION_HELP, b=RUN_OR_SESSION_HELP)
    for action in (listing, shown, compared):
        action.add_argument("--full", action="store_true", help="cut nothing")


def _add_time_actions(add: AddAction) -> None:
    text = "have a session go on from an earlier step; nothing is deleted"
    gone = add(
        "rewind", rewind_session, text, session=SESSION_HELP, step=f"{RUN_HELP}; 0 is the beginning"
    )
    gone.add_argument(
        "--cancel", action="store_true", help="give up the run that is under way, if there is one"
    )
    text = "make a new session that begins at the end of a step"
    forked = add(
        "fork",
        fork_session,
        text,
        session=SESSION_HELP,
        step=f"{OPTIONAL_MARK}{RUN_HELP}; the last one if left out",
    )
    forked.add_argument("--name", help="what to call the new session")
    text = "execute a step, or all, again in a fresh sandbox with recorded answers; exits with 1 if something differs"
    again = add(
        "rerun",
        rerun_steps,
        text,
        session=SESSION_HELP,
        step=f"{OPTIONAL_MARK}{RUN_HELP}; all steps if left out",
    )
    again.add_argument(
        "--code",
        type=Path,
        metavar="FILE",
        help="execute this in place of the (last) step's own code",
    )
    live = "servers, or tools (server.tool), that are really called"
    again.add_argument(
        "--live", nargs="+", action="extend", default=[], metavar="SERVER", help=live
    )
    again.add_argument("--full", action="store_true", help="cut nothing")


def _add_archive_actions(add: AddAction) -> None:
    text = "write a session into one self-contained file"
    exported = add("export", export_archive, text, session=SESSION_HELP, file="archive to write")
    exported.add_argument("--force", action="store_true", help="even over a file that is there")
    exported.add_argument(
        "--skip-damaged", action="store_true", help="go on without what is damaged"
    )
    add("import", import_archive, "take in a session that was exported", file="archive to read")
    pinned = add("pin", pin_run, "keep a run, and its session, from `gc`", run=TARGET_HELP)
    pinned.add_argument(
        "--reason", default="", metavar="TEXT", help="told where the session stays for it"
    )
    add("unpin", unpin_run, "let `gc` have a run that was pinned", run=TARGET_HELP)


def add_gc_command(verbs: Any) -> None:
    """Add the verb `gc`."""
    text = "remove sessions beyond `[server] keep_days` and `keep_mb`, bar pinned ones, and what nothing refers to"
    found = verbs.add_parser("gc", help=text, description=f"{text[0].upper()}{text[1:]}.")
    found.set_defaults(verb=collect_garbage)
    found.add_argument("--dry-run", action="store_true", help="only say what would go")
    found.add_argument("--json", action="store_true", help="for programs")


# what people name -----------------------------------------------------------------------------------


async def resolve_run(journal: Journal, name: str) -> RunRow:
    """Return the run that a run id or SESSION:STEP names; raises `NotFound`."""
    session, colon, which = name.rpartition(":")
    if colon:
        return await find_run(journal, await find_session(journal, session), which)
    try:
        return await journal.load_run(name)
    except NotFound as exc:
        raise NotFound(
            exc.message,
            remedy="`mcpruntime-server replay list SESSION` shows the runs of a session.",
        ) from None


async def resolve_run_or_session(journal: Journal, name: str) -> RunRow | SessionRow:
    """Return the run or session that a word names; raises `NotFound`."""
    try:
        return await resolve_run(journal, name)
    except NotFound:
        if ":" in name or (
            name.startswith("r_")
            and name not in {row.name for row in await journal.list_sessions()}
        ):
            raise
    return await find_session(journal, name)


# reading --------------------------------------------------------------------------------------------


def list_sessions_or_steps(config: Config, options: Options) -> int:
    """List the sessions, the last used first, or the steps of one."""
    return (
        list_sessions(config, options) if options.session is None else list_steps(config, options)
    )


def list_sessions(config: Config, options: Options) -> int:
    """List the sessions, the last used first."""

    async def find(journal: Journal) -> tuple[list[SessionRow], dict[str, str]]:
        rows = await journal.list_sessions()
        origins = {row.origin: await journal.load_run(row.origin) for row in rows if row.origin}
        names = {row.id: views.session_label(row) for row in rows}
        return rows, {run: f"{names[row.session_id]}:{row.step}" for run, row in origins.items()}

    rows, origins = read_journal(config, find)
    if options.json:
        print_json([row_fields(row) for row in rows])
        return 0
    screen = ConsoleWriter(open_stdout(), show_full=options.full)
    shown = [row for row in rows if options.all or row.purpose not in HIDDEN_PURPOSES]
    views.show_sessions(screen, shown, origins)
    hidden = Counter(row.purpose for row in rows if row not in shown)
    if hidden:
        counts = " and ".join(
            format_count(count, HIDDEN_PURPOSES[purpose]) for purpose, count in hidden.items()
        )
        screen.write_note(f"… and {counts}, which --all lists")
    return 0


def list_steps(config: Config, options: Options) -> int:
    """Draw the steps of one session."""

    async def find(journal: Journal) -> tuple[SessionTree, dict[str, str]]:
        return await load_tree(
            journal, await find_session(journal, options.session)
        ), await journal.load_pins()

    tree, pins = read_journal(config, find)
    if options.json:
        print_json(serialize_tree(tree, pins))
    else:
        views.show_tree(ConsoleWriter(open_stdout(), show_full=options.full), tree, pins)
    return 0


def serialize_tree(tree: SessionTree, pins: Mapping[str, str]) -> dict[str, Any]:
    """Return a session's steps as JSON data."""
    line = set(tree.lineage)
    runs = [
        {
            **row_fields(each.row),
            "code": each.code,
            "calls": each.call_count,
            "files": each.file_count,
            "tier": each.tier,
            "on_line": each.row.id in line,
            "forks": [
                other.id
                for other in tree.forks.get(each.row.id, ())
                if other.purpose != AGENT_PURPOSE
            ],
            "agents": [
                other.id
                for other in tree.forks.get(each.row.id, ())
                if other.purpose == AGENT_PURPOSE
            ],
            "pinned": pins.get(each.row.id),
        }
        for each in tree.runs
    ]
    return {
        "session": row_fields(tree.session),
        "line": list(tree.lineage),
        "runs": runs,
        "damage": list(tree.damage),
    }


def show_steps(config: Config, options: Options) -> int:
    """Show the steps of a session one by one, or one run."""
    screen = ConsoleWriter(open_stdout(), show_full=options.full)

    async def tell(journal: Journal) -> None:
        session = await find_session(journal, options.session)
        which = options.step
        rows = (
            await journal.load_lineage(session.tip)
            if which is None
            else [await find_run(journal, session, which)]
        )
        if options.json:
            runs = [await load_run(journal, row) for row in rows]
            print_json(
                [{**serialize_run(past), **await serialize_agents(journal, past)} for past in runs]
            )
            return
        for row in rows:  # one at a time: together they may be large
            past = await load_run(journal, row)
            views.show_run(screen, past, await load_agents(journal, past))
        if not rows:
            screen.write_note(views.EMPTY_SESSION_TEXT)

    read_journal(config, tell)
    screen.write_footer()
    return 0


async def serialize_agents(journal: Journal, past: RecordedRun) -> dict[str, Any]:
    """Return the agents that a run has begun as JSON data."""
    found = await load_agents(journal, past)
    return {"agents": [serialize_agent(each) for each in found]} if found else {}


def serialize_agent(agent: AgentTree) -> dict[str, Any]:
    """Return an agent as JSON data."""
    runs = [
        {
            "run": row.id,
            "step": row.step,
            "status": row.status,
            "agents": [serialize_agent(each) for each in below],
        }
        for row in agent.runs
        for below in [agent.agents.get(row.id, ())]
    ]
    return {"session": agent.session.id, "runs": runs}


def serialize_run(past: RecordedRun) -> dict[str, Any]:
    """Return a run as JSON data."""
    report = past.report
    return {
        **row_fields(past.row),
        "status": report.status,
        "code": past.code,
        "calls": [row_fields(call) for call in past.calls],
        **{name: getattr(report, name) for name in ("stdout", "stderr", "value", "error", "usage")},
        "files": dict(past.changed),
        "removed": report.removed_files,
        "damage": list(past.damage),
    }


def show_diff(config: Config, options: Options) -> int:
    """Compare two runs, or two sessions by their lines."""

    async def compare(journal: Journal) -> RunDiff | LineageDiff:
        a, b = (
            await resolve_run_or_session(journal, options.a),
            await resolve_run_or_session(journal, options.b),
        )
        if isinstance(a, RunRow) and isinstance(b, RunRow):
            return await diff_runs(journal, a, b)
        if isinstance(a, SessionRow) and isinstance(b, SessionRow):
            return await diff_lineages(journal, a.tip, b.tip)
        raise InvalidRequest(
            "A run cannot be compared with a session.", remedy="Name a step of it: SESSION:STEP."
        )

    found = read_journal(config, compare)
    if options.json:
        print_json(diff_to_json(found))
        return 0 if found.is_equal else 1
    screen = ConsoleWriter(open_stdout(), show_full=options.full)
    if isinstance(found, RunDiff):
        views.show_run_diff(screen, found)
    else:
        views.show_line_diff(screen, found)
    screen.write_footer()
    return 0 if found.is_equal else 1


# changing the journal -------------------------------------------------------------------------------


def export_archive(config: Config, options: Options) -> int:
    """Write a session into a file."""
    from ..journal.archive import export_session  # no other verb needs it

    async def write(journal: Journal) -> ArchiveManifest:
        session = await find_session(journal, options.session)
        return await export_session(
            journal,
            session.id,
            Path(options.file),
            force=options.force,
            skip_damaged=options.skip_damaged,
        )

    made = read_journal(config, write)
    told = {
        "file": options.file,
        "bytes": Path(options.file).stat().st_size,
        "runs": made.run_count,
        "skipped": made.skipped_blobs,
    }
    if options.json:
        print_json(told)
        return 0
    screen = ConsoleWriter(open_stdout())
    screen.write_line(
        f"{format_count(made.run_count, 'run')} in {escape_text(options.file)}, {format_size(told['bytes'])}"
    )
    for digest in made.skipped_blobs:
        screen.write_warning(f"left out, because it is damaged: {digest}")
    return 0


def import_archive(config: Config, options: Options) -> int:
    """Take in a session from a file."""
    from ..journal.archive import import_session
    from ..server.session_resolver import LOCAL_PRINCIPAL

    row = read_journal(
        config, lambda journal: import_session(journal, Path(options.file), LOCAL_PRINCIPAL)
    )
    if options.json:
        print_json(row_fields(row))
    else:
        ConsoleWriter(open_stdout()).write_line(
            f"{escape_text(views.session_label(row))}  {row.id}  {format_count(row.run_count, 'run')}"
        )
    return 0


def pin_run(config: Config, options: Options) -> int:
    """Keep a run from being collected."""

    async def keep(journal: Journal) -> RunRow:
        row = await resolve_run(journal, options.run)
        await journal.pin_run(row.id, options.reason)
        return row

    return _report_pin(read_journal(config, keep), options, pinned=True)


def unpin_run(config: Config, options: Options) -> int:
    """Let a run be collected again."""

    async def let_go(journal: Journal) -> RunRow:
        row = await resolve_run(journal, options.run)
        if row.id not in await journal.load_pins():
            raise NotFound(f"The run {row.id} is not pinned.")
        await journal.unpin_run(row.id)
        return row

    return _report_pin(read_journal(config, let_go), options, pinned=False)


def _report_pin(row: RunRow, options: Options, *, pinned: bool) -> int:
    if options.json:
        print_json({"run": row.id, "pinned": pinned})
    else:
        ConsoleWriter(open_stdout()).write_line(
            f"{row.id} is {'pinned: its session stays' if pinned else 'no longer pinned'}"
        )
    return 0


def collect_garbage(config: Config, options: Options) -> int:
    """Remove what is beyond the limits of the settings."""
    from ..journal.retention import collect_garbage

    server = config.server
    found = read_journal(
        config,
        lambda journal: collect_garbage(
            journal, server.keep_days, server.keep_mb, dry_run=options.dry_run
        ),
    )
    if options.json:
        print_json({**vars(found), "kept": dict(found.kept), "dry_run": options.dry_run})
        return 0
    screen = ConsoleWriter(open_stdout())
    freed = f"{format_count(len(found.sessions), 'session')}, {format_count(found.events, 'event')}, {format_count(found.blobs, 'blob')}"
    screen.write_line(
        f"{'would remove' if options.dry_run else 'removed'} {freed}: {format_size(found.bytes)}"
    )
    for session, reason in found.kept.items():
        screen.write_note(f"  kept {escape_text(session)}: {escape_text(reason)}")
    return 0
