"""The tool lists that upstreams had when they were last connected, so that a restart can use them.

An entry is found by a digest of what starts the upstream. The version of a server is known only
once it has started, so it is stored in the entry; the listing that follows each start replaces it.

Rule 1: an entry is as hostile as the upstream that it came from, and the file may be damaged. It is
bounded and checked when it is read. An unusable entry is logged and ignored.
Rule 2: no entry contains a credential. The digest covers the names of environment variables and
headers, not their values, and the tools arrive here with credentials replaced.
Rule 3: an entry saves waiting and decides nothing. What a call may do follows from a live listing.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG

from pydantic_core import from_json

from ...config import UpstreamSettings
from ...journal.events import canonical_json
from ...protocol.payloads import JsonObject
from ..atomic_files import write_atomically
from .credentials import collect_credentials
from .listed_tools import ListedTool, list_tool, parse_tool

FORMAT_VERSION = 1
MAX_TOOLS = 10_000  # of one upstream; more is a mistake or an attack
MAX_ENTRY_BYTES = 4 * 1024 * 1024  # a longer tool list is not stored
MAX_VERSION_CHARS = 80
MAX_ENTRIES = 256  # kept, those that were listed last
MAX_ENTRY_AGE_S = 30 * 24 * 3600.0  # since the upstream was last listed
ENTRY_SUFFIX = ".json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Catalogue:
    """The tools of one upstream; `listed_at` is the time (Unix) of the listing."""

    tools: tuple[ListedTool, ...]
    server_version: str
    listed_at: float


def catalogue_key(
    name: str, settings: UpstreamSettings, base_dir: Path, principal: str | None = None
) -> str:
    """Return the digest that identifies an upstream, without its credentials.

    Two entries of the settings may start the same command with other values of variables, and offer
    other tools, so the `name` counts, too. Paths in `settings` are relative to `base_dir`. With
    `principal`, the connection is that principal's own, and so are its tools.
    """
    credentials = collect_credentials(settings)
    identity: JsonObject = {
        "name": name,
        "command": settings.command,
        "args": [credentials.redact_text(each) for each in settings.args],
        "folder": str(base_dir / (settings.cwd or "")),
        "url": credentials.redact_text(settings.url or ""),
        "env": sorted(settings.env),
        "headers": sorted(settings.headers),
    }
    if principal is not None:
        identity["principal"] = principal
    return sha256(canonical_json(identity).encode("utf-8", "surrogatepass")).hexdigest()


class CatalogueCache:
    """A folder with one file for each upstream; several servers may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> Catalogue | None:
        """Return the stored entry, or None if there is none that can be used."""
        path = self._entry_path(key)
        try:
            data, listed_at = _read_entry(path)
            return _parse_entry(data, key, listed_at)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else type(exc).__name__
            logger.warning("ignored the stored tool list %s: %s", path, reason)
            return None

    def save(self, key: str, catalogue: Catalogue) -> None:
        """Store `catalogue`, unless it is too long or the disk refuses it."""
        path = self._entry_path(key)
        data = _format_entry(key, catalogue)
        if len(data) > MAX_ENTRY_BYTES:
            logger.info("a tool list of %d bytes is not stored", len(data))
            return
        try:
            write_atomically(path, data)
            os.utime(path, (catalogue.listed_at, catalogue.listed_at))
        except OSError as exc:
            logger.warning("could not store the tool list %s: %s", path, exc.strerror)

    def remove_stale(self) -> None:
        """Remove entries of upstreams that no server has listed for long, and those too many."""
        listed_at: dict[Path, float] = {}
        with suppress(OSError):
            for path in self._folder.glob(f"*{ENTRY_SUFFIX}"):
                listed_at[path] = path.lstat().st_mtime
        newest_first = sorted(listed_at, key=lambda path: listed_at[path], reverse=True)
        oldest_kept = time.time() - MAX_ENTRY_AGE_S
        for place, path in enumerate(newest_first):
            if place >= MAX_ENTRIES or listed_at[path] < oldest_kept:
                with suppress(OSError):
                    path.unlink()

    def _entry_path(self, key: str) -> Path:
        return self._folder / f"{key}{ENTRY_SUFFIX}"


def _format_entry(key: str, catalogue: Catalogue) -> bytes:
    """Return an entry as JSON. The tools are text already: encoding them would hold up others."""
    version = catalogue.server_version[:MAX_VERSION_CHARS]
    head = json.dumps({"format": FORMAT_VERSION, "key": key, "version": version}).encode()
    return b'%b, "tools": [%b]}' % (head[:-1], b", ".join(tool.text for tool in catalogue.tools))


def _read_entry(path: Path) -> tuple[bytes, float]:
    """Return the bytes of a regular file, and its time of modification; raises `ValueError`."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        data = file.read(MAX_ENTRY_BYTES + 1) if S_ISREG(status.st_mode) else b""
        if not data or len(data) > MAX_ENTRY_BYTES:
            raise ValueError("not a file of a usable size")
        return data, status.st_mtime


def _parse_entry(data: bytes, key: str, listed_at: float) -> Catalogue:
    """Return the entry of `key` in `data`; raises `ValueError`."""
    entry = from_json(data)
    if not isinstance(entry, Mapping) or entry.get("format") != FORMAT_VERSION:
        raise ValueError("another format")
    tools, version = entry.get("tools"), entry.get("version")
    if entry.get("key") != key or not isinstance(version, str) or not isinstance(tools, list):
        raise ValueError("not the entry of this upstream")
    parsed = tuple(list_tool(parse_tool(each)) for each in tools)
    if len(parsed) > MAX_TOOLS or len({tool.name for tool in parsed}) < len(parsed):
        raise ValueError("not a list of tools")
    return Catalogue(parsed, version[:MAX_VERSION_CHARS], listed_at)
