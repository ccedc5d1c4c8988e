"""Experiment: kill the server or the container at each call boundary of a program that writes.

The upstream server counts what it did. After a kill of the server, a new one on the same data
resumes the run; where it asks about a call in doubt, the client looks at the upstream and answers.
After a kill of the container, the client reads the ledger of the result and makes the missing
calls. A naive client runs the whole program again. A doubled effect happened twice, a lost one
never.
"""

from __future__ import annotations

import argparse
import json
import os
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
from .mrbs.world import World, read_calls, write_state
from .results import RESULTS_FOLDER, ResultRecorder, record_result

Target = Literal["server", "container"]
WRITES = 5
LATENCY_MS = 40.0  # of a write; the kill comes before or after its effect
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
        entries = upstream_entries(self.state, ["mail"], "", LATENCY_MS, 0)
        self.sections = {"mcpServers": entries}

    def sent(self) -> Counter[int]:
        """Return how often each item was sent."""
        found = json.loads((self.state / "mail.json").read_text("utf-8"))["sent"]
        return Counter(int(each["subject"].split()[1]) for each in found)

    async def wait_for_calls(self, count: int) -> None:
        """Wait until the upstream has made so many calls."""
        while len(read_calls(self.state)) < count:  # noqa: ASYNC110 - of another process
            await anyio.sleep(0.002)

    async def run_and_kill(self, boundary: int, wait_s: float) -> tuple[str, dict[str, Any]]:
        """Run the program, kill after so many calls, and return the run and what is known of it."""
        run, known = "", {}
        with suppress(Exception):  # the connection of a killed server fails in several ways
            async with start_server(self.folder, self.sections, pool_size=0) as server:
                code = PROGRAM.replace("ITEMS", f"range({WRITES})")
                arguments = {"code": code, "session": "victim", "background": True}
                started = await server.client.call_tool("run_code", arguments)
                run = (started.structured_content or {})["run"]
                await self.wait_for_calls(boundary)
                await anyio.sleep(wait_s)
                await self.kill(server)
                if self.target == "container":
                    known = await attach(server, run)
        return run, known

    async def kill(self, server: TestServer) -> None:
        """Send SIGKILL to the target."""
        if self.target == "server":
            os.kill(server.containers.pid, signal.SIGKILL)
            return
        engine = APIClient(version=API_VERSION, timeout=60, **kwargs_from_env())
        for container in await server.containers.list_ids():
            await anyio.to_thread.run_sync(engine.kill, container, "SIGKILL")
        engine.close()

    async def recover(self, run: str, known: dict[str, Any]) -> None:
        """Do what a careful client does."""
        async with start_server(self.folder, self.sections, pool_size=0) as server:
            if self.target == "server":
                await self.answer_doubts(server, run)
                return
            done = sum(call.get("times", 1) for call in known.get("calls", ()) if is_done(call))
            done = max(done, sum(self.sent().values()))
            await server.run_code(PROGRAM.replace("ITEMS", f"range({done}, {WRITES})"), "again")

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
        number = next(n for n in range(WRITES) if f"subject {n}" in question["call"])
        if not self.sent()[number]:
            return "again"
        message = {"id": number + 1, "to": ADDRESS, "subject": f"subject {number}", "body": "text"}
        return {"result": message}

    async def retry(self) -> None:
        """Do what a naive client does: everything again."""
        async with start_server(self.folder / "naive", self.sections, pool_size=0) as server:
            await server.run_code(PROGRAM.replace("ITEMS", f"range({WRITES})"), "again")


def is_done(call: dict[str, Any]) -> bool:
    """Return whether the ledger says that a call was made."""
    return call.get("status", call.get("outcome")) == "ok"


async def attach(server: TestServer, run: str) -> dict[str, Any]:
    """Return the result of a run at its end."""
    while True:
        result = await server.client.call_tool("run_code", {"run": run})
        data: dict[str, Any] = result.structured_content or {}
        if data.get("status") not in ("queued", "running"):
            return data


async def measure(recorder: ResultRecorder, rounds: int) -> None:
    """Kill each target at each boundary, before and after the effect of a call."""
    for target in ("server", "container"):
        ours, naive = Effects(), Effects()
        for boundary in [each for _ in range(rounds) for each in range(WRITES)]:
            for wait_s in (0.0, LATENCY_MS / 2e3):
                for effects in (ours, naive):
                    with (
                        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
                        anyio.fail_after(TIMEOUT_S),
                    ):
                        trial = Trial(Path(folder), target)
                        run, known = await trial.run_and_kill(boundary, wait_s)
                        if effects is ours:
                            await trial.recover(run, known)
                        else:
                            (Path(folder) / "naive").mkdir()
                            await trial.retry()
                        effects.add(trial.sent())
        for name, effects in (("recovered", ours), ("retried", naive)):
            recorder.details[f"{target}, {name}"] = vars(effects)
            for kind in ("doubled", "lost"):
                per_thousand = 1e3 * getattr(effects, kind) / effects.kills
                recorder.add(f"{target}, {name}, {kind}", "per 1,000 kills", [per_thousand])
            print(f"{target:10} {name:10} {vars(effects)}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Kill and count; return 1 if a recovery doubled or lost an effect."""
    top = argparse.ArgumentParser(prog="python -m bench run kill-anywhere", description=__doc__)
    top.add_argument("--rounds", type=int, default=10, help="of 20 kills for each target")
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "kill-anywhere.json")
    options = top.parse_args(arguments)
    with record_result("kill-anywhere", options.json) as recorder:
        anyio.run(measure, recorder, options.rounds)
    found = [each for name, each in recorder.details.items() if name.endswith("recovered")]
    return int(any(each["doubled"] or each["lost"] for each in found))
