"""Checkpoints: states are parked, promoted and dropped, with friendly and with hostile code."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio
import pytest

from mcpruntime_server.errors import SandboxFailed
from mcpruntime_server.protocol import wire
from mcpruntime_server.sandbox import Backend
from mcpruntime_server.sandbox.link import open_link

from ..helpers.sizes import ONLY_LONG, choose_size
from .conftest import SMALL_LIMITS, SandboxDriver, make_setup
from .test_hammer import hammer

INTERRUPTS = choose_size("PROMOTED_INTERRUPTS", short=12, long=40)
CALL = "from mcpruntime_sandbox.sandboxed.library.tools import host, HostError\n"
CHILDREN = (  # of the supervisor but the worker: the parked copies, and whatever else there is
    "import os\ndef children():\n    found = {}\n    for name in os.listdir('/proc'):\n"
    "        if not name.isdigit() or int(name) == os.getpid(): continue\n"
    "        try: fields = open(f'/proc/{name}/stat').read().rpartition(')')[2].split()\n"
    "        except OSError: continue\n"
    "        if int(fields[1]) in (os.getppid(), os.getpid()): found[int(name)] = fields[0]\n"
    "    return found\n"
)


async def until(met: Callable[[], bool]) -> None:
    """Wait until the link has heard what is expected."""
    with anyio.fail_after(20):
        while not met():
            await anyio.lowlevel.checkpoint()


async def parked(run: SandboxDriver, code: str) -> int:
    """Run `code` and return the number of its run once that is parked."""
    done = await run(code)
    assert done.status == "ok", done.error
    number = run.link.last_run_number
    await until(lambda: number in run.link.parked_runs or number in run.link.park_failures)
    assert run.link.park_failures.get(number) is None
    return number


async def refused(run: SandboxDriver, code: str) -> str:
    """Run `code` and return why its state cannot be parked."""
    done = await run(code)
    assert done.status == "ok", done.error
    number = run.link.last_run_number
    await until(lambda: number in run.link.parked_runs or number in run.link.park_failures)
    return run.link.park_failures.get(number, "it was parked")


async def promoted(run: SandboxDriver, number: int) -> wire.Promoted:
    answer = await run.link.promote(number)
    assert answer.ok
    assert run.link.live_run == number
    return answer


# rewinding ----------------------------------------------------------------------------------------


async def test_a_state_can_be_promoted_repeatedly_and_never_changes(run: SandboxDriver) -> None:
    first = await parked(run, "x = [1]")
    second = await parked(run, "x.append(2)")
    for number, value in ((first, "[1]"), (second, "[1, 2]"), (first, "[1]"), (first, "[1]")):
        await promoted(run, number)
        assert await run.evaluate("x") == value
        await run("x.append('lost')", park=False)


async def test_branches_of_branches_are_independent(run: SandboxDriver) -> None:
    root = await parked(run, "x = ['root']")
    left = await parked(run, "x.append('left')")
    await promoted(run, root)
    right = await parked(run, "x.append('right')")
    further = await parked(run, "x.append('further')")
    await promoted(run, left)
    assert await run.evaluate("x") == '["root", "left"]'
    await promoted(run, further)
    assert await run.evaluate("x") == '["root", "right", "further"]'
    await promoted(run, right)
    assert await run.evaluate("x") == '["root", "right"]'


async def test_promoting_run_zero_gives_an_empty_interpreter(run: SandboxDriver) -> None:
    await parked(run, "x = 1")
    await promoted(run, 0)
    assert await run.evaluate("'x' in globals()") == "false"


async def test_promoting_a_state_that_is_not_parked_fails_and_leaves_an_empty_interpreter(
    run: SandboxDriver,
) -> None:
    await run("x = 1", park=False)
    answer = await run.link.promote(run.link.last_run_number)
    assert not answer.ok
    assert run.link.live_run == 0
    assert await run.evaluate("'x' in globals()") == "false"


async def test_promoting_a_run_that_has_just_finished_waits_for_its_fork(
    run: SandboxDriver,
) -> None:
    for number in range(20):
        await run(f"x = {number}")
        await promoted(run, run.link.last_run_number)
        assert await run.evaluate("x") == str(number)


async def test_random_generators_continue_in_the_same_state(run: SandboxDriver) -> None:
    number = await parked(
        run, "import random, uuid\ndef draw(): return str((random.random(), uuid.uuid4()))"
    )
    seen = []
    for _ in range(3):
        await promoted(run, number)
        done = await run("draw()", seed="same")
        assert done.value is not None
        seen.append(done.value["text"])
    assert len(set(seen)) == 1


async def test_open_files_continue_at_the_same_offset(run: SandboxDriver) -> None:
    await run("open('lines', 'w').write('one\\ntwo\\nthree\\n')")
    number = await parked(
        run,
        "file = open('lines', buffering=1)\nraw = open('lines', 'rb', buffering=0)\nraw.read(4)",
    )
    for _ in range(2):
        await promoted(run, number)
        assert await run.evaluate("file.readline(), raw.read(4).decode()") == '["one\\n", "two\\n"]'


async def test_the_event_loop_continues_with_its_tasks(run: SandboxDriver) -> None:
    number = await parked(
        run,
        f"{CALL}import asyncio\nticks = []\nasync def tick():\n    while True:\n"
        f"        ticks.append(1)\n"
        "        await asyncio.sleep(0.001)\ntask = asyncio.create_task(tick())\n"
        "await asyncio.sleep(0.01)",
    )
    gather = (
        "r = await asyncio.gather(*(host.acall('test.echo', {'n': n}) for n in range(20)))\n"
        "[e['n'] for e in r]"
    )
    for _ in range(2):
        await promoted(run, number)
        assert (
            await run.evaluate(
                "before = len(ticks)\nawait asyncio.sleep(0.05)\nlen(ticks) > before"
            )
            == "true"
        )
        assert await run.evaluate(gather) == str(list(range(20)))
    await parked(run, "task.cancel()")


async def test_a_task_that_waits_for_a_call_gets_an_error_after_a_promotion(
    run: SandboxDriver,
) -> None:
    number = await parked(
        run, f"{CALL}import asyncio\ntask = asyncio.create_task(host.acall('test.nap', "
             f"{{'seconds': 600}}))\n"
        "await asyncio.sleep(0.01)"
    )  # fmt: skip
    await promoted(run, number)
    assert (
        await run.evaluate("try: await task\nexcept HostError as error: kind = error.kind\nkind")
        == '"cancelled"'
    )


async def test_calls_of_a_promoted_worker_are_answered(run: SandboxDriver) -> None:
    number = await parked(run, CALL)
    for _ in range(2):
        await promoted(run, number)
        assert await run.evaluate("host.call('test.echo', {'a': 1})['a']") == "1"


async def test_a_promoted_worker_can_be_interrupted(run: SandboxDriver) -> None:
    await promoted(run, await parked(run, "import time\nx = 1"))
    done = await run("time.sleep(60)", timeout_s=0.2)
    assert done.status == "interrupted"
    assert await run.evaluate("x") == "1"


async def test_promoted_workers_survive_interrupts_at_random_moments(
    run: SandboxDriver,
) -> None:
    for seed in range(2):
        await promoted(run, await parked(run, "kept = 0"))
        ends = await hammer(run, INTERRUPTS, random.Random(seed))
        assert ends["interrupted"] > INTERRUPTS / 4
        assert run.link.restart_reasons == []
        await promoted(run, 0)


async def test_process_time_does_not_run_backwards(run: SandboxDriver) -> None:
    number = await parked(run, "import time\nsum(range(5_000_000))\nthen = time.process_time()")
    await promoted(run, number)
    assert await run.evaluate("time.process_time() >= then") == "true"


async def test_output_files_and_usage_of_a_promoted_worker_are_reported(run: SandboxDriver) -> None:
    await promoted(run, await parked(run, "import os, subprocess"))
    done = await run("print('a')\nsubprocess.run(['echo', 'b'])\nopen('f', 'w').write('c')")
    assert run.recorder.output_text() == "a\nb\n"
    assert run.recorder.files is not None
    assert run.recorder.files.changed == ["f"]
    assert done.usage is not None
    assert done.usage["peak_mb"] > 1


async def test_fork_hooks_are_not_called_for_forks_of_the_runtime(run: SandboxDriver) -> None:
    number = await parked(
        run,
        "import os, sys\nheard = []\ndef shout(): heard.append(1); print('hook'); raise "
        "ValueError\n"
        "os.register_at_fork(before=shout, after_in_child=shout, after_in_parent=shout)",
    )
    await promoted(run, number)
    await run("1")
    assert await run.evaluate("heard") == "[]"
    assert run.recorder.output_text() == run.recorder.output_text("stderr") == ""
    await run("if os.fork() == 0: os._exit(0)\nos.wait()")
    assert await run.evaluate("len(heard)") == "2"


async def test_waiting_for_any_child_does_not_find_forks_of_the_runtime(run: SandboxDriver) -> None:
    code = "import os\ntry: found = os.wait()\nexcept ChildProcessError: found = 'none'\nfound"
    for _ in range(10):
        assert await run.evaluate(code) == '"none"'


async def test_a_sigchld_handler_is_not_called_for_forks_of_the_runtime(run: SandboxDriver) -> None:
    await run(
        "import signal\nheard = []\nsignal.signal(signal.SIGCHLD, lambda *_: heard.append(1))"
    )
    for _ in range(5):
        assert await run.evaluate("heard") == "[]"


async def test_a_burst_of_steps_parks_its_last_one_and_reports_the_others(
    run: SandboxDriver,
) -> None:
    await parked(run, "x = 0")
    for _ in range(100):
        await run("x += 1")
    last = run.link.last_run_number
    await until(lambda: last in run.link.parked_runs)
    first_left = last - len(run.link.parked_runs)
    await promoted(run, last)
    assert await run.evaluate("x") == "100"
    assert "followed at once" in run.link.park_failures.get(first_left, "followed at once")


async def test_a_state_that_is_still_needed_is_parked_in_a_burst(run: SandboxDriver) -> None:
    await run("x = 1")
    number = run.link.last_run_number
    await run("x = 2", keep_previous=True)
    await promoted(run, number)
    assert await run.evaluate("x") == "1"


# what cannot be parked ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("import threading\nthreading.Thread(target=threading.Event().wait).start()", "threads"),
        ("import subprocess\nchild = subprocess.Popen(['sleep', '600'])", "child processes"),
        ("import os\nends = os.pipe()", "a pipe is open"),
        ("import socket\nends = socket.socketpair()", "a socket is open"),
        ("import select\nevents = select.epoll()", "eventpoll is open"),
        ("import os\ntty = os.open('/dev/ptmx', os.O_RDWR)", "a pipe or device is open"),
        pytest.param(
            "import fcntl\nf = open('f', 'w')\nfcntl.flock(f, fcntl.LOCK_EX)",
            "a file is locked",
            marks=pytest.mark.unlike_gvisor("it does not say which files are locked"),
        ),
        ("import mmap\nshared = mmap.mmap(-1, 4096)", "memory is shared"),
    ],
)  # fmt: skip
async def test_what_cannot_be_forked_is_not_parked_and_the_reason_is_reported(
    run: SandboxDriver, code: str, word: str
) -> None:
    await parked(run, "x = 1")
    assert word in await refused(run, code)
    assert await run.evaluate("x") == "1"


async def test_finished_threads_and_children_do_not_prevent_parking(run: SandboxDriver) -> None:
    await parked(
        run,
        "import asyncio, subprocess, threading, tempfile, mmap\n"
        "thread = threading.Thread(target=print)\n"
        "thread.start(); thread.join()\nsubprocess.run(['true'])\nawait asyncio.sleep(0)\n"
        "file = open('f', 'w')",
    )


# deaths -------------------------------------------------------------------------------------------

DEATHS = {
    "exit": "os._exit(3)",
    "kill": "os.kill(os.getpid(), 9)",
    "segfault": "import ctypes; ctypes.string_at(1)",
    "stack overflow": "import sys; sys.setrecursionlimit(10**9)\ndef f(_): sorted([1], key=f)\n"
    "f(1); os.abort()",
    "memory": "hoard = []\nwhile True:\n    try: hoard.append(bytearray(b'x') * 10_000_000)\n"
    "    except MemoryError: os._exit(9)",
    "interrupts ignored": "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "time.sleep(60)",
}


MEMORY_DEATH = pytest.param(
    "memory",
    marks=(
        ONLY_LONG,  # test_code_that_takes_all_memory_does_not_end_the_sandbox does the same
        pytest.mark.unlike_gvisor("the kernel kills gVisor itself when memory runs out"),
    ),
)


@pytest.mark.parametrize("name", [*(each for each in DEATHS if each != "memory"), MEMORY_DEATH])
async def test_a_death_loses_the_run_and_nothing_before_it(run: SandboxDriver, name: str) -> None:
    number = await parked(
        run,
        "import os\nx = {'kept': [1]}\nopen('old', 'w').write('old')\nopen('gone', 'w').close()",
    )
    before = (
        "x.clear(); open('old', 'w').write('spoilt'); open('new', 'w').close(); os.remove('gone')\n"
    )
    for _ in range(2):
        done = await run(before + DEATHS[name], timeout_s=20 if name == "memory" else 0.3)
        assert done.status == "died", done.error
        assert run.recorder.files is None
        assert run.link.live_run == 0
        answer = await promoted(run, number)
        assert (answer.changed, answer.removed) == (["new", "old"], ["gone"])
        run.link.remove_file("new")
        run.link.write_file("old", 0o600, b"old")
        run.link.write_file("gone", 0o600, b"")
        assert await run.evaluate("x, sorted(os.listdir()), open('old').read()") == (
            '[{"kept": [1]}, ["gone", "old"], "old"]'
        )
        assert run.recorder.files is None


async def test_a_promotion_kills_processes_that_a_run_has_left(run: SandboxDriver) -> None:
    number = await parked(run, "import os, subprocess")
    done = await run(
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\nchild.pid"
    )
    assert done.value is not None
    await promoted(run, number)
    assert await run.evaluate(f"os.path.exists('/proc/{done.value['text']}')") == "false"
    assert run.link.parked_runs >= {number}


async def test_restoring_a_file_removes_whatever_is_in_its_way(run: SandboxDriver) -> None:
    number = await parked(
        run,
        "import os, shutil, socket\nfor name in 'abc': open(name, 'w').write(name)\nos.mkdir('d')\n"
        "open('d/e', 'w').write('e')\ndef bind(path): socket.socket(socket.AF_UNIX).bind(path)",
    )
    await run(
        "for name in 'abc': os.remove(name)\n"
        "bind('a'); os.mkdir('b'); open('b/x', 'w').close(); os.symlink('/', 'c')\n"
        "shutil.rmtree('d'); os.symlink('/tmp', 'd'); os._exit(1)"
    )
    answer = await promoted(run, number)
    assert (answer.changed, answer.removed) == (["b/x"], ["a", "b", "c", "d/e"])
    run.link.remove_file("b/x")
    for path in answer.removed:
        run.link.write_file(path, 0o600, path[-1].encode())
    assert (
        await run.evaluate("[open(path).read() for path in ('a', 'b', 'c', 'd/e')]")
        == '["a", "b", "c", "e"]'
    )
    assert run.recorder.files is None


# bounds -------------------------------------------------------------------------------------------


async def test_the_oldest_forks_are_dropped_and_reported(run: SandboxDriver) -> None:
    numbers = [await parked(run, f"x = {number}") for number in range(SMALL_LIMITS.checkpoints + 3)]
    await until(lambda: len(run.link.parked_runs) == SMALL_LIMITS.checkpoints)
    assert run.link.parked_runs == set(numbers[3:])
    assert not (await run.link.promote(numbers[0])).ok
    await promoted(run, numbers[3])
    assert await run.evaluate("x") == "3"


@pytest.mark.unlike_gvisor("it does not say how much memory of a process is its own")
async def test_forks_are_limited_by_their_own_memory_but_not_by_shared_memory(
    run: SandboxDriver,
) -> None:
    await parked(run, "heap = bytearray(b'x') * (60 << 20)")
    for number in range(4):
        await parked(run, f"n = {number}")
    await anyio.sleep(0.5)  # nothing tells that memory has been measured and found in order
    assert len(run.link.parked_runs) == 5
    for _ in range(3):  # each has 60 MB of its own now; no more than one fits
        await parked(run, "heap = bytearray(b'y') * (60 << 20)")
    await until(lambda: len(run.link.parked_runs) <= 3)
    await promoted(run, run.link.last_run_number)
    assert await run.evaluate("len(heap) >> 20") == "60"


async def test_without_checkpoints_nothing_is_parked(backend: Backend) -> None:
    async with open_link(backend, make_setup(backend).replace(max_checkpoints=0)) as link:
        run = SandboxDriver(link)
        await run("x = 1")
        assert await run.evaluate("x") == "1"
        assert (link.parked_runs, link.park_failures) == (set(), {})
        assert not (await link.promote(1)).ok


async def test_a_hundred_runs_leave_no_process_except_parked_forks(run: SandboxDriver) -> None:
    await run(CHILDREN)
    for number in range(100):
        await run("import os; os.system('true')")
        if number % 10 == 9:
            await promoted(run, run.link.last_run_number)
    done = await run("left = children(); len(left), 'Z' in left.values()", park=False)
    assert done.value is not None
    assert done.value["text"] == f"[{SMALL_LIMITS.checkpoints}, false]"


# hostile code -------------------------------------------------------------------------------------

COPIES = (
    CHILDREN
    + "import signal\ndef strike(number):\n    for pid in children(): os.kill(pid, number)\n"
)


async def test_forks_that_die_are_reported(run: SandboxDriver, backend: Backend) -> None:
    if backend.is_isolated:
        pytest.skip("code does not reach the parked forks in its container")
    number = await parked(run, COPIES)
    await run("strike(signal.SIGKILL)", park=False)
    await until(lambda: not run.link.parked_runs)
    assert not (await run.link.promote(number)).ok
    assert await run.evaluate("1") == "1"


async def test_forks_that_code_stops_can_be_promoted(run: SandboxDriver, backend: Backend) -> None:
    if backend.is_isolated:
        pytest.skip("code does not reach the parked forks in its container")
    number = await parked(run, COPIES + "x = 1")
    await run("strike(signal.SIGSTOP)", park=False)
    await promoted(run, number)
    assert await run.evaluate("x") == "1"


@pytest.mark.unlike_gvisor("the kernel kills gVisor itself when memory runs out")
async def test_parked_forks_survive_a_fork_bomb(run: SandboxDriver, backend: Backend) -> None:
    if not backend.is_isolated:
        pytest.skip("a fork bomb is only bounded in a container")
    number = await parked(run, "import os\nx = 1")
    code = "while True:\n    try: os.fork()\n    except OSError: pass"
    done = await run(code, timeout_s=0.5)
    assert done.status in ("died", "interrupted")
    await promoted(run, number)
    assert await run.evaluate("x") == "1"


FORGE = (
    "import gc, os, socket\nfrom mcpruntime_sandbox.protocol import wire\n"
    "from mcpruntime_sandbox.sandboxed.kernel.worker import Worker\n"
    "sock = next(each for each in gc.get_objects() if type(each) is Worker).channel.sock\n"
)


@pytest.mark.parametrize(
    "forged",
    [
        "sock.sendall(wire.encode_message(wire.ForkParked(1)))",
        "sock.sendall(wire.encode_message(wire.ParkFailed(1, 'x')))",
        "sock.sendall(wire.encode_message(wire.Promoted(1, True, [], [])))",
        "sock.sendall(wire.encode_message(wire.ForkDropped(1)))",
        "for _ in range(2000): socket.send_fds(sock, "
        "[wire.encode_message(wire.ForkParked(1))], [0, 1, 2])",
        "socket.send_fds(sock, [wire.encode_message(wire.Call(1, 1, 'test.echo', {}))], [0])",
    ],
)
async def test_a_forged_frame_kills_only_the_interpreter(run: SandboxDriver, forged: str) -> None:
    number = await parked(run, FORGE)
    done = await run(f"{forged}\nimport time; time.sleep(30)", timeout_s=25)
    assert done.status == "died"
    await promoted(run, number)
    assert await run.evaluate("sock.fileno() > 0") == "true"


FALSE = {  # what is handed over as the control socket of a copy
    "a worker's own": "socket.socketpair()\nends[0].send(b'\\n')",
    "a dead one": "socket.socketpair()\nends[0].close()",
    "a file": "[None, open('file', 'w')]",
    "a device": "[None, open('/dev/zero')]",
    "another kind": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\nends[0].send(b'\\n')",
    "one that talks on": "socket.socketpair()\nends[0].send(b'\\n' * 1000)",
}


@pytest.mark.parametrize("name", FALSE)
async def test_a_forged_fork_is_refused(run: SandboxDriver, name: str) -> None:
    code = f"""
ends = {FALSE[name]}
from mcpruntime_sandbox.sandboxed.kernel import forks
def park_fork(sock, run_number, oom_score):
    socket.send_fds(sock, [wire.encode_message(wire.ForkParked(run_number))], [ends[1].fileno()])
    ends[1].close()
    return 0
forks.find_park_obstacle = lambda *_: ('', {{}})
forks.park_fork = park_fork
"""
    assert "did not start" in await refused(run, FORGE + code)
    assert not (await run.link.promote(run.link.last_run_number)).ok
    assert await run.evaluate("1") == "1"


async def test_a_fork_that_never_says_hello_does_not_block_for_long(run: SandboxDriver) -> None:
    code = """
from mcpruntime_sandbox.sandboxed.kernel import forks
ends = []
def park_fork(sock, run_number, oom_score):
    ends.append(socket.socketpair())
    frame = wire.encode_message(wire.ForkParked(run_number))
    socket.send_fds(sock, [frame], [ends[-1][1].fileno()])
    return 0
forks.find_park_obstacle = lambda *_: ('', {})
forks.park_fork = park_fork
"""
    await run(FORGE + code)
    for _ in range(20):
        await run("1")
    with anyio.fail_after(15):
        assert not (await run.link.promote(run.link.last_run_number)).ok
    assert len(run.link.park_failures) == 21


async def test_a_message_with_an_impossible_run_number_is_refused(backend: Backend) -> None:
    for message in (
        wire.ForkParked(9),
        wire.ForkDropped(0),
        wire.ParkFailed(-1, ""),
        wire.Promoted(1, True, [], []),
    ):
        async with open_link(backend, make_setup(backend)) as link:
            with pytest.raises(wire.WireError):
                link._route(message, 0)


async def test_promoting_on_a_closed_link_fails(backend: Backend) -> None:
    async with open_link(backend, make_setup(backend)) as link:
        link.fail("it was closed")
        with pytest.raises(SandboxFailed, match="it was closed"):
            await link.promote(0)
