"""A sandbox of each backend, and drivers that run code in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.protocol import wire
from mcpruntime_server.sandbox import Backend
from mcpruntime_server.sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from mcpruntime_server.sandbox.docker_backend import DockerBackend
from mcpruntime_server.sandbox.execution import StopReason
from mcpruntime_server.sandbox.frame_writer import FrameWriter
from mcpruntime_server.sandbox.link import SandboxLink, open_link
from mcpruntime_server.sandbox.local_backend import LocalBackend

from .engines import ENGINES, SLOW_ENGINES, find_engine

SMALL_LIMITS = SandboxSettings(
    memory_mb=256, workspace_mb=32, tmp_mb=16, output_mb=1, pids=64, checkpoints=6, checkpoint_mb=96
)


BACKENDS = ["docker", "local", *ENGINES]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Each backend in turn, with small limits."""
    marker = request.node.get_closest_marker("unlike_gvisor")
    if marker is not None and request.param == "gvisor":
        pytest.skip(*marker.args)
    return make_backend(request.param, tmp_path)


def make_backend(name: str, folder: Path) -> Backend:
    """Return a backend; an engine that is not running skips the test."""
    common = (folder, KERNEL_ARGV, KERNEL_ENV, "tester", lambda owner: owner == "tester")
    if name == "local":
        return LocalBackend(SMALL_LIMITS, *common)
    if name == "docker":
        return DockerBackend(SMALL_LIMITS, *common)
    engine = find_engine(name)
    return DockerBackend(
        replace(SMALL_LIMITS, runtime=engine.runtime), *common, environ=engine.environ
    )


def make_setup(backend: Backend) -> wire.Setup:
    return wire.Setup(
        version=wire.PROTOCOL_VERSION,
        has_own_processes=backend.is_isolated,
        max_output_bytes=SMALL_LIMITS.output_mb << 20,
        max_value_chars=10_000,
        max_shown_chars=10_000,
        max_shown_items=1_000,
        max_file_bytes=SMALL_LIMITS.workspace_mb << 20,
        max_processes=SMALL_LIMITS.pids if backend.is_isolated else 0,
        max_checkpoints=SMALL_LIMITS.checkpoints,
        max_checkpoint_bytes=SMALL_LIMITS.checkpoint_mb << 20,
        resource_limits=backend.resource_limits,
    )


@dataclass
class RunRecorder:
    """Records what a sandbox sends during one run; answers its calls with `answer`."""

    answer: Callable[[wire.Call], Any] = lambda call: call.args
    output: list[wire.Output] = field(default_factory=list)
    files: wire.FilesChanged | None = None
    contents: dict[str, bytes] = field(default_factory=dict)
    calls: list[wire.Call] = field(default_factory=list)
    output_arrived: anyio.Event = field(default_factory=anyio.Event)

    async def catch_up(self) -> None:
        pass

    def on_output(self, message: wire.Output) -> None:
        self.output.append(message)
        self.output_arrived.set()

    def on_files(self, message: wire.FilesChanged) -> None:
        self.files = message

    def on_file_data(self, message: wire.FileData) -> None:
        self.contents[message.path] = self.contents.get(message.path, b"") + message.data

    def on_saved(self, message: wire.FilesSaved) -> None:
        pass

    def on_probe_hit(self, message: wire.ProbeHit) -> None:
        pass

    async def on_call(self, message: wire.Call, writer: FrameWriter) -> wire.Reply:
        self.calls.append(message)
        if message.target == "test.nap":
            await anyio.sleep(message.args["seconds"])
        if message.target == "test.wait":
            await self.output_arrived.wait()
        if message.target == "test.fail":
            return wire.Reply(
                message.call_id, None, {"kind": "tool_error", "message": "no", "data": {"why": 1}}
            )
        return wire.Reply(message.call_id, self.answer(message))

    def output_text(self, stream: str = "stdout") -> str:
        return b"".join(
            message.data for message in self.output if message.stream == stream
        ).decode()

    @property
    def dropped(self) -> int:
        return sum(message.dropped_bytes for message in self.output)


class SandboxDriver:
    """Runs code in one sandbox."""

    def __init__(self, link: SandboxLink, *, is_slow: bool = False) -> None:
        self.link = link
        self.concurrent_s = 60.0 if is_slow else 5.0  # for calls that wait at the same time
        self.start_s = 5.0 if is_slow else 0.5  # for code to come so far that it can be stopped
        self.recorder = RunRecorder()
        self.stopped: StopReason | None = None
        self.count = 0

    async def __call__(
        self,
        code: str,
        timeout_s: float = 30.0,
        recorder: RunRecorder | None = None,
        **options: Any,
    ) -> wire.RunDone:
        self.recorder = recorder or RunRecorder()
        self.count += 1
        options.setdefault("seed", str(self.count))
        name = f"<step {self.count}>"
        done, self.stopped = await self.link.execute(
            code, name, self.recorder, timeout_s, **options
        )
        return done

    async def evaluate(self, code: str) -> Any:
        """Return the value of an expression, without a checkpoint."""
        done = await self(code, park=False)
        assert done.status == "ok", done.error
        return done.value and done.value["text"]


@pytest.fixture
async def run(backend: Backend, request: pytest.FixtureRequest) -> AsyncIterator[SandboxDriver]:
    """A driver of a fresh sandbox of the backend."""
    name = request.node.callspec.params.get("backend", "")
    async with open_link(backend, make_setup(backend)) as link:
        yield SandboxDriver(link, is_slow=name in SLOW_ENGINES)


@pytest.fixture(scope="module", params=BACKENDS)
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SandboxDriver]:
    """A driver of a sandbox of each backend, for tests that leave it in order."""
    backend = make_backend(request.param, tmp_path_factory.mktemp("shared"))
    async with open_link(backend, make_setup(backend)) as link:
        yield SandboxDriver(link, is_slow=request.param in SLOW_ENGINES)
