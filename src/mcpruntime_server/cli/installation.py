"""The commands `doctor`, `image`, `tools`, `config` and `demo`: is everything set up, and how?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import Config
from ..errors import InvalidRequest
from .demo import ACT_NAMES
from .options import ConfigSource, json_option, pass_config
from .progress import show_progress
from .signals import run_until_signal
from .terminal_text import print_json, print_text

if TYPE_CHECKING:
    from ..protocol.payloads import ToolListing
    from ..sandbox import HealthCheck


@click.command("demo")
@click.option(
    "--act",
    "acts",
    type=click.Choice(ACT_NAMES),
    multiple=True,
    help="Show this part alone. May be repeated.",
)
@pass_config
def demo_command(config: Config, *, acts: tuple[str, ...]) -> int:
    """Show the main features on real MCP servers, in five acts."""
    from .demo.scenario import run_demo

    return run_until_signal(run_demo, config, acts)


@click.command("doctor")
@json_option
@pass_config
def doctor_command(config: Config, *, as_json: bool) -> int:
    """Check the engine, the image, the upstreams and the data folder.

    Exits with 1 if something is broken.
    """
    return run_doctor(config, as_json=as_json)


def run_doctor(config: Config, *, as_json: bool = False) -> int:
    """Run all checks, print their results, and return 1 if something is broken."""
    with show_progress("Checking engine, image and MCP servers"):
        from ..app.health_checks import run_checks

        checks = run_until_signal(run_checks, config)
    if as_json:
        print_json([vars(check) for check in checks])
    else:
        for check in checks:
            print_check(check)
    return 0 if all(check.is_ok for check in checks) else 1


def print_check(check: HealthCheck) -> None:
    """Print the result of a check, with the remedy if something is wrong."""
    mark = "ok  "
    if not check.is_ok:
        mark = "FAIL"
    elif check.is_warning:
        mark = "warn"
    print_text(f"{mark}  {check.name}: {check.detail}")
    if mark != "ok  " and check.remedy:
        print_text(f"      -> {check.remedy}")


@click.group("image")
def image_command() -> None:
    """Build the image of the sandboxes."""


@image_command.command("build")
@click.option("--force", is_flag=True, help="Build it even if it is up to date.")
@pass_config
def build_command(config: Config, *, force: bool) -> int:
    """Build the image of the sandboxes if it is not up to date."""
    build_image_visibly(config, force=force)
    return 0


def build_image_visibly(config: Config, *, force: bool = False) -> None:
    """Build the image of the sandboxes unless it exists, and show each step."""
    from ..sandbox.image import build_image

    with show_progress("Looking for the sandbox image") as progress:

        def report(line: str) -> None:
            progress.print_line(line)
            progress.update("Building the sandbox image")

        run_until_signal(build_image, config.sandbox, report, force)


@click.command("tools")
@click.argument("server", required=False)
@json_option
@pass_config
def tools_command(config: Config, *, server: str | None, as_json: bool) -> int:
    """List the tools that code can import, or print the generated module of SERVER."""
    with show_progress("Starting the MCP servers"):
        if server is not None:
            text = run_until_signal(load_shim_source, config, server)
        else:
            listing = run_until_signal(load_tool_listing, config)
    if server is not None:
        print_text(text)
        return 0
    if as_json:
        print_json(listing)
        return 0
    for tool in listing["tools"]:
        name = f"tools.{tool['server']}.{tool['tool']}"
        print_text(f"{name}{tool['signature']}\n    {tool['summary']}")
    for problem in listing["problems"]:
        print_text(f"problem: {problem}", sys.stderr)
    return 1 if listing["problems"] else 0


async def load_tool_listing(config: Config) -> ToolListing:
    """Start all upstreams and return their tools, as the local user has them."""
    from ..app.composition import open_tools
    from ..journal.call_scope import act_for
    from ..journal.principals import LOCAL_PRINCIPAL

    act_for(LOCAL_PRINCIPAL)
    async with open_tools(config) as catalog:
        return await catalog.list_live_tools()


async def load_shim_source(config: Config, package: str) -> str:
    """Return the source of one upstream's generated module, as the local user has it."""
    from ..app.composition import open_tools
    from ..journal.call_scope import act_for
    from ..journal.principals import LOCAL_PRINCIPAL

    act_for(LOCAL_PRINCIPAL)
    async with open_tools(config) as catalog:
        return (await catalog.load_live_shim(package))["source"]


@click.group("config")
def config_command() -> None:
    """Show the settings, or write a file to start from."""


@config_command.command("show")
@pass_config
def show_config_command(config: Config) -> int:
    """Show the settings in force and where each comes from; credentials are masked."""
    from ..config.display import render_config

    print_text(render_config(config))
    return 0


@config_command.command("init")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--if-none", is_flag=True, help="Do nothing if the file exists.")
@click.pass_obj
def init_config_command(source: ConfigSource, *, file: Path | None, if_none: bool) -> int:
    """Write a settings file with every setting, commented out; by default, the one that is read.

    A file that exists is never replaced.
    """
    from ..client_files.text_files import read_text_file, replace_text
    from ..config.loader import choose_settings_file
    from ..config.template import make_settings_text, read_template

    path = (file or choose_settings_file(source.file)).expanduser()
    found = read_text_file(path)
    if found.exists and if_none:
        print_text(f"{path} exists")
        return 0
    if found.exists or not replace_text(found, make_settings_text(read_template())):
        raise InvalidRequest(
            f"The file {path} exists.", remedy="Name another, or change it by hand."
        )
    print_text(f"wrote {path}")
    return 0
