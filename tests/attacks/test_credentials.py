"""What an upstream was given does not come back from it, however it quotes that."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import anyio
import pytest

from mcpruntime_server.capabilities.tools.credentials import collect_credentials
from mcpruntime_server.capabilities.tools.stderr_log import open_stderr_log
from mcpruntime_server.config import UpstreamSettings

KEY = "a1'b2\"c3/+ü4&d5"  # with everything that some notation escapes
PASSWORD = "pAs5-w0rd-9x8"
PEM = "-----BEGIN KEY-----\nMIIEvQ1BADANBg9qhki\nG9w0BAQ8EFAASCBKc\n-----END KEY-----\n"
BASIC = base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()


def redact(said: Any, **settings: Any) -> Any:
    known = {"command": "x"} if "url" not in settings else {}
    return collect_credentials(UpstreamSettings.from_mapping({**known, **settings})).redact(said)


def percent_encode_all(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


FORMS = {
    "as it is": KEY,
    "JSON": json.dumps(KEY),
    "JSON with letters": json.dumps(KEY, ensure_ascii=False),
    "JSON with slashes": json.dumps(KEY).replace("/", "\\/"),
    "JSON in JSON": json.dumps(json.dumps(KEY)),
    "Python": repr(KEY),
    "Python in ASCII": ascii(KEY),
    "Python bytes": repr(KEY.encode()),
    "HTML": html.escape(KEY),
    "HTML without quotes": html.escape(KEY, quote=False),
    "shell": KEY.replace("'", "'\"'\"'"),
    "path of a URL": quote(KEY),
    "parameter of a URL": quote(KEY, safe=""),
    "form": quote_plus(KEY),
    "percent codes in lower case": quote(KEY, safe="").replace("%2B", "%2b").replace("%C3", "%c3"),
    "only percent codes": percent_encode_all(KEY),
    "hexadecimal": KEY.encode().hex(),
    "HEXADECIMAL": KEY.encode().hex().upper(),
    "hexadecimal with spaces": KEY.encode().hex(" "),
    "hexadecimal with colons": KEY.encode().hex(":"),
    **{
        f"base64 after {shift} bytes": base64.b64encode(b"x" * shift + KEY.encode()).decode()
        for shift in range(3)
    },
    **{
        f"URL-safe base64 after {shift} bytes": base64.urlsafe_b64encode(
            b"\xff" * shift + KEY.encode() + b"\xff\xfe"
        ).decode()
        for shift in range(3)
    },
    "user of Basic": base64.b64encode(f"{KEY}:me".encode()).decode(),
    "password of Basic": base64.b64encode(f"other:{KEY}".encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "settings", [{"env": {"API_KEY": KEY}}, {"args": ["--token", KEY]}], ids=str
)
def test_no_form_comes_back(settings: dict[str, Any], form: str) -> None:
    said = redact(f"it is {FORMS[form]}.", **settings)
    assert "***" in said
    has_prefix = "after" in form or "Basic" in form  # which is not the credential's
    secret_part = FORMS[form][8 if has_prefix else 0 :]
    for start in range(len(secret_part) - 8):
        assert secret_part[start : start + 8] not in said


ORIGINS: dict[str, tuple[dict[str, Any], str]] = {
    "a line break at the end": ({"env": {"GH_PAT": "ghp-12345-abcd\n"}}, "ghp-12345-abcd"),
    "quotes around it": ({"env": {"GH_PAT": '"ghp-12345-abcd"'}}, "ghp-12345-abcd"),
    "a line of a key": ({"env": {"PRIVATE_KEY": PEM}}, "G9w0BAQ8EFAASCBKc"),
    "a key with other line breaks": (
        {"env": {"PRIVATE_KEY": PEM}},
        "MIIEvQ1BADANBg9qhki\r\nG9w0BAQ8EFAASCBKc",
    ),
    "the password of Basic": (
        {"url": "http://x", "headers": {"Authorization": f"Basic {BASIC}"}},
        PASSWORD,
    ),
    "a token in a header": (
        {"url": "http://x", "headers": {"Authorization": "bearer abcdefghijkl"}},
        "abcdefghijkl",
    ),
    "a cookie": (
        {"url": "http://x", "headers": {"Cookie": f"theme=dark; sid={PASSWORD}"}},
        PASSWORD,
    ),
    "a header among arguments": (
        {"args": ["mcp-remote", "http://x", "--header", "Authorization: Bearer abcdefghijkl"]},
        "abcdefghijkl",
    ),
    "a variable among arguments": (
        {"args": ["run", "-e", "GITHUB_TOKEN=abcdefghijkl", "image"]},
        "abcdefghijkl",
    ),
    "an option with its value": ({"args": [f"-p{PASSWORD}"]}, PASSWORD),
    "a value that begins with a hyphen": ({"args": ["--api-key", "-Abc_defg"]}, "-Abc_defg"),
    "a joined option": ({"args": [f"--anything={PASSWORD}"]}, PASSWORD),
    "the user of a URL": ({"url": "https://abcdefghijkl@host/mcp"}, "abcdefghijkl"),
    "the password of a URL": ({"url": f"https://me:{PASSWORD}@host/mcp"}, PASSWORD),
    "a password with codes": ({"url": "https://me:p%40s%2Fword1@host/mcp"}, "p@s/word1"),
    "a parameter of a URL": ({"url": f"https://host/mcp?sig={PASSWORD}"}, PASSWORD),
    "a fragment of a URL": ({"url": f"https://host/mcp#access={PASSWORD}"}, PASSWORD),
    "a part of a path": (
        {"url": "https://host/s/0123abcd-4567-89ab-cdef-0123456789ab/mcp"},
        "0123abcd-4567-89ab-cdef-0123456789ab",
    ),
    "a key in a path": ({"url": "https://host/s/aB3dE5gH7jK9mN1pQ/mcp"}, "aB3dE5gH7jK9mN1pQ"),
    "a URL in a variable": ({"env": {"DB": f"postgres://me:{PASSWORD}@db/x"}}, PASSWORD),
    "a URL of Java": (
        {"env": {"DB": "jdbc:postgresql://db/x?user=me&password=abcdefgh"}},
        "abcdefgh",
    ),
    "a connection string": ({"env": {"DB": "Server=db;User Id=sa;Password=abcdefgh;"}}, "abcdefgh"),
    "JSON in a variable": ({"env": {"CONF": '{"auth": {"password": "abcdefgh"}}'}}, "abcdefgh"),
    "a URL in JSON": ({"env": {"CONF": f'{{"db": "http://u:{PASSWORD}@db"}}'}}, PASSWORD),
    "a license": ({"env": {"ANYTHING": "ABCD-1234-EFGH-5678"}}, "ABCD-1234-EFGH-5678"),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_every_part_of_the_settings_that_is_a_credential_is_known(origin: str) -> None:
    settings, credential = ORIGINS[origin]
    said = redact(f"it is {credential}.", **settings)
    assert "***" in said
    assert credential not in said


PLAIN: list[dict[str, Any]] = [
    {"env": {"A": value}}
    for value in (
        *("true", "8080", "production", "us-east-1", "en_US.UTF-8", "claude-sonnet-4-5"),
        *("/home/me", "https://api.example.org/v1", "localhost:8080", "db.example.org:5432"),
        *("me@example.org", "LOG_LEVEL=debug", "2026-01-01T10:00", "Jane Doe"),
    )
]
PLAIN += [
    {
        "env": {
            "AUTH_MODE": "required",
            "MAX_TOKENS": "100000",
            "ABOUT": "uses the API key provided",
        }
    },
]
PLAIN += [
    {"args": ["-y", value]}
    for value in ("@modelcontextprotocol/server-github", "mcp-server-git@2025.1.14", "--verbose")
]


@pytest.mark.parametrize("settings", PLAIN, ids=str)
def test_what_is_common_is_not_replaced(settings: dict[str, Any]) -> None:
    said = str(settings)
    assert redact(said, **settings) == said


def test_what_is_common_in_json_is_not_replaced() -> None:
    model = {"max_tokens": 1000000, "key_mode": "default"}
    assert redact(model, env={"MODEL": json.dumps(model)}) == model


@pytest.mark.parametrize(
    "said",
    [
        {"pin": 12345678},
        {"pin": 12345678.0},
        [12345678],
        "12345678",
        {"12345678": None},
        ["1234", "5678"],
        ["it is 12", "34567", "8."],
        [{"a": ["x1234", 0, "5678x"]}],
    ],
    ids=str,
)
def test_numbers_and_pieces_do_not_come_back(said: Any) -> None:
    shown = json.dumps(redact(said, env={"PIN_TOKEN": "12345678"}))
    assert "***" in shown
    digits = "".join(char for char in shown if char.isdigit() and char != "0")
    assert digits == ""


def test_a_number_of_many_digits_is_a_credential_like_others() -> None:
    """Python refuses to make a number of so many digits."""
    assert redact("9" * 5_000, env={"BIG_TOKEN": "9" * 5_000}) == "***"


async def test_no_boundary_of_the_log_lets_a_part_through(tmp_path: Path) -> None:
    """A reader that cuts a long line must not cut a credential."""
    known = collect_credentials(
        UpstreamSettings.from_mapping({"command": "x", "env": {"TOKEN": PASSWORD}})
    )
    for before in range(30 + len(PASSWORD)):
        log = tmp_path / f"log-{before}"
        line = "." * before + (PASSWORD + "." * 30) * 2_000
        async with open_stderr_log(log, known) as errors:
            with anyio.fail_after(30):
                await anyio.to_thread.run_sync(errors.write, line)
                await anyio.to_thread.run_sync(errors.flush)
        assert set(log.read_text()) == {".", "*", "\n"}


def count_lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


async def test_a_key_that_is_logged_line_by_line_is_replaced(tmp_path: Path) -> None:
    log = tmp_path / "log"
    known = collect_credentials(
        UpstreamSettings.from_mapping({"command": "x", "env": {"PRIVATE_KEY": PEM}})
    )
    async with open_stderr_log(log, known) as errors:
        for number, line in enumerate(PEM.splitlines(), 1):
            errors.write(f"{line}\n")
            errors.flush()
            with anyio.fail_after(30):
                while count_lines(log) < number:  # noqa: ASYNC110 - a thread writes it
                    await anyio.sleep(0.01)
    assert "MII" not in log.read_text()
    assert "G9w0" not in log.read_text()
