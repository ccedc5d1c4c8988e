"""Servers that are killed at any moment, and a client that uses one after the other.

The client keeps a plain model of variables, files and the upstream, and checks every answer against
it. If a server died during a call, the client looks whether the upstream did it, and answers so.
"""

from __future__ import annotations

import ast
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import anyio
from anyio.abc import Process
from mcp.types import CONNECTION_CLOSED

from .forking import forked_command, forked_pid
from .server_connection import COMMAND, TEST_TIMEOUT_S

IDEMPOTENCY_KEY = "mcpruntime/idempotency-key"
LANE_COUNT = 2  # sessions at the same time
INSPECT_WAIT_S = 5  # of a request that inspects a session
MAX_STEPS = 6  # of a session: all of them are executed again after each kill
STABLE_FIELDS = (
    "run",
    "step",
    "status",
    "value",
    "stdout",
    "stderr",
    "error",
)  # fields that never change once they were reported

FIRST_CODE = """\
import asyncio, json, os, random, time, uuid
import tools
from tools.counted import add, count
n, seen = 0, []
def item(tag, i):
    return f"{tag}:{i}:{n}:{time.time_ns()}:{uuid.uuid4().hex}:{random.random()}"
"""
STEP_CODE = {
    "loop": """\
made = []
for i in range(5):
    made.append(item(TAG, i))
    add(item=made[-1])
    print(made[-1], flush=True)
with open("log", "a") as file:
    file.write(made[0])
""",
    "chain": """\
made, last = [], 0
for i in range(4):
    made.append(item(TAG, f"{count(item=TAG).result}-{last}"))
    last = add(item=made[-1]).result
print(last)
""",
    "threads": """\
made = [item(TAG, i) for i in range(8)]
assert all(slot.ok for slot in tools.map(lambda each: add(item=each), made))
""",
    "gather": """\
made = [item(TAG, i) for i in range(8)]
print(sorted(set(map(str, await asyncio.gather(*(add.aio(item=each) for each in made))))))
""",
    "files": """\
made = [item(TAG, i) for i in range(2)]
os.makedirs(f"d{n}/deep")
with open(f"d{n}/deep/f", "w") as file:
    file.write(made[0])
add(item=made[0])
with open("big", "w") as file:
    file.write(made[1] * 5000)
for name in os.listdir():
    if name.startswith("d") and name != f"d{n}":
        os.remove(f"{name}/deep/f")
        os.rmdir(f"{name}/deep")
        os.rmdir(name)
add(item=made[1])
""",
}
LAST_CODE = "n, seen = n + 1, seen + made\nmade"
INSPECT_CODE = """\
found = {}
for folder, _, names in os.walk("."):
    if ".mcpruntime" not in folder:
        for name in names:
            with open(os.path.join(folder, name)) as file:
                found[os.path.relpath(os.path.join(folder, name))] = file.read()
import hashlib
[n, seen, {name: hashlib.sha256(text.encode()).hexdigest() for name, text in found.items()}]
"""


def parse_call(shown: str) -> tuple[str, str]:
    """Return the tool and the item of a call as results show it."""
    call = ast.parse(shown, mode="eval").body
    assert isinstance(call, ast.Call), shown
    assert isinstance(call.func, ast.Attribute), shown
    return call.func.attr, ast.literal_eval(call.keywords[0].value)


class ServerKilled(Exception):
    """The server is gone."""


class KillableServer:
    """One server process, spoken to line by line."""

    def __init__(self, process: Process, *, is_forked: bool) -> None:
        self.process = process
        self._is_forked = is_forked
        self.requested = anyio.Event()
        self._finished_steps = 0
        self._replies: dict[int, dict[str, Any]] = {}
        self._update = anyio.Event()
        self._last_request_id = 0
        self._is_gone = False

    async def read_messages(self) -> None:
        """Receive messages until the server is gone."""
        assert self.process.stdout is not None
        buffered = b""
        try:
            async for data in self.process.stdout:
                *lines, buffered = (buffered + data).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if "id" in message:
                        self._replies[message["id"]] = message
                self._notify_waiters()
        finally:
            self._is_gone = True
            self._notify_waiters()

    def _notify_waiters(self) -> None:
        self._update.set()
        self._update = anyio.Event()

    def count_finished_step(self) -> None:
        """Count one more finished step."""
        self._finished_steps += 1
        self._notify_waiters()

    async def wait_finished_steps(self, times: int) -> None:
        """Wait until so many steps are finished."""
        while self._finished_steps < times:
            await self._update.wait()

    async def send_message(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send(
                json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
            )
        except (BrokenPipeError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise ServerKilled from None

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a request; raises `ServerKilled`."""
        self._last_request_id += 1
        number = self._last_request_id
        await self.send_message({"id": number, "method": method, "params": params})
        with anyio.fail_after(TEST_TIMEOUT_S):
            while number not in self._replies:
                if self._is_gone:
                    raise ServerKilled
                await self._update.wait()
        reply = self._replies.pop(number)
        if reply.get("error", {}).get("code") == CONNECTION_CLOSED:  # a server that stops says so
            raise ServerKilled
        assert "result" in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    async def initialize(self) -> None:
        client = {"name": "killer", "version": "1"}
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        await self.request("initialize", params)
        await self.send_message({"method": "notifications/initialized"})

    async def run(self, code: str, session: str, key: str | None = None) -> dict[str, Any]:
        """Run code and return the result's data; a refusal fails the test."""
        self.requested.set()
        return await self.call_run_code(
            {"code": code, "session": session}, {} if key is None else {IDEMPOTENCY_KEY: key}
        )

    async def wait_run(self, run: str, **more: Any) -> dict[str, Any]:
        """Wait for more of a run, and return the result's data."""
        return await self.call_run_code({"run": run, **more}, {})

    async def call_run_code(
        self, arguments: dict[str, Any], meta: dict[str, Any]
    ) -> dict[str, Any]:
        """Use `run_code` and return the result's data; a refusal fails the test."""
        result = await self.request(
            "tools/call", {"name": "run_code", "arguments": arguments, "_meta": meta}
        )
        assert "structuredContent" in result, result
        data: dict[str, Any] = result["structuredContent"]
        return data

    @property
    def pid(self) -> int:
        """The id of the process; before it is forked, that of its client, which it dies with."""
        forked = forked_pid(self.process.pid) if self._is_forked else None
        return forked or self.process.pid

    def kill(self) -> None:
        """Kill the server, at whatever it is doing."""
        with suppress(ProcessLookupError):  # it is dead already
            os.kill(self.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Close its stdin and wait until it has exited, as a client does."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        with anyio.fail_after(TEST_TIMEOUT_S):
            await self.process.wait()


@asynccontextmanager
async def start_server(settings: Path, *, is_forked: bool = True) -> AsyncIterator[KillableServer]:
    """Start a server and kill it afterwards."""
    options = ("--config", str(settings), "--stdio")
    command = forked_command(*options) if is_forked else [COMMAND, *options]
    with settings.with_suffix(".log").open("ab") as log:
        async with (
            await anyio.open_process(command, stderr=log) as process,
            anyio.create_task_group() as tasks,
        ):
            server = KillableServer(process, is_forked=is_forked)
            tasks.start_soon(server.read_messages)
            try:
                yield server
            finally:
                if process.returncode is None:
                    server.kill()
                with anyio.CancelScope(shield=True):
                    await process.wait()
                tasks.cancel_scope.cancel()


@asynccontextmanager
async def start_ready_server(settings: Path) -> AsyncIterator[KillableServer]:
    """Start a server, initialize it, and kill it afterwards."""
    async with start_server(settings) as server:
        await server.initialize()
        yield server


class StartServer(Protocol):
    """Starts a server and kills it afterwards."""

    def __call__(
        self, settings: Path, /, *, is_forked: bool
    ) -> AbstractAsyncContextManager[KillableServer]: ...


@dataclass
class Step:
    """A step of a session, until the client knows its outcome."""

    kind: str
    tag: str

    @property
    def code(self) -> str:
        return (
            FIRST_CODE
            if self.kind == "first"
            else f"TAG = {self.tag!r}\n{STEP_CODE[self.kind]}{LAST_CODE}"
        )


@dataclass
class SessionModel:
    """The expected state of a session."""

    session: str
    step_count: int = 0
    items: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    finished_steps: int = 0
    pending: Step | None = None
    may_be_cancelled: bool = False  # the pending step, because a server is shutting down
    is_uncertain: bool = False  # a step was cancelled at an unknown point

    @property
    def digests(self) -> dict[str, str]:
        """The files in the format of `INSPECT_CODE`."""
        return {name: sha256(text.encode()).hexdigest() for name, text in self.files.items()}

    def apply_step(self, kind: str, made: list[str]) -> None:
        """Change the state as a step of this kind does; `made` are the items that it added."""
        self.finished_steps += 1
        if kind == "first":
            return
        if kind == "loop":
            self.files["log"] = self.files.get("log", "") + made[0]
        if kind == "files":
            self.files = {
                name: text for name, text in self.files.items() if not name.startswith("d")
            }
            self.files |= {f"d{self.step_count}/deep/f": made[0], "big": made[1] * 5000}
        self.step_count, self.items = self.step_count + 1, self.items + made


class KillingClient:
    """Uses one data folder in several sessions at once, while its servers are killed."""

    def __init__(
        self, settings: Path, upstream: Path, seed: str, start: StartServer | None = None
    ) -> None:
        self.settings = settings
        self._start = start or start_server
        self.upstream = upstream
        self.random = random.Random(seed)
        self.lanes: list[list[SessionModel]] = [[] for _ in range(LANE_COUNT)]
        self.reported: dict[str, dict[str, Any]] = {}  # run -> what was reported of it
        self.endings: Counter[str] = Counter()  # how steps ended
        self.kill_moments: Counter[str] = Counter()  # when servers were killed
        self.error_ledgers: dict[
            str, str
        ] = {}  # tag of a failed step -> the calls that were reported
        self.kills = 0
        self.in_doubt_calls = 0  # calls that were in doubt after a crash
        self.resumed = 0  # runs that were resumed after that
        self._is_stopping = False  # the server is shutting down

    # a server's life -----------------------------------------------------------------------------

    async def run_until_killed(self) -> None:
        """Start a server, use it, and kill it at a random moment."""
        self._is_stopping = False
        async with (
            self._start(self.settings, is_forked=False) as server,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._kill, server)
            with suppress(ServerKilled):
                await server.initialize()
                async with anyio.create_task_group() as works:
                    for lane in self.lanes:
                        works.start_soon(self._run_lane, server, lane)
            with anyio.fail_after(TEST_TIMEOUT_S):
                await server.process.wait()
            assert self._is_stopping or server.process.returncode == -signal.SIGKILL
            self.kills += 1
            tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def start_last_server(self) -> AsyncIterator[KillableServer]:
        """Start a server that is not killed before the end."""
        async with self._start(self.settings, is_forked=True) as server:
            await server.initialize()
            yield server

    async def _kill(self, server: KillableServer) -> None:
        draw = self.random.uniform
        moment = self.random.choices(
            ("start", "requested", "called", "reported", "shutdown"), (2, 4, 5, 4, 2)
        )[0]
        self.kill_moments[moment] += 1
        if moment == "start":
            await anyio.sleep(draw(0, 1.5))
        elif moment == "requested":
            await server.requested.wait()
            await anyio.sleep(draw(0, 1.2))
        elif moment == "called":
            await server.requested.wait()  # on a busy machine, starting takes long
            await self._wait_upstream_calls(self.random.randint(1, 30))
            await anyio.sleep(draw(0, 0.02))
        else:
            await server.requested.wait()
            with anyio.move_on_after(10):
                await server.wait_finished_steps(self.random.randint(1, 6))
            await anyio.sleep(draw(0, 0.05))
        if moment == "shutdown":
            self._is_stopping = True
            for model in self._pending_sessions():
                model.may_be_cancelled = True
            server.process.send_signal(signal.SIGTERM)
            await anyio.sleep(draw(0, 0.5))
        if server.process.returncode is None:
            server.kill()

    async def _wait_upstream_calls(self, times: int) -> None:
        """Wait until the upstream was called so often, or for 5 s."""
        before = len(self.read_ledger())
        with anyio.move_on_after(5):
            while len(self.read_ledger()) < before + times:  # noqa: ASYNC110 - of a process
                await anyio.sleep(0.002)

    def read_ledger(self) -> list[str]:
        return self.upstream.read_text().splitlines() if self.upstream.exists() else []

    # its work ------------------------------------------------------------------------------------

    async def _run_lane(self, server: KillableServer, models: list[SessionModel]) -> None:
        with suppress(ServerKilled):
            while True:
                await self._run_step(server, models)

    async def _run_step(self, server: KillableServer, models: list[SessionModel]) -> None:
        """Run a new step, or repeat one without an answer; now and then check the state."""
        model = self._current_session(models)
        if self.random.random() < 0.3 and model.finished_steps:
            await self.check_state(server, model)
            if model.is_uncertain:
                return
        if model.pending is None:
            kind = self.random.choice(list(STEP_CODE)) if model.finished_steps else "first"
            model.pending = Step(kind, f"{model.session}-{self.random.getrandbits(32):08x}")
            model.may_be_cancelled = self._is_stopping
        await self._finish_step(server, model, model.pending)

    async def _finish_step(self, server: KillableServer, model: SessionModel, step: Step) -> None:
        data = await server.run(step.code, model.session, step.tag)
        is_partial = False
        while data["status"] in ("queued", "running", "waiting"):
            answers = {
                wait["id"]: self._resolve_doubt(wait) for wait in data.get("waiting_for", ())
            }
            data = await server.wait_run(data["run"], **({"answers": answers} if answers else {}))
            is_partial = True
        if is_partial:
            data = await server.wait_run(data["run"])  # with the output that it got before
        server.count_finished_step()
        self._check_report(model, step, data)
        model.pending = None
        if data["status"] == "ok":
            model.apply_step(step.kind, data.get("value") or [])
        elif data["status"] == "cancelled":  # it stopped at an unknown point
            model.is_uncertain = True
        elif model.finished_steps:
            await self.check_state(server, model)

    def _resolve_doubt(self, wait: dict[str, Any]) -> Any:
        """Return the outcome of a call during which a server died."""
        assert wait["kind"] == "in_doubt", wait
        self.in_doubt_calls += 1
        tool, item = parse_call(wait["call"])
        return {"result": {"result": 0}} if f"{tool} {item}" in self.read_ledger() else "again"

    def _current_session(self, models: list[SessionModel]) -> SessionModel:
        if (
            not models
            or models[-1].is_uncertain
            or (models[-1].finished_steps >= MAX_STEPS and models[-1].pending is None)
        ):
            lane = self.lanes.index(models)
            models.append(SessionModel(f"{self.settings.parent.name} {lane} {len(models)}"))
        return models[-1]

    def _pending_sessions(self) -> list[SessionModel]:
        return [model for lane in self.lanes for model in lane if model.pending is not None]

    def _check_report(self, model: SessionModel, step: Step, data: dict[str, Any]) -> None:
        """Check that the report of a step is allowed and equals earlier reports."""
        facts = {name: data.get(name) for name in STABLE_FIELDS}
        assert self.reported.setdefault(data["run"], facts) == facts
        status, error = data["status"], data.get("error") or {}
        if status == "cancelled":
            assert model.may_be_cancelled, data
        elif status != "ok":
            assert (status, error["type"]) == ("crashed", "ServerDied"), data
        self.endings[error.get("type", status)] += 1
        if status != "ok":
            self.error_ledgers[step.tag] = json.dumps(data.get("calls", []))

    async def check_state(self, server: KillableServer, model: SessionModel) -> None:
        """Compare a session with the model; a step without an answer may be done or not."""
        data = await server.call_run_code(
            {"code": INSPECT_CODE, "session": model.session, "wait_s": INSPECT_WAIT_S}, {}
        )
        while data["status"] in ("queued", "running"):
            if (
                data["status"] == "queued" and model.pending is not None
            ):  # behind a step that may wait for this client
                await server.wait_run(data["run"], cancel=True)
                await self._finish_step(server, model, model.pending)
                return
            data = await server.wait_run(data["run"])
        if data["status"] == "cancelled" and self._is_stopping:
            return
        if "value" not in data and model.may_be_cancelled:
            model.is_uncertain = True  # a cancelled step is not executed again
            return
        assert data["status"] == "ok", data
        n, seen, files = data["value"]
        step = model.pending
        if n == model.step_count + 1 and step is not None:
            await self._finish_step(server, model, step)
        elif files != model.digests and step is not None and model.may_be_cancelled:
            await self._finish_step(server, model, step)
            assert model.is_uncertain, data  # it was cancelled, which had not been reported yet
            return
        assert (n, seen) == (model.step_count, model.items), data
        assert files == model.digests, (data, sorted(model.files))

    # the end -------------------------------------------------------------------------------------

    async def finish_sessions(self, server: KillableServer) -> None:
        """On a server that is not killed, check that every session is right and continues."""
        for models in self.lanes:
            while any(model.pending for model in models):
                await self._run_step(server, models)
            for model in models:
                if model.is_uncertain:
                    assert (await server.run("1 + 1", model.session))["value"] == 2
                elif model.finished_steps:
                    await self.check_state(server, model)

    def check_calls(self) -> None:
        """Check that no call was made twice, and that every call that was made was reported."""
        done = Counter(
            line.removeprefix("add ") for line in self.read_ledger() if line.startswith("add ")
        )
        twice = [item for item, times in done.items() if times > 1]
        assert not twice, twice
        acknowledged = {
            item
            for facts in self.reported.values()
            for item in facts["value"] or ()
            if isinstance(item, str)
        }
        assert acknowledged <= done.keys()
        for item in done.keys() - acknowledged:
            tag = item.partition(":")[0]
            assert item in self.error_ledgers.get(tag, ""), f"{item} was done and not reported"
