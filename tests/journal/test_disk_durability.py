"""What the loss of the machine leaves of a journal with `durability = "disk"`."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from mcpruntime_server.errors import JournalFailed, McpRuntimeError
from mcpruntime_server.journal import blob_store, disk_sync
from mcpruntime_server.journal.events import OutputWritten, RunFinished, RunStarted
from mcpruntime_server.journal.store import Durability, Journal, open_journal
from tests.helpers.child_processes import start_process
from tests.helpers.failing_disks import LossyDisk, open_lossy_disk, open_thin_disk
from tests.helpers.sizes import choose_size

CHILD = Path(__file__).with_name("child.py")
POWER_CUTS = choose_size("POWER_CUTS", short=3, long=50)
RUNS_PER_CUT = 10  # at least, before the power is cut


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LossyDisk]:
    with open_lossy_disk(tmp_path) as mounted:
        yield mounted


@asynccontextmanager
async def start_child(
    mode: str, data_dir: Path, durability: Durability
) -> AsyncIterator[tuple[Process, BufferedByteReceiveStream]]:
    command = [sys.executable, str(CHILD), mode, str(data_dir), "s_1", durability]
    async with start_process(command, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield process, BufferedByteReceiveStream(process.stdout)


async def cut_power_during_runs(disk: LossyDisk, data_dir: Path, durability: Durability) -> int:
    """Cut the power while a server ends runs; return the highest number that it promised."""
    promised = 0
    with anyio.fail_after(60):
        async with start_child("end_runs_for_ever", data_dir, durability) as (process, lines):
            for _ in range(random.randint(RUNS_PER_CUT, 2 * RUNS_PER_CUT)):
                promised = int(await lines.receive_until(b"\n", 100))
            disk.cut_power()
            process.kill()
            with suppress(anyio.IncompleteRead):
                while True:
                    promised = int(await lines.receive_until(b"\n", 100))
    disk.restore_power()
    return promised


async def list_whole_runs(data_dir: Path) -> list[int]:
    """Return the numbers of the runs whose end, value and files can be read."""
    whole = []
    async with open_journal(data_dir) as journal:
        for row in await journal.list_runs("s_1"):
            events = await journal.load_events("s_1", run_id=row.id, event_type=RunFinished)
            files, lost = await journal.load_files_at(row.id)
            for entry in files.values():
                await journal.get_blob(entry["digest"])
            if [stored.event.value for stored in events if isinstance(stored.event, RunFinished)]:
                assert lost == []
                whole.append(int(row.id.removeprefix("r_")))
    return whole


async def test_an_end_that_was_told_survives_the_loss_of_the_machine(disk: LossyDisk) -> None:
    for _ in range(POWER_CUTS):
        promised = await cut_power_during_runs(disk, disk.folder / "data", "disk")
        assert set(range(promised + 1)) <= set(await list_whole_runs(disk.folder / "data"))


async def test_without_the_setting_the_same_disk_loses_it(disk: LossyDisk) -> None:
    promised = await cut_power_during_runs(disk, disk.folder / "data", "process")
    try:
        whole = await list_whole_runs(disk.folder / "data")
    except McpRuntimeError:
        whole = []
    assert not set(range(promised + 1)) <= set(whole)


# when the disk fails ----------------------------------------------------------------------------


async def test_after_a_failed_fsync_nothing_is_safe_until_the_journal_is_opened_again(
    tmp_path: Path,
) -> None:
    with open_thin_disk(tmp_path) as disk:
        data_dir = disk.folder / "data"
        with anyio.fail_after(60):
            async with start_child("sync_until_killed", data_dir, "disk") as (process, lines):
                assert process.stdin is not None
                assert await lines.receive_until(b"\n", 100) == b"safe"
                disk.fill()
                await process.stdin.send(b"the disk is full\n")
                refused = await lines.receive_until(b"\n", 1000)
                disk.clear()
                await process.stdin.send(b"it has room again\n")
                assert await lines.receive_until(b"\n", 1000) == refused
                process.kill()
        assert b"journal.db could not be put on the disk: No space left on device." in refused
        promised = await cut_power_during_runs(disk, data_dir, "disk")
        assert set(range(promised + 1)) <= set(await list_whole_runs(data_dir))
        async with open_journal(data_dir) as journal:
            assert await journal.load_events("s_1", event_type=OutputWritten)  # the safe one


async def test_a_blob_that_the_disk_does_not_take_is_refused(tmp_path: Path) -> None:
    contents = [bytes([number]) * 500_000 for number in range(3)]
    with open_thin_disk(tmp_path) as disk:
        async with open_journal(disk.folder / "data", durability="disk") as journal:
            disk.fill()
            with pytest.raises(JournalFailed, match="the disk is full"):
                await journal.put_blobs(contents)
            disk.clear()
            digests = await journal.put_blobs(contents)
        disk.restore_power()
        async with open_journal(disk.folder / "data") as journal:
            assert [await journal.get_blob(digest) for digest in digests] == contents


# who waits --------------------------------------------------------------------------------------


class HeldSyncs:
    """The fsyncs of the log and of blobs, which wait until they are released."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.started, self.released = threading.Event(), threading.Event()
        self._sync_file = disk_sync.sync_file

    def sync_file(self, descriptor: int) -> None:
        self.threads.append(threading.get_ident())
        self.started.set()
        assert self.released.wait(30)
        self._sync_file(descriptor)


@pytest.fixture
async def slow_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Journal, HeldSyncs]]:
    held = HeldSyncs()
    async with open_journal(tmp_path, durability="disk") as journal:
        await journal.create_session("s_1", None, "me")
        for module in (disk_sync, blob_store):
            monkeypatch.setattr(module, "sync_file", held.sync_file)
        try:
            yield journal, held
        finally:
            held.released.set()


async def append_and_sync(journal: Journal, text: str) -> None:
    journal.append("s_1", OutputWritten("stdout", text))
    await journal.sync()


async def test_those_who_wait_share_an_fsync_outside_the_event_loop(
    slow_journal: tuple[Journal, HeldSyncs],
) -> None:
    journal, held = slow_journal
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal.sync)
        assert await to_thread.run_sync(held.started.wait, 30)
        for number in range(50):
            tasks.start_soon(append_and_sync, journal, str(number))
        await anyio.wait_all_tasks_blocked()
        held.released.set()
    assert len(held.threads) == 2
    assert threading.get_ident() not in held.threads


async def test_only_the_end_of_a_run_is_kept_from_readers_until_the_disk_has_it(
    slow_journal: tuple[Journal, HeldSyncs],
) -> None:
    journal, held = slow_journal
    journal.append("s_1", RunStarted("r_1", None, 1, "1", "<step>", 1.0, seed="s"), "r_1")
    heard: list[str] = []

    async def read() -> None:
        heard.append((await journal.load_run("r_1")).status)

    async def follow() -> None:
        found = await journal.scan_run_events("r_1", 1, lambda _, events: list(events))
        heard.extend(type(stored.event).__name__ for stored in found)

    await read()
    async with anyio.create_task_group() as tasks:
        journal.append("s_1", OutputWritten("stdout", "x"), "r_1")
        await follow()
        assert heard == ["running", "OutputWritten"]
        journal.append("s_1", RunFinished("ok"), "r_1")
        await journal.flush()
        tasks.start_soon(read)
        tasks.start_soon(follow)
        assert await to_thread.run_sync(held.started.wait, 30)
        await anyio.wait_all_tasks_blocked()
        assert heard == ["running", "OutputWritten"]
        held.released.set()
    assert sorted(heard[2:]) == ["OutputWritten", "RunFinished", "ok"]


async def test_no_transaction_is_open_while_large_output_is_put_on_the_disk(
    slow_journal: tuple[Journal, HeldSyncs],
) -> None:
    journal, held = slow_journal
    for number in range(20):
        journal.append("s_1", OutputWritten("stdout", f"{number}" * 20_000))
    wait = journal.start_flush()
    assert await to_thread.run_sync(held.started.wait, 30)
    other = sqlite3.connect(journal.data_dir / "journal.db", timeout=0, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.close()
    held.released.set()
    await wait()
    assert len(set(held.threads)) > 1
    assert len(await journal.load_events("s_1")) == 20
