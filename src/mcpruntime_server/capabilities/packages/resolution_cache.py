"""Resolved requirements, kept for a day, so that the next session does not ask the index.

An older answer is used only when the index does not answer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from ..atomic_files import write_atomically
from .requirements import PackageRequest
from .resolver import ResolvedWheel

MAX_AGE_S = 24 * 3600.0
MAX_FILE_BYTES = 1024 * 1024


class ResolutionCache:
    """Resolutions as files in `folder`, one for each set of requirements."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str, max_age_s: float = MAX_AGE_S) -> list[ResolvedWheel] | None:
        """Return a stored resolution, unless it is too old."""
        path = self._folder / f"{key}.json"
        try:
            if time.time() - path.stat().st_mtime > max_age_s:
                return None
            entries = json.loads(path.read_bytes()[:MAX_FILE_BYTES])
            return [ResolvedWheel(**entry) for entry in entries]
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, key: str, wheels: Sequence[ResolvedWheel]) -> None:
        """Store a resolution."""
        path = self._folder / f"{key}.json"
        write_atomically(path, json.dumps([asdict(wheel) for wheel in wheels]).encode())
        os.utime(path)  # it may have been there


def make_key(request: PackageRequest) -> str:
    """Return the key under which the resolution of a request is stored."""
    installed = sorted(request.installed.items())
    parts = [sorted(map(str, request.requirements)), installed, vars(request.platform)]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
