"""Names lead to addresses of the internet, and elsewhere only where the settings say so."""

from __future__ import annotations

import pytest

from mcpruntime_server.capabilities.web.addresses import AddressPolicy

OUTSIDE = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
]  # fmt: skip


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_outside_the_internet_is_refused(address: str) -> None:
    assert not AddressPolicy().is_allowed(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "140.82.121.6", "2606:4700::1111"])
def test_an_address_of_the_internet_is_allowed(address: str) -> None:
    assert AddressPolicy().is_allowed(address)


def test_the_settings_can_allow_networks_and_addresses() -> None:
    policy = AddressPolicy(["10.1.0.0/16", "fd00::/8", "127.0.0.1"])
    allowed = ["10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "127.0.0.1"]
    assert all(map(policy.is_allowed, allowed))
    assert not any(map(policy.is_allowed, ["10.2.0.1", "127.0.0.2", "fe80::1", "::1"]))
