"""The tool `replay` for a client, and the proof that a rerun observes what the run observed.

The proof records a session, and then starts the server with an upstream that does not exist.
"""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    ServerConnection,
    ToolAnswer,
    connect_server,
    write_settings,
)
from .conftest import upstream_entry

FAST = {"timeout_s": 60.0}
PAUSE_S = 0.03  # after a step, so that the sandbox falls idle and parks its state
GONE = {"command": "/nowhere/to/be/found"}
COMPARED = ("status", "value", "stdout", "stderr", "error", "files", "step")

PROGRAMS = {
    "time": """
import time
[time.time(), time.time_ns(), time.monotonic(), time.perf_counter_ns(), time.process_time(), time.thread_time(),
 time.ctime(), time.strftime("%H:%M:%S"), time.localtime()[:], time.gmtime()[:]]""",
    "datetime": """
from datetime import date, datetime, timezone
[str(each) for each in (datetime.now(), datetime.utcnow(), datetime.today(), date.today(), datetime.now(timezone.utc))]
""",
    "random": """
import random
own = random.Random()
[random.random(), own.random(), random.SystemRandom().random(), random.sample(range(99), 5), random.gauss(0, 1)]""",
    ("random that goes on from step to step"): (
        "[random.random(), random.choice('abcdef'), own.getrandbits(40)]"
    ),
    "numpy": """
import numpy as np
generator = np.random.default_rng()
[float(np.random.rand()), np.random.randint(0, 10**6, 4).tolist(), float(generator.normal()),
 np.random.permutation(8).tolist(), str(np.random.SeedSequence().entropy)]""",
    "numpy that goes on from step to step": """
[float(np.random.rand()), float(generator.random()), float(np.random.RandomState().rand())]""",
    "uuid": (
        "import uuid\n"
        "[str(uuid.uuid1()), str(uuid.uuid4()), str(uuid.uuid1()), hex(uuid.getnode())]"
    ),
    "secrets": """
import os, secrets
[secrets.token_hex(8), secrets.randbelow(10**9), os.urandom(6).hex(), os.getrandom(5).hex(), secrets.token_urlsafe(9)]
""",
    "names of temporary files": """
import tempfile
folder = tempfile.mkdtemp(dir=".")
with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
    file.write(b"kept")
[folder, file.name, tempfile.mktemp()]""",
    "the order of sets and dicts": """
found = {f"k{n}" for n in range(40)} | {("a", n) for n in range(9)} | {b"x", 1.5, None, frozenset("ab")}
print(found)
[repr(item) for item in {each: hash(each) for each in found}.items()]""",
    "logging": """
import io, logging
log = io.StringIO()
logging.basicConfig(stream=log, format="%(asctime)s %(relativeCreated)d %(message)s")
logging.warning("seen %s", uuid.uuid4())
log.getvalue()""",
    "pandas": """
import pandas as pd
[str(pd.Timestamp.now()), pd.DataFrame({"a": range(9)}).sample(4).index.tolist(), str(pd.to_datetime("now"))]""",
    "output of all kinds, and an error": """
import subprocess, sys
print("out")
print("err", file=sys.stderr)
os.write(1, b"raw\\n")
subprocess.run(["sh", "-c", "echo child; echo of >&2"])
{}["missing"]""",
    "files": """
import json, pickle, zipfile
os.makedirs("d/e")
with open("d/e/r.json", "w") as file: json.dump([random.random(), time.time(), str(uuid.uuid4())], file)
with open("d/p.bin", "wb") as file: pickle.dump(found, file)
with zipfile.ZipFile("d/z.zip", "w") as file: file.writestr("a", "b")
np.save("d/n.npy", np.random.rand(50))
os.chmod("d/p.bin", 0o755)""",
    "calls, and one that failed": """
from tools.paced import nap, note, refuse
try:
    refuse("a")
except tools.ToolError as error:
    print(error)
print(note("one"), note("two"), note("one"), nap("a", 0), nap("a", 0))
refuse("b")""",
    "tools.map": """
order = []
def ask(n):
    order.append(nap(f"m{n}", (n * 53) % 90))
    return order[-1]
print([slot.value for slot in tools.map(ask, range(24))])
order""",
    "threads that read clocks and draw": """
import threading
seen = []
def work(n):
    before = time.time(), str(uuid.uuid4())
    answer = nap(f"t{n}", 10 + (n * 31) % 70)
    seen.append((answer, before, time.time(), random.random(), str(uuid.uuid4())))
tools.map(work, range(10))
seen""",
    "a pool of threads": """
from concurrent.futures import ThreadPoolExecutor, as_completed
with ThreadPoolExecutor(6) as pool:
    asked = [pool.submit(nap, f"p{n}", (n * 41) % 100) for n in range(18)]
    answers = [each.result() for each in as_completed(asked)]
answers""",
    "threads that ask for the same": """
answers = {}
def work(n):
    answers[n] = [nap(f"s{n}", 15 * (5 - n)), nap("same", 5)]
threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
answers""",
    "asyncio.gather": """
import asyncio
done = []
async def ask(n):
    done.append(await nap.aio(f"g{n}", (n * 29) % 80))
    return done[-1]
print(await asyncio.gather(*map(ask, range(20))))
done""",
    "asyncio.as_completed": """
[await each for each in asyncio.as_completed([nap.aio(f"a{n}", (n * 29) % 80) for n in range(20)])]""",
    "one answer after the other": """
left = {asyncio.ensure_future(nap.aio(f"o{n}", 12 * n)) for n in range(12)}
rounds = []
while left:
    done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
    rounds.append(sorted(each.result() for each in done))
rounds""",
    "a call that asyncio.wait_for gave up": """
try:
    await asyncio.wait_for(nap.aio("slow", 60_000), 0.05)
except asyncio.TimeoutError:
    print("given up")
nap("after", 0)""",
    "an answer that came after it was given up": """
try:
    await asyncio.wait_for(nap.aio("late", 150), 0.05)
except asyncio.TimeoutError:
    print("given up")
await asyncio.sleep(0.3)
nap("after", 0)""",
    "what is done in a given time": """
done, left = await asyncio.wait([asyncio.ensure_future(nap.aio(f"w{n}", 150 * n)) for n in range(4)], timeout=0.2)
for each in left: each.cancel()
end, count = time.monotonic() + 0.1, 0
while time.monotonic() < end:
    nap(f"d{count}", 10)
    count += 1
[sorted(each.result() for each in done), count]""",
}
STEPS = {name: step for step, name in enumerate(PROGRAMS, 1)}


@dataclass(frozen=True)
class Recorded:
    """A server that cannot reach any upstream, and what its clients were told when one could."""

    server: ServerConnection
    told: dict[str, ToolAnswer]
    notes: Path


@pytest.fixture(scope="module")
async def recorded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Recorded]:
    folder = tmp_path_factory.mktemp("recorded")
    notes = folder / "notes"
    async with connect_server(
        write_settings(
            folder, sandbox=FAST, mcpServers={"paced": upstream_entry("paced", str(notes))}
        )
    ) as server:
        told = {name: await server.run(code, "s") for name, code in PROGRAMS.items()}
    async with connect_server(
        write_settings(folder, sandbox=FAST, mcpServers={"paced": GONE})
    ) as server:
        yield Recorded(server, told, notes)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    folder = tmp_path_factory.mktemp("replay")
    upstreams = {"paced": upstream_entry("paced", str(folder / "notes"))}
    async with connect_server(
        write_settings(folder, sandbox=FAST, mcpServers=upstreams)
    ) as connection:
        yield connection


async def steps_of(server: ServerConnection, session: str) -> dict[int, str]:
    """Return the tiers of the steps on a session's line."""
    listed = await server.replay("list", session)
    return {step["step"]: step["tier"] for step in listed.steps if "left" not in step}


async def until_tiers(server: ServerConnection, session: str, wanted: dict[int, str]) -> None:
    """Wait until the expected copies exist; the server makes them while the session is idle."""
    with anyio.fail_after(TEST_TIMEOUT_S):
        while await steps_of(server, session) != wanted:
            await anyio.lowlevel.checkpoint()


# the same again -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_step_executed_again_observes_what_it_did_then(
    recorded: Recorded, name: str
) -> None:
    told = recorded.told[name]
    again = await recorded.server.replay("rerun", "s", step=STEPS[name])
    assert "The same as recorded in step" in again.note, again.text
    for field in COMPARED:
        assert again.data.get(field) == told.data.get(field), field
    diff = await recorded.server.replay("diff", "s", step=STEPS[name], other=again.run)
    assert diff.equal, diff.text


async def test_a_whole_session_executed_again_is_the_same(recorded: Recorded) -> None:
    again = await recorded.server.replay("rerun", "s")
    assert (
        f"The same as recorded in all {len(PROGRAMS)} steps: output, value, calls and files."
        in again.note
    )
    diff = await recorded.server.replay("diff", "s", other=again.run)
    assert diff.equal, diff.text
    assert recorded.notes.read_text() == "one\ntwo\none\n"


async def test_a_recorded_run_is_shown_as_it_was(recorded: Recorded) -> None:
    for name, told in recorded.told.items():
        shown = await recorded.server.replay("show", "s", step=STEPS[name])
        for field in COMPARED:
            assert shown.data.get(field) == told.data.get(field), (name, field)
        assert len(shown.data.get("calls", ())) == len(told.data.get("calls", ()))
        assert shown.code == PROGRAMS[name]
        assert textwrap.indent(PROGRAMS[name].strip("\n"), "  ") in shown.text


async def test_a_fork_of_a_recorded_step_has_its_variables_and_files(
    recorded: Recorded,
) -> None:
    step = STEPS["threads that ask for the same"]
    forked = await recorded.server.replay("fork", "s", step=step, name="apart")
    assert (forked.session, forked.step, forked.tier) == ("apart", step, "rebuild")
    answer = await recorded.server.run("str(answers), sorted(os.listdir('d'))", "apart")
    then = recorded.told["threads that ask for the same"].value
    assert answer.value == [then, ["e", "n.npy", "p.bin", "z.zip"]]
    assert f"{step} of its steps were executed again, with recorded answers" in answer.note


# something else -----------------------------------------------------------------------------------


async def test_changed_code_that_makes_another_call_is_reported_where_it_diverges(
    server: ServerConnection,
) -> None:
    await server.run("from tools.paced import nap\nnap('a', 0)\nx = nap('b', 0)", "other")
    again = await server.replay(
        "rerun", "other", step=1, code="from tools.paced import nap\nnap('a', 0)\nnap('c', 1)"
    )
    assert again.status == "error"
    assert again.error["type"].endswith("ToolError")
    told = again.error["message"]
    assert "Step 1, call 3: the recording expects paced.nap(ms=0, name='b')" in told
    assert "the code reached paced.nap(ms=1, name='c')" in told
    assert "Differs from the recording: step 1" in again.note
    assert "calls" in again.note


async def test_changed_code_that_omits_a_call_is_reported(server: ServerConnection) -> None:
    await server.run("from tools.paced import nap\nnap('a', 0), nap('b', 0)", "less")
    again = await server.replay(
        "rerun", "less", step=1, code="from tools.paced import nap\nnap('b', 0)"
    )
    assert again.status == "ok"
    assert "in value, calls" in again.note


async def test_other_code_gets_the_recorded_answers(server: ServerConnection) -> None:
    then = await server.run(
        "from tools.paced import nap\nimport time\nx = [nap('a', 0), time.time()]", "code"
    )
    await server.run("y = 5", "code")
    code = (
        "from tools.paced import nap\nimport time\n"
        "sum(map(len, x := [nap('a', 0)])), x, time.time()"
    )
    again = await server.replay("rerun", "code", step=1, code=code)
    assert again.value == [len(then.value[0]), [then.value[0]], then.value[1]]
    assert "Differs from the recording: step 1" in again.note
    assert await server.evaluate("x, y", "code") == [then.value, 5]


async def test_other_code_that_is_no_python_says_so(server: ServerConnection) -> None:
    await server.run("1", "syntax")
    again = await server.replay("rerun", "syntax", step=1, code="def")
    assert (again.status, again.error["type"]) == ("error", "SyntaxError")
    assert "in status, value, error" in again.note


async def test_named_servers_are_really_called(server: ServerConnection) -> None:
    then = await server.run("from tools.paced import nap, refuse\nnap('l', 0)", "live")
    again = await server.replay("rerun", "live", step=1, live=["paced"])
    assert again.status == "ok"
    assert again.value != then.value
    assert "in value" in again.note
    one = await server.replay("rerun", "live", step=1, live=["paced.nap"])
    assert one.value not in (again.value, then.value)
    refused = await server.replay("rerun", "live", step=1, live=["paced.refuse"])
    assert "The same as recorded" in refused.note


async def test_a_live_server_that_is_gone_fails_as_calls_do(recorded: Recorded) -> None:
    step = STEPS["asyncio.as_completed"]
    again = await recorded.server.replay("rerun", "s", step=step, live=["paced"])
    assert again.status == "error"
    assert "paced" in again.error["message"]
    assert "Differs from the recording" in again.note


async def test_runs_and_sessions_are_compared(server: ServerConnection) -> None:
    first = await server.run("x = 1\nopen('f', 'w').write('a\\n')", "compared")
    second = await server.run("x = 2\nopen('f', 'w').write('b\\n')", "compared")
    runs = await server.replay("diff", "compared", run=first.run, other=second.run)
    assert runs.equal is False
    assert "-x = 1" in runs.code
    assert "+x = 2" in runs.code
    [file] = runs.files
    assert (file["path"], "-a" in file["text"], "+b" in file["text"]) == ("f", True, True)
    await server.replay("fork", "compared", step=1, name="branch")
    third = await server.run("x = 3", "branch")
    lines = await server.replay("diff", "compared", other="branch")
    assert lines.common == [first.run]
    assert [step["b"] for step in lines.steps] == [third.run]


# moving -------------------------------------------------------------------------------------------


async def test_a_parked_step_is_brought_back_without_executing_anything_again(
    server: ServerConnection,
) -> None:
    for n in range(1, 4):
        await server.run(f"x = {n}\nopen('f', 'w').write(str(x))", "parked")
        await anyio.sleep(PAUSE_S)
    await until_tiers(server, "parked", dict.fromkeys((1, 2, 3), "parked"))
    moved = await server.replay("rewind", "parked", step=1)
    assert (moved.session, moved.step, moved.tier) == ("parked", 1, "parked")
    assert moved.text == f"session parked | at step 1 | parked: {moved.note}"
    answer = await server.run("x, open('f').read()", "parked")
    assert (answer.value, answer.step, answer.data.get("note")) == ([1, "1"], 2, None)
    listed = await server.replay("list", "parked")
    assert (listed.at, [(step["step"], step.get("left")) for step in listed.steps]) == (
        2,
        [(1, None), (2, True), (3, True), (2, None)],
    )
    left = next(step["run"] for step in listed.steps if step["step"] == 3)
    await server.replay("rewind", "parked", run=left)
    back = await server.run("x, open('f').read()", "parked")
    assert (back.value, back.step, back.data.get("note")) == ([3, "3"], 4, None)


async def test_a_fork_shares_nothing_with_its_origin(server: ServerConnection) -> None:
    await server.run("x = [1]\nopen('f', 'w').write('one')", "origin")
    forked = await server.replay("fork", "origin", step=1)
    assert forked.session.startswith("s_")
    assert forked.tier == "parked"
    await server.run("x.append(2)\nopen('f', 'w').write('two')", forked.session)
    assert await server.evaluate("x, open('f').read()", "origin") == [[1], "one"]
    assert await server.evaluate("x, open('f').read()", forked.session) == [[1, 2], "two"]


async def test_a_session_rewound_to_its_beginning_is_empty(server: ServerConnection) -> None:
    await server.run("x = 1\nopen('f', 'w').close()", "begin")
    moved = await server.replay("rewind", "begin", step=0)
    assert (moved.step, moved.run) == (0, None)
    answer = await server.run("import os\n'x' in globals(), os.listdir()", "begin")
    assert (answer.value, answer.step) == ([False, []], 1)


async def test_tiers_are_true(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"checkpoints": 2, **FAST})
    async with connect_server(settings) as server:
        for n in range(1, 6):
            await server.run(f"x = {n}\nopen(f'f{n}', 'w').close()", "t")
            await anyio.sleep(PAUSE_S)
        await until_tiers(
            server, "t", {1: "rebuild", 2: "rebuild", 3: "rebuild", 4: "parked", 5: "parked"}
        )
        moved = await server.replay("rewind", "t", step=2)
        assert moved.tier == "rebuild"
        answer = await server.run("import os\nx, sorted(os.listdir())", "t")
        assert answer.value == [2, ["f1", "f2"]]
        assert "2 of its steps were executed again" in answer.note
        await anyio.sleep(PAUSE_S)
        stopped = await server.run(
            "y = 1\nopen('g', 'w').close()\nwhile True: pass", "t", timeout_s=0.5
        )
        assert stopped.status == "timeout"
        await until_tiers(server, "t", {1: "rebuild", 2: "rebuild", 3: "parked", 4: "parked"})
    async with connect_server(settings) as server:
        await until_tiers(server, "t", {1: "rebuild", 2: "rebuild", 3: "rebuild", 4: "files-only"})
        answer = await server.run("import os\nx, sorted(os.listdir()), 'y' in globals()", "t")
        assert answer.value == [2, ["f1", "f2", "g"], False]
        assert (
            "What step 4 did to variables before it was interrupted is not restored." in answer.note
        )


async def test_a_run_under_way_keeps_its_session_from_being_rewound_unless_it_is_to_be_cancelled(
    server: ServerConnection,
) -> None:
    await server.run("x = 1", "busy")
    await anyio.sleep(PAUSE_S)  # the state of a step that the next one follows at once is rebuilt
    begun = anyio.Event()
    ends: list[ToolAnswer] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        begun.set()

    async def endless() -> None:
        code = "x = 2\nprint('begun', flush=True)\nwhile True: pass"
        ends.append(await server.run(code, "busy", progress_callback=on_progress))

    with anyio.fail_after(TEST_TIMEOUT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(endless)
            await begun.wait()
            refused = await server.replay("rewind", "busy", step=1)
            assert refused.is_error
            assert refused.text.startswith(
                "[invalid_request] The session busy has a run that is not finished."
            )
            assert "cancel=true" in refused.text
            moved = await server.replay("rewind", "busy", step=1, cancel=True)
            assert (moved.step, moved.tier) == (1, "parked")
    assert [end.status for end in ends] == ["cancelled"]
    assert await server.evaluate("x", "busy") == 1


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "arguments", "words"),
    [
        ("list", {"session": "nobody"}, "[not_found] There is no session 'nobody'."),
        (
            "rewind",
            {"session": "s_nobody", "step": 1},
            "[not_found] There is no session 's_nobody'.",
        ),
        (
            "show",
            {"step": 9},
            "[not_found] There is no step 9: the session 'bad' has the steps 1 to 2.",
        ),
        ("show", {"run": "r_none"}, "[not_found] The session 'bad' has no run 'r_none'."),
        ("rewind", {"run": "r_none"}, "[not_found] The session 'bad' has no run 'r_none'."),
        ("show", {"step": 0}, "[invalid_request] Nothing was executed in step 0."),
        ("rerun", {"step": 0}, "has no such step to execute."),
        ("fork", {"step": 0}, "[invalid_request] There is nothing to fork before the first step."),
        ("rewind", {}, "[invalid_request] rewind needs `step` or `run`."),
        ("rewind", {"step": -1}, "[invalid_request] step: "),
        ("rewind", {"step": "last"}, "[invalid_request] step: "),
        ("explode", {}, "[invalid_request] action: "),
        (
            "list",
            {"steps": 1},
            "[invalid_request] replay has no parameter 'steps'. Did you mean 'step'?",
        ),
        ("diff", {}, "[invalid_request] diff needs `other`: a run, or a session."),
        ("diff", {"other": "nobody"}, "[not_found] There is no session 'nobody'."),
        ("diff", {"step": 1, "other": "r_none"}, "[not_found] "),
        ("fork", {"step": 1, "name": "a/b"}, "[invalid_request] 'a/b' cannot name a session."),
        (
            "rerun",
            {"step": 1, "live": ["nowhere"]},
            "[not_found] 'nowhere' is none of the servers that code can call.",
        ),
        ("rerun", {"step": 2}, "[invalid_request] Step 2 was interrupted"),
        ("rerun", {}, "[invalid_request] Step 2 was interrupted"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_reason(
    server: ServerConnection, action: str, arguments: dict[str, object], words: str
) -> None:
    if (await server.replay("list", "bad")).is_error:
        await server.run("x = 1", "bad")
        await server.run("while True: pass", "bad", timeout_s=0.3)
    answer = await server.replay(action, **{"session": "bad", **arguments})  # type: ignore[arg-type]
    assert answer.is_error, answer.text
    assert words in answer.text
    assert await server.evaluate("x", "bad") == 1
    await server.replay("rewind", "bad", step=2)


async def test_a_name_that_is_taken_names_no_fork(server: ServerConnection) -> None:
    await server.run("x = 1", "taken")
    answer = await server.replay("fork", "taken", step=1, name="taken")
    assert answer.is_error
    assert "taken" in answer.text
    assert await server.evaluate("x", "taken") == 1


async def test_a_run_that_left_no_state_cannot_be_gone_back_to(server: ServerConnection) -> None:
    await server.run("x = 1", "undone")
    died = await server.run("import os\nx = 2\nos._exit(3)", "undone")
    assert died.status == "crashed"
    for action in ("rewind", "fork"):
        answer = await server.replay(action, "undone", run=died.run)
        assert answer.is_error
        assert "has left no state: its interpreter died" in answer.text
    again = await server.replay("rerun", "undone", run=died.run)
    assert again.status == "crashed"
    assert await server.evaluate("x", "undone") == 1


async def test_without_a_session_the_client_has_its_own(server: ServerConnection) -> None:
    ran = await server.run("1")
    shown = await server.replay("show")
    assert (shown.session, shown.run) == (ran.session, ran.run)
    empty = await server.replay("rewind", step=0)
    assert empty.session == ran.session


async def test_a_run_names_its_session(server: ServerConnection) -> None:
    first = await server.run("x = 1", "named by a run")
    second = await server.run("x = 2", "named by a run")
    listed = await server.replay("list", run=first.run)
    assert [step["run"] for step in listed.steps] == [first.run, second.run]
    shown = await server.replay("show", run=first.run)
    assert (shown.session, shown.code) == ("named by a run", "x = 1")
    again = await server.replay("rerun", run=first.run)
    assert "The same as recorded" in again.note
    assert (await server.replay("diff", run=first.run, other=second.run)).equal is False
    fork = await server.replay("fork", run=first.run)
    assert await server.evaluate("x", fork.session) == 1
    moved = await server.replay("rewind", run=first.run)
    assert (moved.session, moved.step) == ("named by a run", 1)
    unknown = await server.replay("show", run="r_none")
    assert unknown.text.startswith("[not_found] There is no run 'r_none'.")


async def test_sessions_are_listed_one_on_each_line(tmp_path: Path) -> None:
    async with connect_server(write_settings(tmp_path, sandbox={"backend": "local"})) as server:
        assert (await server.replay("list")).text == "There are no sessions yet."
        await server.run("1", "first")
        await server.run("1", "second")
        await server.run("2", "first")
        await server.replay("rerun", "second")
        listed = await server.replay("list")
        assert [(each["session"], each["runs"]) for each in listed.sessions] == [
            ("first", 2),
            ("second", 1),
        ]
        first, second = listed.text.splitlines()
        assert first.startswith("session first | 2 runs | last used 20")
        assert second.startswith("session second | 1 run | last used 20")


async def test_a_client_that_reconnects_learns_which_session_it_used_last(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"backend": "local"})
    async with connect_server(settings) as server:
        first = await server.run("x = 1")
        assert "note" not in first.data
    async with connect_server(settings) as server, connect_server(settings) as other:
        again = await server.run("1")
        assert again.note.startswith(f"This session is new. The one used last is {first.session!r}")
        assert "note" not in (await server.run("2")).data
        assert await server.evaluate("x", first.session) == 1
        assert "note" not in (await other.run("1")).data  # both sessions are in use


async def test_a_rewind_names_the_writes_that_it_does_not_undo(server: ServerConnection) -> None:
    await server.run("from tools.paced import note, nap\nnote('kept')", "writes")
    await server.run("note('one')\nnap('a', 0)", "writes")
    await server.run("for n in range(12): note('many')", "writes")
    moved = await server.replay("rewind", "writes", step=1)
    assert moved.not_undone[0] == "paced.note(text='one')"
    assert "paced.note(...) x3" in moved.not_undone
    assert not any("kept" in call or "nap" in call for call in moved.not_undone)
    assert "These calls are not undone:\npaced.note(text='one')\n" in moved.text
    back = await server.replay("rewind", "writes", step=0)
    assert back.not_undone == ["paced.note(text='kept')"]
