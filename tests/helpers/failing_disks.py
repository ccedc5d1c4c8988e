"""Disks that fail: file systems of their own, which lose their power or have no room for a write.

`EXT4_IOC_SHUTDOWN` without a flush of the log is what the tests of Linux's file systems use for a
power failure: whatever no fsync has put on the disk until then is gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
WITHOUT_LOG_FLUSH = 2
# The file system must not commit its log by itself before the test is over.
MOUNT_OPTIONS = "loop,commit=300"
RETRY_INTERVAL_S, RETRIES = 0.05, 600
LOSSY_DISK_MB = 64
THIN_DISK_MB = 16
THIN_MEMORY_MB = 40


class LossyDisk:
    """A mounted ext4 file system, which is in the file `image`."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.folder = folder
        self._image = image

    def mount(self) -> None:
        """Mount it, or skip the test where that is impossible."""
        _run_or_skip(["mount", "-t", "ext4", "-o", MOUNT_OPTIONS, self._image, self.folder])

    def unmount(self) -> None:
        """Unmount it, as soon as killed processes are gone; no others may use it.

        A container that starts meanwhile has a copy of each mount for a moment. The file system
        lives as long, and mounting the image again would find it as it was left.
        """
        _retry(lambda: not _run(["umount", self.folder]).returncode)
        _retry(lambda: not _run(["losetup", "--associated", self._image]).stdout)

    def cut_power(self) -> None:
        """Lose what is not on the disk; from now on, every write and fsync fails."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def restore_power(self) -> None:
        """Mount it again with what is on the disk."""
        self.unmount()
        self.mount()


class ThinDisk(LossyDisk):
    """A disk that promises more room than it has, in a memory that can be filled.

    The file system then takes writes as before, and an fsync fails because they have no place.
    """

    def __init__(self, image: Path, folder: Path) -> None:
        super().__init__(image, folder)
        self._filler = image.with_name("filler")

    def trim(self) -> None:
        """Give back the memory of all blocks that are free."""
        subprocess.run(["sync", "-f", self.folder], check=True)
        subprocess.run(["fstrim", self.folder], check=True)

    def fill(self) -> None:
        """Take away all room that no file and no metadata use now."""
        self.trim()
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def clear(self) -> None:
        """Make room."""
        self._filler.unlink()


@contextmanager
def open_lossy_disk(place: Path) -> Iterator[LossyDisk]:
    """Make and mount a disk in the folder `place`; skip the test where that is impossible."""
    image, folder = place / "disk.img", place / "disk"
    folder.mkdir()
    _make_file_system(image, LOSSY_DISK_MB)
    disk = LossyDisk(image, folder)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


@contextmanager
def open_thin_disk(place: Path) -> Iterator[ThinDisk]:
    """Make and mount a disk without room in `place`; skip the test where that is impossible."""
    memory, folder = place / "memory", place / "disk"
    memory.mkdir()
    folder.mkdir()
    draft = place / "draft.img"
    _make_file_system(draft, THIN_DISK_MB)
    size = f"size={THIN_MEMORY_MB}m"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", memory], check=False
    ).returncode:
        pytest.skip("a disk that fails needs the right to mount")
    try:
        disk = ThinDisk(memory / "disk.img", folder)
        (memory / "disk.img").write_bytes(draft.read_bytes())  # metadata keep their room for ever
        disk.mount()
        try:
            disk.trim()
            yield disk
        finally:
            disk.unmount()
    finally:
        # Lazily: a moment passes until the loop device has closed its file.
        subprocess.run(["umount", "--lazy", memory], check=True)


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _retry(attempt: Callable[[], bool]) -> None:
    for _ in range(RETRIES):
        if attempt():
            return
        time.sleep(RETRY_INTERVAL_S)
    raise TimeoutError("A disk for tests is still in use.")


def _run_or_skip(command: Sequence[str | Path]) -> None:
    done = _run(command)
    if done.returncode:
        pytest.skip(f"a disk that fails needs the right to mount one: {done.stderr.strip()}")


def _make_file_system(image: Path, size_mb: int) -> None:
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("a disk that fails needs root and mkfs.ext4")
    with image.open("wb") as file:
        file.truncate(size_mb * 1024 * 1024)
    # What ext4 would otherwise initialise later has to be there from the beginning. A block is a
    # page of memory: the driver of loop devices calls a write that is done in part a success.
    options = ["-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, image], check=True)
