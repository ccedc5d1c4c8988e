"""The command `credentials`: what it stores, what it shows, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.capabilities.credential_keys import create_key
from mcpruntime_server.capabilities.credential_store import CREDENTIALS_FILE

from ..helpers.commands import run_command
from ..helpers.server_connection import COMMAND, TEST_TIMEOUT_S, write_settings

SERVERS = {
    "tracker": {
        "url": "https://example.org/mcp",
        "headers": {"Authorization": "Bearer ${credential}"},
        "credentials": "per-principal",
    },
    "mail": {
        "command": "mail",
        "args": ["--user", "${credential:user}"],
        "env": {"KEY": "${credential:key}"},
        "credentials": "per-principal",
    },
    "shared": {"command": "shared", "env": {"KEY": "a-shared-key"}},
}
KEY = create_key()


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_settings(tmp_path, mcpServers=SERVERS)


def credentials(settings: Path, *words: str, stdin: bytes = b"", key: str = KEY) -> Any:
    """Run the command in a process of its own: it reads stdin."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "MCPRUNTIME_CREDENTIALS_KEY": key}
    return subprocess.run(
        [COMMAND, "--config", str(settings), "credentials", *words],
        input=stdin,
        capture_output=True,
        timeout=TEST_TIMEOUT_S,
        check=False,
        env=environ,
    )


def listed(settings: Path) -> list[tuple[str, str, str, bool]]:
    done = run_command("--config", settings, "credentials", "list", "--json")
    return [
        (row["server"], row["principal"], row["name"], row["is_used"])
        for row in json.loads(done.stdout)
    ]


def test_a_credential_is_stored_listed_and_removed(settings: Path) -> None:
    assert credentials(settings, "set", "tracker", stdin=b"s3cret-of-me\n").returncode == 0
    done = credentials(
        settings, "set", "mail", "--principal", "ann", "--name", "key", stdin=b"k" * 9
    )
    assert done.stdout == b"stored a credential of ann for mail (key)\n"
    assert listed(settings) == [
        ("mail", "ann", "key", True),
        ("tracker", "local", "default", True),
    ]
    shown = run_command("--config", settings, "credentials", "list").stdout
    assert re.search(r"tracker +local +default +\d{4}", shown)
    assert "s3cret" not in shown
    data = settings.parent / "data"
    assert b"s3cret" not in b"".join(path.read_bytes() for path in data.iterdir())
    assert (data / CREDENTIALS_FILE).stat().st_mode & 0o777 == 0o600
    assert run_command("--config", settings, "credentials", "remove", "tracker").returncode == 0
    assert listed(settings) == [("mail", "ann", "key", True)]
    again = run_command("--config", settings, "credentials", "remove", "tracker")
    assert (again.returncode, "has no credential" in again.stderr) == (2, True)


def test_what_no_server_uses_any_more_is_marked_and_can_be_removed(settings: Path) -> None:
    assert credentials(settings, "set", "tracker", stdin=b"s3cret-of-me").returncode == 0
    settings.write_text(settings.read_text().replace("tracker", "renamed"))
    assert listed(settings) == [("tracker", "local", "default", False)]
    assert run_command("--config", settings, "credentials", "remove", "tracker").returncode == 0


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (["tracker"], b"", b"fewer than 6 characters"),
        (["tracker"], b"short\n", b"fewer than 6 characters"),
        (["tracker"], b"x" * 1_000_000, b"more than 8,192 bytes"),
        (["tracker"], "\u00e9".encode() * 500_000, b"more than 8,192 bytes"),
        (["tracker"], b"two\nlines-of-it", b"one line of ASCII"),
        (["tracker"], "caf\u00e9-cr\u00e8me".encode(), b"one line of ASCII"),
        (["tracker"], b"nul\0in-it", b"NUL"),
        (["tracker"], b"\xff\xfe-secret", b"not UTF-8"),
        (["tracker", "--principal", "a\nb"], b"secret-1", b"is not a principal"),
        (["tracker", "--name", "key"], b"secret-1", b"uses no credential 'key'"),
        (["mail"], b"secret-1", b"by its name: user, key"),
        (["shared"], b"secret-1", b"are shared"),
        (["trakcer"], b"secret-1", b"Did you mean tracker?"),
    ],
)
def test_what_cannot_be_used_is_not_stored(
    settings: Path, words: list[str], stdin: bytes, message: bytes
) -> None:
    done = credentials(settings, "set", *words, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr
    assert b"secret-1" not in done.stderr
    assert listed(settings) == []


def test_without_a_usable_key_nothing_is_stored(settings: Path) -> None:
    for key, message in (("", b"There is no key"), ("secret-key", b"not a key")):
        done = credentials(settings, "set", "tracker", stdin=b"s3cret-of-me", key=key)
        assert done.returncode == 3
        assert message in done.stderr
        assert b"credentials new-key" in done.stderr
        assert b"secret-key" not in done.stderr
    assert listed(settings) == []


def test_a_key_is_replaced(settings: Path) -> None:
    new = credentials(settings, "new-key").stdout.decode().strip()
    assert credentials(settings, "set", "tracker", stdin=b"s3cret-of-me").returncode == 0
    assert credentials(settings, "encrypt-again", key=new).returncode == 3
    done = credentials(settings, "encrypt-again", key=f"{new} {KEY}")
    assert done.stdout == b"encrypted 1 credentials with the first key\n"
    assert credentials(settings, "encrypt-again", key=KEY).returncode == 3
    assert credentials(settings, "encrypt-again", key=new).returncode == 0


def test_settings_are_shown_with_the_places_of_credentials(settings: Path) -> None:
    shown = run_command(
        "--config", settings, "config", "show", MCPRUNTIME_CREDENTIALS_KEY=KEY
    ).stdout
    assert 'credentials = "per-principal"' in shown
    assert '"${credential}"' in shown
    assert "${credential:user}" in shown
    assert "a-shared-key" not in shown
    assert KEY not in shown
