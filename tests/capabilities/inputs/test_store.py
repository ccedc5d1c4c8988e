"""The journal keeps the inputs of runs as long as the runs, and archives contain them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.inputs.store import InputStore
from mcpruntime_server.journal.archive import export_session, import_session
from mcpruntime_server.journal.events import InputEntry, RunFinished, RunQueued, RunStarted
from mcpruntime_server.journal.retention import collect_garbage
from mcpruntime_server.journal.store import Journal, open_journal

LATER_S = 2 * 3600.0
MANY = 100  # inputs, more than fit into the event itself


@pytest.fixture
async def journal(journal: Journal) -> Journal:
    await journal.create_session("s_1", None, "me")
    return journal


async def context(journal: Journal, count: int) -> list[InputEntry]:
    return [
        await InputStore(journal).add_text(f"content {number}", f"input {number}")
        for number in range(count)
    ]


def run_with(journal: Journal, inputs: list[InputEntry]) -> None:
    journal.append(
        "s_1", RunStarted("r_1", None, 1, "1", "<step 1>", 1.0, seed="s", context=inputs), "r_1"
    )
    journal.append("s_1", RunFinished("ok"), "r_1")


@pytest.mark.parametrize("count", [1, MANY])
async def test_the_inputs_of_runs_are_not_swept(journal: Journal, count: int) -> None:
    inputs = await context(journal, count)
    run_with(journal, inputs)
    queued = await InputStore(journal).add_text("queued")
    journal.append("s_1", RunQueued("r_2", "1", 1.0, context=[queued]), "r_2")
    loose = await journal.put_blob(b"nobody's")
    assert (await collect_garbage(journal, 0, 0, now=time.time() + LATER_S)).blobs == 1
    assert not journal.blobs.blob_path(loose).exists()
    for each in (*inputs, queued):
        assert await journal.get_blob(each["digest"])


@pytest.mark.parametrize("count", [1, MANY])
async def test_an_archive_contains_the_inputs_of_runs(
    journal: Journal, tmp_path: Path, count: int
) -> None:
    inputs = await context(journal, count)
    by_path = InputEntry(
        name="large", digest="", path="/data/large", size=1 << 30, stamp="1:2:3", start=0, end=None
    )
    run_with(journal, [*inputs, by_path])
    await export_session(journal, "s_1", tmp_path / "work.zip")
    async with open_journal(tmp_path / "there") as there:
        row = await import_session(there, tmp_path / "work.zip", "you")
        assert row.tip is not None
        found = await InputStore(there).load_context(row.tip)
        assert found == [*inputs, by_path]
        assert await there.get_blob(inputs[-1]["digest"]) == f"content {count - 1}".encode()
