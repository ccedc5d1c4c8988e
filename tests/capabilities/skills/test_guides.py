from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.skills.guides import (
    MAX_GUIDE_BYTES,
    GuideFolders,
    parse_front_matter,
    read_guide,
    read_guide_files,
)
from mcpruntime_server.errors import McpRuntimeError, SkillRefused

HEAD = "---\nname: {}\ndescription: {}\n---\n# How to\n"


def make(folder: Path, name: str, description: str = "Fills in forms.", **files: str) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    (place / "SKILL.md").write_text(HEAD.format(name, description))
    for path, text in files.items():
        (place / path.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        (place / path.replace("__", "/")).write_text(text)
    return place


def test_guides_are_found_in_a_folder_and_as_the_folder_itself(tmp_path: Path) -> None:
    make(tmp_path / "all", "pdf-forms", scripts__fill="print(1)")
    alone = make(tmp_path, "release-notes", "'Write: notes'")
    (tmp_path / "all" / "empty").mkdir()
    found = GuideFolders([tmp_path / "all", alone]).load_guides()
    assert sorted(found) == ["pdf_forms", "release_notes"]
    assert found["release_notes"].summary == "Write: notes"
    assert sorted(read_guide_files(found["pdf_forms"])) == ["SKILL.md", "scripts/fill"]


def test_an_edit_is_seen_and_a_broken_guide_affects_no_other(tmp_path: Path) -> None:
    good, bad = make(tmp_path, "good"), make(tmp_path, "bad")
    (bad / "SKILL.md").write_text("no front matter")
    guides = GuideFolders([tmp_path, tmp_path / "none"])
    assert list(guides.load_guides()) == ["good"]
    assert "front matter" in guides.problems[str(bad)]
    assert "No such file" in guides.problems[str(tmp_path / "none")]
    (good / "SKILL.md").write_text(HEAD.format("good", "Now another."))
    assert guides.load_guides()["good"].summary == "Now another."


def test_a_refused_guide_is_read_again_only_once_its_file_has_changed(tmp_path: Path) -> None:
    file = make(tmp_path, "late") / "SKILL.md"
    text = file.read_text()
    file.write_text("x" * len(text))
    os.utime(file, (1, 1))
    guides = GuideFolders([tmp_path])
    assert guides.load_guides() == {}
    file.write_text(text)
    os.utime(file, (1, 1))
    assert guides.load_guides() == {}
    assert "front matter" in guides.problems[str(file.parent)]
    os.utime(file, (2, 2))
    assert list(guides.load_guides()) == ["late"]


def test_the_first_folder_wins_if_two_guides_share_a_name(tmp_path: Path) -> None:
    make(tmp_path / "a", "same", "first")
    make(tmp_path / "b", "same", "second")
    guides = GuideFolders([tmp_path / "a", tmp_path / "b"])
    assert guides.load_guides()["same"].summary == "first"
    assert str(tmp_path / "b" / "same") in guides.problems


def test_links_hidden_files_and_devices_are_not_served(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    place = make(tmp_path / "all", "linked")
    (place / "out").symlink_to(secret)
    (place / "up").symlink_to(tmp_path)
    (place / ".hidden").write_text("x")
    os.mkfifo(place / "pipe")
    assert sorted(read_guide_files(read_guide(place))) == ["SKILL.md"]
    (place / "SKILL.md").unlink()
    (place / "SKILL.md").symlink_to(secret)
    guides = GuideFolders([tmp_path / "all"])
    assert guides.load_guides() == {}
    assert guides.problems


def test_guides_that_are_too_large_are_refused(tmp_path: Path) -> None:
    place = make(tmp_path, "large")
    with (place / "data").open("wb") as file:
        file.truncate(MAX_GUIDE_BYTES + 1)
    with pytest.raises(SkillRefused, match="too large"):
        read_guide_files(read_guide(place))
    (place / "data").unlink()
    for number in range(501):
        (place / f"{number}").touch()
    with pytest.raises(SkillRefused, match="more than 500 files"):
        read_guide_files(read_guide(place))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\nname: x\n",
        "---\n- a\n---\n",
        "---\nname: [\n---\n",
        "---\nname: ../up\ndescription: y\n---\n",
        "---\n" + "a: {" * 5000 + "\n---\n",
    ],
)
def test_bad_front_matter_is_refused(tmp_path: Path, text: str) -> None:
    place = make(tmp_path, "bad")
    (place / "SKILL.md").write_text(text)
    with pytest.raises(McpRuntimeError):
        read_guide(place)


def test_front_matter_executes_nothing() -> None:
    with pytest.raises(SkillRefused):
        parse_front_matter("---\nname: !!python/object/apply:os.system ['true']\n---\n")
