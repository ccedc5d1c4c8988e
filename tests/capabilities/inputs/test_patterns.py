"""Folders, patterns and databases as inputs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.inputs import store as input_store
from mcpruntime_server.capabilities.inputs.patterns import match_paths
from mcpruntime_server.capabilities.inputs.sources import resolve_context
from mcpruntime_server.capabilities.inputs.store import InputStore
from mcpruntime_server.errors import InvalidRequest
from mcpruntime_server.journal.store import Journal

PATHS = ["a.csv", "b/a.csv", "b/c/a.csv", ".h/a.csv", "b/x.json"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a.csv"]),
        ("**/*.csv", ["a.csv", "b/a.csv", "b/c/a.csv"]),
        ("**", ["a.csv", "b/a.csv", "b/c/a.csv", "b/x.json"]),
        ("b/*", ["b/a.csv", "b/x.json"]),
        ("*/a.csv", ["b/a.csv"]),
        ("**/c/**", ["b/c/a.csv"]),
        ("b/[a-c].???", ["b/a.csv"]),
        (".h/*", [".h/a.csv"]),
    ],
)
def test_a_pattern_matches(pattern: str, expected: list[str]) -> None:
    assert match_paths(PATHS, pattern) == expected


def test_a_pattern_of_any_length_is_matched_quickly() -> None:
    assert match_paths(["/".join("a" * 500)] * 100, "/".join(["**", "*"] * 15)) != []
    with pytest.raises(InvalidRequest, match="32 are allowed"):
        match_paths(PATHS, "**/" * 40)
    with pytest.raises(InvalidRequest, match="too many parts for so many files"):
        match_paths(["/".join("a" * 30)] * 10_000, "/".join(["**", "*"] * 15))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in PATHS:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.csv").write_text("secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "link.csv").symlink_to(tmp_path / "secret" / "a.csv")
    return root


async def names(journal: Journal, root: Path, *sources: object) -> list[str]:
    entries = await resolve_context(InputStore(journal, [root]), sources, None)
    return [entry["name"] for entry in entries]


async def test_a_folder_and_a_pattern_name_the_files_that_are_really_there(
    journal: Journal, root: Path
) -> None:
    everything = ["a.csv", "b/a.csv", "b/c/a.csv", "b/x.json"]
    assert await names(journal, root, str(root)) == everything
    assert await names(journal, root, f"{root}/b/") == ["a.csv", "c/a.csv", "x.json"]
    assert await names(journal, root, f"{root}/**/*.json") == ["b/x.json"]
    assert await names(journal, root, f"{root}/*.csv", f"{root}/b/*.csv") == ["a.csv", "a.csv (2)"]
    named = {"source": f"{root}/b/*.csv", "name": "tables"}
    assert await names(journal, root, named) == ["tables/a.csv"]


async def test_a_file_whose_name_looks_like_a_pattern_is_named_as_it_is(
    journal: Journal, root: Path
) -> None:
    (root / "a[1].csv").write_text("x")
    assert await names(journal, root, f"{root}/a[1].csv") == ["a[1].csv"]


async def test_links_do_not_lead_out_and_many_files_are_refused(
    journal: Journal, root: Path
) -> None:
    with pytest.raises(InvalidRequest, match="not in a folder"):
        await names(journal, root, f"{root}/out/*")
    with pytest.raises(InvalidRequest, match="not in a folder"):
        await names(journal, root, f"{root}/../secret/*")
    for number in range(70):
        (root / f"many{number}").write_text("x")
    with pytest.raises(InvalidRequest, match="These are 70 files; a run has at most 64"):
        await names(journal, root, f"{root}/many*")


async def test_the_data_folder_of_the_server_is_left_out(journal: Journal) -> None:
    above = journal.data_dir.parent
    (above / "mine.txt").write_text("x")
    found = await names(journal, above, str(above))
    assert "mine.txt" in found
    assert not any("journal" in name for name in found)


# databases ----------------------------------------------------------------------------------------


def make_database(path: Path, rows: int) -> sqlite3.Connection:
    """Return a connection to a database in WAL mode with rows that are only in its log."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE t (x)")
    database.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(rows)])
    database.commit()
    return database


def count_rows(path: Path) -> int:
    """Count the rows as a sandbox can: read-only, in a folder where nothing can be written."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        mode = database.execute("PRAGMA journal_mode").fetchone()[0]
        assert mode == "delete"
        return int(database.execute("SELECT count(*) FROM t").fetchone()[0])


async def test_a_database_in_wal_mode_is_passed_with_the_changes_in_its_log(
    journal: Journal, root: Path, tmp_path: Path
) -> None:
    inputs = InputStore(journal, [root])
    with closing(make_database(root / "x.db", 100)):
        assert (root / "x.db-wal").stat().st_size
        entry = await inputs.add_file(str(root / "x.db"))
    inputs.place_content(entry, tmp_path / "placed.db", lambda _: None)
    assert count_rows(tmp_path / "placed.db") == 100


async def test_a_large_database_in_wal_mode_is_placed_unless_its_log_has_changes(
    journal: Journal, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_store, "MAX_CONTENT_BYTES", 1_000)
    inputs = InputStore(journal, [root])
    with (
        closing(make_database(root / "x.db", 100)),
        pytest.raises(InvalidRequest, match="changes in its log"),
    ):
        await inputs.add_file(str(root / "x.db"))
    entry = await inputs.add_file(str(root / "x.db"))  # the last connection has merged the log
    assert entry["path"]
    inputs.place_content(entry, tmp_path / "placed.db", lambda _: None)
    assert count_rows(tmp_path / "placed.db") == 100
