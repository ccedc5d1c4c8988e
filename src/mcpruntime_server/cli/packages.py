"""The command `packages`: what code has asked for and the cache keeps."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from ..config import Config
from .console import ConsoleWriter, format_count, format_size
from .options import json_option, pass_config
from .terminal_text import print_json

if TYPE_CHECKING:
    from ..capabilities.packages.wheel_cache import WheelCache

UNUSED_DAYS = 30.0


def open_cache(config: Config) -> WheelCache:
    """Return the cache of a data folder."""
    from ..capabilities.packages.wheel_cache import BYTES_PER_MB, WheelCache

    return WheelCache(config.server.packages_dir, config.sandbox.package_mb * BYTES_PER_MB)


@click.group("packages", invoke_without_command=True)
@json_option
@pass_config
@click.pass_context
def packages_command(ctx: click.Context, config: Config, *, as_json: bool) -> int:
    """List the packages that code has asked for."""
    if ctx.invoked_subcommand is not None:
        return 0
    wheels = open_cache(config).list_wheels()
    if as_json:
        print_json([vars(wheel) for wheel in wheels])
        return 0
    writer = ConsoleWriter()
    for wheel in wheels:
        used = datetime.fromtimestamp(wheel.used_at).strftime("%Y-%m-%d")
        writer.write_line(f"{wheel.name}  {format_size(wheel.size)}  used {used}")
    if not wheels:
        writer.write_line('There are none. Code asks for them with packages.install("name").')
    return 0


@packages_command.command("prune")
@click.option(
    "--days", type=click.FloatRange(min=0), default=UNUSED_DAYS, show_default=True,
    help="Keep what was used in so many days.",
)  # fmt: skip
@pass_config
def prune_command(config: Config, *, days: float) -> int:
    """Remove packages that were not used for a while.

    Sessions that use one of them get it again from the journal.
    """
    removed = open_cache(config).prune(days)
    size = format_size(sum(wheel.size for wheel in removed))
    ConsoleWriter().write_line(f"removed {format_count(len(removed), 'package')}: {size}")
    return 0
