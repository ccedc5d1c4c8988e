"""The append-only record of everything that happens, and the only source of truth."""

from __future__ import annotations

from .blobs import BlobStore, BlobWriter
from .lease import Lease
from .rows import RunRow, SessionRow, Stored
from .store import Journal, open_journal
from .watch import Watch

__all__ = ["BlobStore", "BlobWriter", "Journal", "Lease", "RunRow", "SessionRow", "Stored", "Watch", "open_journal"]
