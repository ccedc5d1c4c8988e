"""Render templates, and give every page the headers that keep hostile content from acting."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Any

import anyio
from anyio import to_thread
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..config.scopes import Scope
from ..errors import McpRuntimeError, NotFound
from . import page_text
from .code_highlighting import highlight_python

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
    )
)
PAGE_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with less, browsers would send forms with no Origin
    "X-Content-Type-Options": "nosniff",
}
STATIC_PATH = "/static"
STATIC_LIFETIME = "public, max-age=31536000, immutable"  # the address changes with the content
VERSION_DIGITS = 12
LIST_REMEDY = "Choose one from the list of sessions."


@dataclass(frozen=True)
class PageContext:
    """What every page has: who sees it, what that person may do, and where it is."""

    principal: str
    scopes: frozenset[Scope]
    csrf_token: str
    has_login: bool
    path: str


@cache
def load_static_files() -> Mapping[str, bytes]:
    """Return the scripts, styles and images of this package, by name."""
    folder = files(__package__) / "static"
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


@cache
def find_static_version() -> str:
    """Return what changes with the content of these files."""
    digest = hashlib.sha256()
    for name, content in sorted(load_static_files().items()):
        digest.update(name.encode() + content)
    return digest.hexdigest()[:VERSION_DIGITS]


@cache
def load_templates() -> Environment:
    """Return the templates of this package."""
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= page_text.FILTERS
    environment.globals["static"] = f"{STATIC_PATH}/{find_static_version()}"
    return environment


def compile_pages() -> None:
    """Compile the templates, and the patterns of the lexer."""
    environment = load_templates()
    for name in environment.list_templates():
        environment.get_template(name)
    highlight_python("")


async def prepare_pages() -> None:
    """Do now what the first page would wait for."""
    await to_thread.run_sync(compile_pages)


def render_response(context: PageContext, template: str, status: int, **values: Any) -> Response:
    """Return a page, or a part of one."""
    text = load_templates().get_template(template).render(viewer=context, **values)
    return HTMLResponse(text, status, PAGE_SECURITY_HEADERS)


class PageRenderer:
    """Renders the templates of this package, in a thread: one part at a time, like all such work.

    `turn` admits one thread. With several, the event loop would wait for each of them in turn.
    """

    def __init__(self) -> None:
        self.turn = anyio.CapacityLimiter(1)

    async def render_page(
        self, context: PageContext, template: str, status: int = 200, **values: Any
    ) -> Response:
        """Return a page, or a part of one."""
        render = partial(render_response, context, template, status, **values)
        return await to_thread.run_sync(render, limiter=self.turn)

    def render_error(self, context: PageContext, error: McpRuntimeError) -> Response:
        """Return the page that says what happened and what to do, which is short."""
        return render_response(context, "error.html", error.http_status, error=error)

    async def send_static(self, request: Request) -> Response:
        """Return a style sheet, script or image of this package."""
        name = request.path_params["name"]
        content = load_static_files().get(name)
        if content is None:
            return Response("There is nothing here.", 404, PAGE_SECURITY_HEADERS)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        is_current = request.path_params["version"] == find_static_version()
        caching = STATIC_LIFETIME if is_current else "no-store"
        return Response(content, 200, {**PAGE_SECURITY_HEADERS, "Cache-Control": caching}, kind)


def missing_page(what: str) -> NotFound:
    """Return the error for an address that names nothing that the caller has."""
    return NotFound(f"There is no {what} here.", remedy=LIST_REMEDY)
