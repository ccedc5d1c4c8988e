"""Who sends a request over HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.scopes import SCOPES, Scope
from ..journal.principals import LOCAL_PRINCIPAL


@dataclass(frozen=True)
class Caller:
    """Who sends a request, and what the token allows."""

    principal: str
    scopes: frozenset[Scope]
    expires_at: float | None = None  # of the token, in seconds since the epoch; None for never


LOCAL_CALLER = Caller(LOCAL_PRINCIPAL, frozenset(SCOPES))  # where nobody is asked for a token
