"""Blobs are whole, verified and shared."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from mcpruntime_server.errors import JournalFailed, NotFound
from mcpruntime_server.journal.blob_store import BlobStore


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def drafts(store: BlobStore) -> list[Path]:
    return list((store.root / "tmp").iterdir())


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1000])
def test_get_returns_what_was_put(store: BlobStore, data: bytes) -> None:
    digest = store.put(data)
    assert digest == sha256(data).hexdigest()
    assert store.get(digest) == data
    assert store.blob_path(digest) == store.root / digest[:2] / digest


def test_chunks_give_the_same_blob_as_the_whole(store: BlobStore) -> None:
    with store.open_writer() as writer:
        writer.write(b"one ")
        writer.write(b"two")
        digest = writer.commit()
    assert writer.size_bytes == 7
    assert digest == store.put(b"one two")
    assert drafts(store) == []


def test_an_uncommitted_blob_leaves_nothing(store: BlobStore) -> None:
    with store.open_writer() as writer:
        writer.write(b"half")
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_many_writers_of_the_same_content_agree(store: BlobStore) -> None:
    data = b"same" * 100_000
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(store.put, [data] * 32))
    assert len(digests) == 1
    assert store.get(digests.pop()) == data
    assert drafts(store) == []


def test_equal_content_is_written_once(store: BlobStore) -> None:
    path = store.blob_path(store.put(b"once"))
    before = path.stat().st_ino
    store.put(b"once")
    assert path.stat().st_ino == before


@pytest.mark.parametrize("damage", [b"", b"trunc", b"truncated-Blob"])
def test_a_damaged_blob_is_named_and_putting_a_truncated_one_again_repairs_it(
    store: BlobStore, damage: bytes
) -> None:
    good = b"truncated blob"
    digest = store.put(good)
    other = store.put(b"other")
    store.blob_path(digest).write_bytes(damage)
    with pytest.raises(
        JournalFailed, match=f"{digest} is damaged: the digest of its {len(damage)} bytes"
    ):
        store.get(digest)
    assert store.get(other) == b"other"
    if len(damage) != len(good):
        store.put(good)
        assert store.get(digest) == good


def test_a_missing_blob_is_not_found(store: BlobStore) -> None:
    with pytest.raises(NotFound, match="is not in"):
        store.get("0" * 64)


def test_drafts_of_killed_servers_are_removed_after_a_day(store: BlobStore) -> None:
    abandoned, fresh = store.root / "tmp" / "abandoned", store.root / "tmp" / "fresh"
    abandoned.touch()
    fresh.touch()
    os.utime(abandoned, (0, 0))
    BlobStore(store.root)
    assert drafts(store) == [fresh]


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_only_digests_are_names(store: BlobStore, name: str) -> None:
    with pytest.raises(NotFound, match="is not the name of a blob"):
        store.get(name)


def test_a_blob_that_is_put_again_survives_a_concurrent_discard(store: BlobStore) -> None:
    data, begun, over = b"wanted again", time.time() - 1, threading.Event()
    path = store.blob_path(store.put(data))

    def discard() -> int:
        gone = 0
        while not over.is_set():
            gone += store.discard(path.name, begun)
        return gone

    def found(digest: str) -> bool:
        with suppress(NotFound):
            return store.get(digest) == data
        return False

    def read() -> None:
        while not over.is_set():
            found(path.name)

    with ThreadPoolExecutor(3) as pool:
        discarded = pool.submit(discard)
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for _ in range(3000):
                with suppress(FileNotFoundError):
                    os.utime(path, (0, 0))
                store.put(data)
                assert any(
                    found(path.name) for _ in range(1000)
                )  # a real collector looks at a blob once, not for ever
        finally:
            over.set()
    assert discarded.result() >= 0
    assert [each.result() for each in readers] == [None, None]
    assert drafts(store) == []
