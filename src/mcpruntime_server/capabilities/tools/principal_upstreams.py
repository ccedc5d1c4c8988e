"""The MCP servers that each principal uses with credentials, and through a connection, of its own.

Rule 1: nothing that such a connection says reaches another principal. What a server lists may
depend on the credential (tools of administrators, names of projects), so each principal has the
tools that its own connection lists, and with them its own modules, search index and stored list;
a list that is shared where it is the same would have to be compared in everybody's view.
Rule 2: the credentials are decrypted when a principal first uses the server, and again when they
have changed; then the connection before ends, and with it what it was doing.
Rule 3: the connections of all principals together are bounded. An idle one makes room; where none
is idle, a new one waits.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from ...config import CredentialSettings, UpstreamSettings
from ...config.placeholders import check_credential
from ...errors import CallFailed, Unavailable
from ...journal.principals import principal_file_name
from ..credential_store import StoredCredential
from ..own_credentials import (
    CHECK_INTERVAL_S,
    MISSING_KIND,
    UNUSABLE_KIND,
    OwnCredentials,
    missing_credential,
)
from ..redaction import Credentials
from .catalogue_cache import CatalogueCache
from .credentials import find_credentials
from .upstream import OwnConnection, Upstream

SLOT_TIMEOUT_S = 20.0  # for a connection of another principal to make room
MAX_CREDENTIAL_PARTS = 150  # a key with its certificates has about 100 lines
MAX_KNOWN_PRINCIPALS = 1_000  # of one upstream; those that used it longest ago are forgotten

logger = logging.getLogger(__name__)


class ConnectionSlots:
    """A number of connections, of all principals and upstreams."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._waiting: deque[anyio.Event] = deque()
        self.connected: OrderedDict[Upstream, None] = OrderedDict()  # that hold a slot

    @asynccontextmanager
    async def hold(self, upstream: Upstream) -> AsyncIterator[None]:
        """Hold a slot for an upstream; raises `CallFailed` if none is free in time."""
        await self._acquire()
        self.connected[upstream] = None
        try:
            yield
        finally:
            del self.connected[upstream]
            self._release()

    async def _acquire(self) -> None:
        if self._free:
            self._free -= 1
            return
        event = anyio.Event()
        self._waiting.append(event)
        self.make_room()
        try:
            with anyio.move_on_after(SLOT_TIMEOUT_S):
                await event.wait()
        except BaseException:
            if event.is_set():
                self._release()
            else:
                self._waiting.remove(event)
            raise
        if not event.is_set():
            self._waiting.remove(event)
            raise CallFailed(
                "unavailable",
                f"All {self._total} connections of principals to MCP servers are in use; try again "
                "later. [credentials] max_connections allows more.",
            )

    def _release(self) -> None:
        """Pass the slot to who waits longest, or keep it free."""
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._free += 1

    def make_room(self) -> None:
        """End connections that are idle, longest first, for those who wait."""
        ended = 0
        for upstream in sorted(self.connected, key=lambda each: -each.idle_s):
            if ended >= len(self._waiting):
                return
            ended += upstream.disconnect_idle()


@dataclass(frozen=True)
class KnownUpstream:
    """The upstream of one principal, with the credentials that it was made of."""

    upstream: Upstream
    rows: tuple[StoredCredential, ...]
    scope: anyio.CancelScope  # of the tasks of its connection
    missing: CallFailed | None = None  # that a credential is, and what to do about it


class PrincipalUpstreams:
    """One entry of the settings: an upstream for each principal, made when it is first needed."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        make_upstream: Callable[[UpstreamSettings, OwnConnection | None], Upstream],
        vault: OwnCredentials,
        slots: ConnectionSlots,
        tasks: TaskGroup,
        cache: CatalogueCache | None,
    ) -> None:
        self.name = name
        self.settings = settings
        self._make_upstream = make_upstream
        self._vault = vault
        self._slots = slots
        self._tasks = tasks
        self._cache = cache
        self._known: OrderedDict[str, KnownUpstream] = OrderedDict()  # by principal
        self._lock = anyio.Lock()
        self._nobodys = make_upstream(settings, None)
        self._nobodys.refuse(partial(missing_credential, name, None, (), ""))

    def peek(self, principal: str | None) -> Upstream:
        """Return the upstream of a principal as it was used last; reads nothing."""
        known = None if principal is None else self._known.get(principal)
        return known.upstream if known else self._nobodys

    async def find(self, principal: str | None) -> Upstream:
        """Return the upstream of a principal, as its credentials are now.

        If they cannot be used, each caller that needs the connection gets the reason.
        """
        if principal is None:
            return self._nobodys
        try:
            rows = await run_sync(self._vault.find_rows, self.name, principal)
            known = self._known.get(principal)
            if known is None or known.rows != rows:
                async with self._lock:
                    rows = await run_sync(self._vault.find_rows, self.name, principal)
                    known = self._known.get(principal)
                    if known is None or known.rows != rows:
                        known = await self._replace(principal, rows)
        except Unavailable as exc:
            return self._make_refusing(partial(CallFailed, UNUSABLE_KIND, str(exc)))
        if principal in self._known:
            self._known.move_to_end(principal)
        return known.upstream

    async def find_or_ask(self, principal: str | None) -> Upstream:
        """Return the upstream of a principal, for a call that can wait for a missing credential.

        A person is asked for it, if the client of the run can show a page.
        """
        upstream = await self.find(principal)
        if principal is None:
            return upstream
        while (known := self._known.get(principal)) is not None and known.missing is not None:
            if not await self._vault.ask(self.name, principal, known.rows, known.missing):
                break
            upstream = await self.find(principal)
        return upstream

    async def end_stale(self) -> None:
        """End the connections whose credentials were changed or removed."""
        for principal, known in list(self._known.items()):
            if known.upstream in self._slots.connected:
                await self.find(principal)

    def _make_refusing(self, failure: Callable[[], CallFailed]) -> Upstream:
        upstream = self._make_upstream(self.settings, None)
        upstream.refuse(failure)
        return upstream

    async def _replace(self, principal: str, rows: tuple[StoredCredential, ...]) -> KnownUpstream:
        """Make the upstream of a principal, and end the one before."""
        if before := self._known.pop(principal, None):
            before.scope.cancel()
        scope = anyio.CancelScope()
        try:
            opened = await run_sync(
                open_settings, self._vault, self.settings, self.name, principal, rows
            )
        except CallFailed as exc:
            failure = partial(CallFailed, exc.kind, exc.message, remedy=exc.remedy)
            missing = exc if exc.kind == MISSING_KIND else None
            known = KnownUpstream(self._make_refusing(failure), rows, scope, missing)
            if missing is None:  # the same credentials may be usable later: the key is new
                return known
        else:
            known = KnownUpstream(self._make_own(principal, *opened), rows, scope)
            if self._cache is not None:
                stored = await run_sync(self._cache.load, known.upstream.cache_key)
                if stored is not None:
                    known.upstream.preload_tools(stored)
            self._tasks.start_soon(self._supervise, known)
        self._known[principal] = known
        self._forget_idle()
        return known

    def _make_own(
        self, principal: str, settings: UpstreamSettings, credentials: Credentials
    ) -> Upstream:
        own = OwnConnection(
            principal,
            principal_file_name(principal),
            credentials,
            self._slots.hold,
            self._slots.make_room,
        )
        return self._make_upstream(settings, own)

    async def _supervise(self, known: KnownUpstream) -> None:
        upstream = known.upstream
        with known.scope:
            async with anyio.create_task_group() as tasks:
                if self._cache is not None:
                    tasks.start_soon(upstream.keep_stored, self._cache)
                await upstream.supervise()

    def _forget_idle(self) -> None:
        """Forget the principals that used the upstream longest ago, if there are too many."""
        for principal, known in list(self._known.items()):
            if len(self._known) <= MAX_KNOWN_PRINCIPALS:
                return
            if known.upstream not in self._slots.connected:
                known.scope.cancel()
                del self._known[principal]


def open_settings(
    vault: OwnCredentials,
    settings: UpstreamSettings,
    upstream: str,
    principal: str,
    rows: tuple[StoredCredential, ...],
) -> tuple[UpstreamSettings, Credentials]:
    """Return the settings with the credentials of a principal, and what to keep out of answers.

    Raises `CallFailed`. Call it in a worker thread.
    """
    needed = settings.find_placeholders()
    secrets = vault.decrypt(rows, upstream, principal, list(needed))
    for name, fields in needed.items():
        if problem := check_credential(secrets[name], fields):
            raise CallFailed(
                UNUSABLE_KIND, f"The credential for {upstream} cannot be used: {problem}."
            )
    filled = settings.fill_placeholders(secrets)
    values = find_credentials(filled, secrets.values())
    if len(values) > MAX_CREDENTIAL_PARTS:
        raise CallFailed(
            UNUSABLE_KIND,
            f"The credential for {upstream} cannot be used: it has more than "
            f"{MAX_CREDENTIAL_PARTS} lines or values, each of which would have to be kept out "
            "of answers.",
        )
    return filled, Credentials(values)


def make_upstream(
    name: str, base_dir: Path, log_dir: Path, settings: UpstreamSettings, own: OwnConnection | None
) -> Upstream:
    """Return an upstream with the filled settings of a principal, or of nobody."""
    return Upstream(name, settings, base_dir, log_dir, own)


@asynccontextmanager
async def open_principal_upstreams(
    servers: Mapping[str, UpstreamSettings],
    settings: CredentialSettings,
    base_dir: Path,
    log_dir: Path,
    vault: OwnCredentials,
    cache: CatalogueCache | None = None,
) -> AsyncIterator[dict[str, PrincipalUpstreams]]:
    """Yield the upstreams with credentials of each principal, by name.

    Leaving ends all connections.
    """
    slots = ConnectionSlots(settings.max_connections)
    async with anyio.create_task_group() as tasks:
        opened = {
            name: PrincipalUpstreams(
                name,
                entry,
                partial(make_upstream, name, base_dir, log_dir),
                vault,
                slots,
                tasks,
                cache,
            )
            for name, entry in servers.items()
            if not entry.disabled and entry.is_per_principal
        }
        if opened:
            tasks.start_soon(end_connections, opened, slots, settings.idle_s)
        try:
            yield opened
        finally:
            tasks.cancel_scope.cancel()


async def end_connections(
    upstreams: Mapping[str, PrincipalUpstreams], slots: ConnectionSlots, idle_s: float
) -> None:
    """End connections that nobody uses, or whose credentials are others; runs until cancelled."""
    while True:
        await anyio.sleep(CHECK_INTERVAL_S)
        try:
            for each in upstreams.values():
                await each.end_stale()
        except Exception:  # the connections of the others still have to end
            logger.exception("could not check the credentials of principals")
        for upstream in list(slots.connected):
            if upstream.idle_s >= idle_s:
                upstream.disconnect_idle()
