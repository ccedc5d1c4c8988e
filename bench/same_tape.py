"""Experiment: replay every recorded run with the upstream servers gone, from a moved data folder.

The reference programs of `mrbs` are recorded by one server. Its data folder is moved, and another
server whose upstream servers cannot start replays each session. A replay is the same if the server
says that all steps are the same as recorded.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from .harness import TestServer, start_server
from .mrbs import TASKS, make_world
from .mrbs.stage import open_stage
from .mrbs.task import fill_in
from .results import RESULTS_FOLDER, ResultRecorder, record_result
from .statistics import wilson_interval

SAME_NOTE = "The same as recorded"
GONE_COMMAND = "/nonexistent/upstream"


async def replay_all(recorder: ResultRecorder, seed: int, limit: int) -> None:
    """Record the reference programs and replay them."""
    chosen = TASKS[:: max(1, len(TASKS) // limit)] if limit else TASKS
    sessions = {task.name.replace("/", " "): task for task in chosen}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as temporary:
        first, second = make_folders(Path(temporary))
        async with open_stage(first) as stage:
            for session, task in sessions.items():
                world = make_world(task, seed)
                stage.prepare(world)
                answer = await stage.server.run_program(fill_in(task.reference, world), session)
                if not answer.is_ok:
                    recorder.failures[session] = answer.text[:300]
            gone = {name: {"command": GONE_COMMAND} for name in stage.upstreams}
        shutil.move(first / "data", second / "data")
        async with start_server(second, {"mcpServers": gone}) as server:
            for session, task in sessions.items():
                replay = await replay_session(server, session)
                recorder.add(f"{task.name}: same", "share", [float(replay.is_same)], "higher")
                recorder.add(f"{task.name}: replay", "ms", [replay.took_ms])
                if not replay.is_same:
                    recorder.failures[session] = replay.note[:300]
                verdict = "same" if replay.is_same else "DIFFERENT"
                print(f"{verdict:10}{replay.took_ms:8.0f} ms  {task.name}")


@dataclass(frozen=True)
class Replay:
    """How a session was replayed; `note` is what the server says of it."""

    note: str
    took_ms: float

    @property
    def is_same(self) -> bool:
        """Whether all steps were the same as recorded."""
        return SAME_NOTE in self.note


async def replay_session(server: TestServer, session: str) -> Replay:
    """Replay a session; a failure is in the note."""
    began = time.perf_counter()
    try:
        note = str((await server.call_replay("rerun", session)).get("note", ""))
    except RuntimeError as exc:
        note = str(exc)
    return Replay(note, (time.perf_counter() - began) * 1e3)


def make_folders(parent: Path) -> tuple[Path, Path]:
    """Return two new folders."""
    first, second = parent / "first", parent / "second"
    first.mkdir()
    second.mkdir()
    return first, second


def main(arguments: Sequence[str]) -> int:
    """Record and replay; return 1 if a replay was different."""
    top = argparse.ArgumentParser(prog="python -m bench run same-tape", description=__doc__)
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--limit", type=int, default=0, help="so many programs; default: all")
    top.add_argument("--json", type=Path, default=RESULTS_FOLDER / "same-tape.json")
    options = top.parse_args(arguments)
    with record_result("same-tape", options.json, seed=options.seed) as recorder:
        anyio.run(replay_all, recorder, options.seed, options.limit)
        same = [each.samples[0] for each in recorder.measurements if each.unit == "share"]
        recorder.details["same"] = [int(sum(same)), len(same)]
    print(f"{int(sum(same))} of {len(same)} the same")
    print(wilson_interval(int(sum(same)), len(same)).as_percent())
    return int(sum(same) < len(same))
