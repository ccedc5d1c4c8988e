"""Real runs of pip and uv against indexes that the tests serve, honest ones and others."""

from __future__ import annotations

import shutil
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from os import environ, urandom
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.packages.requirements import (
    PackageRequest,
    Platform,
    parse_requirements,
)
from mcpruntime_server.capabilities.packages.resolver import (
    FolderWatch,
    PipSource,
    ResolvedWheel,
    UvSource,
    WheelSource,
    choose_source,
    name_uv_platform,
    run_bounded,
)
from mcpruntime_server.capabilities.packages.wheel_cache import WheelCache, hash_wheel
from mcpruntime_server.errors import CallFailed

from ...helpers.package_index import PackageIndex, run_package_index
from ...helpers.wheels import build_wheel

pytestmark = pytest.mark.anyio

MAX_BYTES = 4 << 20
PLATFORM = Platform({"python": "3.12", "machine": "x86_64", "glibc": "2.36"})
UV = str(Path(sys.executable).with_name("uv"))
TOOLS = ["pip", "uv"]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """An index with a few packages, which pip and uv ask."""
    folder = tmp_path / "index"
    folder.mkdir()
    build_wheel(folder, "greeter", "1.0", {"greeter.py": ""})
    build_wheel(folder, "greeter", "2.0", {"greeter.py": ""}, ["helper>=1"])
    build_wheel(folder, "helper", "1.1", {"helper.py": ""})
    build_wheel(folder, "only_old", "1.0", {"only_old.py": ""}, ["helper<1"])
    with tarfile.open(folder / "source-1.0.tar.gz", "w:gz") as archive:
        text = b"raise SystemExit('built')"
        entry = tarfile.TarInfo("source-1.0/setup.py")
        entry.size = len(text)
        archive.addfile(entry, BytesIO(text))
    with run_package_index(folder) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"{found.url}/simple")
        monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
        yield found


def open_source(tool: str) -> WheelSource:
    """Return one of the programs; uv comes with the packages of developers."""
    return PipSource(MAX_BYTES) if tool == "pip" else UvSource(UV, MAX_BYTES)


async def resolve(
    source: WheelSource, *texts: str, installed: dict[str, str] | None = None
) -> list[ResolvedWheel]:
    """Resolve requirements and report progress to nobody."""
    request = PackageRequest(parse_requirements(list(texts)), installed or {}, PLATFORM)
    return await source.resolve(request, ignore)


async def install(source: WheelSource, text: str, folder: Path, cache: WheelCache) -> None:
    """Resolve a requirement, and put its wheels into a cache."""
    for wheel in await resolve(source, text):
        path = await source.download(wheel, PLATFORM, folder, ignore)
        cache.add(path, wheel.digest)


def largest_file(folder: Path) -> int:
    """Return the size of the largest file below a folder."""
    return max(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def ignore(progress: str) -> None:
    """Report to nobody."""


@pytest.mark.parametrize("tool", TOOLS)
async def test_wheels_are_found_and_downloaded(
    index: PackageIndex, tmp_path: Path, tool: str
) -> None:
    source = open_source(tool)
    wheels = await resolve(source, "greeter>=1")
    assert sorted((each.name, each.version) for each in wheels) == [
        ("greeter", "2.0"),
        ("helper", "1.1"),
    ]
    for wheel in wheels:
        (tmp_path / wheel.name).mkdir()
        path = await source.download(wheel, PLATFORM, tmp_path / wheel.name, ignore)
        assert hash_wheel(path) == wheel.digest
    assert await resolve(source, "greeter", installed={"helper": "1.1", "greeter": "2.0"}) == []
    kept = await resolve(source, "greeter", installed={"greeter": "1.0"})
    assert kept == []


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("text", "installed"),
    [
        ("source", {}),
        ("missing", {}),
        ("greeter>=3", {}),
        ("only-old", {}),
        ("greeter>=2", {"greeter": "1.0"}),
        ("greeter>=2", {"helper": "0.9"}),
    ],
)
async def test_what_cannot_be_had_as_a_wheel_is_an_error(
    index: PackageIndex, tool: str, text: str, installed: dict[str, str]
) -> None:
    with pytest.raises(CallFailed) as caught:
        await resolve(open_source(tool), text, installed=installed)
    assert caught.value.kind == "unavailable"
    assert text.partition(">")[0] in str(caught.value)


@pytest.mark.parametrize("tool", TOOLS)
async def test_a_wheel_with_another_digest_is_refused(
    index: PackageIndex, tmp_path: Path, tool: str
) -> None:
    index.forged.add("helper")
    source = open_source(tool)
    cache = WheelCache(tmp_path / "packages" / "wheels", MAX_BYTES)
    cache.create()
    with pytest.raises(CallFailed, match=r"(?i)hash|digest"):
        await install(source, "helper", tmp_path, cache)
    assert cache.list_wheels() == []


async def test_an_index_that_does_not_answer_is_given_up(index: PackageIndex) -> None:
    index.silent.add("greeter")
    with pytest.raises(CallFailed) as caught:
        await resolve(PipSource(MAX_BYTES, resolve_timeout_s=1.5), "greeter")
    assert caught.value.kind == "timeout"


@pytest.mark.parametrize("tool", TOOLS)
async def test_a_wheel_of_two_gigabytes_is_cut_short(
    index: PackageIndex, tmp_path: Path, tool: str
) -> None:
    index.huge.add("greeter")
    source = open_source(tool)
    cache = WheelCache(tmp_path / "packages" / "wheels", MAX_BYTES)
    with pytest.raises(CallFailed) as caught:
        await install(source, "greeter<2", tmp_path, cache)
    assert caught.value.kind in ("too_large", "unavailable")
    assert largest_file(tmp_path) <= MAX_BYTES


async def test_a_size_that_is_declared_is_believed_before_anything_is_downloaded(
    tmp_path: Path,
) -> None:
    wheel = ResolvedWheel("x", "1", "0" * 64, "http://127.0.0.1:1/x.whl", 2 << 30)
    with pytest.raises(CallFailed, match=r"x 1 \(2,048 MB\) is larger than 4 MB"):
        await UvSource(UV, MAX_BYTES).download(wheel, PLATFORM, tmp_path, ignore)


async def test_progress_names_what_has_arrived(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(urandom(3 << 20))
    said: list[str] = []

    class Enough(Exception):
        pass

    def report(progress: str) -> None:
        said.append(progress)
        raise Enough

    with pytest.raises(Enough):
        await FolderWatch(tmp_path, "downloading x 1", 6 << 20, report).report_growth()
    assert said == ["downloading x 1: 3.0 of 6.0 MB"]


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x.whl", "data:,x", "/etc/passwd", "file:///none"])
async def test_only_the_address_of_a_file_is_downloaded(tmp_path: Path, url: str) -> None:
    wheel = ResolvedWheel("x", "1", "0" * 64, url)
    with pytest.raises(CallFailed):
        await UvSource(UV, MAX_BYTES).download(wheel, PLATFORM, tmp_path, ignore)


async def test_the_credentials_of_an_index_are_not_in_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no http://me:secret@host/x')"]
    watch = FolderWatch(tmp_path, "", 0, ignore)
    with pytest.raises(CallFailed, match=r"http://\*\*\*@host") as caught:
        await run_bounded(command, {}, MAX_BYTES, 30.0, watch, str)
    assert "secret" not in str(caught.value)


def test_uv_is_used_unless_pip_has_an_index_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(Path(UV).parent))
    settings = tmp_path / "pip.conf"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    assert shutil.which("uv") == UV
    assert choose_source("auto", 1).name == "uv"
    settings.write_text("[global]\nextra-index-url = https://own.example/simple\n")
    assert choose_source("auto", 1).name == "pip"
    assert choose_source("uv", 1).name == "uv"
    settings.write_text("[global]\ntimeout = 10\n")
    assert choose_source("auto", 1).name == "uv"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert choose_source("auto", 1).name == "pip"
    monkeypatch.setenv("PATH", "/nowhere")
    assert choose_source("uv", 1).find_problem()
    assert choose_source("pip", 1).find_problem() == ""


async def test_the_settings_can_ask_for_a_program_that_is_missing() -> None:
    with pytest.raises(CallFailed, match="not on the path"):
        await resolve(UvSource("", MAX_BYTES), "x")


@pytest.mark.parametrize(
    ("glibc", "name"),
    [
        ("2.36", "x86_64-manylinux_2_36"),
        ("2.30", "x86_64-manylinux_2_28"),
        ("2.99", "x86_64-manylinux_2_40"),
        ("2.12", "x86_64-manylinux_2_17"),
        ("", "x86_64-unknown-linux-musl"),
    ],
)
def test_uv_is_told_the_newest_platform_that_it_knows(glibc: str, name: str) -> None:
    platform = Platform({"python": "3.12", "machine": "x86_64", "glibc": glibc})
    assert name_uv_platform(platform) == name
