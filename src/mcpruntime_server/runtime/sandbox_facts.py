"""What a sandbox is told about itself, from the settings."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence

from ..config import SandboxSettings, ServerSettings
from ..protocol.payloads import SandboxFacts

PYTHON_IMAGE = re.compile(r"(?:^|/)python:(\d+\.\d+)")


def collect_facts(
    settings: ServerSettings,
    sandbox: SandboxSettings,
    fetchers: Sequence[str] = (),
    *,
    is_isolated: bool,
) -> SandboxFacts:
    """Return what code and its author have to know about a sandbox."""
    return {
        "is_isolated": is_isolated,
        "timeout_s": sandbox.timeout_s,
        "roots": [os.fspath(root) for root in settings.context_roots],
        "mounts": list(map(describe_mount, sandbox.mounts)) if is_isolated else [],
        "fetchers": list(fetchers),
    }


def describe_mount(entry: str) -> str:
    """Return the folder in the sandbox of a mount, and whether code may write to it."""
    parts = entry.split(":")
    if parts[-1] == "rw":
        return f"{parts[-2]} (writable)"
    return parts[-1]


def name_python(sandbox: SandboxSettings, *, is_isolated: bool) -> str:
    """Return the interpreter of a sandbox, with its version if that is known here."""
    if not is_isolated:
        return f"Python {platform.python_version()}"
    found = PYTHON_IMAGE.search(sandbox.image or sandbox.base_image)
    return f"Python {found[1]}" if found else "Python"
