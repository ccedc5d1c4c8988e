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

    def find(
        self, request: PackageRequest, max_age_s: float = MAX_AGE_S
    ) -> list[ResolvedWheel] | None:
        """Return the stored resolution of a request, unless it is too old."""
        path = self._find_path(request)
        try:
            if time.time() - path.stat().st_mtime > max_age_s:
                return None
            entries = json.loads(path.read_bytes()[:MAX_FILE_BYTES])
            return [ResolvedWheel(**entry) for entry in entries]
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, request: PackageRequest, wheels: Sequence[ResolvedWheel]) -> None:
        """Store the resolution of a request."""
        path = self._find_path(request)
        write_atomically(path, json.dumps([asdict(wheel) for wheel in wheels]).encode())
        os.utime(path)  # it may have been there

    def _find_path(self, request: PackageRequest) -> Path:
        installed = sorted(request.installed.items())
        parts = [sorted(map(str, request.requirements)), installed, vars(request.platform)]
        key = sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{key}.json"
