"""A server counts as alive exactly as long as it holds its lock."""

from __future__ import annotations

import os
from pathlib import Path

from mcpruntime_server.journal import lease
from mcpruntime_server.journal.lease import Lease


def test_a_server_is_alive_while_it_holds_its_lease(tmp_path: Path) -> None:
    with Lease(tmp_path) as held:
        assert lease.alive(tmp_path, held.owner)
        assert lease.process_id(tmp_path, held.owner) == os.getpid()
    assert not lease.alive(tmp_path, held.owner)
    assert lease.process_id(tmp_path, held.owner) is None


def test_servers_on_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    with Lease(tmp_path) as first:
        with Lease(tmp_path) as second:
            assert first.owner != second.owner
            assert lease.alive(tmp_path, first.owner)
            assert lease.alive(tmp_path, second.owner)
        assert lease.alive(tmp_path, first.owner)


def test_what_a_dead_server_left_is_swept_by_the_next(tmp_path: Path) -> None:
    left = lease.lock_path(tmp_path, "gone")
    left.parent.mkdir()
    left.write_text("1\n")
    assert not lease.alive(tmp_path, "gone")
    with Lease(tmp_path) as held:
        assert [path.name for path in left.parent.iterdir()] == [f"{held.owner}.lock"]
