"""What the commands share: the settings they run with, common options, and default actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from ..journal.principals import LOCAL_PRINCIPAL

if TYPE_CHECKING:
    from ..config import Config

P = ParamSpec("P")
R = TypeVar("R")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
full_option = click.option("--full", "show_full", is_flag=True, help="Cut nothing.")
principal_option = click.option(
    "--principal",
    default=LOCAL_PRINCIPAL,
    metavar="NAME",
    help="Whose they are, if not the local user's: the name of a token, or ISSUER#SUBJECT.",
)


@dataclass(frozen=True)
class ConfigSource:
    """Where the settings come from: the options in front of the command."""

    file: Path | None
    data_dir: str | None
    backend: str | None

    def load(self) -> Config:
        """Load the settings; raises `ConfigError`."""
        from ..config import load_config

        overrides = {"server.data_dir": self.data_dir, "sandbox.backend": self.backend}
        return load_config(self.file, overrides)


def pass_config(command: Callable[Concatenate[Config, P], R]) -> Callable[P, R]:
    """Call a command with the settings, which are loaded after its own arguments are parsed."""

    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        source: ConfigSource = click.get_current_context().find_root().obj
        return command(source.load(), *args, **kwargs)

    return update_wrapper(wrapper, command)


class ActionGroup(click.Group):
    """A command with actions: no argument stands for `list`, an unknown first one for `show`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args`, with the action put in front if it is left out."""
        words = [word for word in args if not word.startswith("-")]
        has_action = bool(words) and words[0] in self.commands
        is_completion = ctx.resilient_parsing  # by the shell, while the words are being typed
        if not has_action and not is_completion and args[:1] != ["--help"]:
            args = ["show" if words else "list", *args]
        return super().parse_args(ctx, args)

    def add_actions(self, *actions: click.Command) -> None:
        """Add actions that are defined in other modules."""
        for action in actions:
            self.add_command(action)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> Any:
        """Show that the action may be left out."""
        formatter.write_usage(ctx.command_path, "[ACTION] [ARGS]...")
