"""Who sends a request: the principal that its bearer token names."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import AccessToken as SdkAccessToken
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.types import ASGIApp, Scope

from ..journal.rows import LOCAL_PRINCIPAL
from .access_tokens import TokenStore


def find_principal(scope: Scope) -> str:
    """Return the principal of a request; without authentication it is the local user."""
    user = scope.get("user")
    return LOCAL_PRINCIPAL if user is None else str(user.access_token.subject)


class TokenVerifier:
    """Lets the SDK's middleware check tokens."""

    def __init__(self, tokens: TokenStore) -> None:
        self._tokens = tokens

    async def verify_token(self, token: str) -> SdkAccessToken | None:
        """Return whose token it is; None if it is not valid."""
        found = await anyio.to_thread.run_sync(self._tokens.find_token, token)
        if found is None:
            return None
        expires_at = None if found.expires_at is None else int(found.expires_at)
        return SdkAccessToken(
            token="",  # nothing behind the middleware needs it
            client_id=found.id,
            scopes=[],
            expires_at=expires_at,
            subject=found.principal,
        )


class Authentication:
    """What stands between the network and the routes; without tokens nobody is asked."""

    def __init__(self, tokens: TokenStore | None) -> None:
        self._tokens = tokens

    def build_middleware(self) -> Sequence[Middleware]:
        """Return what finds out who sends a request."""
        if self._tokens is None:
            return []
        backend = BearerAuthBackend(TokenVerifier(self._tokens))
        return [Middleware(AuthenticationMiddleware, backend=backend)]

    def protect(self, endpoint: ASGIApp) -> ASGIApp:
        """Return `endpoint` for those alone who have a valid token."""
        if self._tokens is None:
            return endpoint
        return RequireAuthMiddleware(endpoint, required_scopes=[])
