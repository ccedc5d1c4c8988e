"""The command line: its commands, and how their errors become messages and exit codes.

Rule: the module of a command is imported when the command is used, and imports whatever is slow
to load only where it is needed, so that `sessions` does not wait for the MCP SDK, nor `--version`
for the settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import click
from click.shell_completion import shell_complete

from .. import APP_NAME, __version__
from ..errors import McpRuntimeError
from .completion import COMPLETION_VARIABLE
from .imports import import_without_collection
from .options import ConfigSource
from .terminal_text import print_text, print_traceback

E = TypeVar("E", bound=BaseException)

INTERRUPTED_EXIT_CODE = 130  # what shells report for a process that SIGINT ended
HELP_COLUMNS = 100
SERVER_STARTERS = ("agent", "demo")  # their server is to find the user's umask
COMMAND_MODULES = {
    "agent": ".agent",
    "approvals": ".approvals",
    "backup": ".backups",
    "completion": ".completion",
    "config": ".installation",
    "credentials": ".credentials",
    "demo": ".installation",
    "doctor": ".installation",
    "files": ".files",
    "gc": ".archives",
    "image": ".installation",
    "import": ".clients",
    "init": ".setup",
    "install": ".clients",
    "packages": ".packages",
    "replay": ".replay",
    "restore": ".backups",
    "runs": ".replay",
    "serve": ".serve",
    "sessions": ".replay",
    "skills": ".skills",
    "token": ".tokens",
    "tools": ".installation",
    "uninstall": ".clients",
    "view": ".view",
}


class LazyGroup(click.Group):
    """Finds the command NAME as `NAME_command` in its module of `COMMAND_MODULES`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMAND_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, its module imported; None if there is no such command."""
        if cmd_name not in COMMAND_MODULES:
            return None
        with import_without_collection():
            module = import_module(COMMAND_MODULES[cmd_name], __package__)
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command


def print_version(context: click.Context) -> None:
    """Print the version, and end."""
    from .protocol_revisions import list_revisions

    print_text(f"{APP_NAME} {__version__} (MCP {', '.join(list_revisions())})")
    context.exit()


@click.group(
    APP_NAME,
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"max_content_width": HELP_COLUMNS},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _, is_given: print_version(context) if is_given else None,
    help="Show the version and the revisions of MCP that it speaks.",
)
@click.option("--stdio", is_flag=True, help="Serve MCP on stdin and stdout; for MCP clients.")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Settings file."
)
@click.option("--data-dir", metavar="DIR", help="Folder of the journal, logs and sandbox state.")
@click.option("--backend", metavar="NAME", help="auto, docker, or local (no isolation).")
@click.pass_context
def command_line(
    context: click.Context,
    *,
    stdio: bool,
    file: Path | None,
    data_dir: str | None,
    backend: str | None,
) -> int:
    """Run Python in a sandbox, as an MCP server."""
    from ..config.file_modes import create_private_files

    context.obj = ConfigSource(file, data_dir, backend)
    if context.invoked_subcommand not in SERVER_STARTERS:
        context.with_resource(create_private_files())
    if context.invoked_subcommand is not None:
        if stdio:
            raise click.UsageError("--stdio cannot be combined with a command.", context)
        return 0
    if not stdio:
        click.echo(context.get_help())
        return 2
    from .serve import run_stdio_server

    return run_stdio_server(context.obj.load())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code; `arguments` are by default the process's own."""
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        return shell_complete(command_line, {}, APP_NAME, COMPLETION_VARIABLE, instruction)
    code = 0
    sys.excepthook = print_traceback
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        with command_line.make_context(APP_NAME, words) as context:
            code = command_line.invoke(context)
            sys.stdout.flush()
    except* click.exceptions.Exit as group:
        code = next(iterate_leaves(group)).exit_code
    except* click.ClickException as group:
        for error in iterate_leaves(group):
            print_text(describe_click_error(error), sys.stderr)
            code = error.exit_code
    except* McpRuntimeError as group:
        for failure in iterate_leaves(group):
            print_text(f"{APP_NAME}: {failure}", sys.stderr)
            code = failure.exit_code
    except* BrokenPipeError:  # the reader of the output needs no more
        # Without this, the interpreter would fail to flush the rest when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except* (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED_EXIT_CODE
    return code


def describe_click_error(error: click.ClickException) -> str:
    """Return a mistake in a command line, and where to look it up, in one line."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else APP_NAME
    message = " ".join(error.format_message().split())
    if not message.endswith((".", "?", "!")):
        message += "."
    return f"{command}: {message} See `{command} --help`."


def iterate_leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    """Yield the exceptions in `group` and in the groups nested in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from iterate_leaves(error)
        else:
            yield error
