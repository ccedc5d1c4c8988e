"""What a sandbox may do, as a container configuration for the engine.

Pure functions: settings in, dictionaries out. Every restriction is here and nowhere else, and each
has a test that tries to break it from inside (tests/sandbox/test_docker_backend.py).
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import PurePosixPath

from ..config import SandboxSettings
from ..errors import ConfigError
from ..protocol.payloads import JsonObject
from ..protocol.wire import INPUTS_FOLDER, PACKAGES_FOLDER

BYTES_PER_MB = 1024 * 1024
WORKSPACE_FOLDER = "/workspace"
TMP_FOLDER = "/tmp"  # noqa: S108 - the sandbox's own
BYTES_PER_INODE = 4096  # of a tmpfs; files cost kernel memory that its size limit does not count
MAX_OPEN_FILES = 1024
MAX_TERMINALS = 16  # pseudo terminals of one sandbox
SHARED_KERNEL_RUNTIMES = ("", "runc", "crun")  # others have terminals of their own
GVISOR_RUNTIME = "runsc"  # a kernel of its own, in a process of the host, without seccomp listeners
GVISOR_THREADS = 256  # of that process; it ends, and the sandbox with it, if it gets no more
GVISOR_THREADS_PER_PROCESS = 4  # of the host, for one of the sandbox
GVISOR_MEMORY_MB = 128  # of that process
MAX_LOCKED_BYTES = 64 * 1024  # enough to keep secrets out of swap
WEB_PROXY_THREADS = 68  # one for each connection, and its own
SOCKET_TYPE_MASK = 0xF  # without flags such as SOCK_CLOEXEC
SPARE_PROCESSES = 2  # exist for a moment while a fork is parked or promoted
OOM_SCORE = 500  # if the host runs out of memory, sandboxes die before its own processes
UID_RANGE = range(0x7000_0000, 0x7FFF_0000)  # not used by distributions for users or containers
MAPPED_UID_RANGE = range(20_000, 60_000)  # an engine with a user namespace has only 65,536 ids
SYSTEM_FOLDERS = ("/", "/proc", "/sys", "/dev", "/etc", "/usr", "/bin", "/lib", "/lib64", "/sbin")
RESERVED_FOLDERS = (
    *SYSTEM_FOLDERS,
    TMP_FOLDER,
    WORKSPACE_FOLDER,
    INPUTS_FOLDER,
    PACKAGES_FOLDER,
)


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
    packages: str | None = None,
    has_web: bool = False,
) -> JsonObject:
    """Return the body of the request that creates a container, which sees the folder `inputs`.

    Without one, it has a volume there that only the engine can write. The same holds for the folder
    `packages`, unless it is None: then code may not ask for any. With `has_web`, its loopback
    interface can be used, where the web proxy listens.
    """
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
        "StdinOnce": True,  # stdin ends with the server; then the supervisor exits
        "NetworkDisabled": not has_web,  # then not even the loopback interface is up
        "HostConfig": make_host_config(settings, uid, cpuset, inputs, packages, has_web=has_web),
    }


def make_environment(settings: SandboxSettings) -> dict[str, str]:
    """Return the variables that programs expect; /etc/passwd has no entry for the user."""
    cpus = math.ceil(settings.cpus)
    return {
        "HOME": TMP_FOLDER,
        "TMPDIR": TMP_FOLDER,
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "LANG": "C.UTF-8",
        "PYTHON_CPU_COUNT": str(cpus),  # Python >= 3.13; an older one reports that of the host
    }


def make_host_config(
    settings: SandboxSettings,
    uid: int,
    cpuset: str,
    inputs: str = "",
    packages: str | None = None,
    *,
    has_web: bool = False,
) -> JsonObject:
    """Return the restrictions that the engine enforces on one sandbox."""
    memory_mb = settings.memory_mb + settings.workspace_mb + settings.tmp_mb
    max_processes = settings.pids
    if settings.checkpoints:
        memory_mb += settings.checkpoint_mb
        max_processes += settings.checkpoints + SPARE_PROCESSES
    if has_web:
        max_processes += WEB_PROXY_THREADS
    if has_gvisor(settings.runtime):
        memory_mb += GVISOR_MEMORY_MB
        max_processes = max_processes * GVISOR_THREADS_PER_PROCESS + GVISOR_THREADS
    memory_bytes = memory_mb * BYTES_PER_MB
    largest_file = max(settings.workspace_mb, settings.tmp_mb) * BYTES_PER_MB
    shared_tmpfs = format_tmpfs_options(settings.tmp_mb, "noexec,mode=1777")
    workspace_options = f"exec,mode=0700,uid={uid},gid={uid}"
    mounts = [parse_mount(entry) for entry in settings.mounts]
    mounts.append(make_shared_mount(inputs, INPUTS_FOLDER))
    if packages is not None:
        mounts.append(make_shared_mount(packages, PACKAGES_FOLDER))
    if settings.runtime in SHARED_KERNEL_RUNTIMES:
        mounts.append(make_terminal_mount())
    return {
        "NetworkMode": "none",
        "CapDrop": ["ALL"],
        "SecurityOpt": [
            "no-new-privileges:true",
            f"seccomp={load_seccomp_profile(has_web=has_web)}",
        ],
        "ReadonlyRootfs": True,
        "Privileged": False,
        "Tmpfs": {
            TMP_FOLDER: shared_tmpfs,
            WORKSPACE_FOLDER: format_tmpfs_options(settings.workspace_mb, workspace_options),
            "/dev/shm": shared_tmpfs,  # noqa: S108 - the sandbox's own
        },
        "Mounts": mounts,
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,
        "PidsLimit": max_processes,
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
        "Init": False,  # the supervisor is: no signal from inside stops or ends it
        "LogConfig": {"Type": "none"},
        "Runtime": settings.runtime or None,
    }


def has_gvisor(runtime: str) -> bool:
    """Return whether a container runtime is gVisor, by its name: `runsc`, `runsc-kvm`."""
    return GVISOR_RUNTIME in runtime


def format_tmpfs_options(size_mb: int, options: str) -> str:
    """Return the mount options of a tmpfs that is bounded in bytes and in files."""
    max_inodes = size_mb * BYTES_PER_MB // BYTES_PER_INODE
    return f"rw,nosuid,nodev,{options},size={size_mb}m,nr_inodes={max_inodes}"


def format_ulimit(name: str, value: int) -> JsonObject:
    """Return a resource limit that the sandbox cannot raise."""
    return {"Name": name, "Soft": value, "Hard": value}


@cache
def load_seccomp_profile(*, has_web: bool = False) -> str:
    """Return the seccomp profile on one line, as the engine's API expects it.

    With `has_web`, code may make TCP sockets, which lead nowhere but to the loopback interface.
    """
    text = resources.files(__package__).joinpath("seccomp.json").read_text(encoding="utf-8")
    profile = json.loads(text)
    if has_web:
        profile["syscalls"] += [
            {
                "names": ["socket"],
                "action": "SCMP_ACT_ALLOW",
                "args": [
                    {"index": 0, "value": family, "op": "SCMP_CMP_EQ"},
                    {
                        "index": 1,
                        "value": SOCKET_TYPE_MASK,
                        "valueTwo": socket.SOCK_STREAM,
                        "op": "SCMP_CMP_MASKED_EQ",
                    },
                ],
            }
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
    return json.dumps(profile, separators=(",", ":"))


def parse_mount(entry: str) -> JsonObject:
    """Parse `/host/folder:/sandbox/folder[:rw]`; raises `ConfigError` if it is not allowed."""
    source, _, rest = entry.partition(":")
    target, _, mode = rest.partition(":")
    if not source.startswith("/") or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise ConfigError(
            f"`[sandbox] mounts` has {entry!r}, which is not a mount.",
            remedy="Write `/host/folder:/sandbox/folder`, "
            "followed by `:rw` if the sandbox may write there.",
        )
    path = PurePosixPath(target)
    is_reserved = str(path) in RESERVED_FOLDERS or path.is_relative_to(INPUTS_FOLDER)
    if ".." in path.parts or is_reserved or source.strip("/") == "":
        raise ConfigError(
            f"`[sandbox] mounts` has {entry!r}, which would expose or hide a system folder.",
            remedy="Mount a folder of your own at a path such as `/data`.",
        )
    return make_bind_mount(source, target, writable=mode == "rw")


def make_bind_mount(source: str, target: str, *, writable: bool = False) -> JsonObject:
    """Return the mount of a folder on the engine's machine."""
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": not writable,
        "BindOptions": {"Propagation": "rprivate"},
    }


def make_shared_mount(folder: str, target: str) -> JsonObject:
    """Return the mount of a folder of this machine.

    Without one, it is that of an empty folder of root's, which is removed with its container.
    """
    if folder:
        return make_bind_mount(folder, target)
    return {"Type": "volume", "Target": target, "VolumeOptions": {"NoCopy": True}}


def make_terminal_mount() -> JsonObject:
    """Return the mount of the sandbox's pseudo terminals.

    The kernel has some thousands for all containers, and an engine's own mount has no limit, so
    that one sandbox could take all of them. The engine removes the volume with the container.
    """
    options = f"newinstance,max={MAX_TERMINALS},ptmxmode=0666,mode=0620,nosuid,noexec"
    driver_options = {"type": "devpts", "device": "devpts", "o": options}
    return {
        "Type": "volume",
        "Target": "/dev/pts",
        "VolumeOptions": {
            "NoCopy": True,
            "DriverConfig": {"Name": "local", "Options": driver_options},
        },
    }


def choose_uid(settings: SandboxSettings, *, is_mapped: bool) -> int:
    """Return the user id for one sandbox: random, unless it may write into a mounted folder.

    Then it is the owner of that folder, so that nobody has to change its mode. An engine with a
    user namespace is `mapped`: the ids of this machine mean nothing there.
    """
    owner = None if is_mapped else find_writer(settings)
    if owner is not None:
        return owner
    return secrets.choice(MAPPED_UID_RANGE if is_mapped else UID_RANGE)


def find_writer(settings: SandboxSettings) -> int | None:
    """Return the owner of the folders that sandboxes may write into; None if there is not one.

    The administrator does not count, since no sandbox gets that user id.
    """
    owners = set()
    for mount in map(parse_mount, settings.mounts):
        if not mount["ReadOnly"]:
            try:
                owners.add(os.stat(mount["Source"]).st_uid)
            except OSError:
                return None  # the engine is on another machine, or says what is wrong
    return owners.pop() if len(owners) == 1 and owners != {0} else None


def find_unwritable_mounts(settings: SandboxSettings) -> list[str]:
    """Return the folders that sandboxes are to write into and cannot, as far as is known here."""
    writer = find_writer(settings)
    found = []
    for mount in map(parse_mount, settings.mounts):
        try:
            info = os.stat(mount["Source"])
        except OSError:
            continue
        may_write = info.st_uid == writer or info.st_mode & stat.S_IWOTH
        if not mount["ReadOnly"] and not may_write:
            found.append(mount["Source"])
    return found


def choose_cpus(
    settings: SandboxSettings, taken: Iterable[Sequence[int]], available: int
) -> tuple[int, ...]:
    """Return the least used of the engine's cpus, as many as a sandbox may use; () for all of them.

    `NanoCpus` limits the processor time. This limits the affinity, from which numeric libraries
    derive their number of threads.
    """
    wanted = math.ceil(settings.cpus)
    if wanted >= available:
        return ()
    uses = [0] * available
    for cpus in taken:
        for cpu in cpus:
            uses[cpu] += 1
    least_used = sorted(range(available), key=lambda cpu: (uses[cpu], secrets.randbits(16)))
    return tuple(sorted(least_used[:wanted]))
