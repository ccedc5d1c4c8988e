"""Resolve requirements and download wheels, in a process of its own.

The process is pip, with the index settings of the user who runs the server. It gets no more than
names with versions, takes wheels alone, and so runs nothing of a package.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
from anyio.to_thread import run_sync
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ...errors import CallFailed
from .requirements import Platform
from .wheel_cache import DIGEST

RESOLVE_TIMEOUT_S = 120.0
DOWNLOAD_TIMEOUT_S = 600.0
MAX_REPORT_BYTES = 32 * 1024 * 1024
MAX_ERROR_CHARS = 1_500
URL_CREDENTIALS = re.compile(r"//[^/@\s]+@")
QUIET = ("--quiet", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:")


@dataclass(frozen=True)
class ResolvedWheel:
    """A wheel that an index offers."""

    name: str  # canonical
    version: str
    digest: str  # SHA-256 in hexadecimal digits


async def resolve_wheels(
    requirements: Sequence[Requirement], installed: Mapping[str, str], platform: Platform
) -> list[ResolvedWheel]:
    """Return the wheels that `requirements` need beside `installed`; raises `CallFailed`."""
    with TemporaryDirectory(prefix="mcpruntime-packages-") as folder:
        report, constraints = Path(folder, "report.json"), Path(folder, "constraints.txt")
        lines = [f"{name}=={version}" for name, version in installed.items()]
        await anyio.Path(constraints).write_text("\n".join(lines))
        command = ["install", "--dry-run", "--ignore-installed", "--report", str(report)]
        command += [*QUIET, "--target", str(Path(folder, "target"))]
        command += ["--constraint", str(constraints), *platform.list_options(), "--"]
        await run_pip([*command, *map(str, requirements)], RESOLVE_TIMEOUT_S)
        data = await anyio.Path(report).read_bytes()
    if len(data) > MAX_REPORT_BYTES:
        raise CallFailed("too_large", "These packages need too many others.")
    wheels = [parse_resolved_wheel(item) for item in json.loads(data).get("install", [])]
    return [wheel for wheel in wheels if installed.get(wheel.name) != wheel.version]


def parse_resolved_wheel(item: Any) -> ResolvedWheel:
    """Return the wheel of an entry of pip's report; raises `CallFailed`."""
    try:
        metadata, info = item["metadata"], item["download_info"]
        digest = info["archive_info"]["hashes"]["sha256"]
        name = canonicalize_name(metadata["name"])
        if DIGEST.fullmatch(digest):
            return ResolvedWheel(name, str(metadata["version"]), digest)
    except (KeyError, TypeError):
        pass
    raise CallFailed("protocol", "The index names no digest for a package.")


async def download_wheel(wheel: ResolvedWheel, platform: Platform, folder: Path) -> Path:
    """Download a wheel into `folder` and return its path; raises `CallFailed`.

    Whether it has the right digest is for others to check.
    """
    command = ["download", *QUIET, "--no-deps", "--dest", str(folder), *platform.list_options()]
    command += ["--", f"{wheel.name}=={wheel.version}"]
    await run_pip(command, DOWNLOAD_TIMEOUT_S)
    found = [each for each in await run_sync(os.listdir, folder) if each.endswith(".whl")]
    if len(found) != 1:
        raise CallFailed("protocol", f"The index offers no wheel of {wheel.name} {wheel.version}.")
    return folder / found[0]


async def run_pip(arguments: Sequence[str], timeout_s: float) -> None:
    """Run pip; raises `CallFailed` with its message if it fails."""
    environment = {**os.environ, "PIP_NO_COLOR": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "pip", *arguments]
    with anyio.move_on_after(timeout_s) as scope:
        done = await anyio.run_process(
            command, stdin=subprocess.DEVNULL, check=False, env=environment, start_new_session=True
        )
    if scope.cancelled_caught:
        raise CallFailed("timeout", f"The package index did not answer within {timeout_s:g} s.")
    if done.returncode:
        raise CallFailed("unavailable", explain_pip_failure(done.stderr))


def explain_pip_failure(stderr: bytes) -> str:
    """Return the reason of a failure from the stderr of pip."""
    text = stderr.decode("utf-8", "replace")
    if "No module named pip" in text:
        return "The server's Python has no pip: install it there (`python -m ensurepip`)."
    lines = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR")]
    if not lines:
        lines = [line for line in text.splitlines() if not line.startswith("WARNING")]
    said = URL_CREDENTIALS.sub("//***@", " ".join(lines))
    return f"pip found no wheels: {said[:MAX_ERROR_CHARS]}"
