"""Files that are seen whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpruntime_server.capabilities.atomic_files import write_atomically


def test_a_file_is_replaced_as_a_whole_and_left_alone_when_it_is_right(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.py"
    write_atomically(path, b"one")
    inode = path.stat().st_ino
    write_atomically(path, b"one")
    assert path.stat().st_ino == inode
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [file.name for file in path.parent.iterdir()] == ["a.py"]


def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"theirs")
    path.symlink_to(target)
    write_atomically(path, b"ours")
    assert (target.read_bytes(), path.is_symlink(), path.read_bytes()) == (
        b"theirs",
        False,
        b"ours",
    )


def test_nothing_is_left_where_a_file_cannot_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"one")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
