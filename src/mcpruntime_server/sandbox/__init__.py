"""Where Python runs: the interface of all backends.

A backend starts an isolated Python process and returns its stdin and stdout as one stream of bytes,
a `SandboxChannel`. Everything above bytes (messages, runs, calls, files) is in `link`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class SandboxInfo:
    """A sandbox that has been started."""

    id: str
    backend: str
    image: str  # a content digest if the backend has one
    inputs_folder: Path | None = None  # on this machine; the sandbox may see it read-only
    inputs_path_inside: str = ""  # the path of that folder in the sandbox
    takes_inputs: bool = False  # there, through `copy_input`, because no folder is shared
    is_isolated: bool = True


@dataclass(frozen=True)
class ImageSummary:
    """What new sandboxes will run in, as far as it is known without starting one."""

    id: str = ""  # as in `SandboxInfo.image`; "" if there is none
    python_version: str = ""


class SandboxChannel(Protocol):
    """The host's end of the bytes that go in and out of one sandbox."""

    @property
    def info(self) -> SandboxInfo:
        """What this sandbox is."""
        ...

    def send_nowait(self, data: bytes) -> int:
        """Write as much of `data` as possible without waiting; return the number of bytes."""
        ...

    async def send(self, data: bytes | memoryview) -> None:
        """Write all of `data`; one sender at a time. Raises `SandboxFailed` if it is gone."""
        ...

    async def receive(self) -> bytes:
        """Return the next bytes of stdout, or b"" at the end; one receiver at a time."""
        ...

    async def copy_input(self, name: str, data: bytes) -> None:
        """Put a file into the folder of inputs, where code can read it and not change it.

        Only where `info.takes_inputs`. Raises `Unavailable` or `SandboxFailed`.
        """
        ...

    async def copy_package(self, name: str, folder: Path) -> None:
        """Let code see `folder` as `name` in the folder of packages.

        Nothing happens if it sees the folder of this machine. Raises `Unavailable` or
        `SandboxFailed`.
        """
        ...

    async def read_memory_bytes(self) -> int | None:
        """Return the sandbox's memory without page cache, or None if the backend cannot tell."""
        ...

    async def explain_exit(self) -> str:
        """Return a clause on why the sandbox is gone, such as "exit code 3."."""
        ...


class Backend(Protocol):
    """Starts sandboxes."""

    name: str
    is_isolated: bool  # code cannot reach the host, and has a process namespace of its own

    @property
    def resource_limits(self) -> dict[str, int]:
        """Resource limits that the worker sets for itself, by name in the module `resource`."""
        ...

    def open_channel(self, first_bytes: bytes = b"") -> AbstractAsyncContextManager[SandboxChannel]:
        """Start a sandbox that runs the bootstrap; leaving the context kills and removes it.

        `first_bytes` are sent before it starts, so that neither end waits for the other. Raises
        `Unavailable` if there is no engine or image, `SandboxFailed` if this sandbox did not start.
        """
        ...

    async def summarize_image(self) -> ImageSummary:
        """Return what is known of the image, in milliseconds; nothing if nothing answers."""
        ...

    async def run_checks(self) -> list[HealthCheck]:
        """Check what this backend depends on, for `doctor`."""
        ...

    async def remove_orphans(self) -> int:
        """Remove the sandboxes that servers have left behind; return their number."""
        ...


@dataclass(frozen=True)
class HealthCheck:
    """One line of `doctor`."""

    name: str
    is_ok: bool
    detail: str
    remedy: str = ""
    is_warning: bool = False  # it works, but needs attention
    figures: Mapping[str, int] = field(default_factory=dict)  # for programs, by name
