"""The command line: one function a verb, and nothing that cannot be had without it."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import anyio

from .. import __version__
from ..config import APP_NAME, Config, load_config, render_config
from ..errors import ConfigError, McpRuntimeError
from ..journal.rows import StoredEvent
from ..journal.store import Journal
from ..runtime.run_history import find_run, find_session, row_fields
from . import replay
from .agent import add_agent_command
from .approvals import add_approvals_command
from .console import ConsoleWriter, escape_lines, escape_text, format_time, open_stdout, print_json
from .skills import add_skills_command

MAX_LOG_BYTES = 5_000_000  # of one log file; one older one is kept
INTERRUPTED_EXIT_CODE = 130  # exit code: what shells give for SIGINT

Options = argparse.Namespace
Verb = Callable[[Config, Options], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names; return the exit code."""
    options = create_parser().parse_args(argv)
    verb: Verb | None = serve_stdio if options.stdio else options.verb
    if verb is None:
        create_parser().print_help()
        return 2
    code = 0
    try:
        overrides = {"server.data_dir": options.data_dir, "sandbox.backend": options.backend}
        code = verb(load_config(options.config, overrides), options)
        sys.stdout.flush()
    except* McpRuntimeError as group:
        for failure in flatten_errors(group):
            print("\n".join(escape_lines(f"{APP_NAME}: {failure}")), file=sys.stderr)
            code = failure.exit_code
    except* BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the interpreter would flush what is left
    except* KeyboardInterrupt:
        code = INTERRUPTED_EXIT_CODE
    return code


def flatten_errors(group: BaseExceptionGroup[McpRuntimeError]) -> Iterator[McpRuntimeError]:
    """Yield the errors in `group`, out of all nesting."""
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from flatten_errors(inner)
        else:
            yield inner


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog=APP_NAME, description="An MCP server that runs Python in a sandbox."
    )
    top.add_argument("--version", action="version", version=f"{APP_NAME} {__version__}")
    top.add_argument(
        "--stdio",
        action="store_true",
        help="serve MCP on stdin and stdout; what an MCP client starts",
    )
    top.add_argument("--config", type=Path, metavar="FILE", help="settings file")
    top.add_argument("--data-dir", metavar="DIR", help="journal, logs and sandbox state")
    top.add_argument("--backend", metavar="NAME", help="auto, docker, or local (no isolation)")
    top.set_defaults(verb=None)
    verbs = top.add_subparsers(title="verbs", metavar="", parser_class=replay.ActionParser)

    def add(name: str, verb: Verb, text: str, *, to_json: bool = False) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=text, description=text)
        found.set_defaults(verb=verb)
        if to_json:
            found.add_argument("--json", action="store_true", help="for programs")
        return found

    add("demo", show_demo, "show the main job on real servers, step by step")
    add(
        "doctor",
        run_doctor,
        "check the engine, the image, the upstreams and the data folder",
        to_json=True,
    )
    image = add("image", build_image, "build the sandbox image (`image build`)")
    image.add_argument("action", choices=["build"])
    image.add_argument("--force", action="store_true", help="even if it is up to date")
    replay.add_replay_command(verbs)
    replay.add_gc_command(verbs)
    add_agent_command(verbs)
    add_approvals_command(verbs)
    add_skills_command(verbs)
    listing = add(
        "sessions",
        replay.list_sessions,
        "list the sessions; the same as `replay list`",
        to_json=True,
    )
    listing.add_argument(
        "--all", action="store_true", help="those too that only served to run something again"
    )
    listing.set_defaults(full=False)
    runs = add(
        "runs", show_runs, "draw the runs of a session, or show the events of one", to_json=True
    )
    runs.add_argument("session", help="session id or name")
    runs.add_argument(
        "run", nargs="?", help="run id, or step: its events, as they are in the journal"
    )
    runs.set_defaults(full=False)
    tools = add(
        "tools",
        show_tools,
        "list the tools that code can import, or show one server's module",
        to_json=True,
    )
    tools.add_argument("server", nargs="?", help="package name: print its generated module")
    config = add(
        "config",
        show_config,
        "show the settings in force and where each comes from (`config show`)",
    )
    config.add_argument("action", choices=["show"])
    return top


# verbs ----------------------------------------------------------------------------------------------


def serve_stdio(config: Config, options: Options) -> int:
    """Serve MCP on stdin and stdout."""
    gc.disable()  # what is imported stays: looking through it again and again takes a tenth of the start
    from ..app import serve_stdio as serve

    gc.freeze()
    gc.enable()
    configure_logging(config)
    anyio.run(serve, config)
    return 0


def show_demo(config: Config, options: Options) -> int:
    """Run the demonstration."""
    from .demo import run_demo

    return anyio.run(run_demo, config)


def run_doctor(config: Config, options: Options) -> int:
    """Print what was checked; exit 1 if something is broken."""
    from ..app import run_checks

    checks = anyio.run(run_checks, config)
    if options.json:
        print_json([vars(check) for check in checks])
    for check in checks if not options.json else ():
        print(
            f"{'FAIL' if not check.is_ok else 'warn' if check.is_warning else 'ok  '}  {check.name}: {check.detail}"
        )
        if (check.is_warning or not check.is_ok) and check.remedy:
            print(f"      -> {check.remedy}")
    return 0 if all(check.is_ok for check in checks) else 1


def build_image(config: Config, options: Options) -> int:
    """Build the sandbox image if it is not up to date."""
    from ..sandbox.image import build_image

    anyio.run(build_image, config.sandbox, lambda line: print(line, flush=True), options.force)
    return 0


def show_runs(config: Config, options: Options) -> int:
    """Draw the runs of a session, or print the events of one run, those that are damaged on stderr."""
    if options.run is None:
        return replay.list_steps(config, options)
    damage: list[str] = []

    async def find(journal: Journal) -> list[StoredEvent]:
        row = await find_run(journal, await find_session(journal, options.session), options.run)
        return await journal.load_events(row.session_id, run_id=row.id, damage=damage)

    screen = ConsoleWriter(open_stdout())
    for stored in replay.read_journal(config, find):
        kind, fields = type(stored.event).__name__, row_fields(stored.event)
        if options.json:
            print(
                json.dumps({"n": stored.sequence, "at": stored.recorded_at, "kind": kind, **fields})
            )
            continue
        screen.write_line(f"{format_time(stored.recorded_at)}  {screen.style_text(kind, 'bold')}")
        for name, value in fields.items():
            if value not in (None, "", {}, []):
                screen.write_block(
                    name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                )
    for text in damage:
        print(f"damaged: {escape_text(text)}", file=sys.stderr)
    screen.write_footer()
    return 0


def show_tools(config: Config, options: Options) -> int:
    """List all tools, or print one server's module."""
    from ..app import list_tools, load_shim_source

    if options.server is not None:
        print(anyio.run(load_shim_source, config, options.server))
        return 0
    found = anyio.run(list_tools, config)
    if options.json:
        print_json(found)
        return 0
    for tool in found["tools"]:
        print(f"tools.{tool['server']}.{tool['tool']}{tool['signature']}\n    {tool['summary']}")
    for problem in found["problems"]:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if found["problems"] else 0


def show_config(config: Config, options: Options) -> int:
    """Print the settings in force, credentials masked."""
    print(render_config(config))
    return 0


def configure_logging(config: Config) -> None:
    """Log to stderr and to a file in the data folder; stdout is the protocol's alone."""
    folder = config.server.data_dir / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        to_file = logging.handlers.RotatingFileHandler(
            folder / "server.log", maxBytes=MAX_LOG_BYTES, backupCount=1
        )
    except OSError as exc:
        remedy = "Make it writable, or name another data folder with --data-dir."
        raise ConfigError(
            f"The log cannot be written to {folder}: {exc.strerror}.", remedy=remedy
        ) from exc
    layout = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in (to_file, logging.StreamHandler(sys.stderr)):
        handler.setFormatter(layout)
        logging.getLogger("mcpruntime_server").addHandler(handler)
    logger = logging.getLogger("mcpruntime_server")
    logger.setLevel(config.server.log_level.upper())
    logger.propagate = False  # the SDK gives the root a handler of its own
