"""Bring the index up to date with one provider, without reading unchanged texts again.

Rule: a refresh blocks, in a worker thread, until it is finished or told to stop. Whatever it has
read by then is kept.
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

MAX_BATCH_DOCUMENTS = 200  # in one transaction
MAX_BATCH_CHARS = 2_000_000
REREAD_AFTER_S = 300.0  # for a text without a version
RETRY_AFTER_S = 30.0  # for a text that could not be read


@dataclass
class RefreshProgress:
    """How many of `total` documents are still `remaining` to be read.

    Set `stop` to end the refresh.
    """

    total: int = 0
    remaining: int = 0
    stop: threading.Event = field(default_factory=threading.Event)


def refresh_index(
    index: PassageIndex, source_key: str, provider: KnowledgeProvider, progress: RefreshProgress
) -> None:
    """Read what has changed since the last refresh.

    Raises `Unavailable`, and the index keeps its content.
    """
    progress.total = progress.remaining = 0
    index.mark_used(source_key)
    # This precedes the listing, so that a document which another server adds after the listing
    # is not taken for a removed one.
    statuses = index.load_statuses(source_key)
    versions = provider.names()
    index.remove_documents(source_key, statuses.keys() - versions.keys())
    due = {
        name: version
        for name, version in versions.items()
        if is_refresh_due(version, statuses.get(name))
    }
    progress.total, progress.remaining = len(versions), len(due)
    for batch in _read_batches(provider, due, progress):
        index.put_documents(source_key, batch)


def is_refresh_due(version: str, status: DocumentStatus | None) -> bool:
    """Return whether a document has to be read."""
    if status is None:
        return True
    if not version or not status.version:
        wait_s = RETRY_AFTER_S if status.problem else REREAD_AFTER_S
        return time.time() - status.checked_at > wait_s
    return version != status.version


def _read_batches(
    provider: KnowledgeProvider, due: Mapping[str, str], progress: RefreshProgress
) -> Iterator[list[IndexedDocument]]:
    """Yield documents, read and split, in batches of one transaction each."""
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
    """Return a document for the index; if it cannot be read, its status has the reason.

    Raises `Unavailable`.
    """
    now = time.time()
    try:
        text = provider.read(name)
    except DocumentSkipped as exc:
        known_version = "" if exc.is_temporary else version
        return IndexedDocument(name, DocumentStatus(known_version, "", now, str(exc)), "", ())
    except OSError as exc:
        problem = f"cannot be read ({exc.strerror})"
        return IndexedDocument(name, DocumentStatus("", "", now, problem), "", ())
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    passages = split_passages(text, provider.get_format(name))
    return IndexedDocument(name, DocumentStatus(version, digest, now), text, passages)
