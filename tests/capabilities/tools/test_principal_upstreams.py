"""Upstreams that each principal uses with credentials, and a connection, of its own."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.credential_keys import CredentialKeys, create_key, load_keys
from mcpruntime_server.capabilities.credential_store import CredentialStore
from mcpruntime_server.capabilities.own_credentials import OwnCredentials
from mcpruntime_server.capabilities.tools.catalog import Catalog, open_catalog
from mcpruntime_server.capabilities.tools.catalogue_cache import CatalogueCache
from mcpruntime_server.capabilities.tools.principal_upstreams import (
    PrincipalUpstreams,
    open_principal_upstreams,
)
from mcpruntime_server.config import CredentialSettings, SecretText, UpstreamSettings
from mcpruntime_server.config.interpolation import interpolate_upstream
from mcpruntime_server.errors import CallFailed
from mcpruntime_server.journal.call_scope import act_for
from mcpruntime_server.journal.events import EncodedJson
from tests.helpers.sizes import choose_size
from tests.upstreams import FOLDER, own_server_entry

PRINCIPALS = choose_size("PRINCIPALS", short=12, long=100)
SOON = 60.0  # seconds; only a test that fails waits so long
KEYED = own_server_entry("keyed", env={"TOKEN": "${credential}"})


def personal(**entry: Any) -> UpstreamSettings:
    """Return settings with credentials of each principal, from an entry of a settings file."""
    problems: list[str] = []
    filled = interpolate_upstream(
        "up",
        {**entry, "credentials": "per-principal"},
        {},
        lambda key, text: problems.append(f"{key} {text}"),
    )
    assert not problems
    return UpstreamSettings.from_mapping(filled)


class World:
    """A data folder with credentials, and the catalogue of one upstream, `up`."""

    def __init__(self, folder: Path, own: dict[str, PrincipalUpstreams], catalog: Catalog) -> None:
        self.folder = folder
        self.upstreams = own["up"]
        self.catalog = catalog
        self.store = CredentialStore(folder / "data")

    @property
    def connected(self) -> int:
        return len(self.upstreams._slots.connected)

    def give(self, principal: str, secret: str, name: str = "default") -> None:
        self.store.set_credential(("up", principal, name), secret, keys_of(self.folder))

    async def act(self, principal: str | None, action: Callable[[], Any]) -> Any:
        """Return what `action` returns in a task of a principal; raises what it raises."""
        found: list[Any] = []

        async def work() -> None:
            if principal is not None:
                act_for(principal)
            try:
                found.append(await action())
            except CallFailed as exc:
                found.append(exc)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
        if isinstance(found[0], CallFailed):
            raise found[0]
        return found[0]

    async def call(self, principal: str | None, tool: str = "whoami", text: str = "") -> Any:
        return await self.act(
            principal, partial(self.catalog.call_tool, f"tools.up.{tool}", {"text": text})
        )

    async def find_tools(
        self, principal: str | None, query: str = ""
    ) -> tuple[set[str], list[str]]:
        listing = await self.act(
            principal,
            partial(self.catalog.search_tools, query) if query else self.catalog.list_tools,
        )
        return {tool["tool"] for tool in listing["tools"]}, listing["problems"]


def keys_of(folder: Path) -> CredentialKeys:
    path = folder / "key"
    if not path.exists():
        path.write_text(create_key())
        path.chmod(0o600)
    return load_keys(CredentialSettings(key_file=path), folder / "data")


@asynccontextmanager
async def open_world(
    folder: Path, settings: UpstreamSettings, on_change: Any = lambda *_: None, **limits: Any
) -> AsyncIterator[World]:
    (folder / "data").mkdir(exist_ok=True)
    vault = OwnCredentials(
        CredentialStore(folder / "data"),
        partial(keys_of, folder),
        lambda *words: " ".join(("mcpruntime-server", *words)),
    )
    cache = CatalogueCache(folder / "catalogues")
    async with (
        open_principal_upstreams(
            {"up": settings}, CredentialSettings(**limits), folder, folder / "logs", vault, cache
        ) as own,
        open_catalog({}, folder / "shims", on_change, own=own) as catalog,
    ):
        with anyio.fail_after(SOON):
            yield World(folder, own, catalog)


def digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()[:12]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - of another process
        await anyio.sleep(0.02)


@pytest.fixture
def web_address() -> Iterator[str]:
    command = [sys.executable, str(FOLDER / "keyed.py"), "--http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.kill()


# whose connection ---------------------------------------------------------------------------------


async def test_each_principal_has_a_process_with_its_own_credential(tmp_path: Path) -> None:
    async with open_world(tmp_path, personal(**KEYED)) as world:
        world.give("ann", "secret-of-ann")
        world.give("bob", "secret-of-bob")
        ann, bob = await world.call("ann"), await world.call("bob")
        assert (ann["digest"], bob["digest"]) == (digest("secret-of-ann"), digest("secret-of-bob"))
        assert ann["pid"] != bob["pid"]
        assert await world.call("ann") == ann
        for missing in ("eve", None):
            with pytest.raises(CallFailed) as caught:
                await world.call(missing)
            assert caught.value.kind == "credential_missing"
        assert world.connected == 2


async def test_a_missing_credential_says_how_to_add_it(tmp_path: Path) -> None:
    async with open_world(tmp_path, personal(**KEYED)) as world:
        tools, [problem] = await world.find_tools("ann")
        assert tools == set()
        assert problem == (
            "up needs a credential of 'ann', and none is stored. A person stores it where the "
            "server runs, with: mcpruntime-server credentials set up --principal ann"
        )
        world.give("ann", "secret-of-ann")
        assert (await world.find_tools("ann"))[0] >= {"whoami", "tell"}
        assert "whoami" in await shim_of(world, "ann")


async def shim_of(world: World, principal: str) -> str:
    shim = await world.act(principal, partial(world.catalog.load_shim, "up"))
    return str(shim.decode()["source"])


async def test_who_sees_other_tools_has_them_alone(tmp_path: Path) -> None:
    async with open_world(tmp_path, personal(**KEYED)) as world:
        world.give("ann", "admin-secret-of-ann")
        world.give("bob", "secret-of-bob")
        assert "rule" in (await world.find_tools("ann"))[0]
        assert "rule" in (await world.find_tools("ann", "rule"))[0]
        assert "rule" not in (await world.find_tools("bob"))[0]
        assert (await world.find_tools("bob", "rule"))[0] == set()
        assert "def rule" in await shim_of(world, "ann")
        assert "def rule" not in await shim_of(world, "bob")
        assert await world.call("ann", "rule", "x") == {"ruled": "x"}
        with pytest.raises(CallFailed, match="has no tool 'rule'"):
            await world.call("bob", "rule")
        effects = {
            name: await world.act(name, partial(effect_of, world, "rule"))
            for name in ("ann", "bob", "eve")
        }
        assert effects == {"ann": "read", "bob": "write", "eve": "write"}
    files = {path.name for path in (tmp_path / "shims").iterdir()}
    assert not any(name.startswith("up.") for name in files)
    async with open_world(tmp_path, personal(**KEYED)) as world:  # from what is stored
        assert "rule" in (await world.find_tools("ann"))[0]
        assert "rule" not in (await world.find_tools("bob"))[0]
        assert world.connected == 0


async def test_more_principals_search_at_once_than_have_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpruntime_server.capabilities.tools.view_index.MAX_INDEXES", 2)
    names = [f"user{number}" for number in range(6)]
    found: dict[str, set[str]] = {}
    async with open_world(tmp_path, personal(**KEYED)) as world:

        async def search(name: str) -> None:
            for _ in range(5):
                found[name] = (await world.find_tools(name, "rule whoami"))[0]

        for number, name in enumerate(names):
            world.give(name, f"{'admin' if number % 2 else 'plain'}-secret-{number}")
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(search, name)
    assert [("rule" in found[name]) for name in names] == [False, True] * 3


async def effect_of(world: World, tool: str) -> str:
    return world.catalog.effect(f"tools.up.{tool}")


async def test_a_changed_credential_connects_again(tmp_path: Path) -> None:
    changed: list[tuple[str, str | None]] = []
    settings = personal(**KEYED)
    async with open_world(tmp_path, settings, lambda *each: changed.append(each)) as world:
        world.give("ann", "secret-of-ann")
        world.give("bob", "secret-of-bob")
        first, bob = await world.call("ann"), await world.call("bob")
        world.give("ann", "admin-secret-2")
        second = await world.call("ann")
        assert second["digest"] == digest("admin-secret-2")
        assert second["pid"] != first["pid"]
        assert await world.call("bob") == bob
        assert set(changed) == {("up", "ann")}
        assert await world.call("ann", "rule") == {"ruled": ""}
        await wait_until(lambda: world.connected == 2)


async def test_a_removed_credential_ends_the_connection_though_nobody_calls(tmp_path: Path) -> None:
    async with open_world(tmp_path, personal(**KEYED)) as world:
        world.give("ann", "secret-of-ann")
        pid = (await world.call("ann"))["pid"]
        world.store.remove_credentials("up", "ann")
        await wait_until(lambda: not is_alive(pid) and world.connected == 0)
        with pytest.raises(CallFailed) as caught:
            await world.call("ann")
        assert caught.value.kind == "credential_missing"


async def test_a_changed_credential_ends_what_the_one_before_is_doing(tmp_path: Path) -> None:
    async with open_world(tmp_path, personal(**KEYED)) as world:
        world.give("ann", "secret-of-ann")
        await world.call("ann")
        errors: list[CallFailed] = []

        async def wait() -> None:
            try:
                await world.call("ann", "wait", str(tmp_path / "never"))
            except CallFailed as exc:
                errors.append(exc)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await wait_until(lambda: world.upstreams.peek("ann").idle_s == 0)
            world.give("ann", "secret-of-ann-2")
        [error] = errors
        assert error.kind == "unavailable"
        assert "check before you repeat a write" in str(error)
        assert (await world.call("ann"))["digest"] == digest("secret-of-ann-2")


async def test_a_wrong_key_is_an_error_with_a_code(tmp_path: Path) -> None:
    async with open_world(tmp_path, personal(**KEYED)) as world:
        world.give("ann", "secret-of-ann")
        key = (tmp_path / "key").read_text()
        (tmp_path / "key").write_text(create_key())
        for _ in range(2):
            with pytest.raises(CallFailed, match="the key is another one") as caught:
                await world.call("ann")
            assert caught.value.kind == "credential_unusable"
            assert "secret-of-ann" not in str(caught.value)
        (tmp_path / "key").write_text(key)
        assert (await world.call("ann"))["digest"] == digest("secret-of-ann")


async def test_several_credentials_all_have_to_be_there(tmp_path: Path) -> None:
    settings = personal(
        **own_server_entry(
            "keyed", "--user=${credential:user}", env={"TOKEN": "x:${credential:key}"}
        )
    )
    async with open_world(tmp_path, settings) as world:
        world.give("ann", "secret-key", "key")
        with pytest.raises(CallFailed, match=r"'ann' \(user\)") as caught:
            await world.call("ann")
        assert caught.value.remedy.endswith("set up --principal ann --name user")
        world.give("ann", "somebody", "user")
        assert (await world.call("ann"))["digest"] == digest("x:secret-key")
        told = await world.call("ann", "tell")
        assert told["args"] == ["--user=***"]


ISSUER = "https://issuer.example/#"
HOSTILE_NAMES = [
    "Ann",
    "ann",
    "ann@example.org",
    "up",
    f"{ISSUER}../../../../etc/passwd",
    f"{ISSUER}-rf",
    f"{ISSUER}ann",
    f"{ISSUER}Ann",
    f"{ISSUER}{'a' * 300}",
    f"{ISSUER}$(touch)",
    f"{ISSUER}${{credential}}",
    f"{ISSUER}a|b#c",
]


async def test_names_of_principals_cannot_be_mixed_up(tmp_path: Path) -> None:
    async with open_world(tmp_path, personal(**KEYED), max_connections=20) as world:
        for number, name in enumerate(HOSTILE_NAMES):
            world.give(name, f"secret-{number}")
        for number, name in enumerate(HOSTILE_NAMES):
            assert (await world.call(name))["digest"] == digest(f"secret-{number}")
            await shim_of(world, name)
    logs = list_files(tmp_path / "logs")
    assert len({path.name.casefold() for path in logs}) == len(HOSTILE_NAMES)
    shims = {path.name for path in (tmp_path / "shims").glob("*.py")}
    assert len(shims) == len(HOSTILE_NAMES)
    assert set(os.listdir(tmp_path)) == {"data", "catalogues", "logs", "shims", "key"}


# how many -----------------------------------------------------------------------------------------


async def test_idle_connections_end_and_start_again(tmp_path: Path) -> None:
    async with open_world(tmp_path, personal(**KEYED), idle_s=0.1) as world:
        world.give("ann", "secret-of-ann")
        first = await world.call("ann")
        await wait_until(lambda: world.connected == 0)
        assert not is_alive(first["pid"])
        second = await world.call("ann")
        assert second["digest"] == first["digest"]
        assert second["pid"] != first["pid"]


async def test_many_principals_have_few_processes_at_once(tmp_path: Path) -> None:
    entry = own_server_entry("keyed", "${credential}", timeout_s=SOON)
    most = 0
    async with open_world(tmp_path, personal(**entry), max_connections=3) as world:
        names = [f"user{number}" for number in range(PRINCIPALS)]
        for name in names:
            world.give(name, f"secret-of-{name}")
        answers: dict[str, Any] = {}

        async def ask(name: str) -> None:
            nonlocal most
            answers[name] = (await world.call(name))["digest"]
            most = max(most, world.connected)

        slots = anyio.Semaphore(5)

        async def ask_in_turn(name: str) -> None:
            async with slots:
                await ask(name)

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(ask_in_turn, name)
    assert answers == {name: digest(f"secret-of-{name}") for name in names}
    assert 1 <= most <= 3


async def test_where_all_connections_are_used_one_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mcpruntime_server.capabilities.tools.principal_upstreams.SLOT_TIMEOUT_S", 0.2
    )
    async with open_world(tmp_path, personal(**KEYED), max_connections=1) as world:
        world.give("ann", "secret-of-ann")
        world.give("bob", "secret-of-bob")
        await world.call("ann")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.call, "ann", "wait", str(tmp_path / "done"))
            await wait_until(lambda: world.upstreams.peek("ann").idle_s == 0)
            with pytest.raises(CallFailed, match="All 1 connections of principals") as caught:
                await world.call("bob")
            assert caught.value.kind == "unavailable"
            (tmp_path / "done").touch()
        assert (await world.call("bob"))["digest"] == digest("secret-of-bob")
        assert world.connected == 1


# what is kept out of sight ------------------------------------------------------------------------

SECRETS = [
    "secret-of-ann",
    "simple",
    "12345678",
    "two\nlines of a key\n",
    "\u00e9t\u00e9 \U0001f511 'quoted' \"twice\" \\ <b>&amp;",
    json.dumps({"client_secret": "c1ient-s3cret", "port": 80}),
    "x" * 8_192,
]


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
async def test_a_credential_comes_back_in_no_answer_and_no_log(tmp_path: Path, secret: str) -> None:
    settings = personal(
        **own_server_entry("leaky", "--key", "${credential}", env={"TOKEN": "Bearer ${credential}"})
    )
    told: list[str] = []
    async with open_world(tmp_path, settings) as world:
        world.give("ann", secret)
        for how in ("text", "structured", "error", "JSON", "pieces", "stderr", "no JSON", "death"):
            try:
                answer = await world.act(
                    "ann", partial(world.catalog.call_tool, "tools.up.tell", {"how": how})
                )
            except CallFailed as exc:
                answer = [str(exc), exc.data]
            told.append(json.dumps(answer, ensure_ascii=False))
        told.append(json.dumps(await world.act("ann", world.catalog.list_tools)))
        told.append(await shim_of(world, "ann"))
    [log] = list_files(tmp_path / "logs")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    told += [path.read_text(errors="surrogateescape") for path in list_files(tmp_path)]
    assert len(told) > 12
    whole = "\n".join(told)
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    forms |= {line for line in secret.splitlines() if len(line) > 5}
    assert [form for form in forms if form in whole] == []
    assert "c1ient-s3cret" not in whole


@pytest.mark.parametrize("secret", ["secret-of-ann", "12345678", "two\nlines of a key\n"])
async def test_a_credential_comes_back_in_no_large_answer(tmp_path: Path, secret: str) -> None:
    async with open_world(tmp_path, personal(**KEYED)) as world:
        world.give("ann", secret)
        answer = await world.call("ann", "tell", "3000")
        data = answer.decode() if isinstance(answer, EncodedJson) else answer
        text = json.dumps(data)
    assert len(text) > 500_000
    assert "***" in text
    assert json.dumps(secret)[1:-1] not in text


async def test_a_credential_in_a_header_and_in_an_address(tmp_path: Path, web_address: str) -> None:
    settings = personal(
        url=f"{web_address}/${{credential:place}}/mcp?q=${{credential:query}}",
        headers={"X-Key": "${credential}"},
    )
    async with open_world(tmp_path, settings) as world:
        world.give("ann", "secret of ann")
        world.give("ann", "../a/b?c#d", "place")
        world.give("ann", "x&y=\u00e9&q=2", "query")
        assert (await world.call("ann"))["digest"] == digest("secret of ann")
        told = await world.call("ann", "tell")
    assert told["path"] == "/***/mcp?q=***"
    assert told["headers"]["X-Key"] == "***"


@pytest.mark.parametrize("place", ["broken", "elsewhere", "closed"])
async def test_a_failure_to_connect_repeats_no_credential(
    tmp_path: Path, web_address: str, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    address = "http://127.0.0.1:9" if place == "closed" else web_address
    settings = personal(
        url=f"{address}/{place}/${{credential}}/mcp", headers={"X-Key": "${credential}"}
    )
    async with open_world(tmp_path, settings) as world:
        world.give("ann", "secret-of-ann/1")
        with pytest.raises(CallFailed) as caught:
            await world.call("ann")
        problems = (await world.find_tools("ann"))[1]
    logged = [each.getMessage() for each in caplog.records if each.levelname != "INFO"]
    logged += [str(each.exc_info) for each in caplog.records]
    for text in (str(caught.value), caplog.handler.stream.getvalue(), *problems, *logged):
        assert "secret-of-ann" not in text


async def test_a_principal_cannot_direct_a_request_elsewhere(
    tmp_path: Path, web_address: str
) -> None:
    settings = personal(url=f"{web_address}/${{credential}}/mcp", headers={"X-Key": "none"})
    async with open_world(tmp_path, settings) as world:
        world.give("ann", "......")
        with pytest.raises(CallFailed, match="dots alone") as caught:
            await world.call("ann")
        assert caught.value.kind == "credential_unusable"


@pytest.mark.parametrize("secret", ["a\r\nX-Other: 1", "caf\u00e9-cr\u00e8me", "nul\0nul", "short"])
async def test_what_a_header_cannot_hold_is_not_sent(
    tmp_path: Path, web_address: str, secret: str
) -> None:
    settings = personal(url=f"{web_address}/mcp", headers={"X-Key": "${credential}"})
    async with open_world(tmp_path, settings) as world:
        world.give("ann", secret)
        with pytest.raises(CallFailed) as caught:
            await world.call("ann")
    assert caught.value.kind == "credential_unusable"
    assert secret not in str(caught.value)


async def test_a_credential_of_too_many_parts_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path, personal(**KEYED)) as world:
        world.give("ann", "\n".join(f"line-{number}-of-key" for number in range(200)))
        with pytest.raises(CallFailed, match="more than 150 lines or values") as caught:
            await world.call("ann")
        assert caught.value.kind == "credential_unusable"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"command": "x"}, "needs a place"),
        ({"command": "x", "env": {"A": "$${credential}"}}, "needs a place"),
        ({"url": "https://${credential}.example.org/mcp"}, "part of the host"),
        ({"url": "https://${credential}@example.org/mcp"}, "part of the host"),
    ],
)
def test_a_credential_has_a_place_and_not_in_the_host(entry: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        personal(**entry)


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "${credential}", "credentials": "per-principal"},
        {"command": "x", "args": ["${credential}"]},
        {"command": "x", "args": ["${credential:a b}"], "credentials": "per-principal"},
        {"command": "x", "args": ["\0default\0"], "credentials": "per-principal"},
    ],
)
def test_a_credential_elsewhere_is_reported(entry: dict[str, Any]) -> None:
    found: list[str] = []
    interpolate_upstream("up", entry, {}, lambda key, text: found.append(text))
    assert len(found) == 1


def test_no_text_of_a_variable_is_a_place_for_a_credential() -> None:
    named = {"command": "x", "args": ["${env:credential}"]}
    filled = interpolate_upstream("up", named, {"credential": "v"}, lambda *_: None)
    assert filled["args"] == ["v"]
    own = {"command": "x", "args": ["${A}"], "credentials": "per-principal"}
    filled = interpolate_upstream("up", own, {"A": "${credential}"}, lambda *_: None)
    assert filled["args"] == ["${credential}"]


def test_settings_never_show_credentials() -> None:
    filled = personal(**KEYED).fill_placeholders({"default": "secret-of-ann"})
    assert "secret-of-ann" not in repr(filled)
    assert filled.env["TOKEN"] == SecretText("secret-of-ann")
