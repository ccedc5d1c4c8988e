"""Brings the index up to date with one provider; what has not changed is not read again.

Rule: blocks, in a worker thread, until it is done or told to stop; what was read until then is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from ...errors import Unavailable
from .passage_index import DocumentStatus, IndexedDocument, PassageIndex
from .passages import split_passages
from .provider import DocumentSkipped, KnowledgeProvider

MAX_BATCH_DOCUMENTS = 200  # documents of one transaction
MAX_BATCH_CHARS = 2_000_000
REREAD_AFTER_S = 300.0  # until a text is read again whose version is not known
RETRY_AFTER_S = 30.0  # until one is tried again that could not be read


@dataclass
class RefreshProgress:
    """How far a refresh is: of `total` documents, `left` are still to be read. Setting `stop` ends it."""

    total: int = 0
    remaining: int = 0
    stop: threading.Event = field(default_factory=threading.Event)


def refresh_index(
    index: PassageIndex, source_key: str, provider: KnowledgeProvider, progress: RefreshProgress
) -> None:
    """Read what has changed since the last time; raises `Unavailable`, and what was known then stays."""
    progress.total = progress.remaining = 0
    index.mark_used(source_key)
    known = index.load_statuses(
        source_key
    )  # before the listing: what another server adds after it is not taken for gone
    names = provider.names()
    index.remove_documents(source_key, known.keys() - names.keys())
    due = {
        name: version for name, version in names.items() if is_refresh_due(version, known.get(name))
    }
    progress.total, progress.remaining = len(names), len(due)
    for batch in _read_batches(provider, due, progress):
        index.put_documents(source_key, batch)


def is_refresh_due(version: str, known: DocumentStatus | None) -> bool:
    """Return whether a document is to be read."""
    if known is None:
        return True
    if not version or not known.version:
        return time.time() - known.checked_at > (
            REREAD_AFTER_S if not known.problem else RETRY_AFTER_S
        )
    return version != known.version


def _read_batches(
    provider: KnowledgeProvider, due: Mapping[str, str], progress: RefreshProgress
) -> Iterator[list[IndexedDocument]]:
    """Yield documents, read and cut, a transaction's worth at a time."""
    batch: list[IndexedDocument] = []
    size = 0
    failure: Unavailable | None = None
    for name, version in due.items():
        if progress.stop.is_set():
            break
        try:
            batch.append(read_document(provider, name, version))
        except Unavailable as exc:
            failure = exc
            break
        size += len(batch[-1].text)
        progress.remaining -= 1
        if len(batch) == MAX_BATCH_DOCUMENTS or size > MAX_BATCH_CHARS:
            yield batch
            batch, size = [], 0
    yield batch
    if failure is not None:
        raise failure


def read_document(provider: KnowledgeProvider, name: str, version: str) -> IndexedDocument:
    """Return a document as the index takes it; one that cannot be read has the reason. Raises `Unavailable`."""
    now = time.time()
    try:
        text = provider.read(name)
    except DocumentSkipped as exc:
        return IndexedDocument(
            name, DocumentStatus("" if exc.is_temporary else version, "", now, str(exc)), "", ()
        )
    except OSError as exc:
        return IndexedDocument(
            name, DocumentStatus("", "", now, f"cannot be read ({exc.strerror})"), "", ()
        )
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return IndexedDocument(
        name,
        DocumentStatus(version, digest, now),
        text,
        split_passages(text, provider.get_format(name)),
    )
