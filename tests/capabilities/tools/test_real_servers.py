"""Third-party servers: each of their tools, as sandboxed code sees and uses it."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal

from mcpruntime_server.capabilities.tools.catalog import Catalog, open_catalog
from mcpruntime_server.capabilities.tools.listed_tools import ListedTool
from mcpruntime_server.capabilities.tools.python_names import to_identifier
from mcpruntime_server.capabilities.tools.upstream import Upstream, open_upstreams
from mcpruntime_server.errors import CallFailed
from mcpruntime_server.journal.events import EncodedJson
from mcpruntime_server.sandboxed.library import tools
from tests.upstreams import REAL_SERVERS, own_server, real_server

TOOL_COUNTS = {"git": 12, "time": 2, "excel": 46, "filesystem": 14, "memory": 9, "everything": 13}
TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}


class Guest:
    """The host functions of the library, over a catalogue in the same process."""

    def __init__(self, catalog: Catalog, portal: BlockingPortal) -> None:
        self._catalog = catalog
        self._portal = portal

    async def acall(self, target: str, args: dict[str, Any]) -> Any:
        try:
            if target.startswith("tools."):
                return await self._catalog.call_tool(target, args)
            found = await self._catalog.handle_call(target, args)
            return found.decode() if isinstance(found, EncodedJson) else found
        except CallFailed as error:
            raise tools.HostError(error.kind, str(error), error.data) from None

    def call(self, target: str, args: dict[str, Any]) -> Any:
        return self._portal.call(self.acall, target, args)


@pytest.fixture(autouse=True)
def forget_tools() -> Iterator[None]:
    finders = list(sys.meta_path)
    yield
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name == "tools" or name.startswith("tools.")]:
        del sys.modules[name]


Code = Callable[[Callable[[], Any]], Awaitable[Any]]


@asynccontextmanager
async def sandboxed(folder: Path, *names: str) -> AsyncIterator[tuple[Code, dict[str, Upstream]]]:
    """Yield a function that runs code in a thread that can import `tools`, and the upstreams."""
    settings = {
        name: real_server(name, folder) if name in REAL_SERVERS else own_server(name)
        for name in names
    }
    async with (
        BlockingPortal() as portal,
        open_upstreams(settings, folder, folder / "logs") as upstreams,
        open_catalog(upstreams, folder / "shims") as catalog,
    ):
        inside = Guest(catalog, portal)
        tools.install_tools(inside.call, inside.acall)
        with anyio.fail_after(90):
            yield anyio.to_thread.run_sync, upstreams


def expected_default(schema: dict[str, Any]) -> Any:
    default = schema.get("default")
    return default if len(repr(default)) <= 80 else ...


@pytest.mark.parametrize("name", REAL_SERVERS)
async def test_every_tool_has_a_function_with_the_right_signature(
    name: str, tmp_path: Path
) -> None:
    async with sandboxed(tmp_path, name) as (run, upstreams):
        module = await run(lambda: importlib.import_module(f"tools.{name}"))
        tools = await upstreams[name].list_tools()
    assert len(module.__all__) == len(tools) >= TOOL_COUNTS[name]
    for tool, function_name in zip(map(ListedTool.parse, tools), module.__all__, strict=True):
        assert function_name == to_identifier(tool.name, "tool")
        function = getattr(module, function_name)
        signature = inspect.signature(function).parameters
        properties = tool.input_schema.get("properties", {})
        required = set(tool.input_schema.get("required", []))
        names = {wire: to_identifier(wire, "parameter") for wire in properties}
        shown = [
            name
            for name, parameter in signature.items()
            if parameter.kind is not parameter.VAR_KEYWORD
        ]
        assert shown == sorted(
            names.values(), key=lambda python: python not in {names[wire] for wire in required}
        )
        for wire, schema in properties.items():
            parameter = signature[names[wire]]
            assert (parameter.default is parameter.empty) == (wire in required)
            if wire not in required:
                assert parameter.default == expected_default(schema)
            if schema.get("type") in TYPES and "enum" not in schema:
                assert parameter.annotation.removesuffix(" | None") == TYPES[schema["type"]]
        assert (tool.description or tool.title or "").strip().splitlines()[0] in (
            function.__doc__ or ""
        )


@pytest.mark.parametrize("name", REAL_SERVERS)
async def test_every_tool_refuses_a_misspelled_parameter(name: str, tmp_path: Path) -> None:
    async with sandboxed(tmp_path, name) as (run, _):
        module = await run(lambda: importlib.import_module(f"tools.{name}"))
        for function_name in module.__all__:
            function = getattr(module, function_name)
            parameters = inspect.signature(function).parameters.values()
            named = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
            longest = max(named, key=len, default="")
            if len(longest) < 4:
                continue  # no misspelling of so short a name is unmistakable
            with pytest.raises(
                TypeError,
                match=rf"{name}\.{function_name} has no parameter '{longest}x'\. Did you mean '",
            ):
                function(**{f"{longest}x": 1})


async def test_git_answers_in_a_loop_and_refuses_a_folder_without_a_repository(
    tmp_path: Path,
) -> None:
    repository = tmp_path / "repository"
    commit = [
        "git",
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@b.c",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
    ]
    await anyio.run_process(["git", "init", "-q", str(repository)])
    for number in range(3):
        await anyio.run_process([*commit, f"change {number}"], cwd=repository)

    def code() -> Any:
        tools = importlib.import_module("tools")
        log = tools.git.git_log(repository, max_count=2)
        with pytest.raises(tools.ToolError) as caught:
            tools.git.git_log(tmp_path)
        return log, caught.value

    async with sandboxed(tmp_path, "git") as (run, _):
        log, error = await run(code)
    assert "change 2" in log
    assert "change 0" not in log
    assert (error.tool, error.kind) == ("git.git_log", "tool_error")


async def test_results_read_as_objects_and_batches_have_a_slot_each(tmp_path: Path) -> None:
    def code() -> Any:
        tools = importlib.import_module("tools")
        zones = ["Europe/Oslo", "Nowhere/Land", "UTC"]
        return tools.map(tools.time.get_current_time, zones), tools.search("convert time zone")

    async with sandboxed(tmp_path, "time") as (run, _):
        slots, found = await run(code)
    assert [slot.ok for slot in slots] == [True, False, True]
    assert slots[0].value.timezone == "Europe/Oslo"
    assert "Nowhere/Land" in str(slots[1].error)
    assert found[0].name == "time.convert_time"


async def test_files_and_entities_are_written_and_read_by_servers_on_node(tmp_path: Path) -> None:
    def code() -> Any:
        tools = importlib.import_module("tools")
        tools.filesystem.write_file(path=str(tmp_path / "a.txt"), content="hello")
        tools.memory.create_entities(
            [{"name": "A", "entityType": "thing", "observations": ["is here"]}]
        )
        return tools.filesystem.read_text_file(str(tmp_path / "a.txt")), tools.memory.read_graph()

    async with sandboxed(tmp_path, "filesystem", "memory") as (run, _):
        text, graph = await run(code)
    assert text.content == "hello"
    assert graph.entities[0].observations == ["is here"]


async def test_threads_and_asyncio_can_call_at_the_same_time(tmp_path: Path) -> None:
    async with sandboxed(tmp_path, "lively") as (run, _):
        lively = await run(lambda: importlib.import_module("tools.lively"))
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(lively.meet.aio, 6)
            slots = await run(lambda: importlib.import_module("tools").map(lively.meet, [6] * 3))
    assert [slot.value for slot in slots] == ["met"] * 3


async def test_a_tool_that_a_server_has_just_got_is_there_at_once(tmp_path: Path) -> None:
    def code() -> Any:
        lively = importlib.import_module("tools.lively")
        lively.grow()
        return lively.grown()

    async with sandboxed(tmp_path, "lively") as (run, _):
        assert await run(code) == "grown"


async def test_a_hostile_server_is_imported_and_runs_nothing(tmp_path: Path) -> None:
    async with sandboxed(tmp_path, "hostile") as (run, _):
        module = await run(lambda: importlib.import_module("tools.hostile"))
        assert await run(module.import_os) == "import os"
        assert await run(module.class_) == "class"
        assert isinstance(await run(lambda: repr(importlib.import_module("tools").list())), str)
    assert "os" not in vars(module)


@pytest.mark.parametrize("name", REAL_SERVERS)
async def test_a_shim_imports_where_there_is_nothing_but_the_guest(
    name: str, tmp_path: Path
) -> None:
    async with sandboxed(tmp_path, name) as (run, _):
        await run(lambda: importlib.import_module(f"tools.{name}"))
    package = Path(tools.__file__).parents[2]
    (tmp_path / "mcpruntime_sandbox").symlink_to(package)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from mcpruntime_sandbox.sandboxed.library import tools as library\n"
        "source = open(sys.argv[2]).read()\n"
        "library.install_tools(lambda target, args: {'source': source}, None)\n"
        f"import tools.{name} as module\n"
        "print(len(module.__all__))"
    )
    shim = str(tmp_path / "shims" / f"{name}.py")
    done = await anyio.run_process(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path), shim], stderr=subprocess.STDOUT
    )
    assert int(done.stdout) >= TOOL_COUNTS[name]
