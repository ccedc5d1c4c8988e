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
from ..config import APP, Config, describe, load
from ..errors import ConfigError, McpRuntimeError
from ..journal.rows import Stored
from ..journal.store import Journal
from ..runtime.history import fields_of, find_run, find_session
from . import replay
from .agent import add_agent
from .approvals import add_approvals
from .printing import Screen, lines_of, print_json, printer, safe, when
from .skills import add_skills

LOG_BYTES = 5_000_000  # of one log file; one older one is kept
INTERRUPTED = 130  # exit code: what shells give for SIGINT

Options = argparse.Namespace
Verb = Callable[[Config, Options], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names; return the exit code."""
    options = parser().parse_args(argv)
    verb: Verb | None = serve_stdio if options.stdio else options.verb
    if verb is None:
        parser().print_help()
        return 2
    code = 0
    try:
        overrides = {"server.data_dir": options.data_dir, "sandbox.backend": options.backend}
        code = verb(load(options.config, overrides), options)
        sys.stdout.flush()
    except* McpRuntimeError as group:
        for failure in leaves(group):
            print("\n".join(lines_of(f"{APP}: {failure}")), file=sys.stderr)
            code = failure.exit_code
    except* BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would flush what is left
    except* KeyboardInterrupt:
        code = INTERRUPTED
    return code


def leaves(group: BaseExceptionGroup[McpRuntimeError]) -> Iterator[McpRuntimeError]:
    """Yield the errors in `group`, out of all nesting."""
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from leaves(inner)
        else:
            yield inner


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog=APP, description="An MCP server that runs Python in a sandbox.")
    top.add_argument("--version", action="version", version=f"{APP} {__version__}")
    top.add_argument("--stdio", action="store_true", help="serve MCP on stdin and stdout; what an MCP client starts")
    top.add_argument("--config", type=Path, metavar="FILE", help="settings file")
    top.add_argument("--data-dir", metavar="DIR", help="journal, logs and sandbox state")
    top.add_argument("--backend", metavar="NAME", help="auto, docker, or local (no isolation)")
    top.set_defaults(verb=None)
    verbs = top.add_subparsers(title="verbs", metavar="", parser_class=replay.Parser)

    def add(name: str, verb: Verb, text: str, *, to_json: bool = False) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=text, description=text)
        found.set_defaults(verb=verb)
        if to_json:
            found.add_argument("--json", action="store_true", help="for programs")
        return found

    add("demo", demo, "show the main job on real servers, step by step")
    add("doctor", doctor, "check the engine, the image, the upstreams and the data folder", to_json=True)
    image = add("image", image_build, "build the sandbox image (`image build`)")
    image.add_argument("action", choices=["build"])
    image.add_argument("--force", action="store_true", help="even if it is up to date")
    replay.add_replay(verbs)
    replay.add_gc(verbs)
    add_agent(verbs)
    add_approvals(verbs)
    add_skills(verbs)
    listing = add("sessions", replay.list_sessions, "list the sessions; the same as `replay list`", to_json=True)
    listing.add_argument("--all", action="store_true", help="those too that only served to run something again")
    listing.set_defaults(full=False)
    runs = add("runs", runs_of, "draw the runs of a session, or show the events of one", to_json=True)
    runs.add_argument("session", help="session id or name")
    runs.add_argument("run", nargs="?", help="run id, or step: its events, as they are in the journal")
    runs.set_defaults(full=False)
    tools = add("tools", tools_of, "list the tools that code can import, or show one server's module", to_json=True)
    tools.add_argument("server", nargs="?", help="package name: print its generated module")
    config = add("config", config_show, "show the settings in force and where each comes from (`config show`)")
    config.add_argument("action", choices=["show"])
    return top


# verbs ----------------------------------------------------------------------------------------------


def serve_stdio(config: Config, options: Options) -> int:
    """Serve MCP on stdin and stdout."""
    gc.disable()  # what is imported stays: looking through it again and again takes a tenth of the start
    from ..app import serve_stdio as serve

    gc.freeze()
    gc.enable()
    log_to(config)
    anyio.run(serve, config)
    return 0


def demo(config: Config, options: Options) -> int:
    """Run the demonstration."""
    from ..demo import run_demo

    return anyio.run(run_demo, config)


def doctor(config: Config, options: Options) -> int:
    """Print what was checked; exit 1 if something is broken."""
    from ..app import examine

    checks = anyio.run(examine, config)
    if options.json:
        print_json([vars(check) for check in checks])
    for check in checks if not options.json else ():
        print(f"{'FAIL' if not check.ok else 'warn' if check.warning else 'ok  '}  {check.name}: {check.detail}")
        if (check.warning or not check.ok) and check.remedy:
            print(f"      -> {check.remedy}")
    return 0 if all(check.ok for check in checks) else 1


def image_build(config: Config, options: Options) -> int:
    """Build the sandbox image if it is not up to date."""
    from ..sandbox.image import build

    anyio.run(build, config.sandbox, lambda line: print(line, flush=True), options.force)
    return 0


def runs_of(config: Config, options: Options) -> int:
    """Draw the runs of a session, or print the events of one run, those that are damaged on stderr."""
    if options.run is None:
        return replay.list_steps(config, options)
    damage: list[str] = []

    async def find(journal: Journal) -> list[Stored]:
        row = await find_run(journal, await find_session(journal, options.session), options.run)
        return await journal.events(row.session, run=row.id, damage=damage)

    screen = Screen(printer())
    for stored in replay.read(config, find):
        kind, fields = type(stored.event).__name__, fields_of(stored.event)
        if options.json:
            print(json.dumps({"n": stored.n, "at": stored.at, "kind": kind, **fields}))
            continue
        screen.line(f"{when(stored.at)}  {screen.paint(kind, 'bold')}")
        for name, value in fields.items():
            if value not in (None, "", {}, []):
                screen.block(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    for text in damage:
        print(f"damaged: {safe(text)}", file=sys.stderr)
    screen.end()
    return 0


def tools_of(config: Config, options: Options) -> int:
    """List all tools, or print one server's module."""
    from ..app import list_tools, show_module

    if options.server is not None:
        print(anyio.run(show_module, config, options.server))
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


def config_show(config: Config, options: Options) -> int:
    """Print the settings in force, credentials masked."""
    print(describe(config))
    return 0


def log_to(config: Config) -> None:
    """Log to stderr and to a file in the data folder; stdout is the protocol's alone."""
    folder = config.server.data_dir / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        to_file = logging.handlers.RotatingFileHandler(folder / "server.log", maxBytes=LOG_BYTES, backupCount=1)
    except OSError as exc:
        remedy = "Make it writable, or name another data folder with --data-dir."
        raise ConfigError(f"The log cannot be written to {folder}: {exc.strerror}.", remedy=remedy) from exc
    layout = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in (to_file, logging.StreamHandler(sys.stderr)):
        handler.setFormatter(layout)
        logging.getLogger("mcpruntime_server").addHandler(handler)
    logger = logging.getLogger("mcpruntime_server")
    logger.setLevel(config.server.log_level.upper())
    logger.propagate = False  # the SDK gives the root a handler of its own
