"""The user's MCP servers, each as one object: its state, its tools, and calls to it.

Connections are opened on first use, shared, supervised, and closed in time; tools of an earlier
process may be shown before the upstream is connected, never called.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from mcp import Client

from ...config import UpstreamSettings
from ...errors import CallFailed
from ..redaction import Credentials
from .catalogue_cache import Catalogue, CatalogueCache, catalogue_key
from .connection_supervisor import (
    MAX_MESSAGE_CHARS,
    ConnectionSupervisor,
    UpstreamStatus,
)
from .credentials import collect_credentials
from .large_answers import LargeResult
from .listed_tools import ListedTool
from .paged_lists import FetchedList, ItemT, ListKind, PagedList
from .stderr_log import StderrTail, log_path
from .tool_list import UpstreamToolList
from .tool_list_watch import ToolListWatch
from .tool_results import error_message, error_texts, tool_result_data
from .upstream_calls import UpstreamCalls
from .upstream_connection import UpstreamConnection

SAVE_TIMEOUT_S = 2.0  # for the last tool lists to reach the disk at shutdown

T = TypeVar("T")


@dataclass(frozen=True)
class OwnConnection:
    """What makes an upstream the own one of a principal.

    Its credentials are in the settings and known as `credentials`. It connects while it holds a
    slot, and calls `on_idle` when the last request has ended.
    """

    principal: str
    file_name: str  # stands for the principal in names of files
    credentials: Credentials
    hold_slot: Callable[[Upstream], AbstractAsyncContextManager[None]]
    on_idle: Callable[[], None]


class Upstream:
    """One of the user's MCP servers, shared, or as one principal uses it."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        base_dir: Path,
        log_dir: Path,
        own: OwnConnection | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.owner_file_name = own.file_name if own else ""
        self.log_file = log_path(log_dir, name, self.owner_file_name)
        principal = own.principal if own else None
        self.cache_key = catalogue_key(name, settings, base_dir, principal)
        self._credentials = own.credentials if own else collect_credentials(settings)
        self._tool_list = UpstreamToolList(settings, self._credentials)
        self._tool_list_watch = ToolListWatch(self._tool_list)
        stderr = StderrTail(self.log_file)
        self._supervisor = ConnectionSupervisor(
            name,
            settings,
            base_dir,
            stderr,
            self._credentials,
            self._tool_list,
            self._tool_list_watch,
            partial(own.hold_slot, self) if own else nullcontext,
        )
        self._calls = UpstreamCalls(
            name,
            settings,
            self._credentials,
            self._supervisor,
            self._tool_list,
            stderr,
            own.on_idle if own else lambda: None,
        )

    # the connection -------------------------------------------------------------------------------

    @property
    def status(self) -> UpstreamStatus:
        """The current state; reading it does not start the upstream."""
        return self._supervisor.status

    @property
    def failure(self) -> CallFailed | None:
        """Why the last attempt to connect failed, or None if it did not fail."""
        return self._supervisor.failure

    @property
    def connecting_s(self) -> float:
        """The seconds for which the current attempt to connect has lasted; 0 if there is none."""
        return self._supervisor.connecting_s

    def request_connection(self) -> None:
        """Start to connect, if the upstream is not connected, without waiting for it."""
        self._supervisor.request()

    async def supervise(self) -> None:
        """Open the connection when a caller requests it; runs until it is cancelled."""
        await self._supervisor.run()

    def refuse(self, failure: Callable[[], CallFailed]) -> None:
        """Refuse every connection from now on, with the failure as the reason."""
        self._supervisor.refuse(failure)

    @property
    def idle_s(self) -> float:
        """The seconds since the last use of the connection; 0 while a request is under way."""
        return self._calls.idle_s

    def disconnect_idle(self) -> bool:
        """End the connection unless a request is under way; return whether one was ended."""
        if self._calls.is_active or self.status.state != "ready":
            return False
        self._supervisor.disconnect()
        return True

    # the tools ------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """How often the tool list has changed."""
        return self._tool_list.generation

    @property
    def known_tools(self) -> tuple[ListedTool, ...] | None:
        """The tools of the last listing, or None if there was none.

        Before the first connection, these are the tools of an earlier process, if they are stored.
        """
        return self._tool_list.tools

    @property
    def live_since(self) -> int | None:
        """The generation that this process listed first, or None if it has not listed any."""
        return self._tool_list.live_since

    @property
    def preloaded_at(self) -> float | None:
        """The time (Unix) of the listing by an earlier process, while that is the last one."""
        return self._tool_list.preloaded_at

    @property
    def listing_note(self) -> str:
        """A sentence that says why the list of tools is not whole; "" if it is."""
        cut = self._tool_list.cut
        return cut.describe("tools", self.name, len(self._tool_list.tools or ())) if cut else ""

    def preload_tools(self, catalogue: Catalogue) -> None:
        """Use the tools of an earlier process until this one has listed them."""
        self._tool_list.preload(catalogue)

    def add_change_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the tool list changes."""
        self._tool_list.add_listener(listener)

    async def list_tools(self) -> tuple[ListedTool, ...]:
        """Return the tools as this process listed them last; the first call connects.

        Raises `CallFailed`.
        """
        if self._tool_list.live_since is None:
            await self._supervisor.connect()
            self._calls.mark_used()
        return self._tool_list.tools or ()

    async def refresh_tools(self) -> None:
        """List the tools of a connected upstream again, before it announces a change."""
        await self._supervisor.refresh_tools()

    def add_listing_cost(self, seconds: float) -> None:
        """Count work that the last listing has caused: the next one has to wait the longer."""
        self._tool_list_watch.add_cost(seconds)

    async def keep_stored(self, cache: CatalogueCache) -> None:
        """Store the tools after each listing; runs until it is cancelled."""
        await self._tool_list.keep_stored(cache, self.cache_key)

    async def store_tools(self, cache: CatalogueCache) -> None:
        """Store the tools, if they were listed since they were stored last."""
        await self._tool_list.store(cache, self.cache_key)

    # calls ----------------------------------------------------------------------------------------

    async def call_tool(self, tool: str, arguments: Mapping[str, Any]) -> Any:
        """Call `tool`, by its upstream's own name, and return JSON data; raises `CallFailed`.

        Large data are a `LargeValue`.
        """
        result = await self._calls.call_tool(tool, arguments)
        if isinstance(result, LargeResult):
            if result.is_error:
                raise CallFailed("tool_error", result.message, data=result.data)
            return result.value
        if result.is_error:
            message = error_message(self._credentials.redact(error_texts(result)))
            data = self._credentials.redact(result.structured_content)
            raise CallFailed("tool_error", message[:MAX_MESSAGE_CHARS], data=data)
        value = tool_result_data(result, self._tool_list.has_wrapper(tool))
        return self._credentials.redact(value) if self._credentials else value

    async def send_request(self, operation: str, request: Callable[[Client], Awaitable[T]]) -> T:
        """Run `request` with the connected client; errors call it `operation`.

        Raises `CallFailed`.
        """
        return await self._calls.send(operation, lambda connection: request(connection.client))

    async def fetch_list(self, kind: ListKind[ItemT]) -> FetchedList[ItemT]:
        """Return what the connected server lists of resources or templates; raises `CallFailed`."""

        async def fetch(connection: UpstreamConnection) -> FetchedList[ItemT]:
            if connection.client.server_capabilities.resources is None:
                return FetchedList(())
            fetched = PagedList(kind, self.settings, connection.fetch_page, lambda item: item)
            return await fetched.fetch()

        return await self._calls.send(f"the list of {kind.words}", fetch)

    def redact_bytes(self, data: bytes) -> bytes:
        """Return `data` with the credentials of this upstream replaced."""
        return self._credentials.redact_bytes(data)


@asynccontextmanager
async def open_upstreams(
    settings: Mapping[str, UpstreamSettings],
    base_dir: Path,
    log_dir: Path,
    cache: CatalogueCache | None = None,
) -> AsyncIterator[dict[str, Upstream]]:
    """Yield the shared upstreams by name, not yet started; leaving ends all their connections.

    Paths in the settings are relative to `base_dir`. The stderr of each upstream goes to a file in
    `log_dir`. Until an upstream is connected, its tools are those in the `cache`.
    """
    upstreams = {
        name: Upstream(name, entry, base_dir, log_dir)
        for name, entry in settings.items()
        if not entry.disabled and not entry.is_per_principal
    }
    if cache is not None:
        await anyio.to_thread.run_sync(preload_stored_tools, upstreams.values(), cache)
    try:
        async with anyio.create_task_group() as tasks:
            for upstream in upstreams.values():
                tasks.start_soon(upstream.supervise, name=f"upstream {upstream.name}")
                if cache is not None:
                    tasks.start_soon(upstream.keep_stored, cache)
            try:
                yield upstreams
            finally:
                tasks.cancel_scope.cancel()
    finally:
        if cache is not None:
            with anyio.move_on_after(SAVE_TIMEOUT_S, shield=True):
                for upstream in upstreams.values():
                    await upstream.store_tools(cache)


def preload_stored_tools(upstreams: Iterable[Upstream], cache: CatalogueCache) -> None:
    """Load the stored tools of `upstreams`, and remove unused entries."""
    for upstream in upstreams:
        if catalogue := cache.load(upstream.cache_key):
            upstream.preload_tools(catalogue)
    cache.remove_stale()
