"""Starts an upstream in a cgroup of its own, which no process that it starts can leave by chance.

The cgroup is made below the server's own, where the server may do that: as root, in most desktop
sessions, and in a service with `Delegate=yes`. It limits nothing; it only knows its processes.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from errno import EACCES, ENOENT
from pathlib import Path, PurePosixPath

NAME_PREFIX = "mcpruntime-upstream-"
MEMBERS = "cgroup.procs"
# A shell moves itself before it becomes the command: what moves a process that runs already is too
# late for what that has started meanwhile. If it may not, the command runs all the same.
ENTER = 'echo 0 2>&- > "$0/cgroup.procs"; exec "$@"'


def create_cgroup() -> Path | None:
    """Create a cgroup for one upstream and return its folder; None where that is impossible."""
    try:
        parent = find_own_cgroup(
            Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
        )
        if parent is None:
            return None
        cgroup = parent / f"{NAME_PREFIX}{secrets.token_hex(8)}"
        cgroup.mkdir(mode=0o755)
        if not os.access(cgroup / MEMBERS, os.W_OK):
            cgroup.rmdir()
            return None
    except OSError:
        return None
    return cgroup


def find_own_cgroup(mounts: str, memberships: str) -> Path | None:
    """Return the folder of a process's cgroup of version 2, by two files of `/proc/PID`."""
    path = next((line[3:] for line in memberships.splitlines() if line.startswith("0::")), None)
    for line in mounts.splitlines():
        fields, _, more = line.partition(" - ")
        if path is not None and more.startswith("cgroup2 "):
            root, mount_point = fields.split()[3:5]
            if PurePosixPath(path).is_relative_to(root):
                return Path(mount_point) / PurePosixPath(path).relative_to(root)
    return None


def enter_cgroup(
    cgroup: Path, command: Sequence[str], env: Mapping[str, str], folder: Path
) -> list[str]:
    """Return a command that enters a cgroup and becomes `command`, which starts in `folder`.

    Raises `OSError` if there is no such command.
    """
    name = command[0]
    if "/" not in name and shutil.which(name, path=env.get("PATH", os.defpath)) is None:
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), name)
    if "/" in name and not (folder / name).exists():
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), name)
    if "/" in name and not os.access(folder / name, os.X_OK):
        raise PermissionError(EACCES, os.strerror(EACCES), name)
    return ["/bin/sh", "-c", ENTER, str(cgroup), *command]
