"""Access tokens of an identity provider: JSON Web Tokens, verified with the provider's keys.

A token counts if the configured issuer signed it, for this resource and for now. The algorithm is
one of the configured ones, which are all asymmetric, and fits the key: "none" and shared secrets
are never accepted, whatever a token says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt

from ..config import OAuthSettings
from ..config.scopes import SCOPES, Scope
from ..errors import InvalidToken
from ..journal.principals import issuer_principal
from ..protocol.payloads import JsonObject
from .callers import Caller
from .issuer_keys import IssuerKeys, Jwk

CLOCK_SKEW_S = 30
MAX_TOKEN_CHARS = 16_384
MAX_SCOPES = 1_000  # of one token, which are looked at
TOKEN_TYPES = ("jwt", "at+jwt", "application/at+jwt")
REQUIRED_CLAIMS = ("exp", "iss", "aud", "sub")
REASONS: Mapping[type[Exception], str] = {  # the signature is valid when these occur
    jwt.ExpiredSignatureError: "The access token has expired.",
    jwt.ImmatureSignatureError: "The access token is not valid yet.",
    jwt.InvalidAudienceError: "The access token is for another resource.",
    jwt.InvalidIssuerError: "The access token is of another issuer.",
}


class IssuerTokens:
    """Verifies the access tokens of one issuer."""

    def __init__(self, settings: OAuthSettings, keys: IssuerKeys | None = None) -> None:
        self._settings = settings
        self._audience = settings.audience or settings.resource
        self._keys = keys or IssuerKeys(settings)
        self._scope_names = {name: settings.scope_name(name) for name in SCOPES}

    async def find_caller(self, token: str) -> Caller:
        """Return whose token it is; raises `InvalidToken`, `Unavailable`."""
        if len(token) > MAX_TOKEN_CHARS:
            raise InvalidToken("The access token is too long.")
        key_id, algorithm = self._read_header(token)
        key = await self._keys.find_key(key_id)
        if key is None:
            raise InvalidToken("The access token is signed with an unknown key.")
        claims = self._verify(token, key, algorithm)
        if "cnf" in claims:
            raise InvalidToken("The access token is bound to a key: it is not a bearer token.")
        try:
            principal = issuer_principal(self._settings.issuer, claims["sub"])
        except ValueError as exc:
            raise InvalidToken("The subject of the access token cannot be used.") from exc
        return Caller(principal, self._read_scopes(claims), claims["exp"] + CLOCK_SKEW_S)

    def _read_header(self, token: str) -> tuple[str | None, str]:
        """Return the id of the key and the algorithm that a token names."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as exc:
            raise InvalidToken("The access token is not valid here.") from exc
        algorithm, kind = header.get("alg"), header.get("typ", "JWT")
        if algorithm not in self._settings.algorithms:
            raise InvalidToken("The access token is signed with an algorithm that is not allowed.")
        if "crit" in header or not isinstance(kind, str) or kind.lower() not in TOKEN_TYPES:
            raise InvalidToken("The token is not an access token.")
        return header.get("kid"), algorithm

    def _verify(self, token: str, key: Jwk, algorithm: str) -> JsonObject:
        """Return the claims of a token that is valid."""
        try:
            if key.get("alg", algorithm) != algorithm:
                raise InvalidToken("The key of the access token is for another algorithm.")
            claims: JsonObject = jwt.decode(
                token,
                jwt.PyJWK(dict(key), algorithm),
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._settings.issuer,
                leeway=CLOCK_SKEW_S,
                options={"require": list(REQUIRED_CLAIMS)},
            )
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as exc:
            reason = REASONS.get(type(exc), "The access token is not valid here.")
            raise InvalidToken(reason) from exc
        return claims

    def _read_scopes(self, claims: Mapping[str, Any]) -> frozenset[Scope]:
        """Return the scopes that a token grants, whatever the provider calls them."""
        given = claims.get("scope", claims.get("scp", ()))
        names = given.split()[:MAX_SCOPES] if isinstance(given, str) else given
        if not isinstance(names, list):
            return frozenset()
        granted = {name for name in names[:MAX_SCOPES] if isinstance(name, str)}
        return frozenset(scope for scope in SCOPES if self._scope_names[scope] in granted)
