"""Where Python runs: the interface that every backend implements.

A backend starts an isolated Python process and hands over its stdin and stdout as one stream of
bytes, a `Channel`. Everything above bytes (the wire, runs, calls, files) is in `link` and the same
for all backends.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class SandboxInfo:
    """What a started sandbox is: `image` is a content digest where the backend has one."""

    id: str
    backend: str
    image: str
    inputs_folder: Path | None = (
        None  # the folder on this machine of which it has a view that it cannot write to
    )
    inputs_path_inside: str = ""  # where it has that, if it has
    is_isolated: bool = True


class SandboxChannel(Protocol):
    """The host's end of the bytes that go in and out of one sandbox."""

    @property
    def info(self) -> SandboxInfo:
        """What this sandbox is."""
        ...

    def send_nowait(self, data: bytes) -> int:
        """Write as much of `data` as goes without waiting, if anything; return how many bytes that were."""
        ...

    async def send(self, data: bytes) -> None:
        """Write all of `data`; raises `SandboxFailed` when the sandbox is gone. One sender at a time."""
        ...

    async def receive(self) -> bytes:
        """Return the next bytes of the sandbox's stdout, or b"" when it is gone. One receiver at a time."""
        ...

    async def read_memory_bytes(self) -> int | None:
        """Return the sandbox's memory in bytes, without page cache; None where the backend cannot tell."""
        ...

    async def explain_exit(self) -> str:
        """Return one sentence on why the sandbox is gone ("it ran out of memory", "exit code 3", ...)."""
        ...


class Backend(Protocol):
    """Makes sandboxes. `isolated` says whether code inside is kept from the host, its processes among others."""

    name: str
    is_isolated: bool

    @property
    def resource_limits(self) -> dict[str, int]:
        """Resource limits for the kernel to set, by their names in the module `resource`."""
        ...

    def open_channel(self, first_bytes: bytes = b"") -> AbstractAsyncContextManager[SandboxChannel]:
        """Start a sandbox running the kernel's bootstrap; leaving the context kills and removes it, within seconds.

        `greeting` is the first that it finds on its stdin, sent before it starts, so that none
        waits for the other.

        Raises `Unavailable` where there is no engine or image, `SandboxFailed` where this one could
        not start.
        """
        ...

    async def run_checks(self) -> list[HealthCheck]:
        """Examine what this backend depends on, for `doctor`."""
        ...

    async def remove_orphans(self) -> int:
        """Remove what servers that are gone have left behind; return how many sandboxes that were."""
        ...


@dataclass(frozen=True)
class HealthCheck:
    """One line of `doctor`: what was looked at, whether it is in order or only works, and what to do if not."""

    name: str
    is_ok: bool
    detail: str
    remedy: str = ""
    is_warning: bool = False
