"""The catalogue over real upstreams: found, listed, imported, called."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.capabilities.tools.catalog import Catalog, open_catalog
from mcpruntime_server.capabilities.tools.catalog_servers import ReportChange
from mcpruntime_server.capabilities.tools.shim_generator import source_digest
from mcpruntime_server.capabilities.tools.upstream import open_upstreams
from mcpruntime_server.config import UpstreamSettings
from mcpruntime_server.errors import CallFailed
from tests.upstreams import own_server
from tests.upstreams.hinted import SAYS


@asynccontextmanager
async def catalogue(
    folder: Path, on_change: ReportChange = lambda *_: None, /, **settings: UpstreamSettings
) -> AsyncIterator[Catalog]:
    async with (
        open_upstreams(settings, folder, folder / "logs") as upstreams,
        open_catalog(upstreams, folder / "shims", on_change) as catalog,
    ):
        with anyio.fail_after(60):
            yield catalog


@pytest.fixture
async def lively(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with catalogue(tmp_path, lively=own_server("lively")) as catalog:
        yield catalog


def missing() -> UpstreamSettings:
    return UpstreamSettings.from_mapping({"command": "no-such-command"})


class TestNames:
    async def test_packages_are_named_without_starting_anything(self, tmp_path: Path) -> None:
        entries = {
            "my-server": missing(),
            "my.server": missing(),
            "search": missing(),
            "class": missing(),
        }
        async with catalogue(tmp_path, **entries) as catalog:
            assert catalog.package_names() == ["my_server", "my_server_2", "search_", "class_"]
            assert catalog.problems == (
                "the server 'my.server' is renamed to 'my_server_2', "
                "because others have the same name",
            )
            assert await catalog.handle_call("catalog.servers", {}) == catalog.package_names()

    async def test_effects_come_from_what_tools_say_of_themselves(self, lively: Catalog) -> None:
        assert lively.effect("tools.lively.echo") == "write"
        await lively.list_tools()
        effects = [
            lively.effect(f"tools.lively.{tool}")
            for tool in ("echo", "bug", "fail", "no_such_tool")
        ]
        assert effects == ["read", "idempotent", "write", "write"]
        assert [lively.effect(target) for target in ("", "tools", "tools.x", "tools.x.y.z")] == [
            "write"
        ] * 4

    async def test_what_destroys_and_what_strangers_write_come_from_what_tools_say_too(
        self, tmp_path: Path
    ) -> None:
        async with catalogue(tmp_path, hinted=own_server("hinted")) as catalog:
            await catalog.list_tools()
            targets = {name: f"tools.hinted.{name}" for name in SAYS}
            destructive = {
                name for name, target in targets.items() if catalog.is_destructive(target)
            }
            assert destructive == {"destroys", "destroys_again", "closed"}
            assert {
                name for name, target in targets.items() if not catalog.is_open_world(target)
            } == {"closed"}
            assert catalog.effect("tools.hinted.reads_and_destroys") == "read"

    async def test_what_is_not_known_may_hold_what_strangers_wrote(self, tmp_path: Path) -> None:
        async with catalogue(tmp_path, hinted=own_server("hinted"), lost=missing()) as catalog:
            closed, unknown = (
                "tools.hinted.closed",
                ["", "tools", "tools.x", "tools.x.y.z", "tools.lost.closed"],
            )
            assert (catalog.is_open_world(closed), catalog.is_destructive(closed)) == (True, False)
            for target in (closed, *unknown):
                await catalog.prepare_call(target)
            assert (catalog.is_open_world(closed), catalog.is_destructive(closed)) == (False, True)
            for target in (
                *unknown,
                "tools.hinted",
                "tools.hinted.no_such_tool",
                "tools.hinted.closed.x",
            ):
                assert (catalog.is_open_world(target), catalog.is_destructive(target)) == (
                    True,
                    False,
                ), target


class TestHeadStart:
    async def test_code_names_what_it_will_import_and_only_that_is_started(
        self, tmp_path: Path
    ) -> None:
        async with catalogue(tmp_path, lively=own_server("lively"), missing=missing()) as catalog:
            assert catalog.find_idle_packages("from tools.lively import echo") == ["lively"]
            assert catalog.find_idle_packages("livelyhood = 1") == []
            await catalog.start_upstreams(["lively"])
            assert catalog.find_idle_packages("tools.lively.echo, tools.missing") == ["missing"]

    async def test_an_upstream_that_cannot_start_is_reported_on_import(
        self, tmp_path: Path
    ) -> None:
        async with catalogue(tmp_path, missing=missing()) as catalog:
            await catalog.start_upstreams(["missing"])
            with pytest.raises(CallFailed, match="missing"):
                await catalog.handle_call("catalog.shim", {"server": "missing"})


class TestCalls:
    async def test_a_call_reaches_the_tool(self, lively: Catalog) -> None:
        assert await lively.call_tool("tools.lively.echo", {"text": "a", "times": 3}) == "aaa"

    @pytest.mark.parametrize(
        ("target", "args", "kind", "words"),
        [
            (
                "tools.livley.echo",
                {},
                "unknown_tool",
                "no MCP server 'livley'. Did you mean 'lively'? Servers:",
            ),
            (
                "tools.lively.ecko",
                {},
                "unknown_tool",
                "has no tool 'ecko'. Did you mean 'echo'? Tools: echo, bug",
            ),
            ("tools.lively.echo.more", {}, "unknown_tool", "has no tool 'echo.more'"),
            ("tools", {}, "unknown_tool", "no MCP server ''"),
            (
                "tools.lively.echo",
                {"txt": "a"},
                "invalid_arguments",
                "lively.echo has no parameter 'txt'. Did you mean 'text'? "
                "Parameters: text*, times (* = required).",
            ),
            ("tools.lively.echo", {"times": 1}, "invalid_arguments", "lively.echo needs 'text'."),
            (
                "tools.lively.echo",
                {"text": "a", "tmies": 2},
                "invalid_arguments",
                "lively.echo has no parameter 'tmies'. Did you mean 'times'?",
            ),
        ],
    )
    async def test_what_cannot_be_right_goes_no_further(
        self, lively: Catalog, target: str, args: dict[str, Any], kind: str, words: str
    ) -> None:
        with pytest.raises(CallFailed) as caught:
            await lively.call_tool(target, args)
        assert caught.value.kind == kind
        assert words in caught.value.message

    @pytest.mark.parametrize(
        ("target", "args"),
        [
            ("catalog.search", {"query": 3}),
            ("catalog.search", {"query": "x", "limit": "many"}),
            ("catalog.search", {"query": "x", "limit": True}),
            ("catalog.list", {"server": ["x"]}),
            ("catalog.shim", {"server": None}),
            ("catalog.nonsense", {}),
        ],
    )
    async def test_questions_that_make_no_sense_are_refused(
        self, lively: Catalog, target: str, args: dict[str, Any]
    ) -> None:
        with pytest.raises(CallFailed) as caught:
            await lively.handle_call(target, args)
        assert caught.value.kind in ("invalid_arguments", "unknown_tool")


class TestFinding:
    async def test_search_finds_and_a_failing_upstream_is_one_line_in_it(
        self, tmp_path: Path
    ) -> None:
        async with catalogue(
            tmp_path, lively=own_server("lively"), lost=missing(), old=own_server("raw", "fine")
        ) as catalog:
            found = await catalog.handle_call(
                "catalog.search", {"query": "return a bug by key", "limit": 3}
            )
            assert found["tools"][0] == {
                "server": "lively",
                "tool": "bug",
                "signature": "(key: str) -> {key: str, tags?: list[str], parent?: Bug | None} "
                "where Bug = {key: str, tags?: list[str], parent?: Bug | None}",
                "summary": "Return a bug by its key.",
                "effect": "idempotent",
            }
            assert len(found["tools"]) <= 3
            assert len(found["problems"]) == 1
            assert "lost cannot be reached" in found["problems"][0]
            listed = await catalog.handle_call("catalog.list", {})
            assert {tool["server"] for tool in listed["tools"]} == {"lively", "old"}
            assert [tool["tool"] for tool in (await catalog.list_tools("old"))["tools"]] == ["grow"]

    async def test_a_report_says_how_each_upstream_is(self, tmp_path: Path) -> None:
        async with catalogue(tmp_path, lively=own_server("lively"), lost=missing()) as catalog:
            good, bad = await catalog.examine_upstreams()
        assert (good.server, good.error, good.tools > 10) == ("lively", "", True)
        assert "'no-such-command': No such file" in bad.error
        assert "[mcpServers.lost]" in bad.remedy

    async def test_a_list_that_grows_is_loaded_again_and_reported(self, tmp_path: Path) -> None:
        reported = anyio.Event()
        changed: list[str] = []

        def on_change(server: str, principal: str | None) -> None:
            changed.append(server)
            reported.set()

        async with catalogue(tmp_path, on_change, lively=own_server("lively")) as catalog:
            before = await catalog.load_shim("lively")
            await catalog.call_tool("tools.lively.grow", {})
            await reported.wait()
            assert changed == ["lively"]
            assert await catalog.call_tool("tools.lively.grown", {}) == "grown"
            assert (await catalog.search_tools("grown"))["tools"][0]["tool"] == "grown"
            assert await catalog.load_shim("lively") != before


class TestShims:
    async def test_a_shim_is_given_with_its_digest_and_kept_on_disk(
        self, lively: Catalog, tmp_path: Path
    ) -> None:
        answer = await lively.handle_call("catalog.shim", {"server": "lively"})
        shim = answer.decode()
        assert shim["digest"] == source_digest(shim["source"])
        assert (tmp_path / "shims" / "lively.py").read_text() == shim["source"]
        assert (await lively.load_shim("lively")) == answer

    async def test_an_unknown_server_has_none(self, lively: Catalog) -> None:
        with pytest.raises(CallFailed, match="Did you mean 'lively'"):
            await lively.load_shim("livly")

    async def test_what_results_look_like_is_learned_and_shown(self, tmp_path: Path) -> None:
        async with catalogue(tmp_path, lively=own_server("lively")) as catalog:
            assert b"observed" not in (await catalog.load_shim("lively")).data
            await catalog.call_tool(
                "tools.lively.as_json", {"text": '{"id": 1, "owner": "somebody"}'}
            )
            shim = await catalog.load_shim("lively")
        shown = 'Returns (observed, not promised): {"id": int, "owner": str}'
        assert shown in shim.decode()["source"]
        async with catalogue(tmp_path, lively=own_server("lively")) as catalog:
            assert await catalog.load_shim("lively") == shim

    async def test_hostile_upstreams_are_listed_imported_and_called(self, tmp_path: Path) -> None:
        async with catalogue(tmp_path, hostile=own_server("hostile")) as catalog:
            listed = await catalog.list_tools()
            assert listed["problems"] == []
            names = [tool["tool"] for tool in listed["tools"]]
            assert len(names) == len(set(names)) > 30
            assert ast.parse((await catalog.load_shim("hostile")).decode()["source"])
            assert await catalog.call_tool("tools.hostile.getattr", {}) == "__getattr__"
            assert await catalog.call_tool("tools.hostile.import_os", {}) == "import os"
            assert (await catalog.examine_upstreams())[0].problems
