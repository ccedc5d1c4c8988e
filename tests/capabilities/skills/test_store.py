"""The store of skills: versions, edits by hand, and damaged or hostile files."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.skills.model import RecordedCase, Skill, SkillState
from mcpruntime_server.capabilities.skills.store import SkillStore
from mcpruntime_server.capabilities.skills.version_files import (
    MAX_CASE_BYTES,
    encode_case,
)
from mcpruntime_server.errors import SkillRefused, Unavailable

SOURCE = 'def run(city: str = "Oslo") -> str:\n    """Greet."""\n    return city + " {n}"\n'


@pytest.fixture
def store(tmp_path: Path) -> SkillStore:
    return SkillStore(tmp_path / "skills")


def add(
    store: SkillStore, name: str = "greet_all", n: int = 1, state: SkillState = "active"
) -> Skill:
    source = SOURCE.replace("{n}", str(n))
    cases = (RecordedCase({"city": "Oslo"}),)
    return store.add_version(Skill(name, "Greet.", source, cases, state=state))


def test_versions_are_added_and_read_back(store: SkillStore) -> None:
    first, second = add(store), add(store, n=2)
    assert (first.version, second.version) == (1, 2)
    again = SkillStore(store.folder)
    assert again.all_versions() == {"greet_all": (first, second)}
    assert again.problems == {}
    assert dict(second.cases[0].inputs) == {"city": "Oslo"}
    assert (store.folder / "greet-all" / "skill.py").read_text() == second.source


def test_the_folder_shows_the_newest_active_version(store: SkillStore) -> None:
    first = add(store)
    second = add(store, n=2, state="draft")
    shown = store.folder / "greet-all" / "skill.py"
    assert shown.read_text() == first.source
    store.record_event(second, "promoted")
    assert shown.read_text() == second.source
    store.record_event(second, "tool_changed", ("A tool has changed.",))
    assert shown.read_text() == first.source
    assert [each.state for each in store.versions("greet_all")] == ["active", "quarantined"]


def test_an_edit_by_hand_becomes_a_new_draft(store: SkillStore) -> None:
    first = add(store)
    path = store.folder / "greet-all" / "skill.py"
    path.write_text(first.source.replace("Greet.", "Greet someone."))
    versions = store.versions("greet_all")
    assert [(each.version, each.state) for each in versions] == [(1, "active"), (2, "draft")]
    assert "Greet someone." in versions[1].source
    assert "edited by hand" in versions[1].reasons[0]
    assert path.read_text() == first.source  # what is in use is still the first
    assert store.versions("greet_all") == versions


def test_a_broken_edit_leaves_the_versions_as_they_are(store: SkillStore) -> None:
    first = add(store)
    path = store.folder / "greet-all" / "skill.py"
    path.write_text("def run(:\n")
    assert store.versions("greet_all") == (first,)
    assert "line 1" in store.problems["greet_all"]


def test_an_incomplete_copy_is_written_again(store: SkillStore) -> None:
    add(store)
    folder = store.folder / "greet-all"
    old = (folder / "SKILL.md").read_bytes()
    second = add(store, n=2)
    (folder / "skill.py").write_bytes((folder / "versions" / "1" / "skill.py").read_bytes())
    (folder / "SKILL.md").write_bytes(old)
    (folder / "skill.toml").unlink()  # which is written last
    assert [each.version for each in SkillStore(store.folder).versions("greet_all")] == [1, 2]
    assert (folder / "skill.py").read_text() == second.source


def test_a_folder_that_somebody_created_becomes_a_draft(store: SkillStore) -> None:
    folder = store.folder / "their-skill"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text("---\nname: their-skill\ndescription: x\n---\n")
    (folder / "skill.py").write_text("def run(a):\n    return a\n")
    found = store.all_versions()["their_skill"]
    assert [(each.version, each.state) for each in found] == [(1, "draft")]


def test_a_changed_version_is_not_loaded(store: SkillStore) -> None:
    add(store)
    path = store.folder / "greet-all" / "versions" / "1" / "skill.py"
    path.write_text(path.read_text() + "# changed\n")
    fresh = SkillStore(store.folder)
    assert all(each.version != 1 for each in fresh.versions("greet_all"))
    assert "is not what was saved" in fresh.problems["greet_all@1"]


@pytest.mark.parametrize("what", ["SKILL.md", "skill.py", "cases", "skill.toml"])
def test_links_are_not_followed(store: SkillStore, what: str, tmp_path: Path) -> None:
    add(store)
    version = store.folder / "greet-all" / "versions" / "1" / what
    outside = tmp_path / "outside"
    shutil.move(version, outside)
    version.symlink_to(outside)
    fresh = SkillStore(store.folder)
    assert all(each.version != 1 for each in fresh.versions("greet_all"))
    assert fresh.problems


def test_a_linked_folder_is_not_a_skill(store: SkillStore, tmp_path: Path) -> None:
    add(store)
    shutil.move(store.folder / "greet-all", tmp_path / "elsewhere")
    (store.folder / "greet-all").symlink_to(tmp_path / "elsewhere")
    assert SkillStore(store.folder).all_versions() == {}
    with pytest.raises(SkillRefused, match="is a link"):
        add(store)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "name = 1",
        "= x",
        "[" * 5000,
        'name = "../x"\nversion = 1',
        'name = "a"\nversion = "b"',
    ],
)
def test_broken_manifests_are_reported_as_problems(store: SkillStore, text: str) -> None:
    add(store)
    (store.folder / "greet-all" / "versions" / "1" / "skill.toml").write_text(text)
    fresh = SkillStore(store.folder)
    assert fresh.versions("greet_all") == ()
    assert fresh.problems


def test_folders_with_invalid_names_are_skipped(store: SkillStore) -> None:
    add(store)
    for name in ("UPPER", "a--b", "..x", "v2", "class", "naïve", "a_b"):
        (store.folder / name).mkdir()
    (store.folder / "file").write_text("x")
    assert list(store.all_versions()) == ["greet_all"]


def test_large_cases_are_refused() -> None:
    with pytest.raises(SkillRefused, match="Run it on less data"):
        encode_case(RecordedCase({"x": "y" * MAX_CASE_BYTES}))


def test_concurrent_saves_become_separate_versions(store: SkillStore) -> None:
    threads = [
        threading.Thread(target=add, args=(SkillStore(store.folder),), kwargs={"n": n})
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.version for each in store.versions("greet_all")] == list(range(1, 9))
    assert len({each.digest for each in store.versions("greet_all")}) == 8
    assert list(store.folder.glob(".new-*")) == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unavailable, match="cannot be changed"):
        add(SkillStore(tmp_path / "file"))
