"""The command `completion`: what a shell needs to complete the words of this program."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .. import APP_NAME
from .terminal_text import print_text

COMPLETION_VARIABLE = "_MCPRUNTIME_SERVER_COMPLETE"  # set by the shell when it asks for words
SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, *, shell: str) -> int:
    """Print a script that lets SHELL complete commands, options and names of clients.

    For bash, put this into ~/.bashrc: eval "$(mcpruntime-server completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None, "each of the shells has one"
    completion = kind(context.find_root().command, {}, APP_NAME, COMPLETION_VARIABLE)
    print_text(completion.source_template % completion.source_vars())
    return 0
