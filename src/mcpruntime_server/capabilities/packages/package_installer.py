"""Handle the calls by which code installs packages.

A call names requirements, what the sandbox has already, and its platform. The answer names wheels
by digest. The journal keeps their files as blobs, as long as anything refers to them, so that a
replay, a fork, or an import of an archive elsewhere uses the same bytes. The cache has them
unpacked; before code gets an answer, recorded or not, its sandbox has what the answer names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import anyio
from anyio.to_thread import run_sync

from ...config import Verdict
from ...errors import CallFailed
from ...journal.blob_store import BlobStore
from ...journal.call_scope import current_call_scope
from ...journal.progress import ReportProgress
from ...protocol.payloads import JsonObject
from .requirements import (
    PackageRequest,
    Platform,
    find_refused,
    parse_request,
    parse_requirements,
)
from .resolution_cache import ResolutionCache
from .resolver import ResolvedWheel, WheelSource
from .wheel_cache import DIGEST, WheelCache, read_chunks

INSTALL_TARGET = "packages.install"
MAX_CONCURRENT = 2  # downloads of the whole server
MAX_WHEELS = 200  # of one answer


class SuppliedSandbox(Protocol):
    """A sandbox that may need a copy of a package."""

    async def copy_package(self, name: str, folder: Path) -> None:
        """Let code see a folder of this machine."""
        ...


class PackageInstaller:
    """Resolves requirements and downloads wheels into the cache."""

    def __init__(
        self,
        cache: WheelCache,
        blobs: BlobStore,
        source: WheelSource,
        mode: Verdict,
        allowed: Sequence[str],
    ) -> None:
        self._cache = cache
        self._blobs = blobs
        self._source = source
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
        request = parse_request(args)
        scope = current_call_scope()
        shown = {"requirements": args["requirements"]}
        scope.describe_call(shown, "")
        wheels = await run_sync(self._resolutions.find, request)
        if wheels is None or not await run_sync(self._has_all, wheels):
            async with self._downloads:
                wheels = await self._fetch(request, scope.report_progress)
            scope.report_progress("")
        found = [f"{wheel.name} {wheel.version}" for wheel in wheels]
        scope.describe_call(shown, ", ".join(found) or "already installed")
        return {
            "wheels": [
                {"name": wheel.name, "version": wheel.version, "sha256": wheel.digest}
                for wheel in wheels
            ]
        }

    async def supply(self, value: Any, sandbox: SuppliedSandbox) -> None:
        """Unpack what an answer names, and copy it where a sandbox does not see the cache."""
        for digest in list_digests(value):
            if not await run_sync(self._cache.has, digest):
                await run_sync(self._unpack_blob, digest)
            await sandbox.copy_package(digest, self._cache.root / digest)

    def _has_all(self, wheels: Sequence[ResolvedWheel]) -> bool:
        return all(
            self._blobs.refresh(each.digest) and self._cache.has(each.digest) for each in wheels
        )

    def _unpack_blob(self, digest: str) -> None:
        if not self._blobs.refresh(digest):
            raise CallFailed(
                "unavailable",
                f"The package with the digest {digest} is no longer stored.",
                remedy="packages.install with its name and version stores it again.",
            )
        self._cache.add(self._blobs.blob_path(digest), digest)

    async def _fetch(self, request: PackageRequest, report: ReportProgress) -> list[ResolvedWheel]:
        """Return the needed wheels, all of which are then in the cache and in the journal."""
        wheels = await run_sync(self._resolutions.find, request)
        if wheels is None:
            wheels = await self._resolve(request, report)
        if len(wheels) > MAX_WHEELS:
            message = f"These packages need {len(wheels):,} others; {MAX_WHEELS} are allowed."
            raise CallFailed("too_large", message)
        for wheel in wheels:
            if not await run_sync(self._blobs.refresh, wheel.digest):
                await self._download(wheel, request.platform, report)
            elif not await run_sync(self._cache.has, wheel.digest):
                await run_sync(self._unpack_blob, wheel.digest)
        return wheels

    async def _resolve(
        self, request: PackageRequest, report: ReportProgress
    ) -> list[ResolvedWheel]:
        try:
            wheels = await self._source.resolve(request, report)
        except CallFailed:
            outdated = await run_sync(self._resolutions.find, request, inf)
            if outdated is None:
                raise
            return outdated
        await run_sync(self._resolutions.keep, request, wheels)
        return wheels

    async def _download(
        self, wheel: ResolvedWheel, platform: Platform, report: ReportProgress
    ) -> None:
        with TemporaryDirectory(prefix="mcpruntime-wheel-") as folder:
            path = await self._source.download(wheel, platform, Path(folder), report)
            await run_sync(self._cache.add, path, wheel.digest)
            await run_sync(self._blobs.put_stream, lambda: read_chunks(path))


def list_digests(value: Any) -> list[str]:
    """Return the digests of the wheels that an answer names; [] if it is not such an answer."""
    match value:
        case {"wheels": [*wheels]} if len(wheels) <= MAX_WHEELS:
            digests = [each.get("sha256") for each in wheels if isinstance(each, dict)]
            return [each for each in digests if isinstance(each, str) and DIGEST.fullmatch(each)]
    return []
