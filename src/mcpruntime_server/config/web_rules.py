"""Addresses of web requests, and the rules of `[network]` that say which may be asked for.

A rule is `[METHOD[,METHOD] ][scheme://]host[:port][/path]`: "api.github.com",
"*.wikipedia.org", "GET https://data.example.com/public/*".

Rule 1: an address has one spelling. A host is a name in ASCII, or an address as `ipaddress` writes
it; user information, other spellings of numbers and control characters are refused, so that no two
readers can understand an address differently.
Rule 2: `*.` stands for names below a domain, at any depth, and not for the domain. `*` alone stands
for every name. Neither stands for a numeric address.
Rule 3: a rule with a path matches decoded, plain paths only: none with `..`, `//`, a backslash or
an encoded slash.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote

DEFAULT_PORTS = {"http": 80, "https": 443}
CREDENTIAL_SCHEME = "https://"  # no name of an MCP server begins like this
MAX_PORT = 65_535
MAX_HOST_CHARS = 253
MAX_URL_CHARS = 8_000
ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][!-~]*)?"
)
RULE = re.compile(
    r"(?:(?P<methods>[A-Z]+(?:,[A-Z]+)*) )?(?:(?P<scheme>https?)://)?"
    r"(?P<host>\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-~]*)?"
)
HOST_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as a last label, it makes the host an IPv4 address
RULE_FORM = '"host", "*.domain" or "GET https://host:port/path/*"'


@dataclass(frozen=True)
class WebAddress:
    """Where a request goes: the parts of an `http` or `https` address."""

    scheme: str
    host: str  # lower case; an IPv6 address without brackets
    port: int
    path: str  # as it was written
    query: str  # with its `?`; "" if there is none

    @property
    def netloc(self) -> str:
        """Host and port, as the header `Host` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address."""
        return f"{self.scheme}://{self.netloc}{self.path}{self.query}"

    @property
    def is_numeric(self) -> bool:
        """Whether the host is an IP address."""
        return is_ip_address(self.host)


def parse_address(url: str) -> WebAddress:
    """Return the parts of `url`; raises `ValueError` with a sentence on what is wrong."""
    if len(url) > MAX_URL_CHARS:
        raise ValueError(f"the address has more than {MAX_URL_CHARS:,} characters")
    found = ADDRESS.fullmatch(url)
    if found is None:
        raise ValueError(
            "the address is not http:// or https:// with a host in ASCII, an optional port and a "
            "path without spaces"
        )
    scheme = found["scheme"]
    port = int(found["port"] or DEFAULT_PORTS[scheme])
    if not 0 < port <= MAX_PORT:
        raise ValueError(f"there is no port {port}")
    target = (found["target"] or "/").partition("#")[0]
    path, mark, query = target.partition("?")
    return WebAddress(scheme, parse_host(found["host"]), port, path or "/", mark + query)


def parse_host(text: str) -> str:
    """Return a host in its one spelling; raises `ValueError`."""
    host = text.lower()
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"{text!r:.80} is not an IPv6 address") from None
    host = host.removesuffix(".")
    labels = host.split(".")
    if NUMBER.fullmatch(labels[-1]):
        if not is_ip_address(host):
            raise ValueError(f"{text!r:.80} is neither a name nor an IPv4 address of four numbers")
        return host
    if len(host) > MAX_HOST_CHARS or not all(map(HOST_LABEL.fullmatch, labels)):
        raise ValueError(f"{text!r:.80} is not the name of a host")
    return host


def is_ip_address(host: str) -> bool:
    """Return whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class WebRule:
    """Which requests a line of the settings is about."""

    text: str
    methods: frozenset[str]  # empty: all
    scheme: str  # "": both
    host: str
    port: int  # 0: the default of the scheme
    path: str  # "": any; `*` stands for any characters

    def matches(self, method: str, address: WebAddress) -> bool:
        """Return whether the rule is about a request."""
        return (
            (not self.methods or method in self.methods)
            and (not self.scheme or self.scheme == address.scheme)
            and address.port == (self.port or DEFAULT_PORTS[address.scheme])
            and self.matches_host(address.host)
            and self._matches_path(address.path)
        )

    def matches_host(self, host: str) -> bool:
        """Return whether the rule is about a host."""
        if self.host == "*":
            return not is_ip_address(host)
        if self.host.startswith("*."):
            return host.endswith(self.host[1:]) and not is_ip_address(host)
        return host == self.host

    def _matches_path(self, path: str) -> bool:
        if not self.path:
            return True
        if not is_plain_path(path):
            return False
        return matches_wildcards(self.path, unquote(path))


def matches_wildcards(pattern: str, text: str) -> bool:
    """Return whether `text` is `pattern`, in which `*` stands for any characters.

    Each part takes its first place after the one before, so a search takes linear time.
    """
    first, *others = pattern.split("*")
    if not others:
        return text == first
    *middle, last = others
    if not text.startswith(first):
        return False
    position = len(first)
    for part in middle:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return text.endswith(last) and position <= len(text) - len(last)


def is_plain_path(path: str) -> bool:
    """Return whether every reader understands a path in the same way."""
    decoded = unquote(path)
    has_encoded_slash = re.search("%(?:2f|5c|25|00)", path, re.IGNORECASE) is not None
    segments = re.split("[/;]", decoded)
    return not (
        has_encoded_slash
        or "\\" in decoded
        or "//" in decoded
        or not {".", ".."}.isdisjoint(segments)
    )


def parse_rule(text: str) -> WebRule:
    """Return a rule; raises `ValueError` with a sentence on what is wrong."""
    found = RULE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r:.100} is not a rule; write {RULE_FORM}")
    host = found["host"]
    if host != "*":
        name = parse_host(host.removeprefix("*."))
        host = f"*.{name}" if host.startswith("*.") else name
        if host.startswith("*.") and is_ip_address(name):
            raise ValueError(f"{text!r:.100}: there is nothing below an IP address")
    port = int(found["port"] or 0)
    if port > MAX_PORT:
        raise ValueError(f"{text!r:.100}: there is no port {port}")
    methods = frozenset(filter(None, (found["methods"] or "").split(",")))
    return WebRule(text, methods, found["scheme"] or "", host, port, found["path"] or "")


def credential_user(netloc: str) -> str:
    """Return the name of a host where a principal stores a credential for it."""
    return f"{CREDENTIAL_SCHEME}{netloc}"
