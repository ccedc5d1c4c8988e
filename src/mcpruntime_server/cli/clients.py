"""The commands `import`, `install` and `uninstall`: this server and the clients on this machine."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import platformdirs

from .. import APP_NAME
from ..client_files.client_kinds import CLIENTS, ClientKind, UserPlaces, find_client
from ..config.loader import choose_settings_file, default_settings_file
from ..errors import InvalidRequest, NotFound
from .console import ConsoleWriter, format_count
from .options import ConfigSource
from .progress import show_progress
from .signals import run_until_signal

if TYPE_CHECKING:
    from ..app.tool_costs import ToolCost
    from ..client_files.registration import FileChange, Registration
    from ..client_files.server_import import ImportPlan, PlannedServer

DEFAULT_NAME = "runtime"
TEMPORARY_FOLDERS = ("archive-v0", "environments-v2", "builds-v0")  # of uvx, which removes them
COMMAND_CHARS = 60  # of a server's command, in a list
SETTINGS_HEADER = (
    "# Settings of mcpruntime-server. `mcpruntime-server config init` writes all of them with\n"
    "# their defaults into a new file; what is left out here has its default.\n"
)

client_argument = click.argument("client", type=click.Choice(list(CLIENTS)))
name_option = click.option(
    "--name", default=DEFAULT_NAME, show_default=True, help="What the client calls this server."
)
project_option = click.option(
    "--project", is_flag=True, help="Use the client's settings of the project in this folder."
)
trial_option = click.option(
    "--dry-run", "is_trial", is_flag=True, help="Show the changes, and write nothing."
)


@click.command("import")
@click.argument("source", metavar="CLIENT|FILE")
@click.option("--replace", is_flag=True, help="Remove the servers there; a backup is made before.")
@click.option("--server", "names", multiple=True, metavar="NAME", help="Only this; repeatable.")
@click.option(
    "--count/--no-count",
    default=None,
    help="Start the servers to count the tokens of their tools; not done for a FILE by default.",
)
@project_option
@trial_option
@click.pass_obj
def import_command(
    source_options: ConfigSource,
    *,
    source: str,
    replace: bool,
    names: tuple[str, ...],
    count: bool | None,
    project: bool,
    is_trial: bool,
) -> int:
    """Take over the MCP servers of CLIENT, or of a FILE, into the settings.

    CLIENT is claude-desktop, claude-code, cursor, vscode, codex, gemini, opencode, windsurf or
    zed. Credentials become references to variables, which you set where this server starts. The
    client keeps its servers, unless --replace is given.
    """
    settings_path = choose_settings_file(source_options.file)
    places = UserPlaces.find()
    plan = load_plan(source, settings_path, places, is_project=project)
    select_servers(plan, names)
    writer = ConsoleWriter()
    costs = measure_costs(plan, settings_path) if choose_count(count, source) else {}
    print_plan(writer, plan, costs)
    if is_trial:
        print_trial(writer, plan, settings_path, replace=replace)
        return 0
    carry_out(writer, plan, settings_path, replace=replace)
    print_variables(writer, plan, places.environ)
    if plan.servers and not replace:
        words = ["import", source, "--replace", *(["--project"] if project else [])]
        writer.write_note(
            f"{plan.kind.title} starts them as before. To remove them there, with a backup: "
            f"{shlex.join([APP_NAME, *words])}"
        )
    return 0


def choose_count(wanted: bool | None, source: str) -> bool:
    """Return whether the servers are started: those of a client are, as the client does, too."""
    return source in CLIENTS if wanted is None else wanted


def load_plan(
    source: str, settings_path: Path, places: UserPlaces, *, is_project: bool = False
) -> ImportPlan:
    """Return what can be taken over from a client or a file; raises `NotFound`, `ConfigError`."""
    from ..client_files.client_documents import guess_kind
    from ..client_files.server_import import plan_import
    from ..client_files.text_files import read_text_file

    if source in CLIENTS:
        kind = find_client(source)
        path = kind.find_file(places, is_project=is_project)
    elif is_project:
        raise InvalidRequest("--project is for clients.", remedy="Name the file alone.")
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise NotFound(
                f"{source!r:.200} is neither a client nor a file.",
                remedy=f"Clients are: {', '.join(CLIENTS)}.",
            )
    file = read_text_file(path)
    if source not in CLIENTS:
        kind = guess_kind(path, file.text)
    elif not file.exists:
        raise NotFound(
            f"{kind.title} has no settings at {path}.",
            remedy="Name the file itself, if it is elsewhere.",
        )
    return plan_import(kind, file, read_text_file(settings_path).text, settings_path, places)


def select_servers(plan: ImportPlan, names: Sequence[str]) -> None:
    """Leave only the named servers in a plan; raises `NotFound`."""
    known = [*(server.name for server in plan.servers), *plan.skipped]
    for name in names:
        if name not in known:
            raise NotFound(
                f"{plan.file.path} has no server {name!r:.80}.",
                remedy=f"It has: {', '.join(known) or 'none'}.",
            )
    if names:
        plan.select(names)


def measure_costs(plan: ImportPlan, settings_path: Path) -> dict[str, ToolCost]:
    """Start the servers of a plan and count the tokens of their tools."""
    servers = {server.name: server.settings for server in plan.servers if server.settings}
    waiting = [name for name, settings in servers.items() if not settings.disabled]
    if not waiting:
        return {}
    from ..app.tool_costs import measure_tool_costs

    with show_progress(f"Starting {', '.join(waiting)}") as progress:

        def report(name: str) -> None:
            waiting.remove(name)
            progress.update(f"Waiting for {', '.join(waiting) or 'the end of the servers'}")

        folder = next(each for each in settings_path.parents if each.is_dir())
        return run_until_signal(measure_tool_costs, servers, folder, report)


def print_plan(writer: ConsoleWriter, plan: ImportPlan, costs: Mapping[str, ToolCost]) -> None:
    """Print the servers of a plan, with what their tools cost."""
    writer.write_line((f"{plan.kind.title}", "bold"), f"  {show_path(plan.file.path)}")
    width = max((len(name) for name in [*plan.skipped, *(s.name for s in plan.servers)]), default=0)
    for server in plan.servers:
        writer.write_line(
            f"  {server.name:{width}}  ",
            writer.truncate_line(describe_command(server), COMMAND_CHARS),
            ("  " + describe_cost(server, costs.get(server.name)), "dim"),
        )
        for note in describe_differences(server):
            writer.write_line(" " * (width + 4), (note, "yellow"))
    for name, reason in plan.skipped.items():
        writer.write_line(f"  {name:{width}}  ", ("left there: ", "yellow"), reason)
    if not plan.servers and not plan.skipped:
        writer.write_note("  It has no other MCP servers.")
    print_total(writer, plan, costs)


def describe_command(server: PlannedServer) -> str:
    """Return how a server is reached, without credentials."""
    entry = server.entry
    if "url" in entry:
        return str(entry["url"])
    return shlex.join([entry["command"], *entry.get("args", ())]).replace("'", "")


def describe_cost(server: PlannedServer, cost: ToolCost | None) -> str:
    """Return what the tools of a server cost, as far as that is known."""
    state = "  (in the settings already)" if server.is_present else ""
    if server.entry.get("disabled"):
        return f"disabled{state}"
    if server.unknown:
        return f"not started: {', '.join(server.unknown)} not known here{state}"
    if cost is None:
        return state.strip()
    if cost.problem:
        return f"not counted: {cost.problem:.200}{state}"
    return f"{format_count(cost.tools, 'tool')}, {format_count(cost.tokens, 'token')}{state}"


def describe_differences(server: PlannedServer) -> list[str]:
    """Return notes on what this program does not do as the client does."""
    source = server.source
    notes = []
    if source.ignored_keys:
        notes.append(f"without the client's own settings {', '.join(source.ignored_keys)}")
    if source.denied_tools:
        notes.append(f"{format_count(len(source.denied_tools), 'tool')} denied by a rule, as there")
    if source.allowed_tools:
        shown = format_count(len(source.allowed_tools), "tool")
        notes.append(f"only {shown} may be called, after a question; all others are denied")
    return notes


def print_total(writer: ConsoleWriter, plan: ImportPlan, costs: Mapping[str, ToolCost]) -> None:
    """Print how many tokens the client does not need any more."""
    counted = [cost for cost in costs.values() if not cost.problem]
    if not counted:
        return
    from ..app.tool_costs import ENCODING

    tools, tokens = sum(cost.tools for cost in counted), sum(cost.tokens for cost in counted)
    writer.write_line(
        "  ",
        (f"{format_count(tokens, 'token')} of tool definitions", "bold"),
        f" ({format_count(tools, 'tool')}) leave every conversation, counted with {ENCODING}",
    )
    if len(counted) < len(costs):
        writer.write_note("  The servers that could not be started come on top.")


def print_trial(
    writer: ConsoleWriter, plan: ImportPlan, settings_path: Path, *, replace: bool
) -> None:
    """Print what an import would change; credentials are masked."""
    from ..app.tool_costs import name_tool_rule
    from ..client_files.server_import import add_servers, without_servers
    from ..client_files.text_files import read_text_file

    settings = read_text_file(settings_path).text
    after = add_servers(plan, settings or SETTINGS_HEADER, settings_path, name_tool_rule)
    print_change(writer, settings_path, settings, after if plan.new_servers else settings)
    if replace:
        print_change(writer, plan.file.path, plan.file.text, without_servers(plan, plan.file))


def show_path(path: Path) -> str:
    """Return a path as people write it, with `~` for their home folder."""
    with suppress(ValueError, RuntimeError):
        return str(Path("~") / path.relative_to(Path.home()))
    return str(path)


def print_change(writer: ConsoleWriter, path: Path, before: str, after: str) -> None:
    """Print the difference between two texts of a file, in which credentials are masked."""
    from ..client_files.text_files import format_diff

    diff = format_diff(path, before, after)
    if not diff:
        writer.write_note(f"{path}: no change")
        return
    from ..client_files.masking import mask_credentials

    writer.write_diff(mask_credentials(diff), margin="")


def carry_out(
    writer: ConsoleWriter, plan: ImportPlan, settings_path: Path, *, replace: bool
) -> None:
    """Write the settings and, if wanted, remove the servers from the client."""
    from ..app.tool_costs import name_tool_rule
    from ..client_files.server_import import add_servers, remove_from_client, without_servers
    from ..client_files.text_files import check_writable, edit_text_file, lock_edits

    if replace:  # what cannot be done is known before anything is written
        check_writable(plan.file)
        without_servers(plan, plan.file)
    with lock_edits(state_folder()):
        if plan.new_servers:
            edit_text_file(
                settings_path,
                lambda file: add_servers(
                    plan, file.text or SETTINGS_HEADER, settings_path, name_tool_rule
                ),
            )
            names = ", ".join(server.name for server in plan.new_servers)
            writer.write_line(f"{show_path(settings_path)} now has ", (names, "bold"))
        if replace and plan.servers:
            backup = remove_from_client(plan)
            writer.write_line(f"{show_path(plan.file.path)} has them no more")
            writer.write_note(f"  Backup: {show_path(backup)}")


def print_variables(writer: ConsoleWriter, plan: ImportPlan, environ: Mapping[str, str]) -> None:
    """Print which variables have to be set."""
    unset = plan.list_unset(environ)
    if not unset:
        return
    writer.write_line("Set these where this server starts:")
    width = max(map(len, unset))
    for name, owner in unset.items():
        origin = (
            f"its value is in {show_path(plan.file.path)}" if name in plan.secrets else "as before"
        )
        writer.write_line(
            f"  export {name}=...{'':{width - len(name)}}", (f"  # of {owner}; {origin}", "dim")
        )
    writer.write_note(f"  Or let a client pass them: {APP_NAME} install CLIENT --env NAME=VALUE")


@click.command("install")
@client_argument
@name_option
@click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A variable that the client passes; without VALUE, that of this shell; repeatable.",
)
@project_option
@trial_option
@click.pass_obj
def install_command(
    source_options: ConfigSource,
    *,
    client: str,
    name: str,
    variables: tuple[str, ...],
    project: bool,
    is_trial: bool,
) -> int:
    """Register this server in CLIENT, whose other settings stay as they are.

    Doing it again changes nothing, unless the settings file or the program is another one.
    """
    places = UserPlaces.find()
    kind = find_client(client)
    registration = find_registration(kind, places, name, is_project=project)
    command = own_command(source_options)
    passed = parse_variables(variables, places.environ)
    change = registration.install(command, passed, is_trial=is_trial)
    writer = ConsoleWriter()
    if is_trial:
        print_change(writer, change.path, change.before, change.after)
        return 0
    print_installed(writer, kind, change, command, name)
    needed = list_needed_variables(choose_settings_file(source_options.file))
    if missing := [each for each in needed if each not in passed]:
        options = " ".join(f"--env {each}" for each in missing)
        writer.write_warning(
            f"The settings need {', '.join(missing)}. If {kind.title} does not have that: "
            f"{APP_NAME} install {client} {options}"
        )
    return 0


def list_needed_variables(settings_path: Path) -> list[str]:
    """Return the variables that the servers in the settings need."""
    from ..client_files.server_import import find_variables
    from ..client_files.text_files import read_text_file
    from ..client_files.toml_edits import parse_toml

    servers = parse_toml(read_text_file(settings_path).text, settings_path).get("mcpServers", {})
    return find_variables([each for each in servers.values() if not each.get("disabled")])


def find_registration(
    kind: ClientKind, places: UserPlaces, name: str, *, is_project: bool
) -> Registration:
    """Return the registration of this server in a client's file."""
    from ..client_files.registration import Registration

    return Registration(kind, kind.find_file(places, is_project=is_project), state_folder(), name)


def print_installed(
    writer: ConsoleWriter, kind: ClientKind, change: FileChange, command: Sequence[str], name: str
) -> None:
    """Print where this server is registered now, and what is next."""
    if not change.is_change:
        writer.write_line(f"{kind.title} has this server already: {show_path(change.path)}")
        return
    where = show_path(change.path)
    writer.write_line((kind.title, "bold"), f" starts this server as {name!r}: {where}")
    writer.write_note(f"  It runs: {shlex.join(command)}")
    writer.write_note(f"  {kind.reload_hint}")
    writer.write_note(f"  To take it back: {APP_NAME} uninstall {kind.name}")


@click.command("uninstall")
@client_argument
@name_option
@project_option
@trial_option
def uninstall_command(*, client: str, name: str, project: bool, is_trial: bool) -> int:
    """Take this server out of CLIENT again; its file becomes what it was before."""
    kind = find_client(client)
    registration = find_registration(kind, UserPlaces.find(), name, is_project=project)
    change = registration.uninstall(is_trial=is_trial)
    writer = ConsoleWriter()
    if is_trial:
        print_change(writer, change.path, change.before, change.after)
        return 0
    gone = ", and the file, which was made for it, is removed" if change.is_removed else ""
    writer.write_line(
        f"{kind.title} does not start this server any more: {show_path(change.path)}{gone}"
    )
    return 0


def parse_variables(words: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a client passes; raises `InvalidRequest`."""
    variables = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and name not in environ:
            raise InvalidRequest(
                f"The variable {name!r:.80} is not set.",
                remedy="Set it, or write --env NAME=VALUE.",
            )
        variables[name] = value if equals else environ[name]
    return variables


def own_command(options: ConfigSource) -> list[str]:
    """Return the command with which a client starts this server on the same settings."""
    words = ["--stdio"]
    file = choose_settings_file(options.file)
    if file != default_settings_file():
        words += ["--config", str(file)]
    if options.data_dir:
        words += ["--data-dir", str(Path(options.data_dir).expanduser().absolute())]
    if options.backend:
        words += ["--backend", options.backend]
    return [*find_program(), *words]


def find_program() -> list[str]:
    """Return how a program that knows no shell starts this one.

    Programs of a desktop often have another PATH. What `uvx` has unpacked is not there for long.
    """
    started = Path(sys.argv[0]).absolute()
    if not {*TEMPORARY_FOLDERS}.isdisjoint(started.parts):
        return [shutil.which("uvx") or "uvx", APP_NAME]
    if started.name == APP_NAME and started.is_file():
        return [str(started)]
    beside = Path(sys.executable).with_name(APP_NAME)
    if beside.is_file():
        return [str(beside)]
    return [shutil.which(APP_NAME) or APP_NAME]


def state_folder() -> Path:
    """Return the folder with what is known of changes to clients' files."""
    return platformdirs.user_state_path(APP_NAME, appauthor=False) / "clients"
