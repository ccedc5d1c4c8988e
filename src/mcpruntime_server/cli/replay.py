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
from ..journal.rows import AGENT, RunRow, SessionRow
from ..journal.store import Journal, open_journal
from ..runtime.diff import LineDiff, RunDiff, as_data, diff_lines, diff_runs
from ..runtime.history import (
    AgentTree,
    PastRun,
    Tree,
    fields_of,
    find_run,
    find_session,
    load_agents,
    load_run,
    load_tree,
)
from . import views
from .printing import Screen, many, print_json, printer, safe, size
from .timeline import fork, rerun, rewind

if TYPE_CHECKING:
    from ..journal.archive_file import Manifest

T = TypeVar("T")
Options = argparse.Namespace
Verb = Callable[[Config, Options], int]
Add = Callable[..., argparse.ArgumentParser]
Read = Callable[[Journal], Awaitable[T]]

SESSION = "session id or name"
RUN = "step on the session's line, or run id (r_...)"
TARGET = "run id (r_...), or SESSION:STEP"
EITHER = f"{TARGET}, or session"
HIDDEN = {"rerun": "rerun", AGENT: "agent"}  # purposes of sessions that are not listed, and their names
OPTIONAL = "?"  # before the meaning of a word that may be left out


def read(config: Config, work: Read[T]) -> T:
    """Return what `work` makes of the journal."""

    async def opened() -> T:
        async with open_journal(config.server.data_dir) as journal:
            return await work(journal)

    return anyio.run(opened)


# the command line -----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Parses a verb; one that has `actions` takes nothing for `list`, and what begins with none of them for `show`."""

    actions: Collection[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse `args` with the action put in that was left out."""
        words = [word for word in args or () if not word.startswith("-")]
        asks_help = bool(args) and args[0] in ("-h", "--help")
        if self.actions and not asks_help and not (words and words[0] in self.actions):
            args = ["show" if words else "list", *args]
        return super().parse_known_args(args, namespace)


def add_replay(verbs: Any) -> None:
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
        action: argparse.ArgumentParser = actions.add_parser(name, help=text, description=description)
        action.set_defaults(verb=verb)
        for word, meaning in words.items():
            nargs = "?" if meaning.startswith(OPTIONAL) else None
            action.add_argument(word, metavar=word.upper(), nargs=nargs, help=meaning.removeprefix(OPTIONAL))
        action.add_argument("--json", action="store_true", help="for programs")
        return action

    _add_reading(add)
    _add_moving(add)
    _add_keeping(add)
    replay.actions = list(actions.choices)


def _add_reading(add: Add) -> None:
    text = "list the sessions, or draw the steps of one"
    listing = add("list", list_of, text, session=OPTIONAL + SESSION)
    listing.add_argument("--all", action="store_true", help="sessions too that only served to run something again")
    text = "show the steps of a session, or one of them: code, calls, output, value, files"
    shown = add("show", show, text, session=SESSION, step=OPTIONAL + RUN)
    text = "compare two runs, or the lines of two sessions; exits with 1 if they differ"
    compared = add("diff", diff, text, a=EITHER, b=EITHER)
    for action in (listing, shown, compared):
        action.add_argument("--full", action="store_true", help="cut nothing")


def _add_moving(add: Add) -> None:
    text = "have a session go on from an earlier step; nothing is deleted"
    gone = add("rewind", rewind, text, session=SESSION, step=f"{RUN}; 0 is the beginning")
    gone.add_argument("--cancel", action="store_true", help="give up the run that is under way, if there is one")
    text = "make a new session that begins at the end of a step"
    forked = add("fork", fork, text, session=SESSION, step=f"{OPTIONAL}{RUN}; the last one if left out")
    forked.add_argument("--name", help="what to call the new session")
    text = "execute a step, or all, again in a fresh sandbox with recorded answers; exits with 1 if something differs"
    again = add("rerun", rerun, text, session=SESSION, step=f"{OPTIONAL}{RUN}; all steps if left out")
    again.add_argument("--code", type=Path, metavar="FILE", help="execute this in place of the (last) step's own code")
    live = "servers, or tools (server.tool), that are really called"
    again.add_argument("--live", nargs="+", action="extend", default=[], metavar="SERVER", help=live)
    again.add_argument("--full", action="store_true", help="cut nothing")


def _add_keeping(add: Add) -> None:
    text = "write a session into one self-contained file"
    exported = add("export", export, text, session=SESSION, file="archive to write")
    exported.add_argument("--force", action="store_true", help="even over a file that is there")
    exported.add_argument("--skip-damaged", action="store_true", help="go on without what is damaged")
    add("import", import_from, "take in a session that was exported", file="archive to read")
    pinned = add("pin", pin, "keep a run, and its session, from `gc`", run=TARGET)
    pinned.add_argument("--reason", default="", metavar="TEXT", help="told where the session stays for it")
    add("unpin", unpin, "let `gc` have a run that was pinned", run=TARGET)


def add_gc(verbs: Any) -> None:
    """Add the verb `gc`."""
    text = "remove sessions beyond `[server] keep_days` and `keep_mb`, bar pinned ones, and what nothing refers to"
    found = verbs.add_parser("gc", help=text, description=f"{text[0].upper()}{text[1:]}.")
    found.set_defaults(verb=gc)
    found.add_argument("--dry-run", action="store_true", help="only say what would go")
    found.add_argument("--json", action="store_true", help="for programs")


# what people name -----------------------------------------------------------------------------------


async def run_of(journal: Journal, word: str) -> RunRow:
    """Return the run that a run id or SESSION:STEP names; raises `NotFound`."""
    session, colon, which = word.rpartition(":")
    if colon:
        return await find_run(journal, await find_session(journal, session), which)
    try:
        return await journal.run(word)
    except NotFound as exc:
        raise NotFound(
            exc.message, remedy="`mcpruntime-server replay list SESSION` shows the runs of a session."
        ) from None


async def place_of(journal: Journal, word: str) -> RunRow | SessionRow:
    """Return the run or session that a word names; raises `NotFound`."""
    try:
        return await run_of(journal, word)
    except NotFound:
        if ":" in word or (word.startswith("r_") and word not in {row.name for row in await journal.sessions()}):
            raise
    return await find_session(journal, word)


# reading --------------------------------------------------------------------------------------------


def list_of(config: Config, options: Options) -> int:
    """List the sessions, the last used first, or the steps of one."""
    return list_sessions(config, options) if options.session is None else list_steps(config, options)


def list_sessions(config: Config, options: Options) -> int:
    """List the sessions, the last used first."""

    async def find(journal: Journal) -> tuple[list[SessionRow], dict[str, str]]:
        rows = await journal.sessions()
        origins = {row.origin: await journal.run(row.origin) for row in rows if row.origin}
        names = {row.id: views.handle_of(row) for row in rows}
        return rows, {run: f"{names[row.session]}:{row.step}" for run, row in origins.items()}

    rows, origins = read(config, find)
    if options.json:
        print_json([fields_of(row) for row in rows])
        return 0
    screen = Screen(printer(), full=options.full)
    shown = [row for row in rows if options.all or row.purpose not in HIDDEN]
    views.show_sessions(screen, shown, origins)
    hidden = Counter(row.purpose for row in rows if row not in shown)
    if hidden:
        counts = " and ".join(many(count, HIDDEN[purpose]) for purpose, count in hidden.items())
        screen.note(f"… and {counts}, which --all lists")
    return 0


def list_steps(config: Config, options: Options) -> int:
    """Draw the steps of one session."""

    async def find(journal: Journal) -> tuple[Tree, dict[str, str]]:
        return await load_tree(journal, await find_session(journal, options.session)), await journal.pins()

    tree, pins = read(config, find)
    if options.json:
        print_json(tree_data(tree, pins))
    else:
        views.show_tree(Screen(printer(), full=options.full), tree, pins)
    return 0


def tree_data(tree: Tree, pins: Mapping[str, str]) -> dict[str, Any]:
    """Return a session's steps as JSON data."""
    line = set(tree.line)
    runs = [
        {
            **fields_of(each.row),
            "code": each.code,
            "calls": each.calls,
            "files": each.files,
            "tier": each.tier,
            "on_line": each.row.id in line,
            "forks": [other.id for other in tree.forks.get(each.row.id, ()) if other.purpose != AGENT],
            "agents": [other.id for other in tree.forks.get(each.row.id, ()) if other.purpose == AGENT],
            "pinned": pins.get(each.row.id),
        }
        for each in tree.runs
    ]
    return {"session": fields_of(tree.session), "line": list(tree.line), "runs": runs, "damage": list(tree.damage)}


def show(config: Config, options: Options) -> int:
    """Show the steps of a session one by one, or one run."""
    screen = Screen(printer(), full=options.full)

    async def tell(journal: Journal) -> None:
        session = await find_session(journal, options.session)
        which = options.step
        rows = await journal.line(session.tip) if which is None else [await find_run(journal, session, which)]
        if options.json:
            runs = [await load_run(journal, row) for row in rows]
            print_json([{**past_data(past), **await agents_of(journal, past)} for past in runs])
            return
        for row in rows:  # one at a time: together they may be large
            past = await load_run(journal, row)
            views.show_run(screen, past, await load_agents(journal, past))
        if not rows:
            screen.note(views.EMPTY)

    read(config, tell)
    screen.end()
    return 0


async def agents_of(journal: Journal, past: PastRun) -> dict[str, Any]:
    """Return the agents that a run has begun as JSON data."""
    found = await load_agents(journal, past)
    return {"agents": [agent_data(each) for each in found]} if found else {}


def agent_data(agent: AgentTree) -> dict[str, Any]:
    """Return an agent as JSON data."""
    runs = [
        {"run": row.id, "step": row.step, "status": row.status, "agents": [agent_data(each) for each in below]}
        for row in agent.runs
        for below in [agent.agents.get(row.id, ())]
    ]
    return {"session": agent.session.id, "runs": runs}


def past_data(past: PastRun) -> dict[str, Any]:
    """Return a run as JSON data."""
    report = past.report
    return {
        **fields_of(past.row),
        "status": report.status,
        "code": past.code,
        "calls": [fields_of(call) for call in past.calls],
        **{name: getattr(report, name) for name in ("stdout", "stderr", "value", "error", "usage")},
        "files": dict(past.changed),
        "removed": report.removed,
        "damage": list(past.damage),
    }


def diff(config: Config, options: Options) -> int:
    """Compare two runs, or two sessions by their lines."""

    async def compare(journal: Journal) -> RunDiff | LineDiff:
        a, b = await place_of(journal, options.a), await place_of(journal, options.b)
        if isinstance(a, RunRow) and isinstance(b, RunRow):
            return await diff_runs(journal, a, b)
        if isinstance(a, SessionRow) and isinstance(b, SessionRow):
            return await diff_lines(journal, a.tip, b.tip)
        raise InvalidRequest("A run cannot be compared with a session.", remedy="Name a step of it: SESSION:STEP.")

    found = read(config, compare)
    if options.json:
        print_json(as_data(found))
        return 0 if found.equal else 1
    screen = Screen(printer(), full=options.full)
    if isinstance(found, RunDiff):
        views.show_run_diff(screen, found)
    else:
        views.show_line_diff(screen, found)
    screen.end()
    return 0 if found.equal else 1


# changing the journal -------------------------------------------------------------------------------


def export(config: Config, options: Options) -> int:
    """Write a session into a file."""
    from ..journal.archive import export_session  # no other verb needs it

    async def write(journal: Journal) -> Manifest:
        session = await find_session(journal, options.session)
        return await export_session(
            journal, session.id, Path(options.file), force=options.force, skip_damaged=options.skip_damaged
        )

    made = read(config, write)
    told = {
        "file": options.file,
        "bytes": Path(options.file).stat().st_size,
        "runs": made.runs,
        "skipped": made.skipped,
    }
    if options.json:
        print_json(told)
        return 0
    screen = Screen(printer())
    screen.line(f"{many(made.runs, 'run')} in {safe(options.file)}, {size(told['bytes'])}")
    for digest in made.skipped:
        screen.warn(f"left out, because it is damaged: {digest}")
    return 0


def import_from(config: Config, options: Options) -> int:
    """Take in a session from a file."""
    from ..journal.archive import import_session
    from ..server.default import PRINCIPAL

    row = read(config, lambda journal: import_session(journal, Path(options.file), PRINCIPAL))
    if options.json:
        print_json(fields_of(row))
    else:
        Screen(printer()).line(f"{safe(views.handle_of(row))}  {row.id}  {many(row.runs, 'run')}")
    return 0


def pin(config: Config, options: Options) -> int:
    """Keep a run from being collected."""

    async def keep(journal: Journal) -> RunRow:
        row = await run_of(journal, options.run)
        await journal.pin(row.id, options.reason)
        return row

    return _told_pin(read(config, keep), options, pinned=True)


def unpin(config: Config, options: Options) -> int:
    """Let a run be collected again."""

    async def let_go(journal: Journal) -> RunRow:
        row = await run_of(journal, options.run)
        if row.id not in await journal.pins():
            raise NotFound(f"The run {row.id} is not pinned.")
        await journal.unpin(row.id)
        return row

    return _told_pin(read(config, let_go), options, pinned=False)


def _told_pin(row: RunRow, options: Options, *, pinned: bool) -> int:
    if options.json:
        print_json({"run": row.id, "pinned": pinned})
    else:
        Screen(printer()).line(f"{row.id} is {'pinned: its session stays' if pinned else 'no longer pinned'}")
    return 0


def gc(config: Config, options: Options) -> int:
    """Remove what is beyond the limits of the settings."""
    from ..journal.retention import collect

    server = config.server
    found = read(config, lambda journal: collect(journal, server.keep_days, server.keep_mb, dry_run=options.dry_run))
    if options.json:
        print_json({**vars(found), "kept": dict(found.kept), "dry_run": options.dry_run})
        return 0
    screen = Screen(printer())
    freed = f"{many(len(found.sessions), 'session')}, {many(found.events, 'event')}, {many(found.blobs, 'blob')}"
    screen.line(f"{'would remove' if options.dry_run else 'removed'} {freed}: {size(found.bytes)}")
    for session, reason in found.kept.items():
        screen.note(f"  kept {safe(session)}: {safe(reason)}")
    return 0
