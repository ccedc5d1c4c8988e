"""The command `files`: what it lists and copies, and where copies can end up."""

from __future__ import annotations

from pathlib import Path

from .conftest import RunCommand, parse_json


def export_folder(used: Path) -> Path:
    return used.parent / "data" / "exports"


def test_the_files_of_a_session_are_listed(run: RunCommand) -> None:
    listed = parse_json(run("files", "report", "--json"))
    assert ("f", 8) in [(each["path"], each["size"]) for each in listed]
    shown = run("files", "report").stdout
    assert "2 files" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_a_copy_goes_to_the_export_folder_and_replaces_nothing(run: RunCommand, used: Path) -> None:
    folder = export_folder(used)
    first = run("files", "report", "get", "f")
    assert first.stdout == f"f -> {folder}/f\n"
    assert (folder / "f").read_text() == "one\ntwo\n"
    assert (folder / "f").stat().st_mode & 0o777 == 0o600
    (folder / "f").write_text("mine")
    assert parse_json(run("files", "report", "get", "f", "--json")) == {"f": f"{folder}/f (2)"}
    assert run("files", "report", "get", "f").stdout == f"f -> {folder}/f (2)\n"  # the same
    (folder / "f (2)").unlink()
    (folder / "f (2)").symlink_to("/nonexistent/target")
    assert run("files", "report", "get", "f").stdout == f"f -> {folder}/f (3)\n"
    assert (folder / "f").read_text() == "mine"
    assert not any(each.name.startswith(".") for each in folder.iterdir())


def test_names_that_code_has_chosen_stay_within_the_folder(run: RunCommand, used: Path) -> None:
    copies = parse_json(run("files", "report", "get", "*", "--json"))
    assert len(copies) == 2
    for copy in map(Path, copies.values()):
        assert copy.parent == export_folder(used)
        assert copy.name.isprintable()
        assert copy.is_file()


def test_what_is_missing_is_named(run: RunCommand) -> None:
    missing = run("files", "report", "get", "none.txt")
    assert missing.returncode != 0
    assert "has no file 'none.txt'" in missing.stderr
    assert "'f'" in missing.stderr
    assert "no session 'nobody'" in run("files", "nobody").stderr
    assert "get PATH" in run("files", "report", "put").stderr
