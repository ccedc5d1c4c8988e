"""How often a principal may send requests, how many at once, and how often an address may fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address

from starlette.types import Scope

from ..config import HttpSettings
from ..errors import RateLimited
from ..fair_turns import FairTurns
from ..runtime.rates import Rate
from .request_checks import MAX_BODY_BYTES, declared_bytes

COUNTED_BYTES = 64 * 1024  # of a body, for which a request counts once more
MANY_REQUESTS = 8  # of one principal, under way
IPV6_PREFIX_BITS = 64  # what one subscriber has


class RateLimits:
    """The limits of one server."""

    def __init__(self, settings: HttpSettings) -> None:
        self._requests = Rate(settings.requests_per_minute)
        self._failures = Rate(settings.failures_per_minute)
        self._max_concurrent = settings.concurrent_requests
        self._concurrent: Counter[str] = Counter()  # requests under way, by principal
        self._turns = FairTurns()  # of principals that have many

    def check_address(self, address: str) -> None:
        """Raise `RateLimited` for an address that has sent too many invalid tokens."""
        if self._failures.is_used_up(address):
            raise RateLimited(
                "Too many access tokens from this address were not valid.",
                remedy="Try again in a minute.",
                retry_after_s=60.0,
            )

    def count_failure(self, address: str) -> None:
        """Count an invalid token from an address."""
        self._failures.count(address)

    def count_request(self, principal: str, scope: Scope) -> None:
        """Count a request, raising `RateLimited` if there are too many.

        A long one counts as several: reading it takes all others' time.
        """
        body_bytes = min(declared_bytes(scope), MAX_BODY_BYTES)
        if wait_s := self._requests.count(principal, 1 + body_bytes // COUNTED_BYTES):
            raise RateLimited(
                "Too many requests in a minute.",
                remedy="Send fewer, or raise `requests_per_minute` under [http].",
                retry_after_s=wait_s,
            )

    @contextmanager
    def serve(self, principal: str) -> Iterator[None]:
        """Count a request as being under way; raises `RateLimited` if too many are."""
        if self._max_concurrent and self._concurrent[principal] >= self._max_concurrent:
            raise RateLimited(
                f"{self._max_concurrent} requests are under way, which is the limit.",
                remedy="Close some, or raise `concurrent_requests` under [http].",
            )
        self._concurrent[principal] += 1
        try:
            yield
        finally:
            self._concurrent[principal] -= 1
            if not self._concurrent[principal]:
                del self._concurrent[principal]

    async def wait_for_turn(self, principal: str) -> None:
        """Wait if many requests of a principal are under way: then few begin at once."""
        if self._concurrent[principal] > MANY_REQUESTS:
            await self._turns.wait()


def client_address(scope: Scope) -> str:
    """Return where a request comes from; of an IPv6 address the network."""
    client = scope.get("client")
    text = client[0] if client else ""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return text
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return f"{IPv6Address(int(address) >> IPV6_PREFIX_BITS << IPV6_PREFIX_BITS)}/64"
    return text
