"""What is published is small, complete, valid, and works in an empty environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from mcp import StdioServerParameters
from mcp.client.client import Client
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mcpruntime_server import __version__
from release.licence_list import NOT_DECLARED, list_licences
from release.mcp_bundle import MANIFEST, build_bundle

from ..helpers.server_connection import write_settings

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "mcpruntime_server"
UV = Path(sys.executable).with_name("uv")
MCPB = ROOT / ".venvs" / "package-tools" / "node_modules" / ".bin" / "mcpb"
MAX_WHEEL_BYTES = 1_500_000
MAX_SDIST_BYTES = 1_200_000
NOT_SHIPPED = ("tests/", "bench/", "docs/images", ".venv", "__pycache__", ".pyc", "node_modules")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def find_file(dist: Path, pattern: str) -> Path:
    [found] = dist.glob(pattern)
    return found


def run_mcpb(*arguments: str) -> None:
    if not MCPB.exists():
        missing = MCPB.parents[2] / ".missing"
        pytest.skip(missing.read_text() if missing.exists() else "run scripts/package-tools")
    subprocess.run([MCPB, *arguments], check=True, capture_output=True)


# contents -----------------------------------------------------------------------------------------


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(dist: Path) -> None:
    file = find_file(dist, "*.whl")
    assert file.stat().st_size <= MAX_WHEEL_BYTES
    with zipfile.ZipFile(file) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = [name.partition(".dist-info/")[2] for name in wheel.namelist()]
    source = {
        f"mcpruntime_server/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == source | {"mcpruntime_server/config/server.toml"}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= set(metadata)
    for part in (
        "capabilities/tools/templates/module.py.jinja",
        "capabilities/skills/templates/SKILL.md.jinja",
        "sandbox/seccomp.json",
        "sandboxed/kernel/supervisor.py",
        "viewer/static/viewer.css",
        "viewer/templates/session.html",
        "py.typed",
    ):
        assert f"mcpruntime_server/{part}" in names


def test_the_sdist_is_small_and_builds_the_same_package(dist: Path) -> None:
    file = find_file(dist, "*.tar.gz")
    assert file.stat().st_size <= MAX_SDIST_BYTES
    with tarfile.open(file) as sdist:
        names = [name.partition("/")[2] for name in sdist.getnames()]
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "server.toml"} <= set(names)
    shipped = [name for name in names if any(part in name for part in NOT_SHIPPED)]
    assert shipped == []
    with zipfile.ZipFile(find_file(dist, "*.whl")) as wheel:
        package = [name for name in wheel.namelist() if ".dist-info/" not in name]
    in_source = {
        name.removeprefix("src/") for name in names if name.startswith("src/mcpruntime_server/")
    }
    assert set(package) == in_source | {"mcpruntime_server/config/server.toml"}


def test_metadata_pass_the_check_of_twine(dist: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


# registry and bundle ------------------------------------------------------------------------------


def test_server_json_follows_the_schema_of_the_registry() -> None:
    server = json.loads((ROOT / "server.json").read_text("utf-8"))
    version = re.search(r"/(\d{4})-(\d\d)-(\d\d)/", server["$schema"])
    assert version is not None
    name = f"schemas/mcp_registry/v{'_'.join(version.groups())}/server.schema.json"
    schema = json.loads(files("skillsaw").joinpath(name).read_text("utf-8"))
    jsonschema.Draft7Validator(schema).validate(server)
    [package] = server["packages"]
    assert server["version"] == package["version"] == __version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert package["identifier"] == project["name"]
    assert f"<!-- mcp-name: {server['name']} -->" in (ROOT / "README.md").read_text("utf-8")


def test_the_manifest_of_the_bundle_is_valid() -> None:
    run_mcpb("validate", str(MANIFEST))


def test_the_bundle_can_be_unpacked_and_is_the_same_each_time(dist: Path, tmp_path: Path) -> None:
    first = build_bundle(dist)
    content = first.read_bytes()
    assert build_bundle(dist).read_bytes() == content
    with zipfile.ZipFile(first) as archive:
        assert len(archive.namelist()) == 5
    first.rename(tmp_path / first.name)
    run_mcpb("unpack", str(tmp_path / first.name), str(tmp_path / "unpacked"))
    assert (tmp_path / "unpacked" / "manifest.json").read_bytes() == MANIFEST.read_bytes()


def test_a_bundle_needs_one_wheel_of_this_version(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There must be one wheel"):
        build_bundle(tmp_path)


# empty environments -------------------------------------------------------------------------------


async def run_first_code(command: str, arguments: list[str], env: dict[str, str]) -> Any:
    """Connect a client to the server that a command starts; return the value of its first run."""
    # uv finds its index and certificates in the environment, which a client does not pass on.
    parameters = StdioServerParameters(command=command, args=arguments, env={**os.environ, **env})
    async with Client(parameters) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {tool["name"] for tool in json.loads(MANIFEST.read_text())["tools"]} <= names
        result = await client.call_tool("run_code", {"code": "sum(range(10))"})
        return (result.structured_content or {})["value"]


def download_dependencies(dist: Path) -> None:
    """Skip the test where the packages that the wheel needs cannot be had."""
    command = [str(UV), "pip", "install", "--dry-run", "--python", sys.executable, "--target"]
    command += [str(dist / "nowhere"), str(find_file(dist, "*.whl"))]
    tried = subprocess.run(command, check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no package index: {tried.stderr[-300:]}")


@pytest.mark.alone
async def test_uvx_runs_the_wheel_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    download_dependencies(dist)
    wheel = str(find_file(dist, "*.whl"))
    settings = write_settings(tmp_path)
    arguments = ["tool", "run", "--from", wheel, "mcpruntime-server"]
    env = {"UV_TOOL_DIR": str(tmp_path / "tools")}
    assert (
        await run_first_code(str(UV), [*arguments, "--config", str(settings), "--stdio"], env) == 45
    )


@pytest.mark.alone
async def test_a_client_runs_the_bundle_with_uv(dist: Path, tmp_path: Path) -> None:
    download_dependencies(dist)
    folder = tmp_path / "bundle"
    with zipfile.ZipFile(build_bundle(dist)) as archive:
        archive.extractall(folder)
    started = json.loads((folder / "manifest.json").read_text("utf-8"))["server"]["mcp_config"]
    arguments = [each.replace("${__dirname}", str(folder)) for each in started["args"]]
    settings = write_settings(tmp_path)
    env = {name: str(settings) for name in started["env"]}
    assert await run_first_code(str(UV), arguments, env) == 45


def test_an_empty_path_of_settings_is_none(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("mcpruntime-server")
    shown = subprocess.run(
        [program, "config", "show"],
        env={"MCPRUNTIME_CONFIG": "", "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "MCPRUNTIME_CONFIG" not in shown.stdout


# what is needed -----------------------------------------------------------------------------------


def test_the_lock_file_has_a_version_for_every_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lines = (ROOT / "requirements-dev.lock").read_text("utf-8").splitlines()
    pinned: dict[str, set[str]] = {}
    for line in lines:
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            [specifier] = requirement.specifier
            pinned.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for optional in project["project"]["optional-dependencies"].values():
        wanted += optional
    for group in project["dependency-groups"].values():
        wanted += [each for each in group if isinstance(each, str)]
    for text in wanted:
        requirement = Requirement(text)
        versions = pinned.get(canonicalize_name(requirement.name), set())
        assert any(requirement.specifier.contains(each) for each in versions), text


def test_licences_are_those_that_packages_declare() -> None:
    components = [
        {"name": "b", "version": "1", "licenses": [{"license": {"id": "MIT"}}]},
        {"name": "A", "version": "2", "licenses": [{"expression": "MIT OR Apache-2.0"}]},
        {"name": "c", "version": "3", "licenses": [{"license": {"name": "License :: OSI :: X"}}]},
        {"name": "d", "version": "4"},
    ]
    rows = list_licences({"components": components}).splitlines()[2:]
    assert rows == [
        "| A | 2 | MIT OR Apache-2.0 |",
        "| b | 1 | MIT |",
        "| c | 3 | X |",
        f"| d | 4 | {NOT_DECLARED} |",
    ]


def test_the_tools_that_build_packages_are_installed() -> None:
    for name in ("twine", "uv", "cyclonedx-py"):
        assert shutil.which(name, path=str(UV.parent)), f"{name}: run `make setup`"
