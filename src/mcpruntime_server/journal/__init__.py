"""The append-only record of everything that happens, and the only source of truth."""

from __future__ import annotations

from .blob_store import BlobStore, BlobWriter
from .rows import RunRow, SessionRow, StoredEvent
from .server_lease import ServerLease
from .store import Durability, Journal, open_journal

__all__ = [
    "BlobStore",
    "BlobWriter",
    "Durability",
    "Journal",
    "RunRow",
    "ServerLease",
    "SessionRow",
    "StoredEvent",
    "open_journal",
]
