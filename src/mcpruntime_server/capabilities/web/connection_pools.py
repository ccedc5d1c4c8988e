"""The connections to web servers, kept for the requests that follow.

Rule: requests of different principals, or with different credentials, never share a connection. A
server may take who logged in on a connection for the author of all that comes over it.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import httpcore2

from .addresses import AddressPolicy, CheckedBackend

MAX_CONNECTIONS = 256  # of a pool
KEEPALIVE_EXPIRY_S = 5.0  # of a connection that nobody uses
MAX_IDLE_S = 60.0  # of a pool: longer than any of its connections is kept
SWEEP_INTERVAL_S = 10.0
CLOSE_TIMEOUT_S = 1.0


@dataclass
class UsedPool:
    """The connections of one principal with one credential."""

    pool: httpcore2.AsyncConnectionPool
    used_at: float = field(default_factory=time.monotonic)


class ConnectionPools:
    """A pool of connections for each principal and credential."""

    def __init__(self, policy: AddressPolicy, context: ssl.SSLContext) -> None:
        self._policy = policy
        self._context = context
        self._pools: dict[tuple[str, bytes], UsedPool] = {}

    def find(self, principal: str, credential: bytes) -> httpcore2.AsyncConnectionPool:
        """Return the pool of a principal for requests with a credential, named by its digest."""
        key = principal, credential
        if key not in self._pools:
            self._pools[key] = UsedPool(
                httpcore2.AsyncConnectionPool(
                    ssl_context=self._context,
                    max_connections=MAX_CONNECTIONS,
                    keepalive_expiry=KEEPALIVE_EXPIRY_S,
                    network_backend=CheckedBackend(self._policy),
                )
            )
        found = self._pools[key]
        found.used_at = time.monotonic()
        return found.pool

    async def close_idle(self) -> None:
        """Close pools that nobody uses, for as long as the server runs."""
        while True:
            await anyio.sleep(SWEEP_INTERVAL_S)
            oldest = time.monotonic() - MAX_IDLE_S
            for key, each in list(self._pools.items()):
                is_idle = all(connection.is_idle() for connection in each.pool.connections)
                if each.used_at < oldest and is_idle:
                    del self._pools[key]
                    await close_pool(each.pool)

    async def close(self) -> None:
        """Close all pools."""
        for each in self._pools.values():
            await close_pool(each.pool)


async def close_pool(pool: httpcore2.AsyncConnectionPool) -> None:
    """Close the connections of a pool within a time limit."""
    with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
        await pool.aclose()


@asynccontextmanager
async def open_pools(
    policy: AddressPolicy, context: ssl.SSLContext
) -> AsyncIterator[ConnectionPools]:
    """Yield the pools; leaving closes them."""
    pools = ConnectionPools(policy, context)
    try:
        yield pools
    finally:
        await pools.close()
