"""The folder of shims, which may be anything but well kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcpruntime_server.tools.observed import MAX_RESULTS
from mcpruntime_server.tools.shelf import Shelf


def test_what_is_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shims")
    assert shelf.learn("git", "log", {"sha": "abc"})
    assert not shelf.learn("git", "log", {"sha": "def"})
    assert shelf.revision("git") == 1
    shelf.save()
    again = Shelf(tmp_path / "shims")
    again.load()
    assert again.observed("git") == shelf.observed("git") != {}
    assert "abc" not in (tmp_path / "shims" / "git.observed.json").read_text()


def test_only_the_first_results_of_a_tool_are_looked_at(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    assert [shelf.learn("s", "t", {f"key{chr(97 + n)}": 1}) for n in range(MAX_RESULTS)] == [True] * MAX_RESULTS
    assert not shelf.learn("s", "t", {"another": 1})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"t": 3}', '{"t": {"type": "x"}}', '{"t": {"properties": []}}', "[" * 100_000]
)
def test_a_file_that_is_not_as_it_should_be_counts_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "git.observed.json").write_text(text)
    shelf = Shelf(tmp_path)
    shelf.load()
    assert shelf.observed("git") == {}


def test_one_wrong_entry_does_not_cost_the_others(tmp_path: Path) -> None:
    good = {"type": ["string"]}
    (tmp_path / "git.observed.json").write_text(json.dumps({"good": good, "bad": {"$ref": "#"}}))
    shelf = Shelf(tmp_path)
    shelf.load()
    assert shelf.observed("git") == {"good": good}


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    shelf = Shelf(tmp_path / "file")
    shelf.load()
    shelf.learn("git", "log", "x")
    shelf.put("git", "source")
    shelf.save()
    assert shelf.observed("git") == {"log": {"type": ["string"]}}
