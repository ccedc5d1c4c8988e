"""The index: only changes are read, servers share it, damage and odd queries do no harm."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.capabilities.knowledge.boundaries import guess_format
from mcpruntime_server.capabilities.knowledge.passage_index import (
    BUSY_TIMEOUT_S,
    FORMAT_VERSION,
    PassageIndex,
)
from mcpruntime_server.capabilities.knowledge.provider import SkippedDocuments
from mcpruntime_server.capabilities.knowledge.refresh import RefreshProgress, refresh_index
from mcpruntime_server.errors import CallFailed

from .conftest import OpenProviders, refresh_providers, search_texts


class Shelf:
    """A provider whose texts and versions a test sets; it counts what is read."""

    def __init__(self, **texts: str) -> None:
        self.skipped = SkippedDocuments()
        self.texts = texts
        self.versions = dict.fromkeys(texts, "1")
        self.reads: list[str] = []

    def names(self) -> Mapping[str, str]:
        return self.versions

    def read(self, name: str) -> str:
        self.reads.append(name)
        return self.texts[name]

    def get_format(self, name: str) -> str:
        return guess_format(name)

    def take(self) -> list[str]:
        taken, self.reads = self.reads, []
        return taken


@pytest.fixture
def index(tmp_path: Path) -> PassageIndex:
    return PassageIndex(tmp_path)


def found(index: PassageIndex, question: str, *sources: str) -> list[str]:
    return [each.name for each in index.search(question, sources or ("s",), 10)]


def test_a_new_index_waits_for_another_connection_that_creates_it(
    index: PassageIndex, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / f"knowledge-{FORMAT_VERSION}.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as thread:
        used = thread.submit(index.mark_used, "s")
        assert not wait([used], timeout=0.1).done
        other.execute("COMMIT")
        used.result(BUSY_TIMEOUT_S)
    other.close()
    assert index.count_entries("s").documents == 0


def test_only_changed_texts_are_read_again(index: PassageIndex) -> None:
    shelf = Shelf(a="apples", b="bananas", c="cherries")
    refresh_index(index, "s", shelf, RefreshProgress())
    assert shelf.take() == ["a", "b", "c"]
    refresh_index(index, "s", shelf, RefreshProgress())
    assert shelf.take() == []
    shelf.versions["a"], shelf.versions["b"] = "2", "2"
    shelf.texts["b"] = "blackberries"
    del shelf.versions["c"]
    refresh_index(index, "s", shelf, RefreshProgress())
    assert shelf.take() == ["a", "b"]
    assert (
        found(index, "apple"),
        found(index, "blackberry"),
        found(index, "bananas cherries"),
    ) == (["a"], ["b"], [])


def test_sources_are_separate(index: PassageIndex) -> None:
    for source in ("s", "t"):
        refresh_index(index, source, Shelf(a=f"fruit of {source}"), RefreshProgress())
    assert len(index.search("fruit", ("s",), 10)) == 1
    assert len(index.search("fruit", ("s", "t"), 10)) == 2
    assert index.search("fruit", ("u",), 10) == []
    assert index.search("fruit", (), 10) == []


def test_a_stopped_refresh_keeps_what_it_has_read(index: PassageIndex) -> None:
    progress = RefreshProgress()

    class Stopping(Shelf):
        def read(self, name: str) -> str:
            if name == "b":
                progress.stop.set()
            return super().read(name)

    refresh_index(index, "s", Stopping(a="apples", b="bananas", c="cherries"), progress)
    assert found(index, "apples bananas cherries") == ["a", "b"]
    assert (progress.total, progress.remaining) == (3, 1)


@given(st.text(max_size=50))
def test_any_text_is_a_valid_query(question: str) -> None:
    index = PassageIndex(Path(os.environ["PYTEST_INDEX"]))
    index.search(question, ("s",), 3)


@pytest.fixture(autouse=True, scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("index")
    os.environ["PYTEST_INDEX"] = str(folder)
    refresh_index(PassageIndex(folder), "s", Shelf(a="apples"), RefreshProgress())


@pytest.mark.parametrize(
    "question",
    [
        '"',
        '""',
        "NEAR(apples",
        "apples NEAR pears",
        "apples*",
        "-apples",
        "^apples",
        "body:apples",
        "{x y}:z",
    ],
)
def test_query_syntax_is_treated_as_words(index: PassageIndex, question: str) -> None:
    refresh_index(index, "s", Shelf(a="apples and pears, near"), RefreshProgress())
    assert found(index, question) == (["a"] if "apples" in question or "NEAR" in question else [])


def test_words_are_found_in_other_forms_inside_names_and_by_meaning(index: PassageIndex) -> None:
    shelf = Shelf(a="call openConnection first", b="The invoices are archived.", c="what it is")
    refresh_index(index, "s", shelf, RefreshProgress())
    assert found(index, "connection opened") == ["a"]
    assert found(index, "archive an invoice") == ["b"]
    assert found(index, "the bill") == ["b"]
    assert found(index, "what is it") == ["c"]  # common words count if there are no others


def test_a_damaged_index_is_rebuilt(tmp_path: Path) -> None:
    for damage in (b"no database" * 500, b"SQLite format 3\0" + os.urandom(8192)):
        for path in tmp_path.glob("context-*"):
            path.unlink()
        (tmp_path / "knowledge-1.db").write_bytes(damage)
        refresh_index(PassageIndex(tmp_path), "s", Shelf(a="apples"), RefreshProgress())
        assert found(PassageIndex(tmp_path), "apples") == ["a"]


async def test_an_index_damaged_in_use_is_reported_and_rebuilt(
    opened: OpenProviders, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("apples")
    async with opened(docs={"path": str(tmp_path / "docs")}) as providers:
        assert await search_texts(providers, "apples") == ["apples"]
        file = tmp_path / "data" / "knowledge-1.db"
        for suffix in ("-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        file.write_bytes(os.urandom(40_000))
        with pytest.raises(CallFailed, match="cannot be used"):
            await providers.search("apples")
        assert await search_texts(providers, "apples") == ["apples"]


WRITER = """
import sys
from pathlib import Path
from mcpruntime_server.capabilities.knowledge.folder_provider import FolderProvider
from mcpruntime_server.capabilities.knowledge.passage_index import PassageIndex
from mcpruntime_server.capabilities.knowledge.refresh import RefreshProgress, refresh_index
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    index = PassageIndex(Path(sys.argv[1]))
    refresh_index(index, "s", FolderProvider(Path(sys.argv[2])), RefreshProgress())
"""


def test_servers_can_index_the_same_folder_at_the_same_time(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(600):
        (docs / f"{number}.md").write_text(f"# Page {number}\n\nword{number}\n")
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(docs)]
    pipe = subprocess.PIPE
    writers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    outcomes = [writer.communicate("go\n", timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], outcomes
    index = PassageIndex(tmp_path)
    counts = index.count_entries("s")
    assert (counts.documents, counts.passages) == (600, 600)
    assert found(index, "word321") == ["321.md"]


async def test_an_answer_does_not_wait_until_everything_is_indexed(
    opened: OpenProviders, tmp_path: Path
) -> None:
    pipe = tmp_path / "gate"
    os.mkfifo(pipe)
    source = (
        f"import pathlib\nclass Provider:\n    def names(self): return {{'a': '1', 'b': '1'}}\n"
        "    def read(self, name):\n"
        f"        if name == 'b': pathlib.Path({str(pipe)!r}).read_text()\n"
        "        return 'apples ' + name\n"
    )
    (tmp_path / "slow.py").write_text(source)
    async with opened(slow={"python": str(tmp_path / "slow.py")}) as providers:
        answer = await providers.search("apples")
        assert answer["passages"] == []
        assert answer["problems"] == [
            "slow is still being indexed (1 of 2 texts so far). Ask again in a moment for the rest."
        ]
        await anyio.to_thread.run_sync(pipe.write_text, "go")
        await refresh_providers(providers)
        answer = await providers.search("apples")
        assert (len(answer["passages"]), answer["problems"]) == (2, [])
