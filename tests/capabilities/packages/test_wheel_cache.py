"""A wheel is unpacked as data, wholly or not at all, and nothing of it leads out."""

from __future__ import annotations

import os
import stat
import struct
import tracemalloc
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.packages.wheel_cache import WheelCache, hash_wheel
from mcpruntime_server.errors import CallFailed

from ...helpers.wheels import add_link, build_wheel


@pytest.fixture
def cache(tmp_path: Path) -> WheelCache:
    cache = WheelCache(tmp_path / "packages" / "wheels", 1_000_000)
    cache.create()
    return cache


def add(cache: WheelCache, wheel: Path) -> Path:
    """Put a wheel into the cache and return its folder."""
    digest = hash_wheel(wheel)
    cache.add(wheel, digest)
    assert cache.has(digest)
    return cache.root / digest


def test_a_wheel_is_unpacked_so_that_other_users_can_read_it(
    cache: WheelCache, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        wheel = build_wheel(tmp_path, "demo", "1.0", {"demo/__init__.py": "", "demo/a/b.py": "x=1"})
        folder = add(cache, wheel)
    finally:
        os.umask(before)
    assert sorted(path.name for path in folder.iterdir()) == ["demo", "demo-1.0.dist-info"]
    assert stat.S_IMODE((folder / "demo" / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "demo" / "a" / "b.py").stat().st_mode) == 0o644
    assert [each.name for each in cache.list_wheels()] == ["demo-1.0"]


def test_what_python_would_execute_and_what_is_no_package_is_left_out(
    cache: WheelCache, tmp_path: Path
) -> None:
    files = {
        "demo.py": "",
        "demo.pth": "import os; os.abort()",
        "demo-1.0.data/scripts/demo": "#!/bin/sh",
        "demo-1.0.data/data/etc/x": "",
        "demo-1.0.data/purelib/more.py": "y = 2",
    }
    folder = add(cache, build_wheel(tmp_path, "demo", "1.0", files))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["demo-1.0.dist-info", "demo.py", "more.py"]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../out.py", "a/../../out.py", "a\\..\\out.py", "C:/x.py"]
)
def test_a_path_that_leads_out_is_refused(cache: WheelCache, tmp_path: Path, name: str) -> None:
    wheel = build_wheel(tmp_path, "demo", "1.0", {name: ""})
    with pytest.raises(CallFailed, match="not a file inside"):
        cache.add(wheel, hash_wheel(wheel))
    assert list(cache.root.iterdir()) == []


def test_a_link_is_refused(cache: WheelCache, tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "demo", "1.0", {"demo.py": ""})
    add_link(wheel, "link.py", "/etc/passwd")
    with pytest.raises(CallFailed, match="not a file inside"):
        cache.add(wheel, hash_wheel(wheel))


def test_a_wheel_that_grows_beyond_the_limit_is_refused(cache: WheelCache, tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "demo", "1.0", {"demo.py": "#" * 2_000_000})
    with pytest.raises(CallFailed, match="more than 1,000,000 bytes"):
        cache.add(wheel, hash_wheel(wheel))
    assert list(cache.root.iterdir()) == []


def test_a_list_of_many_files_is_not_read_here(cache: WheelCache, tmp_path: Path) -> None:
    wheel = tmp_path / "demo-1.0-py3-none-any.whl"
    entry = struct.pack("<4s4B4H3L5H2L", b"PK\x01\x02", 20, 3, 20, *[0] * 8, 1, *[0] * 6)
    listing = (entry + b"x") * 100_001
    wheel.write_bytes(
        listing + struct.pack("<4s4H2LH", b"PK\x05\x06", *[0] * 4, len(listing), 0, 0)
    )
    digest = hash_wheel(wheel)
    tracemalloc.start()
    try:
        with pytest.raises(CallFailed, match="more than 100,000 files"):
            cache.add(wheel, digest)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert list(cache.root.iterdir()) == []


def test_a_file_with_another_digest_is_refused(cache: WheelCache, tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "demo", "1.0", {"demo.py": ""})
    with pytest.raises(CallFailed, match="digest of the index"):
        cache.add(wheel, "0" * 64)


def test_what_is_no_archive_is_refused(cache: WheelCache, tmp_path: Path) -> None:
    wheel = tmp_path / "demo-1.0-py3-none-any.whl"
    wheel.write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(CallFailed, match="cannot be unpacked"):
        cache.add(wheel, hash_wheel(wheel))


def test_pruning_removes_what_was_not_used(cache: WheelCache, tmp_path: Path) -> None:
    old = add(cache, build_wheel(tmp_path, "old", "1.0", {"old.py": ""}))
    new = add(cache, build_wheel(tmp_path, "new", "1.0", {"new.py": ""}))
    os.utime(old, (0, 0))
    assert [each.name for each in cache.prune(30)] == ["old-1.0"]
    assert list(cache.root.iterdir()) == [new]
