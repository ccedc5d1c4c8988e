"""The page on which a person stores a credential for an MCP server.

Rule 1: who sends the form proves it with an access token, in the form or in the header. No cookie
is set, so the page of somebody else cannot send the form in a person's name.
Rule 2: the empty form says nothing about the settings: everybody may open it.
"""

from __future__ import annotations

import socket
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from anyio.to_thread import run_sync
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, request_response

from ..capabilities.credential_entry import find_entry, store_credential
from ..config import Config, HttpSettings
from ..errors import InvalidRequest, McpRuntimeError
from .authentication import Authentication, check_scopes
from .method_routes import join_methods

if TYPE_CHECKING:
    from jinja2 import Template

CREDENTIALS_PATH = "/credentials"
MAX_FORM_BYTES = 64 * 1024  # a credential of 8,192 bytes may be percent-encoded
MAX_FORM_FIELDS = 8
MAX_SERVER_CHARS = 80  # of a name that is shown
PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",  # with less, browsers would send the form with no Origin
    "X-Content-Type-Options": "nosniff",
}


class CredentialPages:
    """The pages of all servers that are used with a credential of each principal."""

    def __init__(
        self, config: Config, authentication: Authentication, *, needs_token: bool
    ) -> None:
        self._config = config
        self._authentication = authentication
        self._needs_token = needs_token

    def build_routes(self) -> list[Route]:
        """Return the routes; none if no server has credentials of each principal."""
        servers, hosts = self._config.mcpServers, self._config.network.credentials
        if not any(
            [each.is_per_principal for each in servers.values()]
            + [each.is_per_principal for each in hosts.values()]
        ):
            return []
        path = f"{CREDENTIALS_PATH}/{{server:path}}"
        return join_methods(
            [
                (path, "GET", request_response(self.show_form)),
                (path, "POST", request_response(self.store)),
            ]
        )

    async def show_form(self, request: Request) -> Response:
        """Return the empty form."""
        return self._render(request)

    async def store(self, request: Request) -> Response:
        """Store the credential in a form, and say so or why not."""
        try:
            await self._store(request)
        except McpRuntimeError as exc:
            return self._render(request, str(exc), exc.http_status)
        return self._render(
            request, "The credential is stored. You can close this page.", is_stored=True
        )

    async def _store(self, request: Request) -> None:
        form = await read_form(request)
        headers = MutableHeaders(request.headers)
        if token := form.get("token"):
            headers["authorization"] = f"Bearer {token}"
        caller = await self._authentication.identify({**request.scope, "headers": headers.raw})
        check_scopes(caller, frozenset({"run"}))
        with self._authentication.limits.serve(caller.principal):
            server = request.path_params["server"]
            entry = find_entry(self._config, server, form.get("name") or None)
            secret = form.get("credential", "")
            await run_sync(store_credential, self._config, entry, caller.principal, secret)

    def _render(
        self, request: Request, note: str = "", status: int = 200, *, is_stored: bool = False
    ) -> Response:
        text = load_page_template().render(
            server=request.path_params["server"][:MAX_SERVER_CHARS],
            note=note,
            is_stored=is_stored,
            needs_token=self._needs_token,
        )
        return HTMLResponse(text, status, PAGE_HEADERS)


def find_page_url(settings: HttpSettings, listener: socket.socket) -> str:
    """Return the address below which people find the pages; "" if it is not known."""
    host, port = listener.getsockname()[:2]
    if settings.oauth.resource:
        base = settings.oauth.resource.rstrip("/").removesuffix("/mcp")
    elif settings.allowed_hosts:  # by which clients call a proxy that adds TLS
        base = f"https://{settings.allowed_hosts[0]}"
    elif ip_address(host.partition("%")[0]).is_loopback:
        base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    else:
        return ""
    return base + CREDENTIALS_PATH


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, each once; raises `InvalidRequest`."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            raise InvalidRequest(f"A form has at most {MAX_FORM_BYTES:,} bytes.")
    try:
        fields = parse_qs(body.decode("ascii"), errors="strict", max_num_fields=MAX_FORM_FIELDS)
    except ValueError:
        raise InvalidRequest("The form cannot be read.") from None
    return {name: values[-1] for name, values in fields.items()}


@cache
def load_page_template() -> Template:
    """Return the template of the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # needed for the page only

    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
    )
    return environment.get_template("credential_page.html.jinja")
