"""Packages on demand: code asks, the host downloads, and every replay uses the same bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from errno import EACCES, EROFS
from os import environ
from pathlib import Path

import pytest

from ..helpers.commands import run_command
from ..helpers.package_index import run_package_index
from ..helpers.server_connection import ServerConnection, connect_server, write_settings
from ..helpers.wheels import add_link, build_wheel
from ..sandbox.test_shared_folders import forwarded

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
    own_names = ("tools", "skills", "llm", "knowledge", "packages", "mcpruntime_sandbox", "sys")
    shadows = {f"{name}/__init__.py": "raise SystemExit" for name in own_names}
    build_wheel(index, "own_shadow", "1.0", {**shadows, "sitecustomize.py": "raise SystemExit"})
    build_wheel(
        index, "startup", "1.0", {"startup.pth": "import os; os._exit(3)", "startup.py": ""}
    )
    build_wheel(index, "absolute", "1.0", {"/tmp/absolute.py": ""})
    add_link(build_wheel(index, "linked", "1.0", {"linked.py": ""}), "passwd.py", "/etc/passwd")
    build_wheel(index, "large", "1.0", {"large.py": "#" * 9_000_000})
    (index / "source-1.0.tar.gz").write_bytes(b"")
    allowed = [
        "greeter", "helper", "json-*", "old-numpy", "missing", "own-shadow", "startup", "absolute",
        "linked", "large", "source",
    ]  # fmt: skip
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        sandbox={"packages_on_demand": "allow", "allowed_packages": allowed, "package_mb": 8},
    )
    found = Packages(None, index, settings)  # type: ignore[arg-type]
    async with connect_server(settings, found.environment) as server:
        found.server = server
        yield found


async def test_code_is_told_how_to_ask_and_gets_what_it_asks_for(packages: Packages) -> None:
    failed = await packages.server.run("import greeter", "asks")
    assert "packages.install('greeter') adds it." in failed.text
    failed = await packages.server.run("import cv2", "asks")
    assert "packages.install('opencv-python-headless') adds it." in failed.text
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


async def test_nothing_of_the_runtime_can_be_shadowed(packages: Packages) -> None:
    code = """
import importlib, sys
packages.install('own-shadow')
for name in ('tools', 'skills', 'llm', 'knowledge', 'packages', 'sys'):
    importlib.import_module(name)
from skills import search
inner = [name for name in sys.modules if name.startswith('mcpruntime_sandbox')]
len(search('x')), sorted({sys.modules[name].__spec__.origin[:1] for name in inner})"""
    assert await packages.server.evaluate(code, "own") == [0, ["<"]]
    code = "import llm, knowledge\nCONTEXT.text, callable(tools.search)"
    again = await packages.server.run(code, "own", context=[{"text": "read"}])
    assert again.value == ["read", True], again.text


async def test_nothing_of_a_package_runs_before_it_is_imported(packages: Packages) -> None:
    code = """
import os, subprocess, sys
packages.install('startup')
done = subprocess.run([sys.executable, '-c', 'print(1)'], env={'PYTHONPATH': ':'.join(sys.path)})
done.returncode, any('.pth' in name for path in sys.path if path.startswith('/packages')
                     for name in os.listdir(path))"""
    assert await packages.server.evaluate(code, "startup") == [0, False]


async def test_two_requests_of_a_session_that_conflict_are_an_error(packages: Packages) -> None:
    assert await packages.server.evaluate("packages.install('greeter<2')", "conflict")
    failed = await packages.server.run("packages.install('greeter>=2')", "conflict")
    assert failed.status == "error"
    assert "conflict" in failed.text
    code = "import greeter\ngreeter.greet()"
    assert await packages.server.evaluate(code, "conflict") == "old"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("forbidden", "allowed_packages"),
        ("--index-url=https://evil.example", "Options, paths, URLs"),
        ("old-numpy", "conflicting"),
        ("missing", "No matching distribution"),
        ("source", "No matching distribution"),
        ("absolute", "not a file inside it"),
        ("linked", "not a file inside it"),
        ("large", "more than 8,388,608 bytes"),
        ("/etc/passwd", "Options, paths, URLs"),
        ("./here", "Options, paths, URLs"),
        ("greeter @ https://evil.example/greeter.whl", "Options, paths, URLs"),
        ("git+https://evil.example/greeter", "Options, paths, URLs"),
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


INSTALL = "packages.install('greeter')\nimport greeter\ntext = greeter.greet()\ntext"


async def test_an_archive_brings_the_packages_of_its_session(
    packages: Packages, tmp_path: Path
) -> None:
    run = await packages.server.run(INSTALL, "exported")
    archive = tmp_path / "exported.zip"
    done = run_command("--config", packages.settings, "replay", "export", "exported", archive)
    assert done.returncode == 0, done.stderr
    elsewhere = write_settings(tmp_path / "elsewhere", sandbox={"packages_on_demand": "ask"})
    done = run_command("--config", elsewhere, "replay", "import", archive)
    assert done.returncode == 0, done.stderr
    async with connect_server(elsewhere, {"PIP_INDEX_URL": "http://127.0.0.1:1/simple"}) as server:
        again = await server.replay("rerun", "exported", step=1)
        assert (again.status, again.value) == ("ok", run.value), again.text
        assert await server.evaluate("import helper\ntext, helper.name", "exported") == [
            "hello world",
            "world",
        ]


async def test_a_session_outlives_its_packages_in_the_cache(
    packages: Packages, tmp_path: Path
) -> None:
    settings = write_settings(tmp_path, sandbox={"packages_on_demand": "allow"})
    async with connect_server(settings, packages.environment) as server:
        await server.evaluate(INSTALL, "pruned")
    pruned = run_command("--config", settings, "packages", "prune", "--days", "0")
    assert "removed 2 packages" in pruned.stdout, pruned
    assert "There are none" in run_command("--config", settings, "packages").stdout
    run_command("--config", settings, "replay", "gc")
    gone = {**packages.environment, "PIP_FIND_LINKS": "/nowhere"}
    async with connect_server(settings, gone) as server:
        assert await server.evaluate("greeter.greet(), text", "pruned") == ["hello world"] * 2
    listed = run_command("--config", settings, "packages").stdout
    assert "greeter-2.0" in listed
    assert "helper-1.1" in listed
    checks = run_command("--config", settings, "doctor").stdout
    assert "2 cached, 0 MB; pip finds others" in checks


async def test_an_engine_on_another_machine_gets_copies(packages: Packages, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"packages_on_demand": "allow", "pool_size": 0})
    code = """
import os
def try_to_write(path):
    try:
        open(path, 'a')
    except OSError as exc:
        return exc.errno
[try_to_write(path) for path in (greeter.__file__, '/packages/new')]"""
    async with forwarded() as address:
        environment = {**packages.environment, "DOCKER_HOST": address}
        async with connect_server(settings, environment) as server:
            assert await server.evaluate(INSTALL, "remote") == "hello world"
            assert set(await server.evaluate(code, "remote")) <= {EACCES, EROFS}
            again = await server.replay("rerun", "remote", step=1)
            assert (again.status, again.value) == ("ok", "hello world"), again.text
        async with connect_server(settings, environment) as server:
            assert await server.evaluate("greeter.greet()", "remote") == "hello world"


async def test_a_client_sees_how_far_a_long_install_is(packages: Packages, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    build_wheel(folder, "slow", "1.0", {"slow.py": ""})
    settings = write_settings(tmp_path, sandbox={"packages_on_demand": "allow"})
    with run_package_index(folder) as index:
        index.silent.add("slow")
        async with connect_server(settings, index.environment) as server:
            run = await server.run("packages.install('slow')", "slow", wait_s=2)
            while "Finding packages" not in run.text:
                run = await server.run_request(run.run, wait_s=1)
            assert run.status == "running"
            assert (await server.run_request(run.run, cancel=True)).status == "cancelled"


@pytest.mark.alone
async def test_a_package_of_the_real_index_is_installed(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"packages_on_demand": "allow"})
    code = "packages.install('idna>=3')\nimport idna\nidna.encode('bücher.example').decode()"
    own = {name: value for name, value in environ.items() if name.startswith(("PIP_", "SSL_"))}
    async with connect_server(settings, own) as server:
        run = await server.run(code, "real")
        while run.status == "running":
            run = await server.run_request(run.run)
        assert (run.status, run.value) == ("ok", "xn--bcher-kva.example"), run.text


async def test_a_skill_lists_its_packages_and_its_gate_uses_them(
    packages: Packages, tmp_path: Path
) -> None:
    settings = write_settings(
        tmp_path,
        sandbox={"packages_on_demand": "allow"},
        skills={"folder": str(tmp_path / "skills")},
    )
    async with connect_server(settings, packages.environment) as server:
        await server.evaluate("packages.install('greeter')", "made")
        code = "import greeter\nname = 'Ana'\ngreeter.greet() + ', ' + name"
        run = await server.run(code, "made")
        saved = await server.client.call_tool("save_skill", {"run": run.run, "name": "welcome"})
        assert "welcome@1 is in use" in str(saved.content), saved
    source = next((tmp_path / "skills").rglob("skill.py"))
    assert '#   "greeter==2.0",\n#   "helper==1.1",' in source.read_text()
    assert "greeter==2.0, helper==1.1" in source.with_name("SKILL.md").read_text()
    run_command("--config", settings, "packages", "prune", "--days", "0")
    gone = {**packages.environment, "PIP_FIND_LINKS": "/nowhere"}
    async with connect_server(settings, gone) as server:
        code = "from skills.welcome import run\nrun(name='Bo')"
        used = await server.run(code, "used")
        assert used.value == "hello world, Bo", used.text
        again = await server.replay("rerun", "used", run=used.run)
        assert (again.status, again.value) == ("ok", used.value), again.text
