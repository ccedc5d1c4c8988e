"""What a sandbox is told about itself, from the settings."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ..config import SandboxSettings, ServerSettings
from ..journal.store import Journal
from ..protocol.payloads import SandboxFacts
from ..protocol.wire import PACKAGES_FOLDER
from ..sandbox import Backend
from .sandbox_pool import SandboxPool

PYTHON_VERSION = re.compile(r"\d+\.\d+[\w.+-]{0,20}")  # journals may be of foreign origin


def collect_facts(
    settings: ServerSettings,
    sandbox: SandboxSettings,
    web_rules: Sequence[str],
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
        "packages_folder": find_packages_folder(settings, sandbox, is_isolated=is_isolated),
        "web_rules": list(web_rules),
    }


def find_packages_folder(
    settings: ServerSettings, sandbox: SandboxSettings, *, is_isolated: bool
) -> str:
    """Return where a sandbox sees the packages that code asks for; "" if it may not ask."""
    if sandbox.packages_on_demand == "off":
        return ""
    return PACKAGES_FOLDER if is_isolated else os.fspath(settings.packages_dir)


def describe_mount(entry: str) -> str:
    """Return the folder in the sandbox of a mount, and whether code may write to it."""
    parts = entry.split(":")
    if parts[-1] == "rw":
        return f"{parts[-2]} (writable)"
    return parts[-1]


async def name_python(backend: Backend, journal: Journal, pool: SandboxPool) -> str:
    """Return the interpreter of new sandboxes, with its version if it is known.

    The image says it, or sandboxes that ran in it before. An image that knows nothing of its
    Python, and in which none has run yet, is asked by the first sandbox that is kept ready.
    """
    image = await backend.summarize_image()
    if not image.id:
        return "Python"
    version = image.python_version or await journal.load_python_version(image.id)
    version = version or await pool.find_python_version()
    return f"Python {version}" if PYTHON_VERSION.fullmatch(version) else "Python"
