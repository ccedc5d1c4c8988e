"""The backend to use: sandboxes as Docker containers.

This module is about their lifetimes. What a sandbox may do is in `hardening`, what an engine is in
`docker_engine`.

Rule 1: a container is known by its name before it exists, so whatever happens in between, it can be
removed.
Rule 2: the stream is attached before the container starts, so nothing that it sends is missed. The
supervisor moves the link to a socket of the server's where it can (`link_socket`).
Rule 3: a container dies with its server. Its stdin can be attached only once (`StdinOnce`), and the
supervisor exits at the end of its input. Containers that are left all the same are found by their
labels, counted by `run_checks` and removed by `remove_orphans`: those of a server whose lease is
free, and those that a living server has given up, whose folder it has removed.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import re
import secrets
import signal
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

import anyio
from anyio.abc import AsyncResource
from anyio.to_thread import run_sync

from ..config import SandboxSettings
from ..errors import McpRuntimeError, SandboxFailed, Unavailable
from ..protocol import wire
from ..protocol.payloads import JsonObject
from ..protocol.wire import INPUTS_FOLDER, PACKAGES_FOLDER
from . import HealthCheck, ImageSummary, SandboxInfo, hardening, image, podman
from .docker_engine import DockerEngine
from .link_socket import HAS_LINK_SOCKETS, LinkSocket
from .shared_folders import SharedFolders
from .stream import SandboxStream

if TYPE_CHECKING:
    from docker import APIClient

log = logging.getLogger(__name__)

CONTAINER_PREFIX = "mcpruntime-"  # of container names; the server's id follows
OWNER_LABEL = "mcpruntime.owner"
DATA_FOLDER_LABEL = "mcpruntime.data-folder"
ATTACH_HEADER_BYTES = 8  # stream, 0, 0, 0, length (4 bytes)
STDERR_STREAM = 2
MAX_STDERR_BYTES = 4096  # kept to explain how a container ended
MAX_SHOWN_CHARS = 300  # of stderr, in an error
REMOVAL_TRIES = 10  # Podman fails to kill a container that ends at the same moment
REMOVAL_PAUSE_S = 0.1
REMOVE_TIMEOUT_S = 10.0  # a loaded engine takes seconds; what is left is removed as an orphan
INPUT_MODE = 0o644  # copies have it, too, and belong to the sandbox
HTTP_NOT_FOUND = 404
HTTP_CONFLICT = 409
MISSING_FOLDER_TEXT = "bind source path does not exist"  # the engine's words
SUMMARY_TIMEOUT_S = 2.0  # for the engine to tell about the image; a client waits
SECCOMP_LISTENER_KERNEL = (5, 5)  # whose listeners may let a call continue
RUNTIME_PAGE = "docs/gvisor.md has an example"
EXIT_STATE_TIMEOUT_S = 3  # for the engine to record how a container ended
STDERR_TIMEOUT_S = 1.0  # for the engine to send what the container wrote before it ended


class AttachDecoder:
    """Separates stdout and stderr in the framed stream of an attached container."""

    def __init__(self) -> None:
        self.stderr = b""  # its end
        self._frame_bytes_left = 0  # of the present frame
        self._is_stdout = True
        self._header = b""  # of the next frame, as far as it has arrived

    def feed(self, data: bytes) -> bytes:
        """Return the stdout bytes in `data`; a whole frame, the usual case, is copied once."""
        chunks = []
        view = memoryview(data)
        start = 0
        while start < len(data):
            if self._frame_bytes_left:
                chunk = view[start : start + self._frame_bytes_left]
                start += len(chunk)
                self._frame_bytes_left -= len(chunk)
                if self._is_stdout:
                    chunks.append(chunk)
                else:
                    self.stderr = (self.stderr + chunk)[-MAX_STDERR_BYTES:]
                continue
            missing = ATTACH_HEADER_BYTES - len(self._header)
            self._header += view[start : start + missing]
            start += missing
            if len(self._header) == ATTACH_HEADER_BYTES:
                self._is_stdout = self._header[0] != STDERR_STREAM
                self._frame_bytes_left = int.from_bytes(self._header[4:], "big")
                self._header = b""
        return b"".join(chunks)


class DockerChannel(AsyncResource):
    """The link of one running container: its attached stream, or the socket it connects to."""

    def __init__(
        self,
        info: SandboxInfo,
        engine: DockerEngine,
        attached: SandboxStream,
        memory_mb: int,
    ) -> None:
        self.info = info
        self._engine = engine
        self._attached = attached
        self._link_socket: LinkSocket | None = None  # until it is known which stream is the link
        if HAS_LINK_SOCKETS and info.inputs_folder is not None:
            self._link_socket = LinkSocket(info.inputs_folder)
        self._direct: SandboxStream | None = None  # the link, if it is not the attached stream
        self._memory_mb = memory_mb
        self._decoder = AttachDecoder()
        self._copied_packages: set[str] = set()
        self._copy_lock = anyio.Lock()

    def send_nowait(self, data: bytes) -> int:
        """Write as much of `data` as possible without waiting; return the number of bytes."""
        return (self._direct or self._attached).send_nowait(data)

    async def send(self, data: bytes | memoryview) -> None:
        """Write all of `data`; raises `SandboxFailed` if the container is gone."""
        await (self._direct or self._attached).send(data)

    async def receive(self) -> bytes:
        """Return the next bytes of the link, or b"" when it has ended."""
        if self._link_socket is not None:
            link_socket, self._link_socket = self._link_socket, None
            if first_bytes := await self._choose_stream(link_socket):
                return first_bytes
        if self._direct is not None:
            return await self._direct.receive()
        return await self._receive_attached()

    async def _choose_stream(self, link_socket: LinkSocket) -> bytes:
        """Wait for the connection or for the first attached bytes, and return these."""
        first_bytes = b""

        async def wait_for_attached() -> None:
            nonlocal first_bytes
            first_bytes = await self._receive_attached()
            task_group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(wait_for_attached)
                self._direct = await link_socket.accept()
                task_group.cancel_scope.cancel()
        finally:
            link_socket.close()
        return first_bytes

    async def _receive_attached(self) -> bytes:
        while framed := await self._attached.receive():
            if data := self._decoder.feed(framed):
                return data
        return b""

    async def aclose(self) -> None:
        """Close the connection of its own, if the link has one."""
        if self._link_socket is not None:
            self._link_socket.close()
        if self._direct is not None:
            await self._direct.aclose()

    async def copy_input(self, name: str, data: bytes) -> None:
        """Send a file to the engine, which puts it into the volume of inputs, owned by root."""
        await self._put_archive("input", self.info.inputs_path_inside, pack_file(name, data))

    async def copy_package(self, name: str, folder: Path) -> None:
        """Send a folder to an engine that does not mount it, for the volume of packages."""
        if not self.info.takes_inputs:
            return
        async with self._copy_lock:
            if name in self._copied_packages:
                return
            with TemporaryFile() as file:
                await run_sync(pack_folder, name, folder, file)
                await self._put_archive("package", PACKAGES_FOLDER, file)
            self._copied_packages.add(name)

    async def _put_archive(self, kind: str, path: str, data: Iterator[bytes] | IO[bytes]) -> None:
        from docker.errors import APIError

        try:
            await self._engine.call_api(lambda client: client.put_archive(self.info.id, path, data))
        except APIError as exc:
            raise SandboxFailed(
                f"The engine refused a file ({kind}) of the sandbox: {exc.explanation or exc}"
            ) from exc

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
        """Return how the container ended, according to the engine."""
        from docker.errors import APIError, NotFound

        try:
            state = await self._engine.call_api(self._read_final_state)
        except NotFound:
            return "its container was removed from outside."
        except (APIError, Unavailable) as exc:
            return f"the engine does not tell why ({exc})"
        if self._direct is not None:
            with anyio.move_on_after(STDERR_TIMEOUT_S):
                await self._receive_attached()
        return describe_container_exit(state, self._memory_mb) + describe_stderr(
            self._decoder.stderr
        )

    def _read_final_state(self, client: APIClient) -> JsonObject:
        from requests.exceptions import RequestException

        try:
            client.wait(self.info.id, timeout=EXIT_STATE_TIMEOUT_S)
        except RequestException:
            log.debug("The container %s still runs after its stream has ended.", self.info.id)
        state: JsonObject = client.inspect_container(self.info.id)["State"]
        return state


class DockerBackend:
    """Starts sandboxes on the engine that DOCKER_HOST or the current Docker context names.

    An orphan is a container of the same `data_folder` that its server has given up, or whose
    `owner` is not alive.
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
        *,
        packages_folder: Path | None = None,
        has_web: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._packages_folder = packages_folder
        self._has_web = has_web
        self._argv = argv
        self._env = env
        self._labels = {OWNER_LABEL: owner, DATA_FOLDER_LABEL: data_folder_digest(data_folder)}
        self._is_alive = is_alive
        self._engine = DockerEngine(environ=environ)
        self._engine_info: JsonObject = {}  # its answers to `/info` and `/version`
        self._image_id = ""  # of the image in use
        self._pinned_cpus: dict[str, tuple[int, ...]] = {}  # by container
        self._shared_folders = SharedFolders(data_folder.resolve() / "inputs")
        self._engine_folder = data_folder.resolve() / "sandboxes"  # with files that it reads
        self._can_mount_folders = True  # of this machine, as far as is known
        for entry in settings.mounts:
            hardening.parse_mount(entry)

    @property
    def resource_limits(self) -> dict[str, int]:
        """None: the container has its own."""
        return {}

    @asynccontextmanager
    async def open_channel(self, first_bytes: bytes = b"") -> AsyncIterator[DockerChannel]:
        """Start a container; leaving kills and removes it."""
        name = f"{CONTAINER_PREFIX}{self._labels[OWNER_LABEL]}-{secrets.token_hex(6)}"
        try:
            folder = await run_sync(self._shared_folders.create_folder, name)
            found = await self._create_container(name)
            shares = self._can_mount_folders
            info = SandboxInfo(
                name,
                self.name,
                found,
                folder if shares else None,
                INPUTS_FOLDER,
                takes_inputs=not shares,
            )
            async with (
                SandboxStream(await self._engine.attach_container(name)) as attached,
                DockerChannel(info, self._engine, attached, self._settings.memory_mb) as channel,
            ):
                sent = attached.send_nowait(first_bytes)
                await self._start_container(name)
                await attached.send(first_bytes[sent:])
                yield channel
        finally:
            self._pinned_cpus.pop(name, None)
            await self._remove_container(name)
            with anyio.CancelScope(shield=True):
                await run_sync(self._shared_folders.remove_folder, name)

    def _find_image(self, client: APIClient) -> str:
        if not self._engine_info:
            self._engine_info = {**client.info(), **client.version()}
        tag = image.choose_tag(self._settings)
        found = image.look_up_image(client, tag)
        if found is None:
            raise image.missing_image_error(tag)
        return found.id

    async def _create_container(self, name: str) -> str:
        """Create the container `name`; return its image, which is looked up again if it is gone."""
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
        packages = None if self._packages_folder is None else ""
        if shares and self._packages_folder is not None:
            packages = str(self._packages_folder)
        config = hardening.make_container_config(
            self._settings,
            image_id,
            self._argv,
            self._env,
            self._labels,
            uid=hardening.choose_uid(self._settings, is_mapped=mapped),
            cpuset=",".join(map(str, self._pinned_cpus.get(name, ()))),
            inputs=str(self._shared_folders.root / name) if shares else "",
            packages=packages,
            has_web=self._has_web,
        )
        if podman.is_podman(self._engine_info):
            config = await run_sync(podman.adapt_config, config, self._engine_folder)
        try:
            await self._engine.call_api(
                lambda client: client.create_container_from_config(config, name)
            )
        except APIError as exc:
            if exc.status_code == HTTP_NOT_FOUND:
                raise image.missing_image_error(image.choose_tag(self._settings)) from exc
            if shares and MISSING_FOLDER_TEXT in str(exc.explanation):
                self._can_mount_folders = False  # the engine is on another machine: use the link
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

    async def summarize_image(self) -> ImageSummary:
        """Return the id of the image, and the version of its Python if this program built it."""
        with anyio.move_on_after(SUMMARY_TIMEOUT_S):
            found = await self._engine.inspect_image(image.choose_tag(self._settings))
            version = image.parse_python_version(self._settings, found)
            return ImageSummary(str(found.get("Id") or ""), version)
        return ImageSummary()

    async def run_checks(self) -> list[HealthCheck]:
        """Check whether the engine answers, can enforce the limits, and has the image."""
        try:
            engine_info = await self._engine.call_api(
                lambda client: {**client.info(), **client.version()}
            )
        except Unavailable as exc:
            return [HealthCheck("engine", False, exc.message, exc.remedy)]
        checks = check_engine(engine_info, self._settings.runtime)
        found = await image.find_current_image(self._settings, self._engine)
        running, left = await self._engine.call_api(self._count_containers)
        return [
            *checks,
            check_image(self._settings, found),
            check_sandboxes(running, left),
            *check_mounts(self._settings),
        ]

    async def remove_orphans(self) -> int:
        """Remove orphaned containers and their folders; return the number of containers."""
        count = await self._engine.call_api(self._remove_orphan_containers)
        await run_sync(
            self._shared_folders.remove_orphans, lambda name: not self._is_alive(parse_owner(name))
        )
        return count

    def _remove_orphan_containers(self, client: APIClient) -> int:
        orphans = filter(self._is_orphan, self._list_containers(client))
        return sum(remove_container(client, container["Id"]) for container in orphans)

    def _count_containers(self, client: APIClient) -> tuple[int, int]:
        """Return how many containers are in use, and how many are left."""
        listed = self._list_containers(client)
        left = sum(map(self._is_orphan, listed))
        return len(listed) - left, left

    def _list_containers(self, client: APIClient) -> list[JsonObject]:
        filters = {"label": f"{DATA_FOLDER_LABEL}={self._labels[DATA_FOLDER_LABEL]}"}
        listed: list[JsonObject] = client.containers(all=True, filters=filters)
        return listed

    def _is_orphan(self, container: Mapping[str, Any]) -> bool:
        if not self._is_alive(container["Labels"].get(OWNER_LABEL, "")):
            return True
        return not self._shared_folders.has_folder(container["Names"][0].removeprefix("/"))

    def close(self) -> None:
        """Close the connections to the engine."""
        self._engine.close()


def pack_file(name: str, data: bytes) -> Iterator[bytes]:
    """Yield a tar archive of one file that everybody may read and its owner, root, may write."""
    entry = tarfile.TarInfo(name)
    entry.mode = INPUT_MODE
    entry.size = len(data)
    yield entry.tobuf()
    for start in range(0, len(data), wire.CHUNK_BYTES):
        yield data[start : start + wire.CHUNK_BYTES]
    yield bytes(-len(data) % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def pack_folder(name: str, folder: Path, file: IO[bytes]) -> None:
    """Write a tar archive of `folder` as `name` into a file; everything in it is root's."""

    def give_to_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.add(folder, name, filter=give_to_root)
    file.seek(0)


def remove_container(client: APIClient, container: str) -> bool:
    """Kill and remove `container`; return whether this call removed it."""
    from docker.errors import APIError, NotFound

    for tries_left in range(REMOVAL_TRIES - 1, -1, -1):
        try:
            client.remove_container(container, force=True, v=True)
            return True
        except NotFound:
            return False
        except APIError as exc:
            if exc.status_code == HTTP_CONFLICT:
                return False  # it is being removed already
            if not tries_left or not podman.is_removal_race(str(exc.explanation)):
                raise SandboxFailed(
                    f"The engine did not remove {container}: {exc.explanation or exc}"
                ) from exc
        time.sleep(REMOVAL_PAUSE_S)
    return False


def parse_owner(container: str) -> str:
    """Return the id of the server in the name of a container."""
    return container.removeprefix(CONTAINER_PREFIX).rpartition("-")[0]


def data_folder_digest(data_folder: Path) -> str:
    """Return a label for a data folder of this machine; an engine may serve several machines."""
    id_file = Path("/etc/machine-id")
    machine = id_file.read_text(encoding="ascii").strip() if id_file.exists() else platform.node()
    return hashlib.sha256(f"{machine}:{data_folder.resolve()}".encode()).hexdigest()[:16]


def parse_used_memory(stats: Mapping[str, Any]) -> int | None:
    """Return the bytes in use without page cache, from the engine's figures for cgroup v1 or v2."""
    if "usage" not in stats:
        return None
    detail = stats.get("stats") or {}
    # The files of a tmpfs are memory, not cache; these two figures leave them out.
    files = (
        detail.get(f"total_{name}", detail.get(name, 0))
        for name in ("active_file", "inactive_file")
    )
    return max(0, int(stats["usage"]) - sum(map(int, files)))


def describe_container_exit(state: Mapping[str, Any], memory_mb: int) -> str:
    """Return a clause on how a container with the engine's `state` ended."""
    code = int(state.get("ExitCode") or 0)
    if state.get("Running"):
        return "the engine closed its stream; it may have been restarted."
    if state.get("OOMKilled") and code == 128 + signal.SIGKILL:
        return f"it was killed, and its memory had run out ({memory_mb} MB, `[sandbox] memory_mb`)."
    text = f"exit code {code}"
    if code > 128 and code - 128 in set(signal.Signals):
        text = f"it was killed by {signal.Signals(code - 128).name}"
    if state.get("OOMKilled"):
        text += ", after a process in it was killed for lack of memory"
    if state.get("Error"):
        return f"{text}. The engine says: {state['Error']}"
    return f"{text}."


def describe_stderr(stderr: bytes) -> str:
    """Return the end of a container's stderr, quoted, as part of an error message."""
    text = stderr.decode(errors="replace").strip()[-MAX_SHOWN_CHARS:]
    return f" Its last words were {text!r}." if text else ""


def check_engine(engine_info: Mapping[str, Any], runtime: str) -> list[HealthCheck]:
    """Return the checks of what an engine can do, from its answers to `/info` and `/version`."""
    has_podman = podman.is_podman(engine_info)
    product = "Podman" if has_podman else "Docker"
    versions = [f"{product} {engine_info['Version']}", f"API {engine_info['ApiVersion']}"]
    checks = [HealthCheck("engine", True, ", ".join([*versions, engine_info["OSType"]]))]
    if has_podman:
        checks += podman.check_podman(engine_info)

    has_seccomp = "name=seccomp" in " ".join(engine_info.get("SecurityOptions") or ())
    detail = "the engine cannot filter system calls"
    if has_seccomp:
        detail = "system calls are filtered"
    remedy = "Use a kernel with CONFIG_SECCOMP_FILTER."
    checks.append(HealthCheck("seccomp", has_seccomp, detail, remedy))

    if not can_guard_processes(engine_info.get("KernelVersion", ""), runtime):
        detail = "code can end parked steps of its sandbox, which are then executed again"
        remedy = "Use Linux 5.5 or newer, and a runtime that has seccomp listeners."
        checks.append(HealthCheck("signals", True, detail, remedy, is_warning=True))

    enforced = {name.lower() for name, value in engine_info.items() if value}
    limits = ("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota")
    missing = [name for name in limits if name.lower() not in enforced]
    detail = f"cgroup v{engine_info.get('CgroupVersion', 1)}"
    if missing:
        detail += f" without {', '.join(missing)}"
    remedy = (
        "Enable these cgroup controllers on the engine's host (swap: boot with `swapaccount=1`)."
    )
    checks.append(HealthCheck("limits", not missing, detail, remedy))

    if runtime:
        known = sorted(engine_info.get("Runtimes") or ())
        detail = f"{runtime}; the engine has {', '.join(known)}"
        remedy = f"Install it, and add it to the engine's `runtimes`: {RUNTIME_PAGE}."
        checks.append(HealthCheck("runtime", runtime in known, detail, remedy))
    return checks


def can_guard_processes(kernel_version: str, runtime: str) -> bool:
    """Return whether a kernel and a container runtime have what `process_guard` needs."""
    found = re.match(r"(\d+)\.(\d+)", kernel_version)
    is_too_old = found is not None and tuple(map(int, found.groups())) < SECCOMP_LISTENER_KERNEL
    return not is_too_old and not hardening.has_gvisor(runtime)


def check_mounts(settings: SandboxSettings) -> list[HealthCheck]:
    """Return a warning for each `:rw` folder that sandboxes cannot write into."""
    return [
        HealthCheck(
            "mount",
            True,
            f"sandboxes cannot write into {folder}: another user owns it, or the administrator",
            "Give it to the owner of the other folders with `:rw`, or let everybody write there.",
            is_warning=True,
        )
        for folder in hardening.find_unwritable_mounts(settings)
    ]


def check_sandboxes(running: int, left: int) -> HealthCheck:
    """Return the check of the sandboxes that servers of this data folder use and have left."""
    return HealthCheck(
        "sandboxes",
        True,
        f"{running} in use, {left} left behind",
        "A server that runs on this data folder removes them within a minute.",
        is_warning=left > 0,
        figures={"sandboxes_in_use": running, "sandboxes_left": left},
    )


def check_image(settings: SandboxSettings, found: image.ImageRef | None) -> HealthCheck:
    """Return the check of the sandbox image."""
    tag = image.choose_tag(settings)
    if found is None:
        return HealthCheck("image", False, f"the engine does not have {tag}", image.BUILD_COMMAND)
    return HealthCheck("image", True, f"{tag} ({found.id.removeprefix('sha256:')[:12]})")
