"""The command `token`: creates, lists and revokes the tokens of the server's users over HTTP."""

from __future__ import annotations

import sys

import click

from ..config import Config
from ..config.scopes import DEFAULT_SCOPES, SCOPES
from .console import ConsoleWriter, format_time
from .options import json_option, pass_config
from .terminal_text import print_json, print_text

DAY_S = 86_400


@click.group("token")
def token_command() -> None:
    """Create, list and revoke the tokens with which clients use `serve`."""


@token_command.command("create")
@click.argument("name")
@click.option("--days", type=click.FloatRange(0, min_open=True), help="Days until it expires.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What the token allows, repeatable; by default run, read and approve.",
)
@click.option("--if-none", is_flag=True, help="Print nothing if there are tokens already.")
@pass_config
def create_command(
    config: Config, *, name: str, days: float | None, scopes: tuple[str, ...], if_none: bool
) -> int:
    """Print a new token of NAME, once; only a digest of it is kept.

    NAME is a person or a program. All tokens of a NAME see the same sessions, and no others do.

    Scopes: `run` executes code and changes sessions, `read` shows sessions, skills and files,
    `approve` answers what code may do, `admin` shows the state of the whole server.
    """
    from ..service.access_tokens import TokenStore

    store = TokenStore(config.server.data_dir)
    if if_none and store.list_tokens():
        return 0
    token = store.create_token(name, days and days * DAY_S, scopes or DEFAULT_SCOPES)
    print_text(token)
    if sys.stdout.isatty():
        ConsoleWriter(sys.stderr).write_note(
            "It is not shown again. Clients send it as a bearer token."
        )
    return 0


@token_command.command("list")
@json_option
@pass_config
def list_tokens_command(config: Config, *, as_json: bool) -> int:
    """List the tokens, without the tokens themselves."""
    from ..service.access_tokens import TokenStore

    tokens = TokenStore(config.server.data_dir).list_tokens()
    if as_json:
        print_json(
            [
                {
                    "id": each.id,
                    "name": each.principal,
                    "scopes": each.scopes,
                    "created": each.created_at,
                    "expires": each.expires_at,
                }
                for each in tokens
            ]
        )
        return 0
    writer = ConsoleWriter()
    for each in tokens:
        expiry = "never expires"
        if each.expires_at is not None:
            word = "expired" if each.is_expired else "expires"
            expiry = f"{word} {format_time(each.expires_at)}"
        created = format_time(each.created_at)
        writer.write_line(
            f"{each.id}  {each.principal:20}  {created}  {expiry:27}  {' '.join(each.scopes)}"
        )
    if not tokens:
        writer.write_note("There are no tokens: `token create NAME` makes one.")
    return 0


@token_command.command("revoke")
@click.argument("token_id", metavar="ID")
@pass_config
def revoke_command(config: Config, *, token_id: str) -> int:
    """Revoke the token ID, as `list` shows it; a running server refuses it from now on."""
    from ..service.access_tokens import TokenStore

    revoked = TokenStore(config.server.data_dir).revoke_token(token_id)
    ConsoleWriter().write_line(f"revoked {revoked.id} of {revoked.principal}")
    return 0
