"""Servers killed at random during upstream calls: nothing is done twice, lost or left behind.

The first test checks whole sessions against a model. The second runs random programs, in which
writes depend on reads that never answer the same twice, and compares three accounts of each call:
what the upstream did, what the journal knows, and what the code knows.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from mcpruntime_server.config import Config
from mcpruntime_server.journal.events import RunResumed
from mcpruntime_server.journal.recording import load_recording
from mcpruntime_server.journal.store import open_journal
from mcpruntime_server.runtime.run_history import load_report
from mcpruntime_server.server.result_format import build_run_result

from ..helpers.random_programs import write_program
from ..helpers.server_connection import TEST_TIMEOUT_S, write_settings
from ..helpers.server_killing import (
    STABLE_FIELDS,
    KillableServer,
    KillingClient,
    ServerKilled,
    parse_call,
    start_ready_server,
)
from ..helpers.sizes import choose_size
from .conftest import upstream_entry
from .test_lifecycle import containers

pytestmark = pytest.mark.alone

KILLS = choose_size("KILLS", short=18, long=200)
SEED = os.environ.get("KILL_SEED") or secrets.token_hex(4)
AT_ONCE = 3  # data folders, each with a server of its own
ROUNDS = choose_size("KILL_ROUNDS", short=2, long=60)
PROGRAMS_AT_ONCE = 3  # of a round, in sessions of one server
MAX_KILLS_PER_ROUND = 3  # a run that is resumed more often is given up


async def test_killed_servers_repeat_no_call_and_lose_no_delivered_result(
    tmp_path: Path,
) -> None:
    print(f"KILL_SEED={SEED}")  # shown where it fails
    clients = [make_client(tmp_path / f"c{number}", number) for number in range(AT_ONCE)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(kill_and_check, client, -(-KILLS // AT_ONCE))
    print_accounts(clients)


def print_accounts(clients: Sequence[KillingClient]) -> None:
    """Print what was killed, and what became of the steps."""
    ends = sum((client.endings for client in clients), Counter())
    moments = sum((client.kill_moments for client in clients), Counter())
    calls = sum(len(client.read_ledger()) for client in clients)
    resumed = sum(client.resumed for client in clients)
    doubts = sum(client.in_doubt_calls for client in clients)
    kills = sum(client.kills for client in clients)
    print(f"{kills} kills {dict(moments)}, {calls} calls, {doubts} in doubt")
    print(f"{resumed} times a run went on, steps {dict(ends)}")


def make_client(folder: Path, number: int) -> KillingClient:
    upstream = folder / "done"
    settings = write_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(upstream), "6")},
        sandbox={"pool_size": int(number == 0)},
    )
    return KillingClient(settings, upstream, f"{SEED} {number}")


async def kill_and_check(client: KillingClient, kills: int) -> None:
    while client.kills < kills:
        await client.run_until_killed()
    left_behind = set(await to_thread.run_sync(containers, client.settings))
    async with client.start_last_server() as server:
        await client.finish_sessions(server)
        with anyio.fail_after(TEST_TIMEOUT_S):  # it removes them a while after its start
            while left_behind.intersection(  # noqa: ASYNC110 - Docker does not tell
                await to_thread.run_sync(containers, client.settings)
            ):
                await anyio.sleep(0.1)
        await server.close()
    assert containers(client.settings) == []
    client.check_calls()
    async with open_journal(client.settings.parent / "data") as journal:
        for session in await journal.list_sessions():
            client.resumed += len(await journal.load_events(session.id, event_type=RunResumed))
        for run, told in client.reported.items():
            found = build_run_result(await load_report(journal, run), "", Config())
            journaled = found.model_dump(mode="json", exclude_defaults=True)
            assert {name: journaled.get(name) for name in STABLE_FIELDS} == told


# what was done, what the journal knows, what the code knows ---------------------------------------

Made = tuple[str, str]  # a call: its tool and its item, which no other call has


@dataclass
class Program:
    """A program, and what is known of its calls."""

    tag: str
    code: str
    is_sequential: bool
    value: list[tuple[str, str, int]] | None = None  # what the code knows, at its end
    finished_at_kill: list[set[Made]] = field(default_factory=list)  # in the journal


@dataclass
class Accounts:
    """The figures of all rounds, and which tools only read in the present one."""

    reads: set[str] = field(default_factory=set)  # as hinted, or as the settings declare
    kills: int = 0
    interrupted: int = 0  # times that a kill met a program under way
    calls: int = 0  # that reached the upstream
    repeated: Counter[str] = field(default_factory=Counter)  # calls made again, by tool
    in_doubt: int = 0


class Witness:
    """The upstream's own account, in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    async def read_done(self) -> list[tuple[str, str, int]]:
        """Return what was done, once the upstream is dead: tool, item and answer."""
        with self.file.with_suffix(".lock").open("a") as lock, anyio.fail_after(TEST_TIMEOUT_S):
            await to_thread.run_sync(fcntl.flock, lock, fcntl.LOCK_EX, abandon_on_cancel=True)
        return self.read_lines()

    def read_lines(self) -> list[tuple[str, str, int]]:
        """Return what was done so far."""
        if not self.file.exists():
            return []
        lines = self.file.read_text().splitlines()
        return [(tool, item, answer) for tool, item, answer in map(json.loads, lines)]

    async def wait_for_calls(self, count: int) -> None:
        """Wait until so many calls were made, or the programs seem to make no more."""
        with anyio.move_on_after(5):
            while len(self.read_lines()) < count:  # noqa: ASYNC110 - it is another process
                await anyio.sleep(0.002)


async def test_what_reached_an_upstream_is_in_the_journal_and_known_to_the_code(
    tmp_path: Path,
) -> None:
    print(f"KILL_SEED={SEED}")  # shown where it fails
    accounts = Accounts()
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        await kill_round(folder, f"{SEED} {number}", accounts)
    assert accounts.interrupted
    print(accounts)


async def kill_round(folder: Path, seed: str, accounts: Accounts) -> None:
    """Run some programs, kill their servers, and compare the accounts."""
    draw = random.Random(seed)
    witness = Witness(folder / "done")
    declared = draw.choice(([], ["witness.look"]))
    accounts.reads = {"find", *(name.partition(".")[2] for name in declared)}
    settings = write_settings(
        folder,
        mcpServers={"witness": upstream_entry("witness", str(witness.file), "3")},
        sandbox={"backend": "local", "pool_size": 0},
        policy={"reads": declared},
    )
    programs = []
    for number in range(PROGRAMS_AT_ONCE):
        is_sequential = number % 2 == 0
        code = write_program(f"p{number}", f"{seed} {number}", is_sequential=is_sequential)
        programs.append(Program(f"p{number}", code, is_sequential))
    for _ in range(draw.randint(1, MAX_KILLS_PER_ROUND)):
        before = await witness.read_done()
        async with (
            start_ready_server(settings) as server,
            anyio.create_task_group() as tasks,
        ):
            for program in programs:
                tasks.start_soon(run_program, server, program, witness, accounts)
            await witness.wait_for_calls(len(before) + draw.randint(1, 60))
            await anyio.sleep(draw.uniform(0, 0.01))
            server.kill()
        accounts.kills += 1
        await check_kill(settings, programs, len(before), await witness.read_done(), accounts)
    async with start_ready_server(settings) as server:
        for program in programs:
            await run_program(server, program, witness, accounts)
        await server.close()
    done = await witness.read_done()
    accounts.calls += len(done)
    for program in programs:
        ours = [each for each in done if is_of(program, each)]
        await check_end(settings, program, ours, may_repeat=accounts.reads | {"put"})


def is_of(program: Program, made: Sequence[Any]) -> bool:
    """Return whether a call is one of this program."""
    return str(made[1]).startswith(f"{program.tag}:")


async def run_program(
    server: KillableServer, program: Program, witness: Witness, accounts: Accounts
) -> None:
    """Run a program, or attach to it, until it is finished or the server is killed."""
    with suppress(ServerKilled):
        data = await server.run(program.code, program.tag, program.tag)
        while data["status"] in ("queued", "running", "waiting"):
            answers = {}
            for wait in data.get("waiting_for", ()):
                assert wait["kind"] == "in_doubt", wait
                accounts.in_doubt += 1
                answers[wait["id"]] = find_out(wait["call"], witness)
            await server.wait_run(data["run"], **({"answers": answers} if answers else {}))
            data = await server.wait_run(data["run"])
        assert data["status"] == "ok", data
        program.value = [(tool, item, answer) for tool, item, answer in data["value"]]


def find_out(call: str, witness: Witness) -> Any:
    """Return the answer to the question whether a call was made."""
    wanted = parse_call(call)
    found = [str(answer) for *made, answer in witness.read_lines() if tuple(made) == wanted]
    return {"result": found[-1]} if found else "again"


async def check_kill(
    settings: Path,
    programs: Sequence[Program],
    known: int,
    done: Sequence[tuple[str, str, int]],
    accounts: Accounts,
) -> None:
    """Compare the accounts at the death of a server; `known` calls were made before it started."""
    async with open_journal(settings.parent / "data") as journal:
        sessions = {session.name: session.id for session in await journal.list_sessions()}
        for program in programs:
            rows = await journal.list_runs(sessions.get(program.tag, ""))
            if not rows:  # the server died before it had started
                continue
            recording = await load_recording(journal, rows[0])
            calls = [call for call in recording.calls if call.target.startswith("tools.witness.")]
            journaled = {
                (call.target.rpartition(".")[2], json.loads(call.args)["item"]): call
                for call in calls
            }
            earlier = {(tool, item) for tool, item, _ in done[:known]}
            ours = [(tool, item) for tool, item, _ in done[known:] if is_of(program, (tool, item))]
            lost = {made for made in ours if made[0] not in accounts.reads} - journaled.keys()
            assert not lost, f"{lost} reached the upstream, and the journal does not know it"
            again = [made for made in ours if made in earlier]
            accounts.repeated.update(tool for tool, _ in again)
            if program.finished_at_kill:
                assert not program.finished_at_kill[-1].intersection(ours)
            if program.is_sequential:
                assert len(again) <= 1, again
            accounts.interrupted += recording.finish is None
            program.finished_at_kill.append(
                {made for made, call in journaled.items() if call.finished_sequence is not None}
            )


async def check_end(
    settings: Path,
    program: Program,
    done: Sequence[tuple[str, str, int]],
    *,
    may_repeat: set[str],
) -> None:
    """Compare the accounts of a finished program: all three know the same calls and answers."""
    assert program.value is not None
    known = {(tool, item): answer for tool, item, answer in program.value}
    assert len(known) == len(program.value)
    async with open_journal(settings.parent / "data") as journal:
        sessions = {session.name: session.id for session in await journal.list_sessions()}
        [row] = await journal.list_runs(sessions[program.tag])
        recording = await load_recording(journal, row)
    journaled = {
        (call.target.rpartition(".")[2], json.loads(call.args)["item"]): call.value
        for call in recording.calls
        if call.target.startswith("tools.witness.")
    }
    assert {made: int(value) for made, value in journaled.items()} == known
    assert {(tool, item): answer for tool, item, answer in done} == known
    times = Counter((tool, item) for tool, item, _ in done)
    assert not [made for made, count in times.items() if count > 1 and made[0] not in may_repeat]
