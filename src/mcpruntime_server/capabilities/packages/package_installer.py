"""Handle the calls by which code installs packages.

A call names requirements, what the sandbox has already, and its platform. The answer names wheels
by digest, so that a replay uses the same bytes; the sandbox imports them from the cache, which it
sees read-only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
from anyio.to_thread import run_sync
from packaging.requirements import Requirement

from ...config import Verdict
from ...errors import CallFailed
from ...journal.call_scope import current_call_scope
from ...protocol.payloads import JsonObject
from .requirements import Platform, find_refused, parse_installed, parse_requirements
from .resolution_cache import ResolutionCache, make_key
from .resolver import ResolvedWheel, download_wheel, resolve_wheels
from .wheel_cache import WheelCache

INSTALL_TARGET = "packages.install"
MAX_CONCURRENT = 2  # downloads of the whole server


class PackageInstaller:
    """Resolves requirements and downloads wheels into the cache."""

    def __init__(self, cache: WheelCache, mode: Verdict, allowed: Sequence[str]) -> None:
        self._cache = cache
        self._resolutions = ResolutionCache(cache.root.with_name("resolutions"))
        self._mode = mode
        self._allowed = allowed
        self._downloads = anyio.CapacityLimiter(MAX_CONCURRENT)

    def decide(self, target: str, args: Mapping[str, Any]) -> Verdict:
        """Return the verdict on a call; raises `CallFailed` if the settings refuse a name."""
        requirements = parse_requirements(args.get("requirements"))
        if refused := find_refused(requirements, self._allowed):
            raise CallFailed(
                "denied",
                f"{refused} is none of the packages that code may ask for.",
                remedy=f'The user can allow it: [sandbox] allowed_packages = ["{refused}"].',
            )
        return self._mode

    async def handle_call(self, target: str, args: JsonObject) -> JsonObject:
        """Download packages into the cache and return their wheels; raises `CallFailed`."""
        if target != INSTALL_TARGET:
            raise CallFailed("not_found", f"There is no {target!r:.100}.")
        requirements = parse_requirements(args.get("requirements"))
        installed = parse_installed(args.get("installed"))
        platform = Platform(args.get("platform"))
        scope = current_call_scope()
        shown = {"requirements": args["requirements"]}
        scope.describe_call(shown, "")
        async with self._downloads:
            wheels = await self._resolve(requirements, installed, platform)
            for wheel in wheels:
                if not await run_sync(self._cache.has, wheel.digest):
                    await self._download(wheel, platform)
        found = [f"{wheel.name} {wheel.version}" for wheel in wheels]
        scope.describe_call(shown, ", ".join(found) or "already installed")
        return {
            "wheels": [
                {"name": wheel.name, "version": wheel.version, "sha256": wheel.digest}
                for wheel in wheels
            ]
        }

    async def _resolve(
        self, requirements: list[Requirement], installed: Mapping[str, str], platform: Platform
    ) -> list[ResolvedWheel]:
        """Return the needed wheels, from the resolution cache or from the index."""
        key = make_key(requirements, installed, platform)
        known = await run_sync(self._resolutions.find, key)
        if known is not None:
            return known
        try:
            wheels = await resolve_wheels(requirements, installed, platform)
        except CallFailed:
            outdated = await run_sync(self._resolutions.find, key, inf)
            if outdated is None:
                raise
            return outdated
        await run_sync(self._resolutions.keep, key, wheels)
        return wheels

    async def _download(self, wheel: ResolvedWheel, platform: Platform) -> None:
        with TemporaryDirectory(prefix="mcpruntime-wheel-") as folder:
            path = await download_wheel(wheel, platform, Path(folder))
            await run_sync(self._cache.add, path, wheel.digest)
