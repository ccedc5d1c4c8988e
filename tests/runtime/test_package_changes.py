"""Each session imports a changed package again once, and all of them in a restored state."""

from __future__ import annotations

from mcpruntime_server.runtime.package_changes import PackageChanges, StalePackages


def test_a_changed_package_is_stale_once_for_each_session() -> None:
    changes = PackageChanges()
    one, other = StalePackages(changes, "ann"), StalePackages(changes, "bob")
    changes.record_change("b")
    changes.record_change("a")
    assert one.take() == ["a", "b"]
    assert one.take() == []
    changes.record_change("b")
    assert one.take() == ["b"]
    assert other.take() == ["a", "b"]


def test_everything_that_changed_since_the_start_is_stale_in_a_restored_state() -> None:
    changes = PackageChanges()
    changes.record_change("a")
    stale = StalePackages(changes, "ann")
    assert stale.take() == ["a"]
    stale.reset()
    assert stale.take() == ["a"]
