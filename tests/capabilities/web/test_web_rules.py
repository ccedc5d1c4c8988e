"""Addresses have one spelling, and a rule allows what it says and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.config.web_rules import matches_wildcards, parse_address, parse_rule

MISLEADING_ADDRESSES = [
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://1.2.3.4.5/",
    "http://1.2.3.256/",
    "http://1.2.3.0x4/",
    "http://allowed.example@127.0.0.1/",
    "http://allowed.example:secret@127.0.0.1/",
    "http://allowed.example%40127.0.0.1/",
    "http://allowed.example%2eevil.example/",
    "http://allowed.example\\@evil.example/",
    "http://allowed.example\\.evil.example/",
    "http://allowed.example /",
    "http://allowed.example\t/",
    "http://allowed.example\r\nHost: evil.example/",
    "http://allowed.example/\r\nX: y",
    "http://allowed.example/ HTTP/1.1",
    "http://allowed.example\0.evil.example/",
    "http://allowed.example:80:90/",
    "http://allowed.example:0/",
    "http://allowed.example:65536/",
    "http://allowed.example:8o/",
    "http://allowed.example:/x:/",
    "http:///allowed.example/",
    "http:/allowed.example/",
    "http:allowed.example/",
    "//allowed.example/",
    "allowed.example",
    "ftp://allowed.example/",
    "file:///etc/passwd",
    "gopher://allowed.example/",
    "HTTP+unix://allowed.example/",
    "http://[::1/",
    "http://::1/",
    "http://[fe80::1%25eth0]/",
    "http://[::ffff:127.0.0.1",
    "http://[12345::]/",
    "http://[v1.x]/",
    "http://\u0430llowed.example/",  # a Cyrillic letter
    "http://allowed\u3002example/",  # an ideographic full stop
    "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
    "http://allowed..example/",
    "http://.allowed.example/",
    "http://-allowed.example/",
    "http://allowed-.example/",
    f"http://{'a' * 64}.example/",
    f"http://{'a.' * 130}example/",
    "http://*.example/",
    "http://allowed.example,evil.example/",
    "http://allowed.example;evil.example/",
    "http://allowed.example?@evil.example\n",
    f"http://allowed.example/{'a' * 9000}",
    "",
    "http://",
]


@pytest.mark.parametrize("url", MISLEADING_ADDRESSES)
def test_an_address_with_another_spelling_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|host|port|neither"):
        parse_address(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://Example.COM", "http://example.com/"),
        ("https://example.com:443/a", "https://example.com/a"),
        ("https://example.com./a", "https://example.com/a"),
        ("https://example.com:8443?q=1#part", "https://example.com:8443/?q=1"),
        ("http://[0:0::1]:80/x", "http://[::1]/x"),
        ("https://127.0.0.1/x%20y?u=http://a@b", "https://127.0.0.1/x%20y?u=http://a@b"),
    ],
)
def test_an_address_is_written_in_one_way(url: str, shown: str) -> None:
    assert parse_address(url).url == shown


@pytest.mark.parametrize(
    ("rule", "method", "url"),
    [
        ("api.github.com", "GET", "https://api.github.com/x"),
        ("api.github.com", "POST", "http://api.github.com/"),
        ("*.wikipedia.org", "GET", "https://en.wikipedia.org/wiki"),
        ("*.wikipedia.org", "GET", "https://en.m.wikipedia.org/wiki"),
        ("*", "GET", "https://anything.example/"),
        ("GET,HEAD example.com", "HEAD", "https://example.com/"),
        ("https://example.com:8443", "GET", "https://example.com:8443/x"),
        ("GET https://example.com/public/*", "GET", "https://example.com/public/a/b?c=../d"),
        ("https://example.com/a*/c", "GET", "https://example.com/abb/c"),
        ("https://example.com/a*b", "GET", "https://example.com/a%20b"),
        ("[::1]", "GET", "http://[0::1]/"),
    ],
)
def test_a_rule_allows_what_it_names(rule: str, method: str, url: str) -> None:
    assert parse_rule(rule).matches(method, parse_address(url))


@pytest.mark.parametrize(
    ("rule", "method", "url"),
    [
        ("api.github.com", "GET", "https://github.com/"),
        ("api.github.com", "GET", "https://api.github.com.evil.example/"),
        ("api.github.com", "GET", "https://evil-api.github.com/"),
        ("api.github.com", "GET", "https://api.github.com:8443/"),
        ("*.wikipedia.org", "GET", "https://wikipedia.org/"),
        ("*.wikipedia.org", "GET", "https://evilwikipedia.org/"),
        ("*.wikipedia.org", "GET", "https://wikipedia.org.evil.example/"),
        ("*", "GET", "http://127.0.0.1/"),
        ("*", "GET", "http://[::1]/"),
        ("GET example.com", "POST", "https://example.com/"),
        ("https://example.com", "GET", "http://example.com/"),
        ("https://example.com/public/*", "GET", "https://example.com/private"),
        ("https://example.com/public/*", "GET", "https://example.com/public/../private"),
        ("https://example.com/public/*", "GET", "https://example.com/public/%2e%2e/private"),
        ("https://example.com/public/*", "GET", "https://example.com/public/%252e%252e/private"),
        ("https://example.com/public/*", "GET", "https://example.com/public/..%2fprivate"),
        ("https://example.com/public/*", "GET", "https://example.com/public/..\\private"),
        ("https://example.com/public/*", "GET", "https://example.com/public/..;/private"),
        ("https://example.com/public/*", "GET", "https://example.com//public/x"),
        ("https://example.com/public", "GET", "https://example.com/publicity"),
    ],
)
def test_a_rule_allows_nothing_else(rule: str, method: str, url: str) -> None:
    assert not parse_rule(rule).matches(method, parse_address(url))


@pytest.mark.parametrize(
    "rule",
    ["", "ftp://a.example", "get a.example", "a.example/../b c", "a.*.example", "*a.example",
     "*.1.2.3.4", "a.example:99999", "http://", "user@a.example", "A.example", "*.",
     "GET  x.example"],
)  # fmt: skip
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"rule|host|port|below"):
        parse_rule(rule)


@given(st.text("ab*", max_size=9), st.text("ab\n", max_size=20))
def test_wildcards_stand_for_any_characters(pattern: str, text: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL)
    assert matches_wildcards(pattern, text) == (expected is not None)


def test_many_wildcards_are_not_tried_in_every_place() -> None:
    """With a pattern that goes back, this would not end."""
    assert not matches_wildcards("/" + "a*" * 50 + "c", "/" + "a" * 8_000)
