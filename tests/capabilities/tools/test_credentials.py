"""What counts as a credential of an upstream, and the forms in which it is replaced."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote

import pytest

from mcpruntime_server.capabilities.redaction import Credentials
from mcpruntime_server.capabilities.tools.credentials import collect_credentials
from mcpruntime_server.config import UpstreamSettings
from mcpruntime_server.config.credential_values import is_credential

SECRET = 'k3y "with" ünicode/+'


def redact(text: Any, **settings: Any) -> Any:
    known = {"command": "x"} if "url" not in settings else {}
    return collect_credentials(UpstreamSettings.from_mapping({**known, **settings})).redact(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GITHUB_TOKEN", "abcdef"),
        ("DB_PASSWORD", "correct horse"),
        ("token", "12345678"),
        ("GH_PAT", "ghp_0123456789abcdef"),
        ("DATABASE_URL", "postgres://me:s3cr3t@db/x"),
        ("ANYTHING", "a1b2c3d4e5"),
        ("", "Zq8-unnamed-Argument"),
    ],
)
def test_it_is_a_credential(name: str, value: str) -> None:
    assert is_credential(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEBUG", "true"),
        ("PORT", "8080"),
        ("SINCE", "2024-01-01"),
        ("ENVIRONMENT", "production"),
        ("HOME", "/home/somebody"),
        ("CONFIG", "./config/v2.json"),
        ("ROOT", "C:\\Users\\me7"),
        ("API", "https://api.example.org/v1"),
        ("NAME", "Jane Doe"),
        ("", "mcp-server-git"),
        ("DB_PASSWORD", "short"),
    ],
)
def test_it_is_plain(name: str, value: str) -> None:
    assert not is_credential(name, value)


def test_values_of_variables_arguments_headers_and_addresses_are_found() -> None:
    env = {"DATABASE_URL": "postgres://me:s3cr3t-pw@db/x", "HOME": "/home/me"}
    args = ["--token", "tok-123456", "--mode=production", "--pat=p4t-123456", "/srv/data"]
    said = "postgres://me:s3cr3t-pw@db/x s3cr3t-pw tok-123456 production p4t-123456 /srv/data"
    assert redact(said, env=env, args=args) == "*** *** *** production *** /srv/data"
    url = "https://u:passw0rd@h/p?api_key=k3yk3yk3y&page=frontpage"
    said = "k3yk3yk3y frontpage passw0rd abcdefghij Bearer"
    headers = {"Authorization": "Bearer abcdefghij"}
    assert redact(said, url=url, headers=headers) == "*** frontpage *** *** Bearer"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        quote(SECRET),
        quote(SECRET, safe=""),
        SECRET.encode().hex(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"somebody:{SECRET}".encode()).decode(),
        base64.b64encode(f"{SECRET}:password".encode()).decode(),
    ],
)
def test_every_form_is_replaced(form: str) -> None:
    said = redact(f"before {form} after", env={"API_KEY": SECRET})
    assert "***" in said
    assert "k3y" not in said
    assert form[12:] not in said


def test_a_number_is_replaced_as_a_number() -> None:
    said = redact({"pin": 12345678, "n": 7}, env={"PIN_TOKEN": "12345678"})
    assert said == {"pin": "***", "n": 7}


def test_they_are_found_at_every_depth_and_in_keys() -> None:
    secret = Credentials(["s3cr3t-78", "s3cr3t-7890"])
    data = {"a": ["x s3cr3t-7890 y", {"s3cr3t-78": None}]}
    assert secret.redact(data) == {"a": ["x *** y", {"***": None}]}
    assert secret.redact_bytes(b"s3cr3t-7890\n") == b"***\n"


def test_without_any_there_is_nothing_to_do() -> None:
    nothing = Credentials([])
    assert not nothing
    assert nothing.redact({"a": "text"}) == {"a": "text"}
    assert nothing.redact_bytes(b"text") == b"text"
