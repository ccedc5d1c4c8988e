"""Packages on demand: code asks, the host downloads, and every replay uses the same bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from errno import EACCES, EROFS
from pathlib import Path

import pytest

from ..helpers.server_connection import ServerConnection, connect_server, write_settings
from ..helpers.wheels import build_wheel

pytestmark = pytest.mark.anyio


@dataclass
class Packages:
    """A server, and the folder from which it takes wheels instead of an index."""

    server: ServerConnection
    index: Path
    settings: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a server that takes wheels from the folder."""
        own = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
        return {**own, "PIP_FIND_LINKS": str(self.index)}


@pytest.fixture(scope="module")
async def packages(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Packages]:
    """A server whose code may ask for packages, except for one that the settings do not allow."""
    index = tmp_path_factory.mktemp("index")
    build_wheel(index, "greeter", "1.0", {"greeter.py": "def greet(): return 'old'"})
    build_wheel(
        index,
        "greeter",
        "2.0",
        {"greeter/__init__.py": "from helper import name\ndef greet(): return 'hello ' + name"},
        ["helper>=1"],
    )
    build_wheel(index, "helper", "1.1", {"helper.py": "name = 'world'"})
    build_wheel(index, "json_shadow", "1.0", {"json.py": "raise SystemExit", "json_shadow.py": ""})
    build_wheel(index, "old_numpy", "1.0", {"old_numpy.py": ""}, ["numpy<1"])
    build_wheel(index, "forbidden", "1.0", {"forbidden.py": ""})
    allowed = ["greeter", "helper", "json-*", "old-numpy", "missing"]
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        sandbox={"packages_on_demand": "allow", "allowed_packages": allowed},
    )
    found = Packages(None, index, settings)  # type: ignore[arg-type]
    async with connect_server(settings, found.environment) as server:
        found.server = server
        yield found


async def test_code_is_told_how_to_ask_and_gets_what_it_asks_for(packages: Packages) -> None:
    failed = await packages.server.run("import greeter", "asks")
    assert "packages.install('greeter') adds it." in failed.text
    code = "before = 1\nadded = packages.install('greeter')\nimport greeter\nadded, greeter.greet()"
    assert await packages.server.evaluate(code, "asks") == [
        {"greeter": "2.0", "helper": "1.1"},
        "hello world",
    ]
    again = "packages.install('greeter>=1', 'helper'), before"
    assert await packages.server.evaluate(again, "asks") == [{}, 1]


async def test_a_block_at_the_top_of_a_script_asks_as_well(packages: Packages) -> None:
    code = """
# /// script
# requires-python = ">=3.9"
# dependencies = [
#   "greeter<2",  # the old one
# ]
# ///
import greeter
greeter.greet()"""
    assert await packages.server.evaluate(code, "script") == "old"


async def test_a_replay_a_fork_and_a_rewind_use_the_same_wheels(packages: Packages) -> None:
    run = await packages.server.run("import sys\npackages.install('greeter<2')", "kept")
    await packages.server.run("import greeter\ntext = greeter.greet()", "kept")
    again = await packages.server.replay("rerun", "kept", run=run.run)
    assert (again.status, again.value) == ("ok", run.value), again.text
    fork = await packages.server.replay("fork", "kept", step=1)
    assert await packages.server.evaluate("import greeter\ngreeter.greet()", fork.session) == "old"
    await packages.server.replay("rewind", "kept", step=1)
    assert await packages.server.evaluate("import greeter\ngreeter.greet()", "kept") == "old"


async def test_nothing_of_python_can_be_shadowed(packages: Packages) -> None:
    code = """
import importlib, json
packages.install('json-shadow')
importlib.reload(json).dumps([1])"""
    assert await packages.server.evaluate(code, "shadow") == "[1]"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("forbidden", "allowed_packages"),
        ("--index-url=https://evil.example", "Options, paths, URLs"),
        ("old-numpy", "conflicting"),
        ("missing", "No matching distribution"),
    ],
)
async def test_what_cannot_be_added_is_an_error_with_its_reason(
    packages: Packages, name: str, reason: str
) -> None:
    failed = await packages.server.run(f"packages.install({name!r})", "refused")
    assert failed.status == "error"
    assert reason in failed.text
    assert await packages.server.evaluate("2 + 2", "refused") == 4


async def test_code_cannot_write_into_the_cache(packages: Packages) -> None:
    code = """
import os
packages.install('helper')
import helper
found = []
for path in (helper.__file__, os.path.dirname(helper.__file__) + '/new.py', '/packages/new'):
    try:
        open(path, 'a')
    except OSError as exc:
        found.append(exc.errno)
found"""
    assert set(await packages.server.evaluate(code, "writes")) <= {EACCES, EROFS}


async def test_another_server_uses_the_cache_without_an_index(packages: Packages) -> None:
    code = "packages.install('helper')\nimport helper\nhelper.name"
    first = await packages.server.run(code, "shared")
    gone = {**packages.environment, "PIP_FIND_LINKS": "/nowhere"}
    async with connect_server(packages.settings, gone) as other:
        assert await other.evaluate(code, "elsewhere") == first.value == "world"


async def test_a_person_is_asked_by_default(packages: Packages, tmp_path: Path) -> None:
    settings = write_settings(tmp_path)
    async with connect_server(settings, packages.environment) as server:
        run = await server.run("packages.install('helper')", wait_s=20)
        assert run.status == "waiting", run.text
        assert "packages.install(" in run.text


async def test_the_settings_can_forbid_it(packages: Packages, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"packages_on_demand": "off"})
    async with connect_server(settings, packages.environment) as server:
        failed = await server.run("packages.install('helper')")
        assert failed.status == "error"
        assert "packages_on_demand" in failed.text
