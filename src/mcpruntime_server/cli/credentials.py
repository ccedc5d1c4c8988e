"""The command `credentials`: what principals use MCP servers with, and the keys that encrypt it."""

from __future__ import annotations

import sys

import click

from ..config import Config
from ..config.placeholders import (
    DEFAULT_NAME,
    MAX_CREDENTIAL_BYTES,
)
from ..config.web_rules import CREDENTIAL_SCHEME, credential_user
from ..errors import InvalidRequest
from ..journal.principals import LOCAL_PRINCIPAL
from .console import ConsoleWriter, format_time
from .options import json_option, pass_config
from .terminal_text import print_json, print_text

owner_option = click.option(
    "--principal",
    default=LOCAL_PRINCIPAL,
    show_default=True,
    metavar="NAME",
    help="Whose it is: the NAME of `token create`.",
)


@click.group("credentials")
def credentials_command() -> None:
    """Store what each person uses MCP servers with (`credentials = "per-principal"`)."""


@credentials_command.command("set")
@click.argument("server")
@owner_option
@click.option("--name", help="Which one, if the server needs several.")
@pass_config
def set_command(config: Config, *, server: str, principal: str, name: str | None) -> int:
    """Store a credential for SERVER, an entry of mcpServers or a host of network.credentials.

    It is read from stdin, or asked for on a terminal, and stored encrypted. A running server uses
    it at once.
    """
    from ..capabilities.credential_entry import find_entry, store_credential
    from ..capabilities.credential_keys import load_keys
    from ..journal.principals import check_principal

    entry = find_entry(config, server, name)
    check_principal(principal)
    load_keys(config.credentials, config.server.data_dir)  # before anybody types
    store_credential(config, entry, principal, read_secret(server, entry.name))
    named = "" if entry.name == DEFAULT_NAME else f" ({entry.name})"
    ConsoleWriter().write_line(f"stored a credential of {principal} for {server}{named}")
    return 0


@credentials_command.command("list")
@json_option
@pass_config
def list_credentials_command(config: Config, *, as_json: bool) -> int:
    """List who has a credential for which server, without the credentials."""
    from ..capabilities.credential_store import CredentialStore

    rows = CredentialStore(config.server.data_dir).list_credentials()
    if as_json:
        print_json(
            [
                {
                    "server": row.upstream,
                    "principal": row.principal,
                    "name": row.name,
                    "changed": row.changed_at,
                    "is_used": is_used(config, row.upstream, row.name),
                }
                for row in rows
            ]
        )
        return 0
    writer = ConsoleWriter()
    for row in rows:
        note = "" if is_used(config, row.upstream, row.name) else "  (no server uses it)"
        changed = format_time(row.changed_at)
        writer.write_line(f"{row.upstream:16}  {row.principal:20}  {row.name:12}  {changed}{note}")
    if not rows:
        writer.write_note("There are no credentials: `credentials set SERVER` stores one.")
    return 0


@credentials_command.command("remove")
@click.argument("server")
@owner_option
@click.option("--name", help="Which one; by default all for SERVER.")
@pass_config
def remove_command(config: Config, *, server: str, principal: str, name: str | None) -> int:
    """Remove a credential for SERVER; a running server ends the connection that uses it."""
    from ..capabilities.credential_store import CredentialStore

    if server in config.network.credentials and server not in config.mcpServers:
        server = credential_user(server)
    store = CredentialStore(config.server.data_dir)
    count = store.remove_credentials(server, principal, name)
    what = "a credential" if count == 1 else f"{count} credentials"
    ConsoleWriter().write_line(f"removed {what} of {principal} for {server}")
    return 0


@credentials_command.command("new-key")
def new_key_command() -> int:
    """Print a new key, which encrypts credentials.

    Put it into the variable MCPRUNTIME_CREDENTIALS_KEY, or into a file that [credentials] key_file
    names. In front of the keys that are there, it encrypts; the others still decrypt.
    """
    from ..capabilities.credential_keys import create_key

    print_text(create_key())
    return 0


@credentials_command.command("encrypt-again")
@pass_config
def encrypt_again_command(config: Config) -> int:
    """Encrypt all credentials with the first key; afterwards the other keys are not needed."""
    from ..capabilities.credential_keys import load_keys
    from ..capabilities.credential_store import CredentialStore

    keys = load_keys(config.credentials, config.server.data_dir)
    count = CredentialStore(config.server.data_dir).encrypt_again(keys)
    ConsoleWriter().write_line(f"encrypted {count} credentials with the first key")
    return 0


def read_secret(server: str, name: str) -> str:
    """Return what stdin has, without the newline at its end; on a terminal, what is typed."""
    if sys.stdin.isatty():
        named = "" if name == DEFAULT_NAME else f" ({name})"
        prompt = f"Credential for {server}{named}"
        secret: str = click.prompt(prompt, hide_input=True, err=True)
        return secret
    data = sys.stdin.buffer.read(MAX_CREDENTIAL_BYTES + 3)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        if len(data) > MAX_CREDENTIAL_BYTES:
            text = "?" * len(data)  # which is refused for its size
        else:
            raise InvalidRequest("The credential is not stored: it is not UTF-8 text.") from None
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")


def is_used(config: Config, server: str, name: str) -> bool:
    """Return whether an entry of the settings needs a credential of this name."""
    host = config.network.credentials.get(server.removeprefix(CREDENTIAL_SCHEME))
    if server.startswith(CREDENTIAL_SCHEME):
        return host is not None and host.is_per_principal and name == DEFAULT_NAME
    entry = config.mcpServers.get(server)
    return entry is not None and entry.is_per_principal and name in entry.find_placeholders()
