"""What a sandbox may do, as the engine's own container configuration.

Pure functions: settings in, dictionaries out. Every restriction is here and nowhere else, and each
has a test that tries to break it from inside (tests/sandbox/test_docker.py).
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from ..config import SandboxSettings
from ..errors import ConfigError
from ..protocol.wire import INPUTS_FOLDER

BYTES_PER_MB = 1024 * 1024
WORKSPACE_FOLDER = "/workspace"
TMP_FOLDER = "/tmp"  # noqa: S108 - the sandbox's own
BYTES_PER_INODE = 4096  # a tmpfs gets one inode per this many bytes: files cost kernel memory that no size limit counts
MAX_OPEN_FILES = 1024
MAX_LOCKED_BYTES = 64 * 1024  # bytes: keeps secrets out of swap, does not pin the machine's memory
SPARE_PROCESSES = (
    2  # processes that are there for a moment while a checkpoint is parked or promoted
)
OOM_SCORE = (
    500  # when the host itself runs out of memory, sandboxes die before anything of the host's
)
UID_RANGE = range(
    0x7000_0000, 0x7FFF_0000
)  # where distributions allocate neither users nor containers
MAPPED_UID_RANGE = range(
    20_000, 60_000
)  # an engine with a user namespace of its own has only 65,536 of them
SYSTEM_FOLDERS = ("/", "/proc", "/sys", "/dev", "/etc", "/usr", "/bin", "/lib", "/lib64", "/sbin")
RESERVED_FOLDERS = (*SYSTEM_FOLDERS, TMP_FOLDER, WORKSPACE_FOLDER, INPUTS_FOLDER)


def make_container_config(
    settings: SandboxSettings,
    image: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    labels: Mapping[str, str],
    *,
    uid: int,
    cpuset: str = "",
    inputs: str = "",
) -> dict[str, Any]:
    """Return the body of the engine's "create container" request for one sandbox; it sees the folder `inputs`."""
    return {
        "Image": image,
        "Entrypoint": list(argv[:1]),
        "Cmd": list(argv[1:]),
        "Env": [f"{name}={value}" for name, value in {**make_environment(settings), **env}.items()],
        "WorkingDir": WORKSPACE_FOLDER,
        "User": f"{uid}:{uid}",
        "Hostname": "sandbox",
        "Labels": dict(labels),
        "Healthcheck": {"Test": ["NONE"]},
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": True,
        "StdinOnce": True,  # a server that is gone, however it went, is an end of file, and the kernel exits
        "NetworkDisabled": True,
        "HostConfig": make_host_config(settings, uid, cpuset, inputs),
    }


def make_environment(settings: SandboxSettings) -> dict[str, str]:
    """Return the variables that programs expect; the user has no entry in the image's list of users."""
    return {
        "HOME": TMP_FOLDER,
        "TMPDIR": TMP_FOLDER,
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "LANG": "C.UTF-8",
        "PYTHON_CPU_COUNT": str(
            math.ceil(settings.cpus)
        ),  # Python >= 3.13; older ones tell the host's number
    }


def make_host_config(
    settings: SandboxSettings, uid: int, cpuset: str, inputs: str = ""
) -> dict[str, Any]:
    """Return the restrictions that the engine enforces on one sandbox."""
    parked_mb = settings.checkpoint_mb if settings.checkpoints else 0
    memory = (
        settings.memory_mb + settings.workspace_mb + settings.tmp_mb + parked_mb
    ) * BYTES_PER_MB
    largest_file = max(settings.workspace_mb, settings.tmp_mb) * BYTES_PER_MB
    return {
        "NetworkMode": "none",
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={load_seccomp_profile()}"],
        "ReadonlyRootfs": True,
        "Privileged": False,
        "Tmpfs": {
            TMP_FOLDER: format_tmpfs_options(settings.tmp_mb, "noexec,mode=1777"),
            WORKSPACE_FOLDER: format_tmpfs_options(
                settings.workspace_mb, f"exec,mode=0700,uid={uid},gid={uid}"
            ),
            "/dev/shm": format_tmpfs_options(settings.tmp_mb, "noexec,mode=1777"),  # noqa: S108 - the sandbox's own
        },
        "Mounts": [
            *map(parse_mount, settings.mounts),
            *([make_bind_mount(inputs, INPUTS_FOLDER)] if inputs else []),
        ],
        "Memory": memory,
        "MemorySwap": memory,
        "PidsLimit": settings.pids
        + (settings.checkpoints + SPARE_PROCESSES if settings.checkpoints else 0),
        "NanoCpus": round(settings.cpus * 1e9),
        "CpusetCpus": cpuset,
        "OomScoreAdj": OOM_SCORE,
        "Ulimits": [
            format_ulimit("fsize", largest_file),
            format_ulimit("nofile", MAX_OPEN_FILES),
            format_ulimit("memlock", MAX_LOCKED_BYTES),
            format_ulimit("msgqueue", 0),
            format_ulimit("core", 0),
        ],
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Init": True,
        "LogConfig": {"Type": "none"},
        "Runtime": settings.runtime or None,
    }


def format_tmpfs_options(size_mb: int, options: str) -> str:
    """Return the mount options of a tmpfs that is bounded in bytes and in files."""
    return f"rw,nosuid,nodev,{options},size={size_mb}m,nr_inodes={size_mb * BYTES_PER_MB // BYTES_PER_INODE}"


def format_ulimit(name: str, value: int) -> dict[str, Any]:
    """Return a resource limit that the sandbox cannot raise."""
    return {"Name": name, "Soft": value, "Hard": value}


@cache
def load_seccomp_profile() -> str:
    """Return the seccomp profile as the one line that the engine's API takes."""
    text = resources.files(__package__).joinpath("seccomp.json").read_text(encoding="utf-8")
    return json.dumps(json.loads(text), separators=(",", ":"))


def parse_mount(entry: str) -> dict[str, Any]:
    """Return the bind mount that `/host/folder:/sandbox/folder[:rw]` describes; raises `ConfigError` if none."""
    source, _, rest = entry.partition(":")
    target, _, mode = rest.partition(":")
    if not source.startswith("/") or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise ConfigError(
            f"`[sandbox] mounts` has {entry!r}, which is not a mount.",
            remedy="Write `/host/folder:/sandbox/folder`, with `:rw` behind it if the sandbox may write there.",
        )
    place = PurePosixPath(target)
    is_reserved = str(place) in RESERVED_FOLDERS or place.is_relative_to(INPUTS_FOLDER)
    if ".." in place.parts or is_reserved or source.strip("/") == "":
        raise ConfigError(
            f"`[sandbox] mounts` has {entry!r}, which would expose or hide a system folder.",
            remedy="Name a folder of your own, and a place for it such as `/data`.",
        )
    return make_bind_mount(source, target, writable=mode == "rw")


def make_bind_mount(source: str, target: str, *, writable: bool = False) -> dict[str, Any]:
    """Return the mount of a folder of the engine's machine."""
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": not writable,
        "BindOptions": {"Propagation": "rprivate"},
    }


def choose_uid(mapped: bool) -> int:
    """Return a user id for one sandbox; `mapped` engines have a user namespace and fewer of them."""
    return secrets.choice(MAPPED_UID_RANGE if mapped else UID_RANGE)


def choose_cpus(
    settings: SandboxSettings, taken: Iterable[Sequence[int]], available: int
) -> tuple[int, ...]:
    """Return the least used of the engine's cpus, as many as a sandbox may use; none where it may use all of them.

    `nano_cpus` bounds the time; this bounds the affinity, which numeric libraries take for the
    number of threads.
    """
    wanted = math.ceil(settings.cpus)
    if wanted >= available:
        return ()
    uses = [0] * available
    for cpus in taken:
        for cpu in cpus:
            uses[cpu] += 1
    return tuple(
        sorted(sorted(range(available), key=lambda cpu: (uses[cpu], secrets.randbits(16)))[:wanted])
    )
