"""The names of the scopes of access tokens; `server/permissions` has what each of them allows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Scope = Literal["run", "read", "approve", "admin"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_SCOPES: tuple[Scope, ...] = ("run", "read", "approve")


def order_scopes(scopes: Iterable[str]) -> tuple[Scope, ...]:
    """Return the scopes that are known, in the order above and once each."""
    found = frozenset(scopes)
    return tuple(scope for scope in SCOPES if scope in found)
