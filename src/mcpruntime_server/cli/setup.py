"""The command `init`: from an installed package to a client that uses it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import APP_NAME
from ..client_files.client_kinds import CLIENTS, ClientKind, UserPlaces, find_client, is_in_use
from ..config import load_config
from ..config.loader import choose_settings_file
from ..errors import InvalidRequest, McpRuntimeError, NotFound
from .clients import (
    DEFAULT_NAME,
    carry_out,
    find_registration,
    list_needed_variables,
    load_plan,
    measure_costs,
    own_command,
    print_installed,
    print_plan,
    show_path,
)
from .console import ConsoleWriter
from .installation import build_image_visibly, run_doctor
from .options import ConfigSource

if TYPE_CHECKING:
    from ..client_files.server_import import ImportPlan


@dataclass(frozen=True)
class Choices:
    """How the questions of `init` are answered without a person."""

    is_quiet: bool  # with --yes
    takes_servers: bool
    replaces: bool  # removes them from the client

    def confirm(self, question: str, *, default: bool = True) -> bool:
        """Ask a question, unless the options answer it."""
        if self.is_quiet:
            return default
        return click.confirm(question, default=default)


@click.command("init")
@click.option(
    "--client",
    "clients",
    multiple=True,
    type=click.Choice(list(CLIENTS)),
    help="Set up this client, repeatable; by default those that are found.",
)
@click.option("--yes", "is_quiet", is_flag=True, help="Ask nothing.")
@click.option("--no-import", is_flag=True, help="Leave the servers of the clients to them.")
@click.option("--replace", is_flag=True, help="Remove them there; a backup is made before.")
@click.pass_obj
def init_command(
    source_options: ConfigSource,
    *,
    clients: tuple[str, ...],
    is_quiet: bool,
    no_import: bool,
    replace: bool,
) -> int:
    """Set everything up: clients, their MCP servers, the sandbox image; then check it.

    Nothing is written before a question, or with --yes. `uninstall` and the backups take it back.
    """
    if not is_quiet and not sys.stdin.isatty():
        raise InvalidRequest(
            "`init` asks questions, and there is no terminal.", remedy="Add --yes."
        )
    writer = ConsoleWriter()
    places = UserPlaces.find()
    settings_path = choose_settings_file(source_options.file)
    choices = Choices(is_quiet, not no_import, replace)
    found = [find_client(name) for name in clients] or [
        kind for kind in CLIENTS.values() if is_in_use(kind, places)
    ]
    writer.write_line(f"Settings: {show_path(settings_path)}")
    if not found:
        writer.write_warning(
            f"no MCP client found; later: {APP_NAME} install CLIENT ({', '.join(CLIENTS)})"
        )
    plans = [
        plan for kind in found if (plan := take_over(writer, kind, places, settings_path, choices))
    ]
    secrets = {name: value for plan in plans for name, value in plan.secrets.items()}
    references = {plan.kind.name: plan.client_variables() for plan in plans}
    writer.write_heading("This server in the clients")
    for kind in found:
        needed = list_needed_variables(settings_path)
        known = {**secrets, **references.get(kind.name, {})}
        passed = {name: known[name] for name in needed if name in known}
        try:
            register(writer, kind, source_options, places, passed, choices)
        except McpRuntimeError as exc:  # another client may be fine
            writer.write_warning(str(exc))
    return finish_setup(writer, source_options, {**secrets, **places.environ})


def take_over(
    writer: ConsoleWriter,
    kind: ClientKind,
    places: UserPlaces,
    settings_path: Path,
    choices: Choices,
) -> ImportPlan | None:
    """Take over the servers of a client; None if it has none, or a person wants them to stay."""
    if not choices.takes_servers:
        return None
    try:
        plan = load_plan(kind.name, settings_path, places)
        if plan.servers or plan.skipped:
            writer.write_heading(kind.title)
            return plan if take_servers(writer, plan, settings_path, choices) else None
    except NotFound:  # it has no settings yet
        return None
    except McpRuntimeError as exc:  # another client may be fine
        writer.write_warning(str(exc))
    return None


def register(
    writer: ConsoleWriter,
    kind: ClientKind,
    options: ConfigSource,
    places: UserPlaces,
    passed: Mapping[str, str],
    choices: Choices,
) -> None:
    """Register this server in a client, which passes some variables."""
    shown = f", with {', '.join(passed)} in its settings" if passed else ""
    if choices.confirm(f"Let {kind.title} start this server{shown}?"):
        command = own_command(options)
        registration = find_registration(kind, places, DEFAULT_NAME, is_project=False)
        change = registration.install(command, passed)
        print_installed(writer, kind, change, command, DEFAULT_NAME)


def take_servers(
    writer: ConsoleWriter, plan: ImportPlan, settings_path: Path, choices: Choices
) -> bool:
    """Take over the servers of a plan, and say whether that was wanted."""
    print_plan(writer, plan, measure_costs(plan, settings_path))
    if not plan.servers or not choices.confirm("Let code call these servers, through this one?"):
        return False
    title = plan.kind.title
    question = f"Remove them from {title}, so that it loads them no more? (A backup is made.)"
    replaces = choices.replaces or (not choices.is_quiet and choices.confirm(question))
    carry_out(writer, plan, settings_path, replace=replaces)
    if not replaces:
        writer.write_note(
            f"  {title} still loads them, too; {APP_NAME} import {plan.kind.name} --replace "
            "ends that"
        )
    return True


def finish_setup(writer: ConsoleWriter, options: ConfigSource, environ: Mapping[str, str]) -> int:
    """Build or find the image, and check everything."""
    overrides = {"server.data_dir": options.data_dir, "sandbox.backend": options.backend}
    config = load_config(options.file, overrides, environ)
    if config.sandbox.backend != "local":
        writer.write_heading("Sandbox image")
        try:
            build_image_visibly(config)
        except McpRuntimeError as exc:
            writer.write_warning(str(exc))
    writer.write_heading("Check")
    return run_doctor(config)
