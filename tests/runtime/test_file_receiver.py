"""The files of a run wait on the disk until they are stored, all but a few bytes."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from mcpruntime_server.errors import JournalFailed
from mcpruntime_server.journal.store import open_journal
from mcpruntime_server.protocol import wire
from mcpruntime_server.runtime.file_receiver import MAX_MEMORY_BYTES, FileReceiver

CHUNK = bytes(range(256)) * 1024


def send(receiver: FileReceiver, path: str, count: int) -> None:
    for number in range(count):
        is_last = number == count - 1
        receiver.receive_chunk(wire.FileData(1, path, 0o644, is_last, CHUNK))


async def test_files_are_stored_wherever_their_chunks_are(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        receiver = FileReceiver(1 << 30, journal.blobs.drafts)
        receiver.expected_files = {"small", "large", "empty"}
        send(receiver, "small", 1)
        send(receiver, "large", 2 * MAX_MEMORY_BYTES // len(CHUNK))
        receiver.receive_chunk(wire.FileData(1, "empty", 0o755, True, b""))
        kept = sum(
            len(each) for each in receiver.received_files["large"].chunks if type(each) is bytes
        )
        assert kept < MAX_MEMORY_BYTES
        assert os.listdir(journal.blobs.drafts) == []  # a server that dies leaves nothing
        stored = await receiver.store_blobs(journal)
        large = CHUNK * (2 * MAX_MEMORY_BYTES // len(CHUNK))
        assert stored["large"] == {
            "digest": sha256(large).hexdigest(),
            "size": len(large),
            "mode": 0o644,
        }
        assert await journal.get_blob(stored["large"]["digest"]) == large
        assert await journal.get_blob(stored["small"]["digest"]) == CHUNK
        assert await journal.get_blob(stored["empty"]["digest"]) == b""


async def test_a_file_that_finds_no_room_is_lost_with_a_reason(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "data") as journal:
        receiver = FileReceiver(1 << 30, tmp_path / "missing")
        receiver.expected_files = {"large"}
        send(receiver, "large", 2 * MAX_MEMORY_BYTES // len(CHUNK))
        with pytest.raises(JournalFailed, match="cannot be kept: No such file"):
            await receiver.store_blobs(journal)


def test_a_sandbox_sends_no_more_than_its_workspace_holds(tmp_path: Path) -> None:
    receiver = FileReceiver(len(CHUNK), tmp_path)
    receiver.expected_files = {"large"}
    with pytest.raises(wire.WireError, match="more file content"):
        send(receiver, "large", 2)
    with pytest.raises(wire.WireError, match="has not changed"):
        send(receiver, "other", 1)
