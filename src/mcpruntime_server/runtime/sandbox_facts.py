"""What a sandbox is told about itself, from the settings."""

from __future__ import annotations

import os
import platform

from ..config import SandboxSettings, ServerSettings
from ..journal.store import Journal
from ..protocol.payloads import SandboxFacts


def collect_facts(
    settings: ServerSettings,
    sandbox: SandboxSettings,
    *,
    is_isolated: bool,
) -> SandboxFacts:
    """Return what code and its author have to know about a sandbox."""
    return {
        "is_isolated": is_isolated,
        "timeout_s": sandbox.timeout_s,
        "roots": [os.fspath(root) for root in settings.context_roots],
        "mounts": list(map(describe_mount, sandbox.mounts)) if is_isolated else [],
        "export_dir": os.fspath(settings.export_dir),
        "fetchers": [],
    }


def describe_mount(entry: str) -> str:
    """Return the folder in the sandbox of a mount, and whether code may write to it."""
    parts = entry.split(":")
    if parts[-1] == "rw":
        return f"{parts[-2]} (writable)"
    return parts[-1]


async def name_python(journal: Journal, *, is_isolated: bool) -> str:
    """Return the interpreter of a sandbox, with the version that the last one had, if any."""
    if not is_isolated:
        return f"Python {platform.python_version()}"
    version = await journal.load_last_python()
    return f"Python {version}" if version else "Python"
