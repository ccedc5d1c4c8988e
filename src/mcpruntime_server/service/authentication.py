"""Who sends a request, and what that allows: bearer tokens, scopes and limits.

Every route is wrapped by `Authentication.protect`. The wrapped endpoint finds out who its caller
is with `find_caller` or `find_principal`, which fail for a route that is not wrapped.

Rule: the token of a client goes no further than this module.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import ceil
from typing import Protocol, cast

import anyio
from anyio.lowlevel import checkpoint
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken as SdkAccessToken
from mcp.server.auth.routes import (
    build_resource_metadata_url,
    create_protected_resource_routes,
)
from mcp.shared.auth import ProtectedResourceMetadata
from pydantic import AnyHttpUrl
from starlette.authentication import AuthCredentials
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, request_response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as RequestScope

from .. import APP_NAME
from ..config import HttpSettings
from ..config.scopes import DEFAULT_SCOPES, Scope, order_scopes
from ..errors import InsufficientScope, InvalidToken, McpRuntimeError, RateLimited, Unavailable
from ..journal.call_scope import act_for
from ..server.connections import RESPONSE_KEY
from .access_tokens import TOKEN_PREFIX, AccessToken, digest_token
from .callers import LOCAL_CALLER, Caller
from .http_connections import abort_connection
from .issuer_tokens import IssuerTokens
from .problems import build_problem, problem_response
from .rate_limits import RateLimits, client_address

CALLER_KEY = "mcpruntime_server.caller"  # of the ASGI scope of a request
AUTHORIZATION, BEARER = b"authorization", "bearer"
CONTENT_TYPE, EVENT_STREAM = b"content-type", b"text/event-stream"
TOKEN_CHECK_INTERVAL_S = 1.0  # of the tokens of responses that are under way
LAST_EVENT_TIMEOUT_S = 2.0  # for a client to read until the event that says why its stream ends
MAX_KNOWN_TOKENS = 10_000
METADATA_PATH = "/.well-known/oauth-protected-resource"

logger = logging.getLogger(__name__)

Endpoint = ASGIApp | Callable[[Request], Awaitable[Response]]


class TokenSource(Protocol):
    """What knows the access tokens of a server."""

    async def find_token(self, text: str) -> AccessToken | None:
        """Return what is kept of a token that is valid now; raises `Unavailable`."""
        ...


def find_caller(scope: RequestScope) -> Caller:
    """Return who sends a request, for endpoints that `Authentication.protect` wraps."""
    return cast("Caller", scope[CALLER_KEY])


def find_principal(scope: RequestScope) -> str:
    """Return the principal that sends a request; without authentication it is the local user."""
    return find_caller(scope).principal


def find_response(scope: RequestScope) -> GuardedResponse:
    """Return what is known of the response to a request that `Authentication.protect` lets pass."""
    return cast("GuardedResponse", scope[RESPONSE_KEY])


class Authentication:
    """What stands between the network and the routes; without tokens nobody is asked."""

    def __init__(self, tokens: TokenSource | None, settings: HttpSettings) -> None:
        self._tokens = tokens
        self._oauth = settings.oauth
        self._issuer_tokens = IssuerTokens(settings.oauth) if settings.oauth.issuer else None
        self._known_tokens: OrderedDict[str, None] = OrderedDict()  # digests of valid ones
        self._open_responses: dict[GuardedResponse, str] = {}  # with their tokens
        self.limits = RateLimits(settings)

    def build_routes(self) -> Sequence[BaseRoute]:
        """Return the routes that tell clients where to get tokens (RFC 9728)."""
        oauth = self._oauth
        if self._tokens is None or not oauth.issuer:
            return ()
        # Clients compare the issuer as text: the model adds no slash, where the URLs would alone.
        addresses = ProtectedResourceMetadata.model_validate(
            {"resource": oauth.resource, "authorization_servers": [oauth.issuer]}
        )
        routes = create_protected_resource_routes(
            addresses.resource,
            addresses.authorization_servers,
            [oauth.scope_name(scope) for scope in DEFAULT_SCOPES],
            APP_NAME,
        )
        at_root = (
            Route(METADATA_PATH, each.endpoint, methods=["GET", "OPTIONS"])
            for each in routes
            if each.path != METADATA_PATH
        )
        return [*routes, *at_root]

    def protect(
        self,
        endpoint: Endpoint,
        scopes: Sequence[Scope] = (),
        refuse: Callable[[McpRuntimeError], Response] | None = None,
    ) -> ASGIApp:
        """Return `endpoint` for those alone who have a valid token with all of `scopes`.

        `endpoint` is an ASGI application, or a function from a request to a response. `refuse`
        makes the responses for all others.
        """
        if inspect.isfunction(endpoint) or inspect.ismethod(endpoint):
            endpoint = request_response(endpoint)
        return ProtectedEndpoint(
            self, cast("ASGIApp", endpoint), frozenset(scopes), refuse or self.refuse
        )

    async def identify(self, scope: RequestScope) -> Caller:
        """Return who sends a request; raises `InvalidToken`, `RateLimited`, `Unavailable`."""
        if self._tokens is None:
            return LOCAL_CALLER
        token = read_bearer_token(scope)
        known = digest_token(token)
        if known not in self._known_tokens:  # who has been here may come back from any address
            self.limits.check_address(client_address(scope))
        try:
            caller = await self._find_caller(self._tokens, token)
        except InvalidToken:
            self.limits.count_failure(client_address(scope))
            raise
        self._remember_token(known)
        self.limits.count_request(caller.principal, scope)
        return caller

    async def _find_caller(self, tokens: TokenSource, token: str) -> Caller:
        if self._issuer_tokens is not None and not token.startswith(f"{TOKEN_PREFIX}_"):
            return await self._issuer_tokens.find_caller(token)
        found = await tokens.find_token(token)
        if found is None:
            raise InvalidToken("The access token is not valid here.")
        return Caller(found.principal, frozenset(found.scopes), found.expires_at)

    @contextmanager
    def watch_token(self, scope: RequestScope, caller: Caller) -> Iterator[GuardedResponse]:
        """Cancel what is inside if the token of a request expires, or is revoked, meanwhile."""
        token = "" if self._tokens is None else read_bearer_token(scope)
        response = scope[RESPONSE_KEY] = GuardedResponse(caller.expires_at)
        self._open_responses[response] = token
        try:
            with response.cancel_scope:
                yield response
        finally:
            del self._open_responses[response]

    def count_responses(self) -> dict[str, int]:
        """Return how many requests are answered now, and how many of them with a stream."""
        streams = sum(each.is_stream for each in self._open_responses)
        return {"requests": len(self._open_responses), "streams": streams}

    async def end_responses(self) -> None:
        """End the responses whose tokens are no longer valid; runs until it is cancelled."""
        while True:
            await anyio.sleep(TOKEN_CHECK_INTERVAL_S)
            are_valid: dict[str, bool] = {}  # one token may have a thousand responses
            for response, token in list(self._open_responses.items()):
                if response.is_complete:
                    continue
                if token not in are_valid:
                    are_valid[token] = await self._is_valid(token)
                    await checkpoint()
                if not are_valid[token] or response.has_expired:
                    response.has_lost_token = True
                    response.cancel_scope.cancel()

    async def _is_valid(self, token: str) -> bool:
        """Return whether a token is still known; those of an issuer expire. If in doubt, it is."""
        if self._tokens is None or not token.startswith(f"{TOKEN_PREFIX}_"):
            return True
        try:
            return await self._tokens.find_token(token) is not None
        except Unavailable as exc:
            logger.error("%s", exc)
            return True

    def _remember_token(self, known: str) -> None:
        self._known_tokens[known] = None
        self._known_tokens.move_to_end(known)
        if len(self._known_tokens) > MAX_KNOWN_TOKENS:
            self._known_tokens.popitem(last=False)

    def refuse(self, error: McpRuntimeError) -> Response:
        """Return the response for a request that is refused."""
        headers = {}
        if isinstance(error, InvalidToken | InsufficientScope):
            headers["WWW-Authenticate"] = self._challenge(error)
        if isinstance(error, RateLimited):
            headers["Retry-After"] = str(max(1, ceil(error.retry_after_s)))
        return problem_response(build_problem(error), headers)

    def _challenge(self, error: McpRuntimeError) -> str:
        needed = error.scopes if isinstance(error, InsufficientScope) else DEFAULT_SCOPES
        names = " ".join(self._oauth.scope_name(scope) for scope in order_scopes(needed))
        parts = [
            f'error="{error.code}"',
            f'error_description="{error.message}"',
            f'scope="{names}"',
        ]
        if self._oauth.issuer:
            metadata = build_resource_metadata_url(AnyHttpUrl(self._oauth.resource))
            parts.append(f'resource_metadata="{metadata}"')
        return f"Bearer {', '.join(parts)}"


@dataclass(eq=False)
class GuardedResponse:
    """A request that is answered now; `expires_at` is when its token does."""

    expires_at: float | None
    has_started: bool = False
    is_stream: bool = False  # of events
    is_complete: bool = False
    has_lost_token: bool = False
    cancel_scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def has_expired(self) -> bool:
        """Whether the time of its token is over."""
        return self.expires_at is not None and self.expires_at <= time.time()

    def note_sent(self, message: Message) -> None:
        """Note what is sent."""
        if message["type"] == "http.response.start":
            self.has_started = True
            types = (value for name, value in message["headers"] if name.lower() == CONTENT_TYPE)
            self.is_stream = any(each.startswith(EVENT_STREAM) for each in types)
        else:
            self.is_complete = not message.get("more_body")


class ProtectedEndpoint:
    """An endpoint that only those reach who may."""

    def __init__(
        self,
        authentication: Authentication,
        endpoint: ASGIApp,
        scopes: frozenset[Scope],
        refuse: Callable[[McpRuntimeError], Response],
    ) -> None:
        self._authentication = authentication
        self._refuse = refuse
        self._endpoint = endpoint
        self._scopes = scopes

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with the error that refuses it."""
        response: GuardedResponse | None = None
        try:
            caller = await self._authentication.identify(scope)
            check_scopes(caller, self._scopes)
            with (
                self._authentication.limits.serve(caller.principal),
                self._authentication.watch_token(scope, caller) as response,
            ):
                write_caller(caller, scope)
                act_for(caller.principal)
                await self._authentication.limits.wait_for_turn(caller.principal)
                await self._endpoint(scope, receive, partial(send_noted, send, response))
            if response.has_lost_token and not response.is_complete:
                raise InvalidToken("The access token has expired, or was revoked.")
        except McpRuntimeError as exc:
            if response is None or not response.has_started:
                await self._refuse(exc)(scope, receive, send)
            elif response.has_lost_token:
                if not (response.is_stream and await send_last_event(send, exc)):
                    await abort_connection(scope, receive)  # a file has fewer bytes than declared
            else:
                raise


async def send_noted(send: Send, response: GuardedResponse, message: Message) -> None:
    """Send a message of a response, and note it."""
    response.note_sent(message)
    await send(message)


async def send_last_event(send: Send, error: McpRuntimeError) -> bool:
    """End a stream of events with an error, and return whether its client has read so far."""
    event = f"event: error\ndata: {build_problem(error).model_dump_json()}\n\n"
    with anyio.move_on_after(LAST_EVENT_TIMEOUT_S) as timeout:
        await send({"type": "http.response.body", "body": event.encode()})
    return not timeout.cancelled_caught


def read_bearer_token(scope: RequestScope) -> str:
    """Return the token in the headers of a request; raises `InvalidToken`."""
    values = Headers(scope=scope).getlist("authorization")
    if len(values) != 1:
        raise InvalidToken("A bearer token is required.")
    kind, _, token = values[0].partition(" ")
    if kind.lower() != BEARER or not token.strip():
        raise InvalidToken("A bearer token is required.")
    return token.strip()


def check_scopes(caller: Caller, scopes: frozenset[Scope]) -> None:
    """Raise `InsufficientScope` unless a caller has all of `scopes`."""
    if missing := order_scopes(scopes - caller.scopes):
        raise InsufficientScope(
            f"The access token lacks the scope {' '.join(missing)}.", scopes=order_scopes(scopes)
        )


def write_caller(caller: Caller, scope: RequestScope) -> None:
    """Write into the scope of a request who sends it, for endpoints and for the MCP SDK.

    The token is removed, so that nothing behind this module can pass it on. The SDK binds
    connections and forms to the user: to the principal, so that they survive a renewed token.
    """
    scope["headers"] = [each for each in scope["headers"] if each[0] != AUTHORIZATION]
    scope[CALLER_KEY] = caller
    scope["auth"], scope["user"] = build_identity(caller.principal, caller.scopes)


@lru_cache(MAX_KNOWN_TOKENS)
def build_identity(
    principal: str, scopes: frozenset[Scope]
) -> tuple[AuthCredentials, AuthenticatedUser]:
    """Return scopes and user as Starlette and the MCP SDK have them, without a token."""
    names = order_scopes(scopes)
    user = AuthenticatedUser(
        SdkAccessToken(token="", client_id=principal, scopes=list(names), subject=principal)
    )
    return AuthCredentials(names), user
