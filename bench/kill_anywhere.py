"""Experiment: kill worker, container or server at each call boundary of a program that writes.

The upstream server holds a call before or after its effect, and the kill comes then. After a kill
of the server, a new one on the same data resumes the run; where it asks about a call in doubt, the
client looks at the upstream and answers. After a kill of the worker or the container, the run ends,
and the client reads the ledger of its result: it makes the calls that are not in it, and looks at
the upstream for a call that is in it without an answer. A naive client runs the whole program
again; after a kill of the server, it does so on a server that knows nothing of the run. A doubled
effect happened twice, a lost one never.

Starting a server takes most of the time of a kill, so a server is used until it is killed: a lane
kills one run after the other, and the server that recovers from a kill is the next that is killed.
Each kill is a line in a file beside the result, from which `--resume` goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
from .servers.names import CALL_LOG, HELD_FILE, HOLD_FILE, describe_hold

Target = Literal["worker", "container", "server"]
Point = Literal["before", "after"]  # the effect of a call
TARGETS: tuple[Target, ...] = ("worker", "container", "server")
POINTS: tuple[Point, ...] = ("before", "after")
WRITES = 5
CLIENTS = {"recovered": True, "retried": False}  # whether a client is careful
KILLS_PER_ROUND = WRITES * len(POINTS)
LANES = 3  # they wait most of the time: for servers and sandboxes to start
TIMEOUT_S = 120.0  # for one kill on a busy machine
POLL_S = 0.002
# A new session needs a sandbox; an old one is restored from its steps when its sandbox is gone.
KILLS_PER_SESSION: dict[Target, int] = {"worker": 50, "container": 5, "server": 1}
SERVER_TABLE = {"data_dir": "data", "max_sessions": 2}
ADDRESS = "boss@north.example"
PROGRAM = """
from tools.mail import send_message
for number in ITEMS:
    send_message(ADDRESS, f"subject {number}", "text")
""".replace("ADDRESS", repr(ADDRESS))


@dataclass(frozen=True)
class Boundary:
    """Where a program is killed: a call, and whether its effect has happened."""

    call: int
    point: Point


@dataclass(frozen=True)
class Kill:
    """A kill that has happened, and what its client knows of the run."""

    boundary: Boundary
    session: str
    run: str
    result: dict[str, Any]  # of a run that the server has ended
    at: float


@dataclass(frozen=True)
class Outcome:
    """What a kill did to the effects of its program, and the seconds until all were made."""

    target: Target
    client: str
    call: int
    point: Point
    doubled: int
    lost: int
    recovery_s: float


class Lane:
    """A place where one run is killed after the other: a state folder, and its servers in turn."""

    def __init__(self, folder: Path, target: Target, *, is_careful: bool) -> None:
        self.folder = folder
        self.target = target
        self.is_careful = is_careful
        self.state = folder / "state"
        self.state.mkdir(parents=True)
        write_state(self.state, self._world())
        entries = upstream_entries(self.state, ["mail"], "", 0.0, 0)
        self.sections = {"server": SERVER_TABLE, "mcpServers": entries}
        self._kills = 0
        self._servers = 0

    def _world(self) -> dict[str, Any]:
        mail = {"messages": [], "folders": [], "contacts": [ADDRESS], "sent": []}
        return World({"mail": mail}).whole_state()

    async def run(self, boundaries: Iterator[Boundary], done: Callable[[Outcome], None]) -> None:
        """Kill at each boundary and recover; `done` gets the outcome of each kill."""
        killed: Kill | None = None
        is_first = True
        while is_first or killed:
            killed = await self._use_server(killed, boundaries, done)
            is_first = False

    async def _use_server(
        self,
        killed: Kill | None,
        boundaries: Iterator[Boundary],
        done: Callable[[Outcome], None],
    ) -> Kill | None:
        """Recover from the last kill of a server, and go on until a server is killed.

        Return that kill, or None at the end of the boundaries.
        """
        self._servers += 1
        folder = self.folder / ("data" if self.is_careful else f"data-{self._servers}")
        folder.mkdir(exist_ok=True)
        mine: Kill | None = None
        try:
            async with start_server(folder, self.sections, pool_size=0) as server:
                if killed:
                    done(await self._recover(server, killed))
                for boundary in boundaries:
                    with anyio.fail_after(TIMEOUT_S):
                        mine = await self._run_and_kill(server, boundary)
                    if self.target == "server":
                        return mine
                    done(await self._recover(server, mine))
                return None
        except Exception:  # the connection of a killed server fails in several ways
            if self.target != "server" or mine is None:
                raise
            return mine

    async def _run_and_kill(self, server: TestServer, boundary: Boundary) -> Kill:
        """Run the program, and kill its place while a call is held."""
        write_state(self.state, self._world())
        held = self.state / HELD_FILE
        message = {"to": ADDRESS, "subject": f"subject {boundary.call}", "body": "text"}
        hold = describe_hold(boundary.point, message)
        (self.state / HOLD_FILE).write_text(hold, "utf-8")
        session = f"victim {self._kills // KILLS_PER_SESSION[self.target]}"
        self._kills += 1
        arguments = {"code": program_for(range(WRITES)), "session": session, "background": True}
        started = await server.client.call_tool("run_code", arguments)
        run = (started.structured_content or {})["run"]
        while not held.exists():  # noqa: ASYNC110 - of another process
            await anyio.sleep(POLL_S)
        upstream = int(held.read_text("utf-8"))
        await self._kill(server)
        at = time.perf_counter()
        held.unlink(missing_ok=True)
        result = {} if self.target == "server" else await attach(server, run)
        if result.get("status") == "ok":
            raise RuntimeError(f"The run survived the kill of its {self.target}.")
        await self._wait_for_call(boundary, upstream)
        return Kill(boundary, session, run, result, at)

    async def _wait_for_call(self, boundary: Boundary, upstream: int) -> None:
        """Wait until the held call has ended in the upstream, or its process has.

        Before that, nobody could know whether the call will have its effect.
        """
        wanted = f'"subject {boundary.call}"'
        log = self.state / CALL_LOG
        while wanted not in log.read_text("utf-8") and is_alive(upstream):  # noqa: ASYNC110
            await anyio.sleep(POLL_S)

    async def _kill(self, server: TestServer) -> None:
        """Send SIGKILL to the target."""
        if self.target == "server":
            server.containers.kill_server()
            return
        newest, *_ = await server.containers.list_ids()
        kill = kill_worker if self.target == "worker" else kill_container
        await anyio.to_thread.run_sync(kill, newest)

    async def _recover(self, server: TestServer, killed: Kill) -> Outcome:
        """Do what the client does after a kill, and count the effects."""
        with anyio.fail_after(TIMEOUT_S):
            if not self.is_careful:
                await server.run_code(program_for(range(WRITES)), killed.session)
            elif self.target == "server":
                await self._answer_doubts(server, killed.run)
            else:
                done = self._find_done(killed.result)
                missing = [number for number in range(WRITES) if number not in done]
                await server.run_code(program_for(missing), killed.session)
        sent, boundary = self.sent(), killed.boundary
        return Outcome(
            self.target,
            next(name for name, is_careful in CLIENTS.items() if is_careful == self.is_careful),
            boundary.call,
            boundary.point,
            sum(max(0, sent[number] - 1) for number in range(WRITES)),
            sum(sent[number] == 0 for number in range(WRITES)),
            round(time.perf_counter() - killed.at, 3),
        )

    def sent(self) -> Counter[int]:
        """Return how often each item was sent since the program began."""
        found = json.loads((self.state / "mail.json").read_text("utf-8"))["sent"]
        return Counter(int(each["subject"].split()[1]) for each in found)

    def _find_done(self, result: dict[str, Any]) -> set[int]:
        """Return the items that need no call, by the ledger of a result.

        The upstream is asked only about calls that the ledger has without an answer.
        """
        done: set[int] = set()
        for call in result.get("calls", ()):
            number = item_of(call["call"])
            if call["status"] == "ok" or self.sent()[number]:
                done.add(number)
        return done

    async def _answer_doubts(self, server: TestServer, run: str) -> None:
        """Wait for the resumed run, and say of a call in doubt whether the upstream made it."""
        answers: dict[str, Any] = {}
        while True:
            more = {"answers": answers} if answers else {}
            result = await server.client.call_tool("run_code", {"run": run, **more})
            data: dict[str, Any] = result.structured_content or {}
            if data.get("status") not in ("queued", "running", "waiting"):
                return
            answers = {each["id"]: self._decide(each) for each in data.get("waiting_for", ())}

    def _decide(self, question: dict[str, Any]) -> Any:
        """Return the result of a call that was made, or that it should be made."""
        number = item_of(question["call"])
        if not self.sent()[number]:
            return "again"
        message = {"id": number + 1, "to": ADDRESS, "subject": f"subject {number}", "body": "text"}
        return {"result": message}


def program_for(items: Sequence[int]) -> str:
    """Return the program for some items."""
    return PROGRAM.replace("ITEMS", repr(list(items)))


def item_of(call: str) -> int:
    """Return the item that a call sends."""
    [number] = re.findall(r"subject (\d+)", call)
    return int(number)


def is_alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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


async def kill_at(
    target: Target,
    boundaries: Sequence[Boundary],
    done: Callable[[Outcome], None],
    *,
    is_careful: bool,
    lanes: int = LANES,
) -> None:
    """Kill at each boundary, in several lanes at once."""
    waiting = iter(boundaries)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        async with anyio.create_task_group() as group:
            for number in range(min(lanes, len(boundaries))):
                lane = Lane(Path(folder) / str(number), target, is_careful=is_careful)
                group.start_soon(lane.run, waiting, done)


def plan_boundaries(rounds: int, limit: int) -> list[Boundary]:
    """Return every boundary of the first `limit` calls, once for each round."""
    calls = range(WRITES)[: limit or None]
    return [Boundary(call, point) for call in calls for point in POINTS] * rounds


class KillLog:
    """The outcomes so far, each a line of a file."""

    def __init__(self, file: Path, sources: str, *, resume: bool) -> None:
        self._file = file
        self._head = json.dumps({"sources": sources})
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text("utf-8").splitlines() if resume and file.exists() else []
        if lines and lines[0] != self._head:
            raise ValueError(f"{file} has kills of another server: {lines[0]}. Begin anew.")
        self.outcomes = [Outcome(**json.loads(line)) for line in lines[1:]]
        if not lines:
            file.write_text(self._head + "\n", "utf-8")

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.outcomes.append(outcome)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")

    def find(self, target: str, client: str) -> list[Outcome]:
        """Return the outcomes of one target and client."""
        return [each for each in self.outcomes if (each.target, each.client) == (target, client)]

    def open_boundaries(
        self, target: str, client: str, planned: Iterable[Boundary]
    ) -> list[Boundary]:
        """Return the planned boundaries at which there was no kill yet."""
        done = Counter(Boundary(each.call, each.point) for each in self.find(target, client))
        return list((Counter(planned) - done).elements())


async def measure(recorder: ResultRecorder, log: KillLog, options: argparse.Namespace) -> None:
    """Kill each target at each boundary, before and after the effect of a call."""
    rounds = {True: options.rounds, False: min(options.rounds, options.naive_rounds)}
    effects: dict[str, dict[str, int]] = recorder.details.setdefault("effects", {})
    for target in options.targets:
        for client in options.clients:
            planned = plan_boundaries(rounds[CLIENTS[client]], options.limit)
            missing = log.open_boundaries(target, client, planned)
            await kill_at(target, missing, log.add, is_careful=CLIENTS[client])
            found = log.find(target, client)
            name = f"{target}, {client}"
            effects[name] = {
                "kills": len(found),
                "doubled": sum(each.doubled for each in found),
                "lost": sum(each.lost for each in found),
            }
            for kind in ("doubled", "lost"):
                per_thousand = 1e3 * effects[name][kind] / len(found)
                recorder.add(f"{name}, {kind}", "per 1,000 kills", [per_thousand])
            took = [each.recovery_s for each in found]
            recorder.add(f"{name}, until all effects are made", "s", took)
            print(f"{name:24} {effects[name]}, median {statistics.median(took):.2f} s", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Kill and count; return 1 if a careful client doubled or lost an effect."""
    top = argparse.ArgumentParser(
        prog="python -m bench run kill-anywhere",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    top.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    help_text = f"of {KILLS_PER_ROUND} kills for each target"
    top.add_argument("--rounds", type=int, default=34, help=help_text)
    help_text = "of the naive client, whose doubled effects need no large number to be seen"
    top.add_argument("--naive-rounds", type=int, default=8, help=help_text)
    top.add_argument("--limit", type=int, default=0, help="calls to kill at; default: all")
    top.add_argument("--resume", action="store_true", help="go on with the kills of an earlier run")
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "kill-anywhere.json")
    options = top.parse_args(arguments)
    with record_result("kill-anywhere", options.json) as recorder:
        try:
            log = KillLog(
                options.json.with_suffix(".jsonl"), recorder.sources, resume=options.resume
            )
        except ValueError as exc:
            print(exc, file=sys.stderr)
            return 2
        recorder.details["rounds"] = options.rounds
        anyio.run(measure, recorder, log, options)
    careful = [each for each in log.outcomes if CLIENTS[each.client]]
    return int(any(each.doubled or each.lost for each in careful))
