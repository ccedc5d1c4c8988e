"""What a server does beside its requests: early starts of upstreams, resumed runs, clean-up."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from ..capabilities.file_exports import remove_old_drafts
from ..capabilities.skills.model import Skill
from ..capabilities.tools.catalog import Catalog
from ..config import ServerSettings
from ..errors import McpRuntimeError
from ..journal.call_scope import act_for
from ..journal.retention import collect_garbage
from ..journal.store import Journal
from ..runtime.runtime import Runtime
from ..sandbox import Backend

if TYPE_CHECKING:
    pass


MAINTENANCE_DELAY_S = 60.0  # after the start of the server: none of it is urgent
MAINTENANCE_INTERVAL_S = 3600.0
FIRST_SWEEP_DELAY_S = 1.0  # after the start of the server, when a client is waiting
SWEEP_INTERVAL_S = 60.0  # what an engine did not remove at once may still use a processor

logger = logging.getLogger(__name__)


def start_imported_upstreams(
    catalog: Catalog, background: TaskGroup, code: str, principal: str
) -> None:
    """Start the upstreams that `code` will import, while it is sent to the sandbox.

    What is stored of all upstreams is prepared, too, for searches.
    """
    if "tools" in code:
        background.start_soon(prepare_stored_tools, catalog, code, principal)
    if names := catalog.find_idle_packages(code):
        background.start_soon(start_upstreams, catalog, names, principal)


async def prepare_stored_tools(catalog: Catalog, code: str, principal: str) -> None:
    """Prepare stored tools before they are used; a failure is reported by what needs them."""
    act_for(principal)
    try:
        await catalog.prepare_stored(code)
    except Exception:  # an optional preparation must not end the server
        logger.exception("could not prepare the stored tools")


async def start_upstreams(catalog: Catalog, names: Sequence[str], principal: str) -> None:
    """Start upstreams before they are used; code that imports them gets their failures."""
    act_for(principal)
    try:
        await catalog.start_upstreams(names)
    except Exception:  # an optional early start must not end the server
        logger.exception("could not start the upstreams %s early", ", ".join(names))


async def resume_interrupted_runs(runtime: Runtime) -> None:
    """Continue the unfinished runs of dead servers; a failure is reported to their clients."""
    try:
        await runtime.resume_interrupted_runs()
    except McpRuntimeError as exc:
        logger.error("could not resume the runs of dead servers: %s", exc)


async def maintain_stores(
    journal: Journal,
    retire_skills: Callable[[], Awaitable[list[Skill]]],
    settings: ServerSettings,
) -> None:
    """Keep the journal within its limits of age and size, and retire unused skills."""
    await anyio.sleep(MAINTENANCE_DELAY_S)
    from ..capabilities.packages.wheel_cache import list_wheel_digests  # slow, and seldom needed

    while True:
        try:
            cached = await to_thread.run_sync(list_wheel_digests, settings.packages_dir)
            cleared = await collect_garbage(
                journal, settings.keep_days, settings.keep_mb, kept_blobs=cached
            )
            if cleared.sessions:
                logger.info(
                    "removed %d sessions from the journal, %d bytes",
                    len(cleared.sessions),
                    cleared.bytes,
                )
        except McpRuntimeError as exc:
            logger.warning("could not remove old sessions from the journal: %s", exc)
        try:
            for skill in await retire_skills():
                logger.info("retired the skill %s: %s", skill.id, " ".join(skill.reasons))
        except McpRuntimeError as exc:
            logger.warning("could not retire unused skills: %s", exc)
        await anyio.sleep(MAINTENANCE_INTERVAL_S)


async def sweep_leftovers(backend: Backend, export_dir: Path) -> None:
    """Remove what was left behind, soon after the start of the server and then periodically."""
    await anyio.sleep(FIRST_SWEEP_DELAY_S)
    while True:
        try:
            if count := await backend.remove_orphans():
                logger.info("removed %d sandboxes that were left behind", count)
        except McpRuntimeError as exc:
            logger.warning("could not remove the sandboxes that were left behind: %s", exc)
        if count := await to_thread.run_sync(remove_old_drafts, export_dir):
            logger.info("removed %d half-written exports that were left behind", count)
        await anyio.sleep(SWEEP_INTERVAL_S)
