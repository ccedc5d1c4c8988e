"""Python without a container: the same kernel as a child process, with resource limits only.

This isolates nothing: code can reach the files, the network and the processes of the user. It
exists for machines without Docker and is used only if the settings name it.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.abc import Process, UNIXSocketStream
from anyio.to_thread import run_sync

from ..config import SandboxSettings
from ..config.file_modes import user_umask
from . import HealthCheck, ImageSummary, SandboxInfo
from .stream import SandboxStream

LOCAL_IMAGE = f"python:{platform.python_version()}"
EXIT_TIMEOUT_S = 3.0  # a supervisor whose link is closed exits at once unless it is stuck
SANDBOX_VARIABLE = "MCPRUNTIME_SANDBOX"  # names the sandbox in the environment of its processes
BYTES_PER_MB = 1024 * 1024
MAPPED_MEMORY_MB = 1024  # address space of libraries and thread stacks that is never used


class LocalChannel:
    """The socket that is the supervisor's stdin and stdout."""

    def __init__(self, info: SandboxInfo, stream: SandboxStream, process: Process) -> None:
        self.info = info
        self.send_nowait, self.send, self.receive = stream.send_nowait, stream.send, stream.receive
        self._process = process

    async def copy_input(self, name: str, data: bytes) -> None:
        """Write a file into the folder of inputs, which is on this machine."""
        await run_sync(Path(self.info.inputs_path_inside, name).write_bytes, data)

    async def copy_package(self, name: str, folder: Path) -> None:
        """Do nothing: code reads the folder of this machine."""

    async def read_memory_bytes(self) -> int | None:
        """Return the proportional memory of all processes of the sandbox."""
        return await run_sync(lambda: sum(map(_read_memory_bytes, _find_processes(self.info.id))))

    async def explain_exit(self) -> str:
        """Return how the supervisor ended."""
        with anyio.move_on_after(EXIT_TIMEOUT_S):
            code = await self._process.wait()
            if code < 0:
                return f"its process was ended by {signal.Signals(-code).name}."
            return f"exit code {code}."
        return "its process closed the link."


class LocalBackend:
    """Starts kernels as child processes of the server, each in a folder of its own below `root`."""

    name = "local"
    is_isolated = False

    def __init__(
        self,
        settings: SandboxSettings,
        root: Path,
        argv: Sequence[str],
        env: Mapping[str, str],
        owner: str,
        is_alive: Callable[[str], bool],
    ) -> None:
        self._settings = settings
        self._root = root
        self._argv = (sys.executable, *argv[1:])
        self._env = env
        self._owner = owner
        self._is_alive = is_alive

    @property
    def resource_limits(self) -> dict[str, int]:
        """Resource limits that each worker sets for itself, by name in the module `resource`."""
        settings = self._settings
        return {
            "RLIMIT_AS": (settings.memory_mb + MAPPED_MEMORY_MB) * BYTES_PER_MB,
            "RLIMIT_FSIZE": settings.workspace_mb * BYTES_PER_MB,
            "RLIMIT_CORE": 0,
        }

    @asynccontextmanager
    async def open_channel(self, first_bytes: bytes = b"") -> AsyncIterator[LocalChannel]:
        """Start a kernel; leaving kills all its processes and removes its folder."""
        name = f"{self._owner}-{secrets.token_hex(6)}"
        workspace = self._root / name / "workspace"
        workspace.mkdir(parents=True, mode=0o700)
        (workspace.parent / "inputs").mkdir()
        try:
            async with self._start_process(name, workspace) as channel:
                await channel.send(first_bytes)
                yield channel
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(self._remove_folder, name)

    @asynccontextmanager
    async def _start_process(self, name: str, workspace: Path) -> AsyncIterator[LocalChannel]:
        ours, theirs = socket.socketpair()
        with theirs:
            stream = SandboxStream(await UNIXSocketStream.from_socket(ours))
            process = await anyio.open_process(
                self._argv,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                cwd=workspace,
                env=self._make_environment(name, workspace),
                start_new_session=True,
                umask=user_umask(),
            )
        try:
            inputs = workspace.parent / "inputs"
            info = SandboxInfo(name, self.name, LOCAL_IMAGE, inputs, str(inputs), is_isolated=False)
            yield LocalChannel(info, stream, process)
        finally:
            with anyio.move_on_after(EXIT_TIMEOUT_S, shield=True):
                await stream.aclose()  # the supervisor kills its processes and exits
                await process.wait()
            with anyio.move_on_after(EXIT_TIMEOUT_S, shield=True):
                await run_sync(_kill_processes, name)
                await process.aclose()

    def _make_environment(self, name: str, workspace: Path) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "HOME": str(workspace),
            "TMPDIR": str(workspace.parent),
            **self._env,
            SANDBOX_VARIABLE: name,
        }

    def _remove_folder(self, name: str) -> None:
        shutil.rmtree(self._root / name, ignore_errors=True)

    async def summarize_image(self) -> ImageSummary:
        """Return the version of this interpreter, which sandboxes share."""
        return ImageSummary(LOCAL_IMAGE, platform.python_version())

    async def run_checks(self) -> list[HealthCheck]:
        """Warn that this backend does not isolate."""
        detail = "local: code runs WITHOUT isolation: it can read and change all that this user can"
        remedy = 'Use `backend = "docker"` for code that you have not read.'
        return [HealthCheck("sandbox", True, detail, remedy, is_warning=True)]

    async def remove_orphans(self) -> int:
        """Kill the processes and remove the folders of sandboxes whose servers are gone."""
        return await run_sync(self._remove_orphan_folders)

    def _remove_orphan_folders(self) -> int:
        names = [path.name for path in self._root.glob("*-*")]
        orphans = [name for name in names if not self._is_alive(name.rpartition("-")[0])]
        for name in orphans:
            _kill_processes(name)
            self._remove_folder(name)
        return len(orphans)


def _find_processes(name: str) -> Iterator[int]:
    """Yield the processes of the sandbox `name`, found by their environment."""
    mark = f"{SANDBOX_VARIABLE}={name}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


def _kill_processes(name: str) -> None:
    for pid in _find_processes(name):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _read_memory_bytes(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
