"""Serving MCP: the option `--stdio`, the command `serve`, and where the server logs to."""

from __future__ import annotations

import logging
import logging.handlers
import socket
import sys
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import click

from ..config import Config, HttpSettings
from ..config.shell_commands import format_command
from ..errors import ConfigError, InvalidRequest
from .console import ConsoleWriter
from .imports import import_without_collection
from .options import pass_config
from .signals import serve_until_signal
from .terminal_text import EscapingFormatter

if TYPE_CHECKING:
    from ..service.access_tokens import TokenStore

EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - what an empty one means; tokens are required there
BACKLOG = 128  # connections that wait to be accepted
MAX_LOG_BYTES = 5_000_000  # of one log file; one older file is kept
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run_stdio_server(config: Config) -> int:
    """Serve MCP on stdin and stdout until the client closes stdin or a signal comes; return 0."""
    with import_without_collection():
        from ..app.serving import serve_stdio
    configure_logging(config)
    serve_until_signal(serve_stdio, config)
    return 0


@click.command("serve")
@click.option("--host", help="Address to listen on; by default only this machine can connect.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on.")
@click.option("--no-auth", is_flag=True, help="Ask for no tokens; on loopback addresses only.")
@pass_config
def serve_command(config: Config, *, host: str | None, port: int | None, no_auth: bool) -> int:
    """Serve MCP over HTTP at /mcp, until a signal comes.

    Clients send a bearer token, which `token create NAME` makes. Each NAME has sessions of its
    own. Other machines should connect through a proxy that adds TLS.
    """
    from ..app.serving import serve_http
    from ..service.access_tokens import TokenStore
    from ..viewer.browser_logins import BrowserLogins

    http = replace(
        config.http,
        host=config.http.host if host is None else host,
        port=config.http.port if port is None else port,
    )
    with bind_listener(http) as listener:
        address, number = listener.getsockname()[:2]
        if no_auth and not ip_address(address.partition("%")[0]).is_loopback:
            raise InvalidRequest(
                f"Without authentication, the server does not listen on {address}.",
                remedy="Leave out --no-auth, or listen on 127.0.0.1.",
            )
        tokens = None if no_auth else TokenStore(config.server.data_dir)
        configure_logging(config)
        print_address(config, address, number, tokens)
        logins = BrowserLogins()
        serve_until_signal(serve_http, replace(config, http=http), listener, tokens, logins)
    return 0


def print_address(config: Config, address: str, port: int, tokens: TokenStore | None) -> None:
    """Print where clients find the server, and what they need."""
    writer = ConsoleWriter(sys.stderr)
    shown = f"[{address}]" if ":" in address else address
    writer.write_line(f"MCP at http://{shown}:{port}/mcp")
    if tokens is None:
        writer.write_warning("no tokens: every user of this machine can run code")
    elif config.http.oauth.issuer:
        writer.write_note(f"tokens of {config.http.oauth.issuer} are accepted, too")
    elif not tokens.list_tokens():
        command = format_command(config, "token", "create", "NAME")
        writer.write_warning(f"nobody has a token yet; this makes one: {command}")


def bind_listener(settings: HttpSettings) -> socket.socket:
    """Return a listening socket; raises `ConfigError`."""
    try:
        address = (settings.host or EVERY_ADDRESS, settings.port)
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
        # A socket that knows its protocol: asyncio lets only such ones send small parts at once.
        return socket.socket(fileno=listener.detach())
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", "") or "the name is not valid"
        raise ConfigError(
            f"The server cannot listen on {settings.host} port {settings.port}: {reason}.",
            remedy="Choose another with --host and --port, or in [http].",
        ) from exc


def configure_logging(config: Config) -> None:
    """Log to stderr and to a file in the data folder; stdout belongs to the protocol."""
    log_to_file(config)
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(EscapingFormatter(LOG_FORMAT))
    # The SDK would give the root logger a handler that writes control characters as they are.
    logging.getLogger().addHandler(to_stderr)
    logging.captureWarnings(capture=True)


def log_to_file(config: Config) -> None:
    """Log to a file in the data folder; raises `ConfigError`."""
    folder = config.server.data_dir / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        to_file = logging.handlers.RotatingFileHandler(
            folder / "server.log", maxBytes=MAX_LOG_BYTES, backupCount=1
        )
    except OSError as exc:
        raise ConfigError(
            f"The log cannot be written to {folder}: {exc.strerror}.",
            remedy="Make the folder writable, or name another data folder with --data-dir.",
        ) from exc
    to_file.setFormatter(EscapingFormatter(LOG_FORMAT))
    logger = logging.getLogger("mcpruntime_server")
    logger.addHandler(to_file)
    logger.setLevel(config.server.log_level.upper())
