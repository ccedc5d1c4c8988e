"""Hosts that code asks with the credential of its principal, over HTTP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest

from mcpruntime_server.capabilities.credential_keys import create_key

from ..helpers.commands import run_command
from ..helpers.event_streams import connect_api
from ..helpers.http_service import ERAS, HttpService, open_http_service
from ..helpers.server_connection import COMMAND, TEST_TIMEOUT_S, connect_server, write_settings
from ..helpers.web_servers import WebServer, run_web_server
from .test_credential_questions import PageVisitor, read_until_waiting
from .test_credential_questions import store as store_on_page

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


@pytest.fixture(scope="module")
async def asked(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[HttpService, WebServer]]:
    """A service, and a host that its code asks with the credential of each principal."""
    folder = tmp_path_factory.mktemp("asked")
    with run_web_server(folder) as web:
        settings, _ = prepare(folder, web)
        async with open_http_service(settings) as service:
            yield service, web


@pytest.mark.parametrize("era", ERAS)
async def test_a_request_waits_until_a_person_has_filled_in_the_page_of_the_host(
    asked: tuple[HttpService, WebServer], era: str
) -> None:
    service, web = asked
    secret = f"secret-of-zoe-{era}"
    token = service.create_token(f"zoe-{era}")
    person = PageVisitor(service, token, secret)
    async with service.connect(token, era, elicitation_callback=person.visit) as client:
        result = await client.run(f"U = {web.url!r}\n{ASK}\nask('/echo')", wait_s=60)
    assert result.status == "ok", result.text
    status, text = result.value
    assert (status, json.loads(text)["headers"]["Authorization"]) == (200, "***")
    assert web.requests[-1].headers["Authorization"] == f"Bearer {secret}"
    [message] = person.messages
    assert f"{web.url} needs a credential of 'zoe-{era}'" in message


async def test_an_event_names_the_page_of_the_host_and_others_cannot_use_what_is_stored(
    asked: tuple[HttpService, WebServer],
) -> None:
    service, web = asked
    code = f"U = {web.url!r}\n{ASK}\nask('/echo')[0]"
    token = service.create_token("ida")
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, token) as api:
            seen, waiting = await read_until_waiting(api, code)
            assert waiting.data["kind"] == "credential"
            url = waiting.data["url"]
            assert url.endswith(f"/credentials/{quote(web.url, safe='')}")
            async with service.http() as http:
                page = await http.get(url)
            assert page.status_code == 200
            assert web.url in page.text
            await store_on_page(service, url, token, "secret-of-ida-1")
            rest = await api.read_events(waiting.data["run"], seen[-1].id)
            assert rest[-1].data["value"] == 200
        async with connect_api(service, service.create_token("pia")) as api:
            run = (await api.post("/execute", {"code": code})).json()
    assert (run["status"], run["value"]) == ("ok", 401)
    assert web.requests[-1].headers["Authorization"] == "Bearer secret-of-ida-1"


async def test_a_person_who_declines_lets_the_request_fail(
    asked: tuple[HttpService, WebServer],
) -> None:
    service, web = asked
    token = service.create_token("kim")
    person = PageVisitor(service, token, "", "decline")
    sent = len(web.requests)
    async with service.connect(token, elicitation_callback=person.visit) as client:
        code = f"U = {web.url!r}\n{ASK}\n[ask('/echo')[0] for _ in range(2)]"
        assert (await client.run(code, wait_s=60)).value == [401, 401]
    assert len(person.messages) == 1
    assert len(web.requests) == sent


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
