"""Resolve requirements and download wheels, in processes of their own.

The processes are uv, where it is installed and the user has not set up pip, or else pip. Each has
the index settings of the user who runs the server. They get no more than names with versions, take
wheels alone, and so run nothing of a package.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import anyio
from anyio.to_thread import run_sync
from packaging.utils import canonicalize_name
from typing_extensions import override

from ...errors import CallFailed
from ...journal.progress import ReportProgress
from . import wheel_download
from .requirements import PackageRequest, Platform
from .wheel_cache import DIGEST

RESOLVE_TIMEOUT_S = 120.0
DOWNLOAD_TIMEOUT_S = 600.0
PROGRESS_INTERVAL_S = 0.5
MAX_REPORT_BYTES = 32 * 1024 * 1024
MAX_ERROR_CHARS = 1_500
BLOCK_BYTES = 512  # the unit of `ulimit -f`
MB = 1024 * 1024
URL_CREDENTIALS = re.compile(r"//[^/@\s]+@")
TOO_LARGE = ("File too large", "too large for [sandbox]")  # an error of the system, or of ours
SIZE_SIGNAL_CODES = (-25, 128 + 25)  # SIGXFSZ
PIP_OPTIONS = ("--quiet", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:")
PIP_INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX")
PIP_INDEX_SETTING = re.compile(r"(?m)^\s*(\S*index\S*|find-links)\s*=")
PIP_CONFIG_FILES = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf")
UV_GLIBC_MINORS = (17, 28, *range(31, 41))  # that uv has names for
UV_OPTIONS = ("--quiet", "--no-header", "--format", "pylock.toml", "--only-binary", ":all:")

NO_PIP = "The server's Python has no pip: install it there (`python -m ensurepip`), or uv."
NO_UV = "uv is not on the path of the server."
NO_UV_REMEDY = 'Install it there, or use pip: [sandbox] package_tool = "pip".'

PackageTool = Literal["auto", "uv", "pip"]


@dataclass(frozen=True)
class ResolvedWheel:
    """A wheel that an index offers; its `url` and its size in bytes are known from uv only."""

    name: str  # canonical
    version: str
    digest: str  # SHA-256 in hexadecimal digits
    url: str = ""
    size: int = 0


class WheelSource(ABC):
    """A program that finds wheels in the user's indexes, of at most `max_bytes` each."""

    name: ClassVar[str]

    def __init__(self, max_bytes: int, resolve_timeout_s: float = RESOLVE_TIMEOUT_S) -> None:
        self._max_bytes = max_bytes
        self._resolve_timeout_s = resolve_timeout_s

    @abstractmethod
    def find_problem(self) -> str:
        """Return why it cannot be used; "" if it can."""

    async def resolve(self, request: PackageRequest, report: ReportProgress) -> list[ResolvedWheel]:
        """Return the wheels that a sandbox needs and does not have; raises `CallFailed`."""
        with TemporaryDirectory(prefix="mcpruntime-packages-") as folder:
            found = await self._write_report(request, Path(folder), report)
            data = await anyio.Path(found).read_bytes()
        if len(data) > MAX_REPORT_BYTES:
            raise CallFailed("too_large", "These packages need too many others.")
        wheels = self._parse_report(data)
        return [wheel for wheel in wheels if request.installed.get(wheel.name) != wheel.version]

    @abstractmethod
    async def _write_report(
        self, request: PackageRequest, folder: Path, report: ReportProgress
    ) -> Path:
        """Return the file in `folder` that names the wheels; raises `CallFailed`."""

    @abstractmethod
    def _parse_report(self, data: bytes) -> list[ResolvedWheel]:
        """Return the wheels that a report names; raises `CallFailed`."""

    @abstractmethod
    async def download(
        self, wheel: ResolvedWheel, platform: Platform, folder: Path, report: ReportProgress
    ) -> Path:
        """Download a wheel into `folder` and return its path; raises `CallFailed`.

        Whether it has the right digest is for others to check.
        """


def choose_source(tool: PackageTool, max_bytes: int) -> WheelSource:
    """Return the program that finds wheels, of at most so many bytes each."""
    uv = shutil.which("uv") or ""
    if tool == "uv" or (tool == "auto" and uv and not is_pip_set_up()):
        return UvSource(uv, max_bytes)
    return PipSource(max_bytes)


def is_pip_set_up() -> bool:
    """Return whether the user has told pip where packages are."""
    if any(name in os.environ for name in PIP_INDEX_VARIABLES):
        return True
    named = os.environ.get("PIP_CONFIG_FILE")
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    own = [f"{home}/pip/pip.conf", f"{sys.prefix}/pip.conf", *PIP_CONFIG_FILES]
    for path in [named] if named else own:
        try:
            if PIP_INDEX_SETTING.search(Path(path).expanduser().read_text()):
                return True
        except (OSError, UnicodeDecodeError):
            continue
    return False


class PipSource(WheelSource):
    """Asks pip."""

    name = "pip"

    @override
    def find_problem(self) -> str:
        return "" if find_spec("pip") else NO_PIP

    @override
    async def _write_report(
        self, request: PackageRequest, folder: Path, report: ReportProgress
    ) -> Path:
        found = folder / "report.json"
        constraints = await write_constraints(request, folder)
        command = ["install", "--dry-run", "--ignore-installed", "--report", str(found)]
        command += [*PIP_OPTIONS, "--target", str(folder / "target")]
        command += ["--constraint", str(constraints), *request.platform.list_options(), "--"]
        command += map(str, request.requirements)
        watch = FolderWatch(folder, "finding packages", 0, report)
        await self._run(command, self._resolve_timeout_s, watch)
        return found

    @override
    def _parse_report(self, data: bytes) -> list[ResolvedWheel]:
        return [parse_pip_wheel(item) for item in json.loads(data).get("install", [])]

    @override
    async def download(
        self, wheel: ResolvedWheel, platform: Platform, folder: Path, report: ReportProgress
    ) -> Path:
        target = folder / "wheels"
        command = ["download", *PIP_OPTIONS, "--no-deps", "--dest", str(target)]
        command += [*platform.list_options(), "--", f"{wheel.name}=={wheel.version}"]
        watch = FolderWatch(folder, f"downloading {wheel.name} {wheel.version}", 0, report)
        await self._run(command, DOWNLOAD_TIMEOUT_S, watch)
        found = [each for each in await run_sync(os.listdir, target) if each.endswith(".whl")]
        if len(found) != 1:
            message = f"The index offers no wheel of {wheel.name} {wheel.version}."
            raise CallFailed("protocol", message)
        return target / found[0]

    async def _run(self, arguments: Sequence[str], timeout_s: float, watch: FolderWatch) -> None:
        variables = {"PIP_NO_COLOR": "1", "PYTHONSAFEPATH": "1", "TMPDIR": str(watch.folder)}
        command = [sys.executable, "-m", "pip", *arguments]
        await run_bounded(command, variables, self._max_bytes, timeout_s, watch, explain_pip)


class UvSource(WheelSource):
    """Asks uv, which names the address of each wheel; a process of ours downloads it."""

    name = "uv"

    def __init__(self, uv: str, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._uv = uv

    @override
    def find_problem(self) -> str:
        return "" if self._uv else NO_UV

    @override
    async def _write_report(
        self, request: PackageRequest, folder: Path, report: ReportProgress
    ) -> Path:
        if not self._uv:
            raise CallFailed("unavailable", NO_UV, remedy=NO_UV_REMEDY)
        found, wanted = folder / "pylock.toml", folder / "requirements.in"
        constraints = await write_constraints(request, folder)
        await anyio.Path(wanted).write_text("\n".join(map(str, request.requirements)))
        command = [self._uv, "pip", "compile", *UV_OPTIONS, "--output-file", str(found)]
        command += ["--constraints", str(constraints), "--python", sys.executable]
        command += ["--python-version", request.platform.python]
        command += ["--python-platform", name_uv_platform(request.platform), str(wanted)]
        variables = {"NO_COLOR": "1", "UV_PYTHON_DOWNLOADS": "never"}
        watch = FolderWatch(folder, "finding packages", 0, report)
        await run_bounded(
            command, variables, self._max_bytes, self._resolve_timeout_s, watch, explain_uv
        )
        return found

    @override
    def _parse_report(self, data: bytes) -> list[ResolvedWheel]:
        items = tomllib.loads(data.decode()).get("packages", [])
        return [parse_uv_wheel(item) for item in items]

    @override
    async def download(
        self, wheel: ResolvedWheel, platform: Platform, folder: Path, report: ReportProgress
    ) -> Path:
        check_size(wheel, self._max_bytes)
        path = folder / f"{wheel.name}-{wheel.version}.whl"
        command = [sys.executable, wheel_download.__file__, wheel.url, str(path)]
        action = f"downloading {wheel.name} {wheel.version}"
        watch = FolderWatch(folder, action, wheel.size, report)
        await run_bounded(
            command, {"PYTHONSAFEPATH": "1"}, self._max_bytes, DOWNLOAD_TIMEOUT_S, watch, explain_uv
        )
        return path


# what the programs read and report ---------------------------------------------------------------


async def write_constraints(request: PackageRequest, folder: Path) -> Path:
    """Write a file that holds the installed versions, and return its path."""
    path = folder / "constraints.txt"
    lines = [f"{name}=={version}" for name, version in request.installed.items()]
    await anyio.Path(path).write_text("\n".join(lines))
    return path


def parse_pip_wheel(item: Any) -> ResolvedWheel:
    """Return the wheel of an entry of pip's report; raises `CallFailed`."""
    try:
        metadata, info = item["metadata"], item["download_info"]
        digest = info["archive_info"]["hashes"]["sha256"]
        if DIGEST.fullmatch(digest):
            name = canonicalize_name(metadata["name"])
            return ResolvedWheel(name, str(metadata["version"]), digest)
    except (KeyError, TypeError):
        pass
    raise CallFailed("protocol", "The index names no digest for a package.")


def parse_uv_wheel(item: Any) -> ResolvedWheel:
    """Return the wheel of an entry of a `pylock.toml`; raises `CallFailed`."""
    try:
        name, version, [wheel, *_] = item["name"], item["version"], item["wheels"]
        digest, size = wheel["hashes"]["sha256"], wheel.get("size", 0)
        if DIGEST.fullmatch(digest) and isinstance(size, int):
            return ResolvedWheel(canonicalize_name(name), version, digest, str(wheel["url"]), size)
    except (KeyError, TypeError, ValueError):
        pass
    raise CallFailed("protocol", "The index names no wheel with a digest for a package.")


def name_uv_platform(platform: Platform) -> str:
    """Return uv's name of a platform: the newest that it knows and that runs there."""
    if not platform.glibc:
        return f"{platform.machine}-unknown-linux-musl"
    minor = int(platform.glibc.partition(".")[2])
    newest = max((each for each in UV_GLIBC_MINORS if each <= minor), default=UV_GLIBC_MINORS[0])
    return f"{platform.machine}-manylinux_2_{newest}"


def check_size(wheel: ResolvedWheel, max_bytes: int) -> None:
    """Raise `CallFailed` if a wheel says that it is larger than it may be."""
    if wheel.size > max_bytes:
        raise too_large_error(f"{wheel.name} {wheel.version} ({wheel.size // MB:,} MB)", max_bytes)


def too_large_error(what: str, max_bytes: int) -> CallFailed:
    """Return the error for a package that is larger than the settings allow."""
    return CallFailed(
        "too_large",
        f"{what} is larger than {max_bytes // MB:,} MB.",
        remedy="The user can allow it: [sandbox] package_mb.",
    )


def explain_pip(stderr: str) -> str:
    """Return the reason of a failure from the stderr of pip."""
    if "No module named pip" in stderr:
        return NO_PIP
    lines = stderr.splitlines()
    found = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    found = found or [line for line in lines if not line.startswith("WARNING")]
    return f"pip found no wheels: {' '.join(found)}"


def explain_uv(stderr: str) -> str:
    """Return the reason of a failure from the stderr of uv, or of our download."""
    return f"uv found no wheels: {' '.join(stderr.split())}"


# processes ----------------------------------------------------------------------------------------


class FolderWatch:
    """Reports how much a process has written into a folder; `total` bytes come, if not 0."""

    def __init__(self, folder: Path, action: str, total: int, report: ReportProgress) -> None:
        self.folder = folder
        self._action = action
        self._total = f" of {total / MB:.1f}" if total else ""
        self._report = report

    async def report_growth(self) -> None:
        """Report until it is cancelled."""
        while True:
            await anyio.sleep(PROGRESS_INTERVAL_S)
            size = await run_sync(measure_folder, self.folder)
            self._report(f"{self._action}: {size / MB:.1f}{self._total} MB")


def measure_folder(folder: Path) -> int:
    """Return the size of the files below a folder, in bytes."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue  # it is gone
    return size


async def run_bounded(
    command: Sequence[str],
    variables: Mapping[str, str],
    max_bytes: int,
    timeout_s: float,
    watch: FolderWatch,
    explain: Callable[[str], str],
) -> None:
    """Run a program that writes no file larger than `max_bytes`; raises `CallFailed`.

    An index may say what it likes of the size of a file, or nothing.
    """
    blocks = max_bytes // BLOCK_BYTES
    limited = ["/bin/sh", "-c", 'ulimit -f "$0" && exec "$@"', str(blocks), *command]
    with anyio.move_on_after(timeout_s) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.report_growth)
            done = await anyio.run_process(
                limited,
                stdin=subprocess.DEVNULL,
                check=False,
                cwd="/",
                env={**os.environ, **variables},
                start_new_session=True,
            )
            tasks.cancel_scope.cancel()
    if scope.cancelled_caught:
        raise CallFailed("timeout", f"The package index did not answer within {timeout_s:g} s.")
    if not done.returncode:
        return
    stderr = URL_CREDENTIALS.sub("//***@", done.stderr.decode("utf-8", "replace"))
    if done.returncode in SIZE_SIGNAL_CODES or any(each in stderr for each in TOO_LARGE):
        raise too_large_error("A package", max_bytes)
    raise CallFailed("unavailable", explain(stderr)[:MAX_ERROR_CHARS])
