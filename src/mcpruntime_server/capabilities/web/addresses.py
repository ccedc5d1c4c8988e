"""Resolve the host of a web request, and refuse addresses outside the internet.

A name can lead to the server's own machine, to its neighbours, or to the metadata service of a
cloud. So addresses are checked after they were resolved, and the connection is made to the address
that was checked: a name that changes its answer gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable

import anyio

from ...config.web_rules import is_ip_address
from ...errors import CallFailed

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


async def find_addresses(policy: AddressPolicy, host: str, port: int) -> list[str]:
    """Return the addresses that a host has and may have; raises `CallFailed` without any.

    A numeric host has passed a rule that names exactly this address.
    """
    if is_ip_address(host):
        return [host]
    addresses = await resolve_host(host, port)
    allowed = [each for each in addresses if policy.is_allowed(each)]
    if not allowed:
        raise CallFailed(
            "denied",
            f"{host} has the address {', '.join(addresses)}, which is not on the internet.",
            remedy=f'If it may be reached: [network] private = ["{addresses[0]}"].',
        )
    return allowed


def make_tls_context(ca_file: str) -> ssl.SSLContext:
    """Return the context that verifies servers, by the authorities in a file if one is named."""
    context = ssl.create_default_context(cafile=ca_file or None)
    context.set_alpn_protocols(["http/1.1"])
    return context
