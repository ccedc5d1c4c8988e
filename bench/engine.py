"""The Docker engine: the containers of a server, and raw containers to compare them with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from docker import APIClient
from docker.errors import APIError
from docker.utils import kwargs_from_env

API_VERSION = "1.41"
OWNER_LABEL = "mcpruntime.owner"
SETTLE_TIMEOUT_S = 30.0  # a busy machine refills the pool within this time
POLL_INTERVAL_S = 0.02
REMOVAL_TIMEOUT_S = 5.0  # a stopped server removes its containers within this time
BARE_PYTHON = ("python3", "-s", "-u", "-c", "import sys; print('.'); sys.stdin.read()")

T = TypeVar("T")


class ServerContainers:
    """The containers of the server on one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._servers = data_dir / "servers"
        self._client = APIClient(version=API_VERSION, timeout=60, **kwargs_from_env())
        self._owner = ""
        self._pid = 0
        self._was_killed = False

    def find_owner(self) -> None:
        """Find the server: the name of its lock file is the label of its containers."""
        lock = next(self._servers.glob("*.lock"))
        self._owner, self._pid = lock.stem, int(lock.read_text())

    @property
    def pid(self) -> int:
        """The process of the server."""
        return self._pid

    def kill_server(self) -> None:
        """Send SIGKILL to the server, which removes no containers then."""
        self._was_killed = True
        os.kill(self._pid, signal.SIGKILL)

    def server_memory_mb(self) -> float:
        """Return the resident memory of the server."""
        pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def peak_memory_mb(self) -> float:
        """Return the most resident memory that the server has had."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        line = next(each for each in status.splitlines() if each.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6

    def processor_ms(self) -> float:
        """Return the processor time that the server itself has used, all threads together."""
        threads = Path(f"/proc/{self._pid}/task").iterdir()
        return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e6

    async def list_ids(self) -> list[str]:
        """Return the ids of the running containers."""
        return [each["Id"] for each in await self._run_in_thread(self._list_containers)]

    async def wait_until_settled(self, count: int) -> list[str]:
        """Wait until exactly `count` containers exist and all are idle; return their ids."""
        with anyio.fail_after(SETTLE_TIMEOUT_S):
            quiet = 0
            while quiet < 2:
                found = await self.list_ids()
                waiting = [await self._run_in_thread(is_idle, container) for container in found]
                quiet = quiet + 1 if len(found) == count and all(waiting) else 0
                await anyio.sleep(POLL_INTERVAL_S)
            return found

    async def memory_mib(self, container: str) -> float:
        """Return the memory of a container without the page cache."""
        return await self._run_in_thread(read_memory_mib, container)

    async def clone_configuration(
        self, model: str, argv: Sequence[str] = BARE_PYTHON
    ) -> RawContainer:
        """Return a raw container that runs `argv`, with the image and the limits of `model`.

        `RawContainer.measure_start` creates it.
        """
        return RawContainer(
            await self._run_in_thread(read_configuration, model, argv), self._client
        )

    async def close(self) -> None:
        """Remove leftover containers and report them: a stopped server should leave none."""
        with anyio.CancelScope(shield=True):
            left = await self._run_in_thread(self._list_leftovers) if self._owner else []
            for container in left:
                if not self._was_killed:
                    where = f"{container['Names']} ({container['Status']})"
                    print(f"left behind by the server: {where}")
                await self._run_in_thread(remove_container, container["Id"])
            self._client.close()

    def _list_containers(self, client: APIClient, *, every: bool = False) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.containers(
            all=every, filters={"label": f"{OWNER_LABEL}={self._owner}"}
        )
        return found

    def _list_leftovers(self, client: APIClient) -> list[dict[str, Any]]:
        wait_s = 0.0 if self._was_killed else REMOVAL_TIMEOUT_S
        deadline = time.monotonic() + wait_s
        while (left := self._list_containers(client, every=True)) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        return left

    async def _run_in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await anyio.to_thread.run_sync(lambda: function(self._client, *args))


class RawContainer:
    """A container without a server, to measure the engine alone."""

    def __init__(self, config: dict[str, Any], client: APIClient) -> None:
        self._config = config
        self._client = client
        self.id = ""

    def measure_start(self) -> float:
        """Create, attach and start it; return the milliseconds until its first byte of output."""
        started = time.perf_counter()
        self.id = self._client.create_container_from_config(self._config)["Id"]
        options = {"stdin": 1, "stdout": 1, "stream": 1}
        stream: Any = self._client.attach_socket(self.id, params=options)
        self._client.start(self.id)
        head = stream.read(8)
        took = (time.perf_counter() - started) * 1e3
        self._stream = stream
        if not head:
            raise RuntimeError("the raw container ended without a byte of output")
        return took

    def remove(self) -> None:
        """Remove the container."""
        self._stream.close()
        remove_container(self._client, self.id)


def read_configuration(client: APIClient, model: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return a "create container" request that copies the container `model` but runs `argv`."""
    found = client.inspect_container(model)
    config: dict[str, Any] = {**found["Config"], "HostConfig": found["HostConfig"], "Labels": {}}
    return {**config, "Entrypoint": list(argv[:1]), "Cmd": list(argv[1:]), "NetworkDisabled": True}


def read_statistics(client: APIClient, container: str) -> dict[str, Any]:
    """Return the engine's current statistics of `container`."""
    found: dict[str, Any] = client.stats(container, stream=False, one_shot=True)
    return found


def is_idle(client: APIClient, container: str) -> bool:
    """Return whether supervisor and worker of a container exist and all its processes sleep.

    A sandbox from the pool has no parked fork yet, so there may be only these two.
    """
    try:
        states = [
            row[1] for row in client.top(container, ps_args="-eo pid,stat")["Processes"] or ()
        ]
    except APIError:
        return False  # the container has just been removed
    return len(states) >= 2 and all(state.startswith("S") for state in states)


def read_memory_mib(client: APIClient, container: str) -> float:
    """Return the memory of `container` in MiB, without the page cache.

    Cgroup v1 and v2 use different names for the page cache.
    """
    found = read_statistics(client, container)["memory_stats"]
    detail = found["stats"]
    cache = sum(
        detail.get(f"total_{name}", detail.get(name, 0))
        for name in ("active_file", "inactive_file")
    )
    return float(found["usage"] - cache) / 2**20


def remove_container(client: APIClient, container: str) -> None:
    """Kill and remove `container`."""
    client.remove_container(container, force=True, v=True)
