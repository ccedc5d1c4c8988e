"""Hosts that code asks with the credential of its principal, over HTTP."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.capabilities.credential_keys import create_key

from ..helpers.commands import run_command
from ..helpers.http_service import open_http_service
from ..helpers.server_connection import COMMAND, connect_server, write_settings
from ..helpers.web_servers import WebServer, run_web_server

pytestmark = pytest.mark.anyio

SECRETS = {"ann": "admin-secret-of-ann", "bob": "secret-of-bob-4711"}
ASK = """
import json, urllib.error, urllib.request
def ask(path):
    try:
        answer = urllib.request.urlopen(U + path)
    except urllib.error.HTTPError as exc:
        answer = exc
    return answer.status, answer.read().decode()
"""


def prepare(folder: Path, web: WebServer, **entry: Any) -> tuple[Path, str]:
    """Write settings with a host that each principal asks with its own credential."""
    key_file = folder / "key"
    key_file.write_text(create_key())
    key_file.chmod(0o600)
    host = web.url.removeprefix("https://")
    own = {"value": "Bearer ${credential}", "credentials": "per-principal", **entry}
    network = {"allow": [web.url], "ca_file": str(web.ca_file), "credentials": {host: own}}
    settings = write_settings(
        folder, network=network, credentials={"key_file": str(key_file)}, sandbox={"pool_size": 0}
    )
    return settings, host


def store(settings: Path, host: str, principal: str, secret: str) -> None:
    """Store a credential as a person does."""
    words = (COMMAND, "--config", str(settings), "credentials", "set", host)
    done = subprocess.run(
        [*words, "--principal", principal], input=secret.encode(), capture_output=True, check=True
    )
    assert secret.encode() not in done.stdout


async def test_each_principal_sends_its_own_credential_and_never_sees_it(tmp_path: Path) -> None:
    with run_web_server(tmp_path) as web:
        settings, host = prepare(tmp_path, web)
        for name, secret in SECRETS.items():
            store(settings, host, name, secret)
        code = f"U = {web.url!r}\n{ASK}\nask('/echo')"
        async with open_http_service(settings) as service:
            for name in SECRETS:
                async with service.connect(service.create_token(name)) as client:
                    status, text = await client.evaluate(code, "own")
                    assert status == 200
                    assert json.loads(text)["headers"]["Authorization"] == "***"
                    forms = await client.evaluate("ask('/forms')[1].splitlines()", "own")
                    assert forms == ["***"] * 4
            async with service.connect(service.create_token("eve")) as client:
                status, text = await client.evaluate(code, "own")
                assert status == 401
                assert f"https://{host} needs a credential of 'eve', and none is stored" in text
                assert f"credentials set https://{host} --principal eve" in text
        sent = [each.headers.get("Authorization") for each in web.requests]
        assert sent == [f"Bearer {secret}" for secret in SECRETS.values() for _ in range(2)]
    kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    for secret in SECRETS.values():
        assert not [path for path in kept if secret.encode() in path.read_bytes()]


async def test_a_credential_that_is_changed_or_removed_counts_at_once(tmp_path: Path) -> None:
    with run_web_server(tmp_path) as web:
        settings, host = prepare(tmp_path, web, header="X-Key", value="${credential}")
        code = f"U = {web.url!r}\n{ASK}\nask('/echo')[0]"
        async with connect_server(settings) as client:
            assert await client.evaluate(code, "local") == 401
            store(settings, host, "local", "first-secret")
            assert await client.evaluate("ask('/echo')[0]", "local") == 200
            store(settings, host, "local", "second-secret")
            assert await client.evaluate("ask('/echo')[0]", "local") == 200
            listed = run_command("--config", settings, "credentials", "list", "--json").stdout
            assert [each["server"] for each in json.loads(listed)] == [f"https://{host}"]
            assert json.loads(listed)[0]["is_used"] is True
            run_command("--config", settings, "credentials", "remove", host)
            assert await client.evaluate("ask('/echo')[0]", "local") == 401
        assert [each.headers["X-Key"] for each in web.requests] == ["first-secret", "second-secret"]


def test_a_shared_credential_cannot_be_stored_for_a_principal(tmp_path: Path) -> None:
    with run_web_server(tmp_path) as web:
        settings, host = prepare(tmp_path, web, credentials="shared", value="Bearer shared-word")
    words = ("--config", settings, "credentials", "set")
    assert "is shared: it is in the settings" in run_command(*words, host).stderr
    assert "There is no entry" in run_command(*words, "https://elsewhere.example").stderr


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"value": "Bearer shared"}, "needs `${credential}` once in `value`"),
        ({"value": "${credential} ${credential}"}, "needs `${credential}` once in `value`"),
        ({"value": "${credential:other}"}, "needs `${credential}` once in `value`"),
        ({"credentials": "shared"}, "the credential of a principal; it belongs into"),
    ],
)
def test_the_place_of_a_credential_is_checked(
    tmp_path: Path, entry: dict[str, Any], problem: str
) -> None:
    with run_web_server(tmp_path) as web:
        settings, _ = prepare(tmp_path, web, **entry)
    assert problem in run_command("--config", settings, "config", "show").stderr
