"""Sandboxes as Docker containers: the backend to use.

Rule 1: a container is known by its name before it exists, so whatever happens in between, it can be
removed.
Rule 2: the stream is attached before the container starts; nothing can have been missed.
Rule 3: what a sandbox may do is in `hardening`, what the engine is in `engine`; this module is
about lifetimes.
Rule 4: containers carry their server's id. Whoever sweeps removes those whose server is gone, of
this data folder only.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio.to_thread import run_sync

from ..config import SandboxSettings
from ..errors import McpRuntimeError, SandboxFailed, Unavailable
from ..protocol.wire import INPUTS_FOLDER
from . import HealthCheck, SandboxInfo, hardening, image
from .docker_engine import DockerEngine
from .shared_folders import SharedFolders
from .stream import SandboxStream

if TYPE_CHECKING:
    from docker import APIClient

log = logging.getLogger(__name__)

CONTAINER_PREFIX = "mcpruntime-"  # of the names of containers; their server's id follows
OWNER_LABEL = "mcpruntime.owner"
DATA_FOLDER_LABEL = "mcpruntime.home"
MAX_STDERR_BYTES = 4096  # bytes of a container's stderr kept to explain its death
MAX_SHOWN_CHARS = 300  # characters of it that an error shows
REMOVE_TIMEOUT_S = (
    10.0  # a loaded engine needs seconds to remove a container; after that the sweep does it
)
HTTP_NOT_FOUND = 404
MISSING_FOLDER_TEXT = "bind source path does not exist"  # in an engine's words
EXIT_STATE_TIMEOUT_S = (
    3  # between the end of the stream and the engine's record of how the container ended
)


class AttachDecoder:
    """Takes the engine's frames apart (8 bytes of head: stream, 0, 0, 0, length), whatever pieces they come in."""

    def __init__(self) -> None:
        self.stderr = b""  # the last of it
        self._frame_bytes_left = 0  # bytes of the current frame still to come
        self._is_stdout = True
        self._head = b""  # of the next frame, as far as it has come

    def feed(self, data: bytes) -> bytes:
        """Return the stdout bytes that are in `data`; the usual piece, one whole frame, is copied once."""
        out = []
        view = memoryview(data)
        at = 0
        while at < len(data):
            if self._frame_bytes_left:
                piece = view[at : at + self._frame_bytes_left]
                at += len(piece)
                self._frame_bytes_left -= len(piece)
                if self._is_stdout:
                    out.append(piece)
                else:
                    self.stderr = (self.stderr + piece)[-MAX_STDERR_BYTES:]
                continue
            missing = 8 - len(self._head)
            self._head += view[at : at + missing]
            at += missing
            if len(self._head) == 8:
                self._is_stdout = self._head[0] != 2
                self._frame_bytes_left = int.from_bytes(self._head[4:], "big")
                self._head = b""
        return b"".join(out)


class DockerChannel:
    """The attached stream of one running container."""

    def __init__(
        self, info: SandboxInfo, engine: DockerEngine, stream: SandboxStream, memory_mb: int
    ) -> None:
        self.info = info
        self.send_nowait, self.send = stream.send_nowait, stream.send
        self._engine = engine
        self._stream = stream
        self._memory_mb = memory_mb
        self._decoder = AttachDecoder()

    async def receive(self) -> bytes:
        """Return the next bytes of stdout, or b"" when the stream has ended."""
        while framed := await self._stream.receive():
            if data := self._decoder.feed(framed):
                return data
        return b""

    async def read_memory_bytes(self) -> int | None:
        """Return the container's memory in bytes, without page cache; None if it is gone."""
        from docker.errors import APIError

        try:
            stats = await self._engine.call_api(
                lambda client: client.stats(self.info.id, stream=False, one_shot=True)
            )
        except (APIError, Unavailable):
            return None
        return parse_used_memory(stats.get("memory_stats") or {})

    async def explain_exit(self) -> str:
        """Return how the container ended, as the engine tells it."""
        from docker.errors import APIError, NotFound

        try:
            state = await self._engine.call_api(self._read_final_state)
        except NotFound:
            return "its container was removed from outside."
        except (APIError, Unavailable) as exc:
            return f"the engine does not tell why ({exc})"
        return describe_exit(state, self._memory_mb) + describe_stderr(self._decoder.stderr)

    def _read_final_state(self, client: APIClient) -> dict[str, Any]:
        from requests.exceptions import RequestException

        try:
            client.wait(self.info.id, timeout=EXIT_STATE_TIMEOUT_S)
        except RequestException:
            log.debug(
                "The container %s still runs %s s after its stream ended.",
                self.info.id,
                EXIT_STATE_TIMEOUT_S,
            )
        state: dict[str, Any] = client.inspect_container(self.info.id)["State"]
        return state


class DockerBackend:
    """Starts sandboxes on the engine that DOCKER_HOST or the current Docker context names.

    `home` is the server's data folder: only containers of servers on it are swept, and of those
    only the ones whose `owner` no longer `is_alive`.
    """

    name = "docker"
    is_isolated = True

    def __init__(
        self,
        settings: SandboxSettings,
        data_folder: Path,
        argv: Sequence[str],
        env: Mapping[str, str],
        owner: str,
        is_alive: Callable[[str], bool],
    ) -> None:
        self._settings = settings
        self._argv = argv
        self._env = env
        self._labels = {OWNER_LABEL: owner, DATA_FOLDER_LABEL: data_folder_digest(data_folder)}
        self._is_alive = is_alive
        self._engine = DockerEngine()
        self._engine_info: dict[str, Any] = {}  # what the engine says of itself
        self._image_id = ""  # of the image in use
        self._pinned_cpus: dict[str, tuple[int, ...]] = {}  # of the sandboxes that are open
        self._shared_folders = SharedFolders(data_folder.resolve() / "inputs")
        self._can_mount_folders = (
            True  # the engine can mount folders of this machine, as far as is known
        )
        for entry in settings.mounts:
            hardening.parse_mount(entry)

    @property
    def resource_limits(self) -> dict[str, int]:
        """None for the kernel to set: the container has them."""
        return {}

    @asynccontextmanager
    async def open_channel(self, first_bytes: bytes = b"") -> AsyncIterator[DockerChannel]:
        """Start a container; leaving kills and removes it."""
        name = f"{CONTAINER_PREFIX}{self._labels[OWNER_LABEL]}-{secrets.token_hex(6)}"
        try:
            folder = await run_sync(self._shared_folders.create_folder, name)
            found = await self._create_container(name)
            async with SandboxStream(await self._engine.attach_container(name)) as sandbox:
                sent = sandbox.send_nowait(first_bytes)
                await self._start_container(name)
                await sandbox.send(first_bytes[sent:])
                info = SandboxInfo(name, self.name, found, folder, INPUTS_FOLDER)
                yield DockerChannel(info, self._engine, sandbox, self._settings.memory_mb)
        finally:
            self._pinned_cpus.pop(name, None)
            await self._remove_container(name)
            with anyio.CancelScope(shield=True):
                await run_sync(self._shared_folders.remove_folder, name)

    def _find_image(self, client: APIClient) -> str:
        if not self._engine_info:
            self._engine_info = client.info()
        tag = image.choose_tag(self._settings)
        found = image.look_up_image(client, tag)
        if found is None:
            raise image.missing_image_error(tag)
        return found.id

    async def _create_container(self, name: str) -> str:
        """Create the container `name`; return its image, which is looked up once and again when it is gone."""
        known = self._image_id
        self._image_id = known or await self._engine.call_api(self._find_image)
        try:
            await self._create_from_image(name, self._image_id)
        except Unavailable:
            self._image_id = ""
            if not known:
                raise
            return await self._create_container(name)
        return self._image_id

    async def _create_from_image(self, name: str, image_id: str) -> None:
        from docker.errors import APIError

        options = self._engine_info.get("SecurityOptions") or ()
        mapped = any(option.startswith(("name=userns", "name=rootless")) for option in options)
        if self._engine_info.get("CPUSet"):
            self._pinned_cpus[name] = hardening.choose_cpus(
                self._settings, self._pinned_cpus.values(), self._engine_info["NCPU"]
            )
        shares = self._can_mount_folders = self._can_mount_folders and not self._engine.is_remote
        config = hardening.make_container_config(
            self._settings,
            image_id,
            self._argv,
            self._env,
            self._labels,
            uid=hardening.choose_uid(mapped),
            cpuset=",".join(map(str, self._pinned_cpus.get(name, ()))),
            inputs=str(self._shared_folders.root / name) if shares else "",
        )
        try:
            await self._engine.call_api(
                lambda client: client.create_container_from_config(config, name)
            )
        except APIError as exc:
            if exc.status_code == HTTP_NOT_FOUND:
                raise image.missing_image_error(image.choose_tag(self._settings)) from exc
            if shares and MISSING_FOLDER_TEXT in str(exc.explanation):
                self._can_mount_folders = False  # it is on another machine: inputs go over the link
                await self._create_from_image(name, image_id)
                return
            raise SandboxFailed(
                f"The engine refused to create the sandbox: {exc.explanation or exc}"
            ) from exc

    async def _start_container(self, name: str) -> None:
        from docker.errors import APIError

        try:
            await self._engine.call_api(lambda client: client.start(name))
        except APIError as exc:
            raise SandboxFailed(
                f"The engine refused to start the sandbox: {exc.explanation or exc}"
            ) from exc

    async def _remove_container(self, name: str) -> None:
        with anyio.move_on_after(REMOVE_TIMEOUT_S, shield=True) as bound:
            try:
                await self._engine.call_api(
                    lambda client: remove_container(client, name), abandon_on_cancel=True
                )
            except McpRuntimeError as exc:
                log.warning("The container %s could not be removed: %s", name, exc)
        if bound.cancelled_caught:
            log.warning("The container %s was not removed within %s s.", name, REMOVE_TIMEOUT_S)

    async def run_checks(self) -> list[HealthCheck]:
        """Say whether the engine answers, can enforce the limits, and has the image."""
        try:
            facts = await self._engine.call_api(
                lambda client: {**client.info(), **client.version()}
            )
        except Unavailable as exc:
            return [HealthCheck("engine", False, exc.message, exc.remedy)]
        found = await image.find_current_image(self._settings, self._engine)
        return [*check_engine(facts, self._settings.runtime), check_image(self._settings, found)]

    async def remove_orphans(self) -> int:
        """Remove the containers of this data folder whose server is gone, and their folders; return how many."""
        count = await self._engine.call_api(self._remove_orphan_containers)
        await run_sync(
            self._shared_folders.remove_orphans, lambda name: not self._is_alive(parse_owner(name))
        )
        return count

    def _remove_orphan_containers(self, client: APIClient) -> int:
        filters = {"label": f"{DATA_FOLDER_LABEL}={self._labels[DATA_FOLDER_LABEL]}"}
        listed = client.containers(all=True, filters=filters)
        left = [
            each["Id"] for each in listed if not self._is_alive(each["Labels"].get(OWNER_LABEL, ""))
        ]
        return sum(remove_container(client, container) for container in left)

    def close(self) -> None:
        """Close the connections to the engine."""
        self._engine.close()


def remove_container(client: APIClient, container: str) -> bool:
    """Kill and remove `container`; say whether this call is what removed it."""
    from docker.errors import APIError, NotFound

    try:
        client.remove_container(container, force=True, v=True)
    except NotFound:
        return False
    except APIError as exc:
        if exc.status_code != 409:  # being removed already
            raise SandboxFailed(
                f"The engine did not remove {container}: {exc.explanation or exc}"
            ) from exc
        return False
    return True


def parse_owner(container: str) -> str:
    """Return the id of the server that has given a container its name."""
    return container.removeprefix(CONTAINER_PREFIX).rpartition("-")[0]


def data_folder_digest(data_folder: Path) -> str:
    """Return a label for the data folder `home` of this machine; an engine may serve several machines."""
    id_file = Path("/etc/machine-id")
    machine = id_file.read_text(encoding="ascii").strip() if id_file.exists() else platform.node()
    return hashlib.sha256(f"{machine}:{data_folder.resolve()}".encode()).hexdigest()[:16]


def parse_used_memory(stats: Mapping[str, Any]) -> int | None:
    """Return the bytes in use without page cache, from the engine's figures for cgroup v1 or v2, if there are any."""
    if "usage" not in stats:
        return None
    detail = stats.get("stats") or {}
    # Only pages of real files are cache; those of a tmpfs are memory, and the engine's lists know the difference.
    files = (
        detail.get(f"total_{name}", detail.get(name, 0))
        for name in ("active_file", "inactive_file")
    )
    return max(0, int(stats["usage"]) - sum(map(int, files)))


def describe_exit(state: Mapping[str, Any], memory_mb: int) -> str:
    """Return in words how a container with the engine's `state` ended."""
    code = int(state.get("ExitCode") or 0)
    if state.get("Running"):
        return "the engine closed its stream; it may have been restarted."
    if state.get("OOMKilled") and code == 128 + signal.SIGKILL:
        return f"it was killed, and its memory had run out ({memory_mb} MB, `[sandbox] memory_mb`)."
    ending = f"exit code {code}"
    if code > 128 and code - 128 in set(signal.Signals):
        ending = f"it was killed by {signal.Signals(code - 128).name}"
    also = ", after a process in it was killed for lack of memory" if state.get("OOMKilled") else ""
    return f"{ending}{also}." + (
        f" The engine says: {state['Error']}" if state.get("Error") else ""
    )


def describe_stderr(stderr: bytes) -> str:
    """Return the end of what a container wrote to stderr, as part of a sentence that cannot be mistaken for ours."""
    text = stderr.decode(errors="replace").strip()[-MAX_SHOWN_CHARS:]
    return f" Its last words were {text!r}." if text else ""


def check_engine(engine_info: Mapping[str, Any], runtime: str) -> list[HealthCheck]:
    """Return the checks of what the engine can do, from what it says of itself."""
    security = " ".join(engine_info.get("SecurityOptions") or ())
    limits = ("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota")
    lacking = [
        name
        for name in limits
        if not engine_info.get(name, engine_info.get(name.replace("Cpu", "CPU")))
    ]
    checks = [
        HealthCheck(
            "engine",
            True,
            f"Docker {engine_info['Version']}, API {engine_info['ApiVersion']}, {engine_info['OSType']}",
        ),
        HealthCheck(
            "seccomp",
            "name=seccomp" in security,
            "system calls are filtered"
            if "name=seccomp" in security
            else "the engine cannot filter system calls",
            "Use a kernel with CONFIG_SECCOMP_FILTER.",
        ),
        HealthCheck(
            "limits",
            not lacking,
            f"cgroup v{engine_info.get('CgroupVersion', 1)}"
            + (f" without {', '.join(lacking)}" if lacking else ""),
            "Enable these cgroup controllers on the engine's host (for swap: boot with `swapaccount=1`).",
        ),
    ]
    if runtime:
        known = sorted(engine_info.get("Runtimes") or ())
        checks.append(
            HealthCheck(
                "runtime",
                runtime in known,
                f"{runtime}; the engine has {', '.join(known)}",
                "Install it.",
            )
        )
    return checks


def check_image(settings: SandboxSettings, found: image.ImageRef | None) -> HealthCheck:
    """Return the check of the sandbox image."""
    tag = image.choose_tag(settings)
    if found is None:
        return HealthCheck("image", False, f"the engine does not have {tag}", image.BUILD_COMMAND)
    return HealthCheck("image", True, f"{tag} ({found.id.removeprefix('sha256:')[:12]})")
