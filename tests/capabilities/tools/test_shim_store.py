"""The folder of shims, even if it is damaged or read-only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.tools.observed_shapes import MAX_RESULTS
from mcpruntime_server.capabilities.tools.shim_store import ShimStore


def test_what_is_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    shelf = ShimStore(tmp_path / "shims")
    assert shelf.observe_result("git", "log", {"sha": "abc"})
    assert not shelf.observe_result("git", "log", {"sha": "def"})
    assert shelf.shapes_revision("git") == 1
    shelf.save_observed()
    again = ShimStore(tmp_path / "shims")
    again.load_observed()
    assert again.observed_shapes("git") == shelf.observed_shapes("git") != {}
    assert "abc" not in (tmp_path / "shims" / "git.observed.json").read_text()


def test_only_the_first_results_of_a_tool_are_looked_at(tmp_path: Path) -> None:
    shelf = ShimStore(tmp_path)
    assert [
        shelf.observe_result("s", "t", {f"key{chr(97 + n)}": 1}) for n in range(MAX_RESULTS)
    ] == [True] * MAX_RESULTS
    assert not shelf.observe_result("s", "t", {"another": 1})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '{"t": 3}',
        '{"t": {"type": "x"}}',
        '{"t": {"properties": []}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_not_as_it_should_be_counts_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "git.observed.json").write_text(text)
    shelf = ShimStore(tmp_path)
    shelf.load_observed()
    assert shelf.observed_shapes("git") == {}


def test_one_wrong_entry_does_not_cost_the_others(tmp_path: Path) -> None:
    good = {"type": ["string"]}
    (tmp_path / "git.observed.json").write_text(json.dumps({"good": good, "bad": {"$ref": "#"}}))
    shelf = ShimStore(tmp_path)
    shelf.load_observed()
    assert shelf.observed_shapes("git") == {"good": good}


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    shelf = ShimStore(tmp_path / "file")
    shelf.load_observed()
    shelf.observe_result("git", "log", "x")
    shelf.save_shim("git", "source")
    shelf.save_observed()
    assert shelf.observed_shapes("git") == {"log": {"type": ["string"]}}
