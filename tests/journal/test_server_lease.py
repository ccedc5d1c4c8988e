"""A server counts as alive exactly as long as it holds its lock."""

from __future__ import annotations

import os
from pathlib import Path

from mcpruntime_server.journal import server_lease
from mcpruntime_server.journal.server_lease import ServerLease


def test_a_server_is_alive_while_it_holds_its_lease(tmp_path: Path) -> None:
    with ServerLease(tmp_path) as held:
        assert server_lease.is_server_alive(tmp_path, held.owner)
        assert server_lease.server_process_id(tmp_path, held.owner) == os.getpid()
    assert not server_lease.is_server_alive(tmp_path, held.owner)
    assert server_lease.server_process_id(tmp_path, held.owner) is None


def test_servers_on_one_folder_do_not_affect_each_other(tmp_path: Path) -> None:
    with ServerLease(tmp_path) as first:
        with ServerLease(tmp_path) as second:
            assert first.owner != second.owner
            assert server_lease.is_server_alive(tmp_path, first.owner)
            assert server_lease.is_server_alive(tmp_path, second.owner)
        assert server_lease.is_server_alive(tmp_path, first.owner)


def test_the_lease_of_a_dead_server_is_removed_by_the_next(tmp_path: Path) -> None:
    left = server_lease.lease_path(tmp_path, "gone")
    left.parent.mkdir()
    left.write_text("1\n")
    assert not server_lease.is_server_alive(tmp_path, "gone")
    with ServerLease(tmp_path) as held:
        assert [path.name for path in left.parent.iterdir()] == [f"{held.owner}.lock"]
