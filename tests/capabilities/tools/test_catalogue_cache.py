"""Stored tool lists: what is kept, what is ignored, and what a restart does with them."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.tools.catalog import Catalog, open_catalog
from mcpruntime_server.capabilities.tools.catalog_servers import ReportChange
from mcpruntime_server.capabilities.tools.catalogue_cache import (
    MAX_ENTRIES,
    MAX_ENTRY_AGE_S,
    MAX_ENTRY_BYTES,
    MAX_TOOLS,
    Catalogue,
    CatalogueCache,
    catalogue_key,
)
from mcpruntime_server.capabilities.tools.listed_tools import ListedTool, list_tool, parse_tool
from mcpruntime_server.capabilities.tools.upstream import open_upstreams
from mcpruntime_server.config import UpstreamSettings
from mcpruntime_server.errors import CallFailed
from mcpruntime_server.journal.call_scope import CallScope, enter_call_scope
from tests.upstreams import own_server

SLOW_SERVERS = ("billing", "calendar", "mail")
QUICK_SERVERS = ("lively", "hinted", "old", "paced")


def tool(name: str = "look", **more: Any) -> ListedTool:
    schema = {"type": "object", "properties": {"x": {"type": "integer", "default": None}}}
    return list_tool(parse_tool({"name": name, "inputSchema": schema, **more}))


def catalogue(*tools: ListedTool) -> Catalogue:
    return Catalogue(tools or (tool(),), "1.2", 1_700_000_000.0)


def settings(**entry: Any) -> UpstreamSettings:
    return UpstreamSettings.from_mapping({"command": "x", **entry})


@pytest.fixture
def cache(tmp_path: Path) -> CatalogueCache:
    return CatalogueCache(tmp_path / "catalogues")


class TestEntries:
    def test_what_is_stored_is_read_back_as_it_was(self, cache: CatalogueCache) -> None:
        hints = {"readOnlyHint": True, "title": None}
        stored = catalogue(tool(annotations=hints, _meta={"a": None}), tool("other", title="T"))
        cache.save("key", stored)
        assert cache.load("key") == stored
        assert cache.load("another") is None

    def test_only_the_owner_can_read_an_entry(self, cache: CatalogueCache, tmp_path: Path) -> None:
        cache.save("key", catalogue())
        folder = tmp_path / "catalogues"
        [file] = folder.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "null",
            "[" * 100_000,
            '{"format": 1}',
            '{"format": 2, "key": "key", "version": "", "tools": []}',
            '{"format": 1, "key": "other", "version": "", "tools": []}',
            '{"format": 1, "key": "key", "version": 3, "tools": []}',
            '{"format": 1, "key": "key", "version": "", "tools": {}}',
            '{"format": 1, "key": "key", "version": "", "tools": ["tool"]}',
            '{"format": 1, "key": "key", "version": "", "tools": [{"name": 7}]}',
            " " * (MAX_ENTRY_BYTES + 1),
            "\x00\ud800",
        ],
    )
    def test_an_unusable_entry_is_logged_and_ignored(
        self, cache: CatalogueCache, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache.save("key", catalogue())
        (tmp_path / "catalogues" / "key.json").write_bytes(text.encode(errors="surrogatepass"))
        with caplog.at_level(logging.WARNING):
            assert cache.load("key") is None
        assert "ignored the stored tool list" in caplog.text
        cache.save("key", catalogue())
        assert cache.load("key") == catalogue()

    def test_too_many_tools_or_two_of_one_name_are_ignored(
        self, cache: CatalogueCache, tmp_path: Path
    ) -> None:
        many = [tool(f"t{number}") for number in range(MAX_TOOLS + 1)]
        for tools in (many, [tool(), tool()]):
            cache.save("key", catalogue(*tools))
            assert (tmp_path / "catalogues" / "key.json").exists()
            assert cache.load("key") is None

    def test_what_is_too_long_is_not_stored(self, cache: CatalogueCache) -> None:
        cache.save("key", catalogue(tool(description="x" * MAX_ENTRY_BYTES)))
        assert cache.load("key") is None

    def test_a_link_or_a_pipe_in_place_of_an_entry_is_not_read(
        self, cache: CatalogueCache, tmp_path: Path
    ) -> None:
        cache.save("key", catalogue())
        folder = tmp_path / "catalogues"
        (folder / "linked.json").symlink_to(folder / "key.json")
        os.mkfifo(folder / "pipe.json")
        assert (cache.load("linked"), cache.load("pipe")) == (None, None)

    def test_a_folder_that_cannot_be_used_costs_only_the_cache(self, tmp_path: Path) -> None:
        (tmp_path / "catalogues").write_text("in the way")
        cache = CatalogueCache(tmp_path / "catalogues")
        cache.save("key", catalogue())
        cache.remove_stale()
        assert cache.load("key") is None

    def test_entries_of_upstreams_that_nobody_uses_are_removed(
        self, cache: CatalogueCache, tmp_path: Path
    ) -> None:
        now = time.time()
        for number in range(MAX_ENTRIES + 3):
            cache.save(f"new{number}", Catalogue((tool(),), "", now - number))
        cache.save("old", Catalogue((tool(),), "", now - MAX_ENTRY_AGE_S - 60))
        cache.remove_stale()
        left = {path.stem for path in (tmp_path / "catalogues").iterdir()}
        assert left == {f"new{number}" for number in range(MAX_ENTRIES)}


class TestKeys:
    def test_another_command_argument_folder_or_variable_is_another_upstream(self) -> None:
        entries: list[dict[str, Any]] = [
            {},
            {"command": "y"},
            {"args": ["a"]},
            {"args": ["a", "b"]},
            {"args": ["a b"]},
            {"cwd": "/a"},
            {"env": {"MODE": "a"}},
            {"command": None, "url": "http://a"},
        ]
        here = Path("/here")
        keys = [catalogue_key("x", settings(**entry), here) for entry in entries]
        keys += [
            catalogue_key("y", settings(), here),
            catalogue_key("x", settings(), Path("/elsewhere")),
        ]
        assert len(set(keys)) == len(keys)
        assert catalogue_key("x", settings(timeout_s=3), here) == keys[0]

    def test_the_value_of_a_credential_is_no_part_of_the_key(self) -> None:
        def keys(value: str) -> list[str]:
            entries: list[dict[str, Any]] = [
                {"env": {"TOKEN": value, "MODE": "a"}},
                {"args": ["--token", value]},
                {"args": [f"--api-key={value}"]},
                {"args": [f"postgres://user:{value}@host/db"]},
                {"command": None, "url": f"http://h/?token={value}"},
                {"command": None, "url": "http://h", "headers": {"X": value}},
            ]
            return [catalogue_key("x", settings(**entry), Path()) for entry in entries]

        assert keys("hunter2hunter2") == keys("another-secret")


@asynccontextmanager
async def open_stored(
    folder: Path, on_change: ReportChange = lambda *_: None, /, **servers: UpstreamSettings
) -> AsyncIterator[Catalog]:
    """Open the catalogue of `servers` as a server process does, without the early start."""
    cache = CatalogueCache(folder / "catalogues")
    async with (
        open_upstreams(servers, folder, folder / "logs", cache) as upstreams,
        open_catalog(upstreams, folder / "shims", on_change) as catalog,
    ):
        with anyio.fail_after(120):
            yield catalog


def gated(folder: Path, name: str, **more: Any) -> UpstreamSettings:
    """Return a server that answers only while the file `open` exists, and logs its start."""
    return own_server("raw", "gated", str(folder / "open"), str(folder / f"{name}.started"), **more)


def missing() -> UpstreamSettings:
    return UpstreamSettings.from_mapping({"command": "no-such-command"})


def named(answer: Any) -> set[str]:
    return {f"{tool['server']}.{tool['tool']}" for tool in answer["tools"]}


async def wait_for_file(path: anyio.Path) -> None:
    while not await path.exists():  # noqa: ASYNC110 - another process creates it
        await anyio.sleep(0.01)


class TestRestart:
    async def test_nothing_waits_for_a_slow_server_but_a_call_of_it(self, tmp_path: Path) -> None:
        quick = {name: own_server(name) for name in ("lively", "hinted")}
        quick |= {"old": own_server("raw", "fine"), "paced": own_server("paced", "notes")}
        slow = {name: gated(tmp_path, name) for name in SLOW_SERVERS}
        gate, events = tmp_path / "open", list[str]()
        gate.touch()
        async with open_stored(tmp_path, **quick, **slow) as catalog:
            before = await catalog.list_live_tools()
            assert {tool["server"] for tool in before["tools"]} == {*QUICK_SERVERS, *SLOW_SERVERS}
            sources = {name: await catalog.load_shim(name) for name in quick | slow}

        for path in (gate, *(tmp_path / f"{name}.started" for name in SLOW_SERVERS)):
            path.unlink()

        async def call(target: str, arguments: dict[str, Any]) -> None:
            await catalog.call_tool(target, arguments)
            events.append(target)

        async with (
            open_stored(tmp_path, **quick, **slow) as catalog,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(catalog.refresh)
            assert await catalog.list_tools() == before
            assert "old.grow" in named(await catalog.search_tools("grow"))
            assert {name: await catalog.load_shim(name) for name in sources} == sources
            events.append("found and imported")
            for name in SLOW_SERVERS:
                tasks.start_soon(call, f"tools.{name}.grow", {})
                await wait_for_file(anyio.Path(tmp_path / f"{name}.started"))
            await call("tools.lively.echo", {"text": "a"})
            assert catalog.upstreams["billing"].status.state == "connecting"
            gate.touch()
        assert events[:2] == ["found and imported", "tools.lively.echo"]
        assert set(events[2:]) == {f"tools.{name}.grow" for name in SLOW_SERVERS}

    async def test_a_search_waits_once_for_a_server_that_was_never_listed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "mcpruntime_server.capabilities.tools.server_views.START_TIMEOUT_S", 0.5
        )
        servers = {"lively": own_server("lively"), "mail": gated(tmp_path, "mail")}
        async with open_stored(tmp_path, **servers) as catalog:
            await catalog.load_shim("lively")
            found = await catalog.search_tools("echo")
            assert found["problems"] == ["mail is still starting. Try again in a moment."]
            assert catalog.upstreams["mail"].connecting_s > 0
            assert named(await catalog.search_tools("echo")) >= {"lively.echo"}
            (tmp_path / "open").touch()
            await catalog.load_shim("mail")
            assert (await catalog.search_tools("grow"))["problems"] == []

    async def test_a_server_that_hangs_longer_than_searches_wait_is_still_listed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "open").touch()
        async with open_stored(tmp_path, mail=gated(tmp_path, "mail")) as catalog:
            await catalog.list_live_tools()
        (tmp_path / "open").unlink()
        monkeypatch.setattr(
            "mcpruntime_server.capabilities.tools.server_views.START_TIMEOUT_S", 0.0
        )
        async with open_stored(tmp_path, mail=gated(tmp_path, "mail")) as catalog:
            listing = await catalog.list_live_tools()
            assert listing["problems"] == ["mail is still starting. Try again in a moment."]
            assert named(await catalog.search_tools("grow")) == {"mail.grow"}
            assert (await catalog.list_tools())["problems"] == []

    async def test_a_broken_server_is_listed_and_a_call_of_it_says_why(
        self, tmp_path: Path
    ) -> None:
        good = own_server("raw", "fine")
        async with open_stored(tmp_path, old=good, lively=own_server("lively")) as catalog:
            await catalog.list_live_tools()
        cache = CatalogueCache(tmp_path / "catalogues")
        stored = cache.load(catalogue_key("old", good, tmp_path))
        assert stored is not None
        cache.save(catalogue_key("old", missing(), tmp_path), stored)
        async with open_stored(tmp_path, old=missing(), lively=own_server("lively")) as catalog:
            assert named(await catalog.list_live_tools()) >= {"old.grow", "lively.echo"}
            assert b"def grow" in (await catalog.load_shim("old")).data
            with pytest.raises(CallFailed, match="'no-such-command': No such file") as caught:
                await catalog.call_tool("tools.old.grow", {})
            assert caught.value.kind == "unavailable"
            for answer in (await catalog.search_tools("grow"), await catalog.list_live_tools()):
                assert "old.grow" in named(answer)
                [problem] = answer["problems"]
                assert "The upstream old cannot be reached: 'no-such-command'" in problem
                assert problem.endswith("UTC; calls fail.")
            assert catalog.effect("tools.old.grow") == "write"
            report = next(each for each in await catalog.examine_upstreams() if each.error)
            assert "calls fail" in report.error

    async def test_a_session_is_told_once_about_a_broken_server(self, tmp_path: Path) -> None:
        async with open_stored(tmp_path, lost=missing(), lively=own_server("lively")) as catalog:

            async def problems_of(session: str, query: str) -> list[str]:
                found: list[list[str]] = []

                async def ask() -> None:
                    scope = CallScope(
                        session, "r_1", "local", not_used, not_used, not_used, not_used
                    )
                    enter_call_scope(scope)
                    found.append((await catalog.search_tools(query))["problems"])

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask)
                return found[0]

            not_used = partial(pytest.fail, "not asked for")
            assert len(await problems_of("s_1", "echo")) == 1
            assert await problems_of("s_1", "echo") == []
            assert len(await problems_of("s_2", "echo")) == 1
            assert len(await problems_of("s_1", "xylophone")) == 1
            await catalog.list_tools("lively")
            assert await problems_of("s_1", "echo") == []

    async def test_a_list_that_has_changed_since_is_reported_and_replaces_the_stored_one(
        self, tmp_path: Path
    ) -> None:
        changed: list[str] = []
        server = own_server("lively")
        async with open_stored(
            tmp_path, lambda name, _: changed.append(name), lively=server
        ) as catalog:
            before = await catalog.load_shim("lively")
        CatalogueCache(tmp_path / "catalogues").save(
            catalogue_key("lively", server, tmp_path), catalogue()
        )
        async with open_stored(
            tmp_path, lambda name, _: changed.append(name), lively=server
        ) as catalog:
            assert b"def look" in (await catalog.load_shim("lively")).data
            assert catalog.effect("tools.lively.look") == "write"
            assert await catalog.call_tool("tools.lively.echo", {"text": "a"}) == "a"
            assert changed == ["lively"]
            assert await catalog.load_shim("lively") == before
            with pytest.raises(CallFailed, match="has no tool 'look'"):
                await catalog.call_tool("tools.lively.look", {})
        async with open_stored(
            tmp_path, lambda name, _: changed.append(name), lively=server
        ) as catalog:
            assert await catalog.load_shim("lively") == before
        assert changed == ["lively"]

    async def test_what_a_call_may_do_never_follows_from_a_stored_list(
        self, tmp_path: Path
    ) -> None:
        server = own_server("hinted")
        claims = tool("destroys", annotations={"readOnlyHint": True, "openWorldHint": False})
        CatalogueCache(tmp_path / "catalogues").save(
            catalogue_key("hinted", server, tmp_path), catalogue(claims)
        )
        target = "tools.hinted.destroys"
        async with open_stored(tmp_path, hinted=server) as catalog:
            assert (await catalog.list_tools())["tools"][0]["effect"] == "read"
            assert (catalog.effect(target), catalog.is_open_world(target)) == ("write", True)
            await catalog.prepare_call(target)
            assert (catalog.effect(target), catalog.is_destructive(target)) == ("write", True)

    async def test_a_name_that_the_stored_list_lacks_is_looked_up_at_the_upstream(
        self, tmp_path: Path
    ) -> None:
        server = own_server("lively")
        CatalogueCache(tmp_path / "catalogues").save(
            catalogue_key("lively", server, tmp_path), catalogue()
        )
        async with open_stored(tmp_path, lively=server) as catalog:
            assert b"def echo" not in (await catalog.load_shim("lively")).data
            assert b"def echo" in (await catalog.load_shim("lively", fresh=True)).data

    async def test_several_servers_share_a_folder(self, tmp_path: Path) -> None:
        servers = {"lively": own_server("lively"), "old": own_server("raw", "fine")}
        async with open_stored(tmp_path, **servers) as one, open_stored(tmp_path, **servers) as two:
            await one.list_live_tools()
            await two.list_live_tools()
        async with open_stored(tmp_path, **servers) as one, open_stored(tmp_path, **servers) as two:
            assert await one.list_tools() == await two.list_tools()
            assert one.upstreams["old"].status.state == "idle"


class TestCredentials:
    async def test_a_credential_in_a_tool_list_reaches_neither_code_nor_the_disk(
        self, tmp_path: Path
    ) -> None:
        server = own_server("raw", "telling", "--token", "hunter2hunter2")
        async with open_stored(tmp_path, old=server) as catalog:
            listed = await catalog.list_live_tools()
            source = (await catalog.load_shim("old")).decode()["source"]
        [entry] = (tmp_path / "catalogues").iterdir()
        for text in (json.dumps(listed), source, entry.read_text()):
            assert "hunter2hunter2" not in text
            assert "***" in text
