"""Brings the index up to date with one provider; what has not changed is not read again.

Rule: blocks, in a worker thread, until it is done or told to stop; what was read until then is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from ..errors import Unavailable
from .index import Index, Known, Text
from .pieces import cut
from .provider import PassedOver, Source

BATCH = 200  # documents of one transaction
BATCH_CHARS = 2_000_000
REREAD_S = 300.0  # until a text is read again whose version is not known
AGAIN_S = 30.0  # until one is tried again that could not be read


@dataclass
class Progress:
    """How far a refresh is: of `total` documents, `left` are still to be read. Setting `stop` ends it."""

    total: int = 0
    left: int = 0
    stop: threading.Event = field(default_factory=threading.Event)


def refresh(index: Index, source: str, provider: Source, progress: Progress) -> None:
    """Read what has changed since the last time; raises `Unavailable`, and what was known then stays."""
    progress.total = progress.left = 0
    index.use(source)
    known = index.known(source)  # before the listing: what another server adds after it is not taken for gone
    names = provider.names()
    index.forget(source, known.keys() - names.keys())
    due = {name: version for name, version in names.items() if is_due(version, known.get(name))}
    progress.total, progress.left = len(names), len(due)
    for batch in _batches(provider, due, progress):
        index.put(source, batch)


def is_due(version: str, known: Known | None) -> bool:
    """Return whether a document is to be read."""
    if known is None:
        return True
    if not version or not known.version:
        return time.time() - known.looked > (REREAD_S if not known.problem else AGAIN_S)
    return version != known.version


def _batches(provider: Source, due: Mapping[str, str], progress: Progress) -> Iterator[list[Text]]:
    """Yield documents, read and cut, a transaction's worth at a time."""
    batch: list[Text] = []
    size = 0
    failure: Unavailable | None = None
    for name, version in due.items():
        if progress.stop.is_set():
            break
        try:
            batch.append(read(provider, name, version))
        except Unavailable as exc:
            failure = exc
            break
        size += len(batch[-1].text)
        progress.left -= 1
        if len(batch) == BATCH or size > BATCH_CHARS:
            yield batch
            batch, size = [], 0
    yield batch
    if failure is not None:
        raise failure


def read(provider: Source, name: str, version: str) -> Text:
    """Return a document as the index takes it; one that cannot be read has the reason. Raises `Unavailable`."""
    now = time.time()
    try:
        text = provider.read(name)
    except PassedOver as exc:
        return Text(name, Known("" if exc.passes else version, "", now, str(exc)), "", ())
    except OSError as exc:
        return Text(name, Known("", "", now, f"cannot be read ({exc.strerror})"), "", ())
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return Text(name, Known(version, digest, now), text, cut(text, provider.kind(name)))
