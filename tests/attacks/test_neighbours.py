"""Processes of one sandbox do not reach each other: memory, signals, results and inputs."""

from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from mcpruntime_server.sandbox.link import open_link
from tests.helpers.forged_messages import FORGE
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.sandbox.conftest import SandboxDriver, make_backend, make_setup

WAIT_S = 60.0
REACH = """
import ctypes, os
def others():
    pids = [int(name) for name in os.listdir('/proc') if name.isdigit()]
    return [pid for pid in pids if pid != os.getpid()]
def reach(pid):
    found = []
    for name in ('mem', 'maps', 'environ', 'fd/1', 'root', 'cwd', 'map_files'):
        path = f'/proc/{pid}/{name}'
        try:
            os.close(os.open(path, os.O_RDONLY))
            found.append(name)
        except OSError: pass
    for name in ('mem', 'oom_score_adj', 'clear_refs', 'coredump_filter'):
        try:
            os.close(os.open(f'/proc/{pid}/{name}', os.O_WRONLY))
            found.append(name + ' to write')
        except OSError: pass
    libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(8)
    if libc.ptrace(16, pid, 0, 0) == 0: found.append('ptrace')
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    for call in (libc.process_vm_readv, libc.process_vm_writev):
        remote = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
        if call(pid, vector, 1, remote, 1, 0) > 0: found.append(call.__name__)
    return found
"""


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[SandboxDriver]:
    """A driver of a fresh container."""
    backend = make_backend("docker", tmp_path)
    async with open_link(backend, make_setup(backend)) as link:
        yield SandboxDriver(link)


async def park(run: SandboxDriver, code: str) -> int:
    """Run `code` and return the number of its run once its state is parked."""
    done = await run(code)
    assert done.status == "ok", done.error
    number = run.link.last_run_number
    with anyio.fail_after(WAIT_S):
        while number not in run.link.parked_runs:
            assert number not in run.link.park_failures, run.link.park_failures
            await anyio.sleep(0.01)
    return number


async def test_the_memory_of_the_supervisor_and_of_parked_copies_is_closed(
    run: SandboxDriver,
) -> None:
    await park(run, "secret = 'kept'")
    await park(run, REACH)
    found = await run.evaluate("len(others()), [each for pid in others() for each in reach(pid)]")
    assert found == "[3, []]"


async def test_a_process_that_a_run_leaves_behind_does_not_reach_the_interpreter(
    run: SandboxDriver,
) -> None:
    found = await run(
        f"{REACH}\nimport subprocess, sys\n"
        f"code = {REACH!r} + 'print(reach(os.getppid()))'\n"
        "subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout"
    )
    assert found.value is not None
    assert found.value["text"] == '"[]\\n"'


LATER = (
    FORGE
    + """
end = {'run_number': 2, 'status': 'ok', 'value': {'kind': 'json', 'text': '"forged"', 'type': 'str',
       'cut': False}}
call = {'call_id': 1, 'run_number': 2, 'target': 'test.echo', 'args': {}}
for _ in range(1 + double):
    if os.fork(): break
    os.setsid()
else:
    while not os.path.exists('/tmp/go'): time.sleep(0.01)
    say(frame('Call', call)); say(frame('RunDone', end)); open('/tmp/said', 'w').close()
    os._exit(0)
if os.getpid() != os.getsid(0): os._exit(0)
"""
)


@pytest.mark.parametrize("forks", [1, 2])
async def test_a_process_of_an_earlier_run_neither_ends_the_next_one_nor_calls_for_it(
    run: SandboxDriver, forks: int
) -> None:
    await run(LATER.replace("1 + double", str(forks)), park=False)
    done = await run(
        "import os, time\nopen('/tmp/go', 'w').close()\n"
        "while not os.path.exists('/tmp/said'): time.sleep(0.01)\ntime.sleep(0.2)\n'true'",
        park=False,
    )
    assert done.value is not None, done.error
    assert done.value["text"] == '"true"'
    assert run.recorder.calls == []


# signals and limits -------------------------------------------------------------------------------

STRIKE = f"""{REACH}
import fcntl, platform, resource, signal, socket
column = 0 if platform.machine() == 'x86_64' else 1
libc = ctypes.CDLL(None, use_errno=True)
def call(numbers, *arguments):
    if libc.syscall(numbers[column], *arguments) < 0:
        raise OSError(ctypes.get_errno(), 'refused')
def queue(*target):
    info = (ctypes.c_int * 32)(9, 0, -1)
    call((129, 138) if len(target) == 1 else (297, 240), *target, 9, info)
def own(command, pid):
    fcntl.fcntl(socket.socketpair()[0], command, pid)
strikes = {{
    'kill': lambda pid: os.kill(pid, 9),
    'stop': lambda pid: os.kill(pid, signal.SIGSTOP),
    'group': lambda pid: os.killpg(pid, 9),
    'all': lambda pid: os.kill(-1, 9),
    'thread': lambda pid: call((200, 130), pid, 9),
    'thread of': lambda pid: call((234, 131), pid, pid, 9),
    'queue': lambda pid: queue(pid),
    'queue to thread': lambda pid: queue(pid, pid),
    'descriptor': lambda pid: signal.pidfd_send_signal(os.pidfd_open(pid), 9),
    'folder': lambda pid: signal.pidfd_send_signal(os.open(f'/proc/{{pid}}', os.O_RDONLY), 9),
    'owner': lambda pid: own(fcntl.F_SETOWN, pid),
    'signal of a descriptor': lambda pid: own(10, 9),
    'ioctl': lambda pid: fcntl.ioctl(socket.socketpair()[0], 0x8901, pid.to_bytes(4, 'little')),
    'limit': lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)),
    'priority': lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
    'priority of a group': lambda pid: os.setpriority(os.PRIO_PGRP, pid, 19),
    'priority of all': lambda pid: os.setpriority(os.PRIO_USER, 0, 19),
    'input and output': lambda pid: call((251, 30), 1, pid, 3 << 13),
    'processors': lambda pid: os.sched_setaffinity(pid, {{0}}),
    'scheduler': lambda pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
}}
def strike(pid):
    landed = []
    for name, function in strikes.items():
        try: function(pid)
        except OSError: continue
        landed.append(name)
    return landed
"""


async def test_no_signal_and_no_limit_reaches_the_supervisor_or_a_parked_copy(
    run: SandboxDriver,
) -> None:
    numbers = [await park(run, "secret = 'kept'"), await park(run, STRIKE)]
    found = await run.evaluate("len(others()), [each for pid in others() for each in strike(pid)]")
    assert found == "[3, []]"
    filtering = "try: call((317, 277), 99, 0, 0)\nexcept OSError as exc: found = exc.errno\nfound"
    assert await run.evaluate(filtering) == "1"
    for number in numbers:  # also where code has a parked copy of itself promoted
        assert (await run.link.promote(number)).ok
        assert await run.evaluate("secret") == '"kept"'
    await run.link.promote(numbers[1])
    found = await run.evaluate("len(others()), [each for pid in others() for each in strike(pid)]")
    assert found == "[3, []]"


async def test_a_program_that_code_starts_does_not_reach_them_either(run: SandboxDriver) -> None:
    await park(run, "secret = 'kept'")
    found = await run(
        f"code = {STRIKE!r} + 'print([each for pid in others() if pid != os.getppid() '"
        "'for each in strike(pid)])'\nimport subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout"
    )
    assert found.value is not None
    assert found.value["text"] == '"[]\\n"'


HONEST = """
import ctypes, multiprocessing, os, resource, signal, subprocess, threading, time
done = []
def ended(child, number):
    assert child.wait(30) == -number
    done.append(number)
child = subprocess.Popen(['sleep', '60']); child.terminate(); ended(child, 15)
child = subprocess.Popen(['sleep', '60']); child.kill(); ended(child, 9)
child = subprocess.Popen(['sleep', '60'], start_new_session=True)
os.killpg(child.pid, 2); ended(child, 2)
child = subprocess.Popen(['sh', '-c', 'kill -HUP $$']); ended(child, 1)
child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
child.start(); child.terminate(); child.join(30)
done.append(child.exitcode)
signal.signal(signal.SIGUSR1, lambda *_: done.append('handled'))
signal.raise_signal(signal.SIGUSR1)
signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
os.kill(os.getpid(), 0); os.kill(0, 0)
resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.sched_setaffinity(0, os.sched_getaffinity(0)); os.nice(0)
os.setpriority(os.PRIO_PROCESS, os.getpid(), 0)
len(open('/proc/self/maps').read()) > 0 and len(os.listdir('/proc/self/fd')) > 2 and done
"""


@pytest.mark.parametrize("is_promoted", [False, True])
async def test_honest_code_signals_its_own_processes(run: SandboxDriver, is_promoted: bool) -> None:
    number = await park(run, "x = 1")
    if is_promoted:
        await run.link.promote(number)
    found = await run.evaluate(HONEST)
    assert found == '[15, 9, 2, 1, -15, "handled", "handled"]'


# inputs -------------------------------------------------------------------------------------------

LOOK = "import os\nsorted(open(f'/context/{name}').read() for name in os.listdir('/context'))"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerConnection]:
    """A server with Docker sandboxes; clients may pass the files in `files`."""
    (tmp_path / "files").mkdir()
    settings = write_settings(tmp_path, server={"context_roots": [str(tmp_path / "files")]})
    async with connect_server(settings) as connection:
        yield connection


async def look(server: ServerConnection, session: str) -> list[str]:
    """Return the inputs that code of a session can read."""
    found: list[str] = await server.evaluate(LOOK, session)
    return [text for text in found if not text.startswith("mcpruntime-")]


async def test_sessions_that_share_a_sandbox_see_only_their_own_inputs(
    server: ServerConnection,
) -> None:
    await server.run(
        "import os; early = CONTEXT; open('/tmp/mark', 'w').close()", "s", context=[{"text": "a"}]
    )
    await anyio.sleep(0.1)  # the state is parked
    await server.replay("fork", "s", name="fork")
    await server.run("1", "fork", context=[{"text": "of the fork"}])
    assert await server.evaluate("os.path.exists('/tmp/mark')", "fork")  # it is the same sandbox
    assert await look(server, "fork") == ["a", "of the fork"]
    await server.run("late = CONTEXT", "s", context=[{"text": "of s"}])
    assert await look(server, "s") == ["a", "of s"]
    assert await look(server, "fork") == ["a", "of the fork"]
    assert await server.evaluate("early.text, CONTEXT.text", "fork") == ["a", "of the fork"]
    assert await server.evaluate("early.text, late.text", "s") == ["a", "of s"]
    await server.replay("rewind", "s", step=1)
    assert await look(server, "s") == ["a"]


async def test_an_input_cannot_be_locked_from_inside(
    server: ServerConnection, tmp_path: Path
) -> None:
    path = tmp_path / "files" / "large"
    path.write_bytes(b"x" * (17 << 20))  # more than is kept by content
    path.chmod(0o644)
    code = (
        "import fcntl, os\n[name] = [each for each in os.listdir('/context') if each[0] != '.']\n"
        "file = open('/context/' + name)\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "fcntl.lockf(file, fcntl.LOCK_SH)\nos.fstat(file.fileno()).st_size"
    )
    answer = await server.run(code, "locker", context=[f"file://{path}"])
    assert answer.value == 17 << 20, answer.text
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
