"""The command `view`: the web pages for the sessions of a local data folder."""

from __future__ import annotations

import secrets
import sys
import webbrowser
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path

import click

from ..config import Config
from ..journal.principals import LOCAL_PRINCIPAL
from .console import ConsoleWriter
from .options import pass_config
from .serve import bind_listener, configure_logging
from .signals import serve_until_signal

LOOPBACK = "127.0.0.1"
OPENER_FILE = "open-viewer.html"


@click.command("view")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port to listen on.")
@click.option("--no-browser", is_flag=True, help="Print the address; open no browser.")
@pass_config
def view_command(config: Config, *, port: int, no_browser: bool) -> int:
    """Show what code did, in a browser on this machine, until a signal comes.

    Servers that run on the same data folder go on, and what they do appears at once. The address
    has a secret that logs one browser in: other users of this machine cannot see the pages.
    """
    from ..app.serving import serve_http
    from ..service.access_tokens import SingleToken
    from ..viewer.browser_logins import BrowserLogins

    token = SingleToken(LOCAL_PRINCIPAL, secrets.token_urlsafe())
    logins = BrowserLogins()
    http = replace(config.http, host=LOOPBACK, port=port)
    sandbox = replace(config.sandbox, pool_size=0)  # looking needs none in advance
    with bind_listener(http) as listener:
        number = listener.getsockname()[1]
        configure_logging(config)
        address = f"http://{LOOPBACK}:{number}/login#code={logins.create_code(token.text)}"
        writer = ConsoleWriter(sys.stderr)
        writer.write_line(f"pages at {address}")
        writer.write_note("the address logs one browser in, once and within ten minutes")
        if not no_browser:
            open_privately(address, config.server.data_dir / OPENER_FILE)
        serve = partial(serve_http, resume_runs=False)
        settings = replace(config, http=http, sandbox=sandbox)
        serve_until_signal(serve, settings, listener, token, logins)
    return 0


def open_privately(address: str, file: Path) -> None:
    """Open an address in the browser; it has a secret, and other users see arguments of programs.

    So the browser gets a file that only this user may read, and that leads to the address.
    """
    file.unlink(missing_ok=True)  # with whatever mode it had
    file.write_text(f'<meta http-equiv="refresh" content="0; url={escape(address)}">\n')
    webbrowser.open(file.absolute().as_uri())
