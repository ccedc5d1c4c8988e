"""Who may see a page, and which requests may change something: cookies, CSRF tokens and headers.

A cookie stands for an access token; here it becomes the bearer token of the request, so that the
pages have the authentication, the scopes and the limits of the HTTP API.

A request that changes something needs the header Origin of this site and the token of its login,
which no other site can read.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as RequestScope

from ..config.scopes import Scope
from ..errors import Forbidden, InvalidRequest, InvalidToken, McpRuntimeError
from ..service.authentication import Authentication
from ..service.callers import Caller
from ..service.credential_pages import read_form
from .browser_logins import BrowserLogin, BrowserLogins
from .page_rendering import PageContext, PageRenderer

LOGIN_PATH = "/login"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf"
LOGIN_KEY = "mcpruntime_server.login"  # of the ASGI scope of a request
SAFE_METHODS = ("GET", "HEAD")
MAX_NEXT_CHARS = 500

PageHandler = Callable[[Request], Awaitable[Response]]


class WebAccess:
    """What stands between browsers and the pages; without tokens nobody logs in."""

    def __init__(
        self,
        authentication: Authentication,
        logins: BrowserLogins,
        renderer: PageRenderer,
        *,
        needs_token: bool,
    ) -> None:
        self._authentication = authentication
        self._logins = logins
        self._renderer = renderer
        self._needs_token = needs_token

    def protect(
        self, handler: PageHandler, scopes: Sequence[Scope] = (), *, is_page: bool = True
    ) -> ASGIApp:
        """Return an endpoint for browsers that are logged in with all of `scopes`.

        Errors become pages, or problem documents unless `is_page`.
        """
        return WebEndpoint(self, handler, scopes, is_page=is_page)

    async def handle(
        self,
        scope: RequestScope,
        receive: Receive,
        send: Send,
        handler: PageHandler,
        scopes: Sequence[Scope],
        *,
        is_page: bool,
    ) -> None:
        """Respond to a request of a browser."""
        request = Request(scope)
        login = self._find_login(request)
        headers = MutableHeaders(scope=scope)
        del headers["authorization"]
        if login is not None:
            headers["authorization"] = f"Bearer {login.token}"
        scope[LOGIN_KEY] = login
        refuse = partial(self._refuse, request) if is_page else None

        async def respond(admitted: Request) -> Response:
            self._check_write(admitted, login)
            if not is_page:
                return await handler(admitted)
            try:
                return await handler(admitted)
            except McpRuntimeError as exc:
                return self._renderer.render_error(self.describe_request(admitted), exc)

        endpoint = self._authentication.protect(respond, scopes, refuse)
        await endpoint(scope, receive, send)

    def describe_request(self, request: Request) -> PageContext:
        """Return what every page has: who sees it, and the token for what it sends."""
        login: BrowserLogin | None = request.scope.get(LOGIN_KEY)
        caller: Caller | None = request.scope.get("mcpruntime_server.caller")
        return PageContext(
            principal="" if caller is None else caller.principal,
            scopes=frozenset() if caller is None else caller.scopes,
            csrf_token=self._csrf_token(login),
            has_login=login is not None,
            path=request.url.path,
        )

    def _csrf_token(self, login: BrowserLogin | None) -> str:
        if login is not None:
            return login.csrf_token
        return "" if self._needs_token else self._logins.anonymous_csrf_token

    def _find_login(self, request: Request) -> BrowserLogin | None:
        if not self._needs_token:
            return None
        return self._logins.find_login(read_cookie(request))

    def _check_write(self, request: Request, login: BrowserLogin | None) -> None:
        """Raise `Forbidden` for a request that another site may have made."""
        if request.method in SAFE_METHODS:
            return
        check_origin(request)
        sent, known = request.headers.get(CSRF_HEADER, ""), self._csrf_token(login)
        if not known or not hmac.compare_digest(sent.encode(), known.encode()):
            raise Forbidden(
                "The request does not have the token of this login.",
                remedy="Load the page again.",
            )

    def _refuse(self, request: Request, error: McpRuntimeError) -> Response:
        """Return the page for a request that is refused: to log in, if that is what is missing."""
        if isinstance(error, InvalidToken) and self._needs_token:
            self._logins.end_login(read_cookie(request))
            target = request.url.path
            if request.url.query:
                target += f"?{request.url.query}"
            address = LOGIN_PATH
            if target != "/" and request.method == "GET":
                address += f"?next={quote(target[:MAX_NEXT_CHARS], safe='')}"
            return RedirectResponse(address, 303, {"Cache-Control": "no-store"})
        return self._renderer.render_error(self.describe_request(request), error)

    # logging in and out ---------------------------------------------------------------------------

    async def show_login(self, request: Request) -> Response:
        """Return the form in which a browser shows its token."""
        if not self._needs_token or self._find_login(request) is not None:
            return redirect_within(request.query_params.get("next", ""))
        return await self._render_login(request)

    async def log_in(self, request: Request) -> Response:
        """Take a token, or a one-time code, and set the cookie of the new login."""
        form: dict[str, str] = {}
        try:
            check_origin(request)
            form = await read_form(request)
            token = self._logins.redeem_code(form["code"]) if "code" in form else None
            if "code" in form and token is None:
                raise InvalidRequest(
                    "The link was used already, or is too old.",
                    remedy="Start `mcpruntime-server view` again.",
                )
            token = token or form.get("token", "").strip()
            headers = MutableHeaders(request.headers)
            headers["authorization"] = f"Bearer {token}"
            await self._authentication.identify({**request.scope, "headers": headers.raw})
        except McpRuntimeError as exc:
            return await self._render_login(request, exc, form.get("next", ""))
        response = redirect_within(form.get("next", ""))
        response.set_cookie(
            cookie_name(request),
            self._logins.create_login(token),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def log_out(self, request: Request) -> Response:
        """End the login of a browser."""
        check_origin(request)
        form = await read_form(request)
        login = self._find_login(request)
        if login is not None and hmac.compare_digest(
            form.get(CSRF_FIELD, "").encode(), login.csrf_token.encode()
        ):
            self._logins.end_login(read_cookie(request))
        response = RedirectResponse(LOGIN_PATH, 303)
        response.delete_cookie(cookie_name(request))
        return response

    async def tell_login(self, request: Request) -> Response:
        """Say whether a browser is logged in; a link from another site comes without the cookie."""
        return Response(status_code=204 if self._find_login(request) else 401)

    async def _render_login(
        self, request: Request, error: McpRuntimeError | None = None, target: str = ""
    ) -> Response:
        return await self._renderer.render_page(
            self.describe_request(request),
            "login.html",
            200 if error is None else error.http_status,
            next=target or request.query_params.get("next", "")[:MAX_NEXT_CHARS],
            error=error,
        )


class WebEndpoint:
    """An endpoint for browsers."""

    def __init__(
        self, access: WebAccess, handler: PageHandler, scopes: Sequence[Scope], *, is_page: bool
    ) -> None:
        self._access = access
        self._handler = handler
        self._scopes = scopes
        self._is_page = is_page

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Respond to a request."""
        await self._access.handle(
            scope, receive, send, self._handler, self._scopes, is_page=self._is_page
        )


def check_origin(request: Request) -> None:
    """Raise `Forbidden` unless a request comes from a page of this site."""
    origin = request.headers.get("origin", "")
    if not origin or urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden(
            "The request does not come from a page of this server.",
            remedy="Open the page again and repeat what you did.",
        )


def cookie_name(request: Request) -> str:
    """Return the name of the cookie; browsers send one of a host to all of its ports."""
    return f"mcpruntime_viewer_{request.url.port or request.url.scheme}"


def read_cookie(request: Request) -> str:
    """Return the value of the cookie of a login; "" if there is none."""
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(request.headers.get("cookie", ""))
    except CookieError:
        return ""
    found = cookies.get(cookie_name(request))
    return "" if found is None else found.value


def redirect_within(target: str) -> Response:
    """Return a redirection to a path of this site; anything else leads to the first page."""
    is_path = target.startswith("/") and target[1:2] not in ("/", "\\") and target.isprintable()
    return RedirectResponse(target if is_path else "/", 303, {"Cache-Control": "no-store"})
