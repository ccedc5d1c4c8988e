"""Experiment: kill worker, container or server at each call boundary of a program that writes.

The upstream server holds a call before or after its effect, and the kill comes then. After a kill
of the server, a new one on the same data resumes the run; where it asks about a call in doubt, the
client looks at the upstream and answers. After a kill of the worker or the container, the run ends,
and the client reads the ledger of its result: it makes the calls that are not in it, and looks at
the upstream for a call that is in it without an answer. A naive client runs the whole program
again. A doubled effect happened twice, a lost one never.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
from docker import APIClient
from docker.utils import kwargs_from_env

from .engine import API_VERSION
from .harness import TestServer, start_server
from .mrbs.stage import upstream_entries
from .mrbs.world import World, write_state
from .results import RESULTS_FOLDER, ResultRecorder, record_result
from .servers.names import HELD_FILE, HOLD_FILE

Target = Literal["worker", "container", "server"]
Point = Literal["before", "after"]  # the effect of a call
TARGETS: tuple[Target, ...] = ("worker", "container", "server")
POINTS: tuple[Point, ...] = ("before", "after")
WRITES = 5
CLIENTS = {"recovered": True, "retried": False}  # whether a client is careful
KILLS_PER_ROUND = WRITES * len(POINTS)
TRIALS_AT_ONCE = 3  # they wait most of the time: for servers and sandboxes to start
TIMEOUT_S = 120.0
ADDRESS = "boss@north.example"
PROGRAM = """
from tools.mail import send_message
for number in ITEMS:
    send_message(ADDRESS, f"subject {number}", "text")
""".replace("ADDRESS", repr(ADDRESS))


@dataclass
class Effects:
    """How often an effect was doubled or lost, in so many kills."""

    kills: int = 0
    doubled: int = 0
    lost: int = 0

    def add(self, sent: Counter[int]) -> None:
        """Count the effects after one kill and recovery."""
        self.kills += 1
        self.doubled += sum(max(0, sent[number] - 1) for number in range(WRITES))
        self.lost += sum(sent[number] == 0 for number in range(WRITES))


class Trial:
    """One program, one kill, and the recovery from it."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder = folder
        self.target = target
        self.state = folder / "state"
        self.state.mkdir(parents=True)
        world = World({"mail": {"messages": [], "folders": [], "contacts": [ADDRESS], "sent": []}})
        write_state(self.state, world.whole_state())
        self.sections = {"mcpServers": upstream_entries(self.state, ["mail"], "", 0.0, 0)}

    def sent(self) -> Counter[int]:
        """Return how often each item was sent."""
        found = json.loads((self.state / "mail.json").read_text("utf-8"))["sent"]
        return Counter(int(each["subject"].split()[1]) for each in found)

    async def run_and_kill(self, boundary: int, point: Point) -> tuple[str, dict[str, Any]]:
        """Run the program, kill at a boundary, and return the run and its result, if it has one.

        Raises `RuntimeError` unless the kill came while the call was held.
        """
        run, result, was_killed = "", {}, False
        held = self.state / HELD_FILE
        (self.state / HOLD_FILE).write_text(f"{point} {boundary}", "utf-8")
        with suppress(Exception):  # the connection of a killed server fails in several ways
            async with start_server(self.folder, self.sections, pool_size=0) as server:
                arguments = {"code": program_for(range(WRITES)), "session": "victim"}
                started = await server.client.call_tool(
                    "run_code", {**arguments, "background": True}
                )
                run = (started.structured_content or {})["run"]
                while not held.exists():  # noqa: ASYNC110 - of another process
                    await anyio.sleep(0.002)
                await self.kill(server)
                was_killed = held.exists()
                held.unlink()
                if self.target != "server":
                    result = await attach(server, run)
        if not was_killed:
            raise RuntimeError(f"There was no kill {point} the effect of call {boundary}.")
        return run, result

    async def kill(self, server: TestServer) -> None:
        """Send SIGKILL to the target."""
        if self.target == "server":
            os.kill(server.containers.pid, signal.SIGKILL)
            return
        [container] = await server.containers.list_ids()
        kill = kill_worker if self.target == "worker" else kill_container
        await anyio.to_thread.run_sync(kill, container)

    async def recover(self, run: str, result: dict[str, Any]) -> None:
        """Do what a careful client does."""
        async with start_server(self.folder, self.sections, pool_size=0) as server:
            if self.target == "server":
                await self.answer_doubts(server, run)
                return
            done = self.find_done(result)
            missing = [number for number in range(WRITES) if number not in done]
            await server.run_code(program_for(missing), "again")

    def find_done(self, result: dict[str, Any]) -> set[int]:
        """Return the items that need no call, by the ledger of a result.

        The upstream is asked only about calls that the ledger has without an answer.
        """
        done: set[int] = set()
        for call in result.get("calls", ()):
            number = item_of(call["call"])
            if call["status"] == "ok" or self.sent()[number]:
                done.add(number)
        return done

    async def answer_doubts(self, server: TestServer, run: str) -> None:
        """Wait for the resumed run, and say of a call in doubt whether the upstream made it."""
        answers: dict[str, Any] = {}
        while True:
            more = {"answers": answers} if answers else {}
            result = await server.client.call_tool("run_code", {"run": run, **more})
            data: dict[str, Any] = result.structured_content or {}
            if data.get("status") not in ("queued", "running", "waiting"):
                return
            answers = {each["id"]: self.decide(each) for each in data.get("waiting_for", ())}

    def decide(self, question: dict[str, Any]) -> Any:
        """Return the result of a call that was made, or that it should be made."""
        number = item_of(question["call"])
        if not self.sent()[number]:
            return "again"
        message = {"id": number + 1, "to": ADDRESS, "subject": f"subject {number}", "body": "text"}
        return {"result": message}

    async def retry(self) -> None:
        """Do what a naive client does: everything again."""
        async with start_server(self.folder / "naive", self.sections, pool_size=0) as server:
            await server.run_code(program_for(range(WRITES)), "again")


def program_for(items: Sequence[int]) -> str:
    """Return the program for some items."""
    return PROGRAM.replace("ITEMS", repr(list(items)))


def item_of(call: str) -> int:
    """Return the item that a call sends."""
    [number] = re.findall(r"subject (\d+)", call)
    return int(number)


def kill_container(container: str) -> None:
    """Kill a container."""
    engine = APIClient(version=API_VERSION, timeout=60, **kwargs_from_env())
    engine.kill(container, "SIGKILL")
    engine.close()


def kill_worker(container: str) -> None:
    """Kill all that runs user code in a container, and leave its supervisor."""
    engine = APIClient(version=API_VERSION, timeout=60, **kwargs_from_env())
    supervisor = engine.inspect_container(container)["State"]["Pid"]
    processes = engine.top(container, ps_args="-eo pid,ppid")["Processes"]
    engine.close()
    for pid, parent in ((int(row[0]), int(row[1])) for row in processes):
        if parent == supervisor:
            os.kill(pid, signal.SIGKILL)


async def attach(server: TestServer, run: str) -> dict[str, Any]:
    """Return the result of a run at its end."""
    while True:
        result = await server.client.call_tool("run_code", {"run": run})
        data: dict[str, Any] = result.structured_content or {}
        if data.get("status") not in ("queued", "running"):
            return data


async def try_once(
    target: Target, boundary: int, point: Point, *, is_careful: bool
) -> Counter[int]:
    """Kill once and recover; return how often each item was sent."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        anyio.fail_after(TIMEOUT_S),
    ):
        trial = Trial(Path(folder), target)
        run, result = await trial.run_and_kill(boundary, point)
        if is_careful:
            await trial.recover(run, result)
        else:
            (trial.folder / "naive").mkdir()
            await trial.retry()
        return trial.sent()


async def measure(recorder: ResultRecorder, options: argparse.Namespace) -> None:
    """Kill each target at each boundary, before and after the effect of a call."""
    chosen = range(WRITES)[: options.limit or None]
    boundaries = [(number, point) for number in chosen for point in POINTS] * options.rounds
    found: dict[str, dict[str, int]] = recorder.details.setdefault("effects", {})
    for target in options.targets:
        for name, is_careful in CLIENTS.items():
            effects = Effects()
            for sent in await try_all(target, boundaries, is_careful=is_careful):
                effects.add(sent)
            found[f"{target}, {name}"] = vars(effects)
            for kind in ("doubled", "lost"):
                per_thousand = 1e3 * getattr(effects, kind) / effects.kills
                recorder.add(f"{target}, {name}, {kind}", "per 1,000 kills", [per_thousand])
            print(f"{target:10} {name:10} {vars(effects)}", flush=True)


async def try_all(
    target: Target, boundaries: Sequence[tuple[int, Point]], *, is_careful: bool
) -> list[Counter[int]]:
    """Kill at each boundary, some at once; return how often each item was sent."""
    found: list[Counter[int]] = []
    waiting = iter(boundaries)

    async def try_next() -> None:
        for boundary, point in waiting:
            found.append(await try_once(target, boundary, point, is_careful=is_careful))

    async with anyio.create_task_group() as group:
        for _ in range(TRIALS_AT_ONCE):
            group.start_soon(try_next)
    return found


def main(arguments: Sequence[str]) -> int:
    """Kill and count; return 1 if a recovery doubled or lost an effect."""
    top = argparse.ArgumentParser(prog="python -m bench run kill-anywhere", description=__doc__)
    top.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    help_text = f"of {KILLS_PER_ROUND} kills for each target and client"
    top.add_argument("--rounds", type=int, default=10, help=help_text)
    top.add_argument("--limit", type=int, default=0, help="calls to kill at; default: all")
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "kill-anywhere.json")
    options = top.parse_args(arguments)
    with record_result("kill-anywhere", options.json) as recorder:
        recorder.details["rounds"] = options.rounds
        anyio.run(measure, recorder, options)
    found = recorder.details["effects"]
    return int(
        any(
            each["doubled"] or each["lost"]
            for name, each in found.items()
            if name.endswith("recovered")
        )
    )
