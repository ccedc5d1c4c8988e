"""Resolve the host of a web request, and refuse addresses outside the internet.

A name can lead to the server's own machine, to its neighbours, or to the metadata service of a
cloud. So addresses are checked after they were resolved, and the connection is made to the address
that was checked: a name that changes its answer gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import Any

import anyio
from httpcore2 import AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream, ConnectError

from ...config.web_rules import is_ip_address
from ...errors import CallFailed
from .paced_stream import PacedStream

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_ADDRESSES = 8  # of a name that are tried
EMBEDDING_NETWORKS = tuple(  # IPv6 addresses that stand for IPv4 ones, which are not looked at
    map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96"))
)


def is_public(address: IpAddress) -> bool:
    """Return whether an address is public."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.is_site_local or any(address in each for each in EMBEDDING_NETWORKS):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class AddressPolicy:
    """Which addresses a name may lead to: those of the internet, and of some networks."""

    def __init__(self, private: Iterable[str] = ()) -> None:
        self._networks: list[IpNetwork] = [ipaddress.ip_network(each) for each in private]

    def is_allowed(self, text: str) -> bool:
        """Return whether a name may lead to an address, as the system writes it."""
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return is_public(address) or any(address in each for each in self._networks)


async def resolve_host(host: str, port: int) -> list[str]:
    """Return the addresses of a host; raises `CallFailed`."""
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        message = f"The name {host} cannot be resolved: {exc.strerror or exc}."
        raise CallFailed("unavailable", message) from None
    return list(dict.fromkeys(str(each[4][0]) for each in found))[:MAX_ADDRESSES]


class CheckedBackend(AsyncNetworkBackend):
    """Connects to addresses that the policy allows, and to no others."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._backend = AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        """Connect to the first address of `host` that answers; raises `CallFailed`.

        A numeric host has passed a rule that names exactly this address.
        """
        if is_ip_address(host):
            return await self._connect_first([host], port, timeout)
        addresses = await resolve_host(host, port)
        allowed = [each for each in addresses if self._policy.is_allowed(each)]
        if not allowed:
            raise CallFailed(
                "denied",
                f"{host} has the address {', '.join(addresses)}, which is not on the internet.",
                remedy=f'If it may be reached: [network] private = ["{addresses[0]}"].',
            )
        return await self._connect_first(allowed, port, timeout)

    async def _connect_first(
        self, addresses: Sequence[str], port: int, timeout: float | None
    ) -> AsyncNetworkStream:
        problem: Exception | None = None
        for address in addresses:
            try:
                return PacedStream(await self._backend.connect_tcp(address, port, timeout))
            except ConnectError as exc:
                problem = exc
        assert problem is not None
        raise problem

    async def connect_unix_socket(self, *_: Any, **__: Any) -> AsyncNetworkStream:
        """Refuse to connect: a web request never uses a local socket."""
        raise ConnectError("a web request uses no UNIX socket")

    async def sleep(self, seconds: float) -> None:
        """Wait, between two attempts to connect."""
        await anyio.sleep(seconds)


def make_tls_context(ca_file: str) -> ssl.SSLContext:
    """Return the context that verifies servers, by the authorities in a file if one is named."""
    return ssl.create_default_context(cafile=ca_file or None)
