"""MCP servers that each principal uses with its own credential, over HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.credential_keys import create_key, load_keys
from mcpruntime_server.capabilities.credential_store import CredentialStore
from mcpruntime_server.config import CredentialSettings
from tests.upstreams import FOLDER

from ..helpers.http_service import ERAS, HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, write_local_settings
from ..server.conftest import upstream_entry
from ..server.test_approvals import choose

SECRETS = {"ann": "admin-secret-of-ann", "bob": "secret-of-bob-4711"}
WHO = "from tools.keyed import whoami\nwhoami()"


@pytest.fixture(scope="module")
def web_address() -> Iterator[str]:
    command = [sys.executable, str(FOLDER / "keyed.py"), "--http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.kill()


def prepare(folder: Path, web_address: str = "http://127.0.0.1:9", **sections: Any) -> Path:
    """Write settings with a key, and store the credentials of ann and bob."""
    key_file = folder / "key"
    key_file.write_text(create_key())
    key_file.chmod(0o600)
    keyed = upstream_entry(
        "keyed", env={"TOKEN": "${credential}", "KEYED_FILE": str(folder / "puts")}
    )
    leaky = upstream_entry("leaky", "--key", "${credential}", env={"TOKEN": "Bearer ${credential}"})
    web = {
        "url": f"{web_address}/${{credential}}/mcp",
        "headers": {"X-Key": "${credential}"},
    }
    own = {
        name: {**entry, "credentials": "per-principal"}
        for name, entry in {"keyed": keyed, "leaky": leaky, "web": web}.items()
    }
    settings = write_local_settings(
        folder,
        mcpServers={**own, "shared": upstream_entry("keyed", "nobodys")},
        credentials={"key_file": str(key_file)},
        **sections,
    )
    for name, secret in SECRETS.items():
        for server in own:
            give(settings, server, name, secret)
    return settings


def give(settings: Path, server: str, principal: str, secret: str) -> None:
    data_dir = settings.parent / "data"
    keys = load_keys(CredentialSettings(key_file=settings.parent / "key"), data_dir)
    CredentialStore(data_dir).set_credential((server, principal, "default"), secret, keys)


def digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, web_address: str
) -> AsyncIterator[HttpService]:
    async with open_http_service(prepare(tmp_path_factory.mktemp("own"), web_address)) as opened:
        yield opened


@pytest.fixture(scope="module")
async def clients(service: HttpService) -> AsyncIterator[dict[str, ServerConnection]]:
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(service.connect(service.create_token(name)))
            for name in ("ann", "bob", "eve")
        }


async def test_two_at_once_use_their_own_credentials(
    clients: dict[str, ServerConnection],
) -> None:
    found: dict[str, list[Any]] = {"ann": [], "bob": []}

    async def ask(name: str, server: str) -> None:
        found[name].append(await clients[name].evaluate(WHO.replace("keyed", server), server))

    async with anyio.create_task_group() as tasks:
        for name in found:
            for server in ("keyed", "web", "shared"):
                tasks.start_soon(ask, name, server)
    for name, answers in found.items():
        assert sorted(each["digest"] for each in answers) == sorted(
            [digest(SECRETS[name]), digest(SECRETS[name]), digest("nobodys")]
        )


async def test_each_principal_finds_what_its_own_connection_lists(
    clients: dict[str, ServerConnection],
) -> None:
    code = "import tools.keyed\nsorted(name for name in dir(tools.keyed) if name[0] != '_')"
    ann, bob = [await clients[name].evaluate(code) for name in ("ann", "bob")]
    assert set(ann) - set(bob) == {"rule"}
    rule = "from tools.keyed import rule\nrule(text='x')"
    assert (await clients["ann"].evaluate(rule)) == {"ruled": "x"}
    assert (await clients["bob"].run(rule)).status == "error"


async def test_who_has_none_gets_an_error_that_says_what_to_do(
    service: HttpService, clients: dict[str, ServerConnection]
) -> None:
    answer = await clients["eve"].run(WHO)
    assert answer.status == "error"
    assert "keyed needs a credential of 'eve', and none is stored." in answer.text
    assert f"--config {service.settings} credentials set keyed --principal eve" in answer.text
    caught = await clients["eve"].evaluate(
        "import tools\ntry:\n    from tools.keyed import whoami\nexcept Exception as e:\n"
        "    kind = getattr(e, 'kind', type(e).__name__)\nkind"
    )
    assert caught == "credential_missing"
    give(service.settings, "keyed", "eve", "secret-of-eve-1")
    assert (await clients["eve"].evaluate(WHO))["digest"] == digest("secret-of-eve-1")


async def test_nothing_that_is_kept_or_said_has_a_credential(
    service: HttpService, clients: dict[str, ServerConnection]
) -> None:
    """Answers, errors, logs, journal, workspace, modules, and what another principal sees."""
    said = []
    for name in ("ann", "bob"):
        for how in ("text", "structured", "error", "JSON", "stderr", "pieces", "death"):
            code = f"from tools.leaky import tell\nopen('f', 'w').write(str(tell(how={how!r})))"
            said.append((await clients[name].run(code, "leaks")).text)
        said.append((await clients[name].run("from tools.web import tell\ntell()")).text)
        said.append((await clients[name].run("from tools.keyed import tell\ntell()")).text)
        said.append((await clients[name].replay("show", "leaks")).text)
    assert sum("***" in each for each in said) >= 8
    files = [path for path in service.settings.parent.rglob("*") if path.is_file()]
    kept = b"".join(path.read_bytes() for path in files)
    for secret in SECRETS.values():
        assert not any(secret in each for each in said)
        assert secret.encode() not in kept
    logs = {path.name: path.stat().st_mode & 0o777 for path in files if "@" in path.name}
    assert {mode for name, mode in logs.items() if name.endswith(".log")} == {0o600}
    assert len([name for name in logs if name.startswith("upstream-leaky@")]) == 2


async def test_the_token_of_a_client_is_passed_to_nobody(
    service: HttpService, tmp_path: Path
) -> None:
    give(service.settings, "web", "max", "secret-of-max-1")
    give(service.settings, "keyed", "max", "secret-of-max-1")
    token = service.create_token("max")
    for era in ("auto", "legacy"):
        async with service.connect(token, era) as client:
            for server in ("web", "keyed"):
                told = await client.evaluate(f"from tools.{server} import tell\ntell()")
                text = json.dumps(told).lower()
                assert token.lower() not in text
                assert "authorization" not in text
                assert "mcprt_" not in text
                assert "credentials_key" not in text


async def test_a_replay_needs_no_credential(
    service: HttpService, clients: dict[str, ServerConnection]
) -> None:
    give(service.settings, "keyed", "bob", SECRETS["bob"])
    run = await clients["bob"].run(WHO, "replayed")
    CredentialStore(service.data_dir).remove_credentials("keyed", "bob")
    again = await clients["bob"].replay("rerun", run=run.run)
    assert not again.is_error, again.text
    assert "diverged" not in again.text
    assert "credential" not in again.text
    assert (await clients["bob"].run(WHO, "replayed")).status == "error"
    give(service.settings, "keyed", "bob", SECRETS["bob"])
    assert (await clients["bob"].evaluate(WHO, "replayed"))["digest"] == digest(SECRETS["bob"])


async def test_a_skill_that_uses_an_own_connection_is_tested_and_used(
    clients: dict[str, ServerConnection],
) -> None:
    code = (
        "from tools.keyed import put\ndef run(word: str) -> str:\n"
        '    """Put a word."""\n    return put(text=word)[\'put\'] + "!"\nrun("WORD")'
    )
    await clients["ann"].run("import tools.keyed", "skilled")
    ran = await clients["ann"].run(code, "skilled")
    saved = await clients["ann"].client.call_tool("save_skill", {"run": ran.run, "name": "putting"})
    assert not saved.is_error, saved
    used = "from skills.putting import run\nrun('OTHER')"
    assert await clients["ann"].evaluate(used) == "OTHER!"


@pytest.mark.parametrize("era", ERAS)
async def test_policy_and_approvals_are_as_for_any_server(tmp_path: Path, era: str) -> None:
    policy = {"write": "ask", "tools": {"keyed.tell": "deny"}}
    async with open_http_service(prepare(tmp_path, policy=policy)) as service:
        token = service.create_token("ann")
        async with service.connect(token, era, elicitation_callback=choose("allow")) as client:
            assert (await client.evaluate(WHO))["digest"] == digest(SECRETS["ann"])
            put = await client.run("from tools.keyed import put\nput(text='x')")
            assert put.status == "ok", put.text
            denied = await client.run("from tools.keyed import tell\ntell()")
            assert "is not allowed here" in denied.text
        async with service.connect(token, era, elicitation_callback=choose("deny")) as client:
            refused = await client.run("from tools.keyed import put\nput(text='y')")
            assert "refused" in refused.text
    assert (tmp_path / "puts").read_text() == f"{digest(SECRETS['ann'])} x\n"


async def test_a_resumed_run_uses_the_connection_of_its_principal(tmp_path: Path) -> None:
    settings = prepare(tmp_path)
    code = (
        "import os, time\nfrom tools.keyed import put, whoami\n"
        "put(text='before')\ntime.sleep(0.5)\n"
        f"open({str(tmp_path / 'ready')!r}, 'a').write('x')\n"
        f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.05)\n"
        "put(text='after')\nwhoami()"
    )
    async with open_http_service(settings) as first:
        tokens = {name: first.create_token(name) for name in SECRETS}
        runs = {}
        for name, token in tokens.items():
            async with first.connect(token) as client:
                runs[name] = await client.run(code, "work", background=True)
        with anyio.fail_after(60):
            while not is_ready(tmp_path):  # noqa: ASYNC110 - of another process
                await anyio.sleep(0.05)
        first.signal(signal.SIGKILL)
        with anyio.fail_after(60):
            await first.process.wait()
    (tmp_path / "go").touch()
    async with open_http_service(settings) as second:
        for name, token in tokens.items():
            async with second.connect(token) as client:
                result = await client.client.call_tool("run_code", {"run": runs[name].run})
                assert result.structured_content is not None
                assert result.structured_content["status"] == "ok", result
                assert result.structured_content["value"]["digest"] == digest(SECRETS[name])
    expected = [
        f"{digest(secret)} {text}" for secret in SECRETS.values() for text in ("after", "before")
    ]
    assert sorted(read_puts(tmp_path)) == sorted(expected)


def is_ready(folder: Path) -> bool:
    """Return whether two runs have got the answers to their first calls."""
    path = folder / "ready"
    return path.exists() and path.stat().st_size == len(SECRETS)


def read_puts(folder: Path) -> list[str]:
    path = folder / "puts"
    return path.read_text().splitlines() if path.exists() else []
