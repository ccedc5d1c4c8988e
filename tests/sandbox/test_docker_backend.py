"""Sandboxes as containers: what code inside cannot do, and that nothing is ever left behind."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from docker.errors import NotFound

from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.errors import ConfigError, SandboxFailed, Unavailable
from mcpruntime_server.sandbox import HealthCheck, hardening, image
from mcpruntime_server.sandbox.docker_backend import (
    DATA_FOLDER_LABEL,
    OWNER_LABEL,
    AttachDecoder,
    DockerBackend,
    DockerChannel,
    can_guard_processes,
    check_mounts,
    data_folder_digest,
    describe_container_exit,
    describe_stderr,
    parse_used_memory,
)
from tests.helpers.child_processes import start_process

LIMIT_S = 90  # far more than anything here takes, even on a loaded machine
SMALL = SandboxSettings(memory_mb=96, workspace_mb=8, tmp_mb=4, pids=32)
ECHO = """
import os
while data := os.read(0, 65536):
    os.write(1, data)
"""


@pytest.fixture(scope="module", autouse=True)
async def sandbox_image(anyio_backend: str) -> None:
    """The image that all these sandboxes run in; a no-op where it is built."""
    await image.build_image(SandboxSettings(), print)


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    client = docker.APIClient(version="auto")
    yield client
    client.close()


@pytest.fixture
async def home(tmp_path: Path, engine: docker.APIClient) -> AsyncIterator[Path]:
    """A data folder of the test's own; the test fails if a container of it is left."""
    yield tmp_path
    left = containers(engine, tmp_path)
    for container in left:
        engine.remove_container(container, force=True)
    assert left == []


def containers(engine: docker.APIClient, home: Path) -> list[str]:
    return [
        each["Id"]
        for each in engine.containers(
            all=True, filters={"label": f"{DATA_FOLDER_LABEL}={data_folder_digest(home)}"}
        )
    ]


def backend(
    home: Path, code: str, settings: SandboxSettings = SMALL, owner: str = "live"
) -> DockerBackend:
    argv = ["python3", "-c", textwrap.dedent(code)]
    return DockerBackend(settings, home, argv, {}, owner, lambda name: name == "live")


async def read_all(channel: DockerChannel) -> bytes:
    pieces = []
    while data := await channel.receive():
        pieces.append(data)
    return b"".join(pieces)


async def outcome(home: Path, code: str, settings: SandboxSettings = SMALL) -> tuple[str, str]:
    """What `code` prints inside a sandbox, and how its container ends."""
    made = backend(home, code, settings)
    try:
        with anyio.fail_after(LIMIT_S):
            async with made.open_channel() as channel:
                return (await read_all(channel)).decode(), await channel.explain_exit()
    finally:
        made.close()


async def inside(home: Path, code: str, settings: SandboxSettings = SMALL) -> Any:
    """The JSON that `code` prints inside a sandbox."""
    printed, death = await outcome(home, "import json, os\n" + textwrap.dedent(code), settings)
    assert printed, death
    return json.loads(printed)


# what code inside is and sees ---------------------------------------------------------------------


async def test_code_runs_as_an_unknown_user_without_capabilities_and_with_seccomp(
    home: Path,
) -> None:
    status = await inside(
        home,
        """
        lines = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
        print(json.dumps({name: value.strip() for name, value in lines.items()}))
        """,
    )
    uids = {int(uid) for name in ("Uid", "Gid") for uid in status[name].split()}
    assert len(uids) == 1
    assert all(uid in hardening.UID_RANGE for uid in uids)
    assert status["Groups"] in ("", str(*uids))
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "0" * 16
    }
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


async def test_every_sandbox_has_a_user_of_its_own(home: Path) -> None:
    uids = [await inside(home, "print(os.getuid())") for _ in range(3)]
    assert len(set(uids)) == 3


async def test_the_root_cannot_be_written_and_the_workspace_can(home: Path) -> None:
    found = await inside(
        home,
        """
        def writes(folder):
            try:
                open(os.path.join(folder, "file"), "w").write("x")
            except OSError as exc:
                return exc.strerror
            return "yes"
        workspace = os.stat(".")
        print(json.dumps({
            "writes": {
                folder: writes(folder)
                for folder in ("/", "/etc", "/usr", "/dev", "/sys", "/tmp", ".")
            },
            "cwd": os.getcwd(), "mode": oct(workspace.st_mode & 0o777),
            "mine": workspace.st_uid == os.getuid(),
            "home": os.path.expanduser("~"),
        }))
        """,
    )
    assert {folder for folder, wrote in found["writes"].items() if wrote == "yes"} == {"/tmp", "."}
    assert (found["cwd"], found["mode"], found["mine"], found["home"]) == (
        "/workspace",
        "0o700",
        True,
        "/tmp",
    )


async def test_nothing_in_tmp_can_be_executed(home: Path) -> None:
    assert await inside(
        home,
        """
        import shutil, subprocess
        refused = []
        for folder in ("/tmp", "/dev/shm"):
            program = shutil.copy("/bin/true", folder)
            try:
                subprocess.run([program])
            except PermissionError:
                refused.append(folder)
        print(json.dumps(refused))
        """,
    ) == ["/tmp", "/dev/shm"]


async def test_files_are_bounded_in_bytes_and_in_number(home: Path) -> None:
    found = await inside(
        home,
        """
        import errno, resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        found = {}
        for folder in ("/workspace", "/tmp", "/dev/shm"):
            written = 0
            try:
                for number in range(64):
                    with open(f"{folder}/{number}", "wb", buffering=0) as file:
                        written += file.write(bytes(1 << 20))
            except OSError as exc:
                assert exc.errno == errno.ENOSPC, exc
            for name in os.listdir(folder):
                os.remove(f"{folder}/{name}")
            made = 0
            try:
                for made in range(1 << 20):
                    open(f"{folder}/{made}", "w").close()
            except OSError as exc:
                assert exc.errno == errno.ENOSPC, exc
            found[folder] = [written >> 20, made]
        print(json.dumps(found))
        """,
    )
    for folder, megabytes in (("/workspace", 8), ("/tmp", 4), ("/dev/shm", 4)):
        assert found[folder][0] == megabytes
        assert found[folder][1] <= megabytes * 256


async def test_resource_limits_cannot_be_raised(home: Path) -> None:
    assert await inside(
        home,
        """
        import resource
        names = ("FSIZE", "NOFILE", "CORE", "MEMLOCK", "MSGQUEUE")
        kinds = [getattr(resource, "RLIMIT_" + name, 12) for name in names]
        print(json.dumps([resource.getrlimit(kind)[1] for kind in kinds]))
        """,
    ) == [8 << 20, 1024, 0, 64 << 10, 0]


async def test_the_number_of_cpus_is_the_one_that_may_be_used(home: Path) -> None:
    assert await inside(home, "print(len(os.sched_getaffinity(0)))") == 1
    assert await inside(home, "print(os.environ['PYTHON_CPU_COUNT'])") == 1


async def test_namespaces_and_devices_are_the_sandbox_s_own(home: Path) -> None:
    theirs = await inside(
        home,
        """
        names = ("ipc", "cgroup", "net", "pid", "uts", "mnt")
        print(json.dumps({
            "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in names},
            "devices": sorted(os.listdir("/dev")), "host": os.uname().nodename,
            "interfaces": [
                line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]
            ],
            "cgroup": open("/proc/self/cgroup").read().splitlines(),
        }))
        """,
    )
    for name, namespace in theirs["namespaces"].items():
        assert namespace != os.readlink(f"/proc/self/ns/{name}")
    harmless = {
        "core",
        "fd",
        "full",
        "mqueue",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
    }
    assert set(theirs["devices"]) <= harmless | {"tty", "urandom", "zero"}
    assert theirs["host"] == "sandbox"
    assert theirs["interfaces"] == ["lo"]
    assert all(line.endswith(":/") for line in theirs["cgroup"])


async def test_terminals_are_few_and_the_sandbox_s_own(home: Path) -> None:
    opened = await inside(
        home,
        """
        terminals = []
        try:
            while True:
                terminals.append(os.openpty())
        except OSError as exc:
            error = exc.errno
        os.write(terminals[0][0], b"typed\\n")
        print(json.dumps([len(terminals), error, os.read(terminals[0][1], 99).decode()]))
        """,
    )
    assert opened == [hardening.MAX_TERMINALS, errno.ENOSPC, "typed\n"]


async def test_only_unix_sockets_can_be_made(home: Path) -> None:
    assert await inside(
        home,
        """
        import asyncio, socket
        socket.socketpair()[0].close()
        asyncio.run(asyncio.sleep(0))
        made = {}
        for family in range(0, 46):
            for kind in (
                socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET
            ):
                try:
                    socket.socket(family, kind).close()
                except OSError as exc:
                    continue
                made.setdefault(family, []).append(kind)
        print(json.dumps(sorted(made)))
        """,
    ) == [1]


async def test_dangerous_system_calls_are_refused(home: Path) -> None:
    refused = await inside(
        home,
        """
        import ctypes, platform
        libc = ctypes.CDLL(None, use_errno=True)
        arm = platform.machine() == "aarch64"
        calls = {  # name: (x86-64, arm64, arguments that would work for somebody who may)
            "ptrace": (101, 117, (0, 0, 0, 0)),
            "process_vm_readv": (310, 270, (os.getpid(), 0, 0, 0, 0, 0)),
            "unshare user": (272, 97, (0x10000000,)), "unshare mount": (272, 97, (0x20000,)),
            "setns": (308, 268, (-1, 0)), "clone newuser": (56, 220, (0x10000000 | 17, 0, 0, 0, 0)),
            "io_uring_setup": (425, 425, (1, 0)), "keyctl": (250, 219, (0, -3, 0)),
            "add_key": (248, 217, (b"user", b"a", b"b", 1, -3)), "bpf": (321, 280, (0, 0, 0)),
            "perf_event_open": (298, 241, (0, 0, -1, -1, 0)), "userfaultfd": (323, 282, (1,)),
            "mount": (165, 40, (b"none", b"/tmp", b"tmpfs", 0, 0)),
            "umount2": (166, 39, (b"/tmp", 0)),
            "pivot_root": (155, 41, (b"/tmp", b"/tmp")), "chroot": (161, 51, (b"/tmp",)),
            "fsopen": (430, 430, (b"tmpfs", 0)), "open_tree": (428, 428, (-100, b"/tmp", 1)),
            "open_by_handle_at": (304, 265, (-1, 0, 0)),
            "name_to_handle_at": (303, 264, (-100, b"/", 0, 0, 0)),
            "kexec_load": (246, 104, (0, 0, 0, 0)), "init_module": (175, 105, (0, 0, b"")),
            "personality": (135, 92, (0x0040000,)), "shmget": (29, 194, (0, 4096, 0o600)),
            "mq_open": (240, 180, (b"a", 0o101, 0o600, 0)), "quotactl": (179, 60, (0, 0, 0, 0)),
            "pidfd_getfd": (438, 438, (-1, 0, 0)), "process_madvise": (440, 440, (-1, 0, 0, 0, 0)),
            "pidfd_send_signal": (424, 424, (-1, 0, 0, 0)), "syslog": (103, 116, (3, 0, 0)),
            "fanotify_init": (300, 262, (0, 0)),
        }
        found = {}
        for name, (x86, arm64, arguments) in calls.items():
            ctypes.set_errno(0)
            result = libc.syscall(arm64 if arm else x86, *arguments)
            found[name] = [result, ctypes.get_errno()]
        ctypes.set_errno(0)
        clone3 = libc.syscall(435, 0, 0)
        print(json.dumps({"calls": found, "clone3": [clone3, ctypes.get_errno()]}))
        """,
    )
    assert {name: found for name, found in refused["calls"].items() if found != [-1, 1]} == {}
    assert refused["clone3"] == [-1, 38]


async def test_seccomp_does_not_affect_ordinary_python(home: Path) -> None:
    assert await inside(
        home,
        """
        import asyncio, concurrent.futures, multiprocessing, subprocess, tempfile
        import threading, time, uuid
        import numpy, pandas
        import matplotlib; matplotlib.use("Agg")
        import matplotlib.pyplot as plot
        frame = pandas.DataFrame({"a": numpy.arange(1000) % 7, "b": numpy.random.rand(1000)})
        frame.to_csv("frame.csv")
        groups = len(pandas.read_csv("frame.csv").groupby("a"))
        plot.plot([1, 2]); plot.savefig("plot.png")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            threads = sum(pool.map(int, "1234"))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            forks = sum(pool.map(int, "1234"))
        with multiprocessing.get_context("spawn").Manager() as manager:
            shared = sum(manager.list([1, 2, 3, 4]))
        async def main():
            child = await asyncio.create_subprocess_exec("echo", "10", stdout=subprocess.PIPE)
            return int((await child.communicate())[0])
        solved = float(numpy.linalg.solve(numpy.eye(300), numpy.ones(300)).sum())
        plotted = os.path.getsize("plot.png") > 1000
        print(json.dumps([groups, plotted, threads, forks, shared, asyncio.run(main()), solved]))
        """,
        SandboxSettings(),
    ) == [7, True, 10, 10, 10, 10, 300.0]


# what code inside can use up ----------------------------------------------------------------------


async def test_a_fork_bomb_ends_in_errors_and_the_engine_lives(
    home: Path, engine: docker.APIClient
) -> None:
    found = await inside(
        home,
        """
        import signal
        children = []
        try:
            while len(children) < 1000:
                pid = os.fork()
                if not pid:
                    signal.pause()
                children.append(pid)
        except OSError as exc:
            print(json.dumps([exc.errno, len(children)]))
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        """,
    )
    assert found[0] == 11
    assert found[1] < SMALL.pids + SMALL.checkpoints + hardening.SPARE_PROCESSES
    assert engine.ping()


async def test_code_that_takes_all_memory_is_killed_and_the_cause_is_reported(home: Path) -> None:
    printed, death = await outcome(
        home, "print('begun', flush=True); hoard = [bytearray(1 << 20) for _ in range(10**6)]"
    )
    assert printed == "begun\n"
    assert "memory had run out" in death
    assert "96 MB" in death


async def test_a_child_that_runs_out_of_memory_does_not_explain_the_exit_alone(home: Path) -> None:
    code = """
    import subprocess, sys
    hoard = "hoard = [bytearray(1 << 20) for _ in range(10**6)]"
    print(subprocess.run([sys.executable, "-c", hoard]).returncode, flush=True)
    sys.exit(3)
    """
    printed, death = await outcome(home, code)
    assert printed == "-9\n"
    assert death.startswith("exit code 3, after a process in it was killed for lack of memory.")


async def test_memory_is_counted_with_workspace_files_and_without_page_cache(home: Path) -> None:
    code = """
    import os
    hoard = bytearray(os.urandom(1 << 20)) * 16
    open("/workspace/file", "wb").write(bytes(4 << 20))
    os.write(1, b"ready")
    os.read(0, 1)
    """
    made = backend(home, code)
    with anyio.fail_after(LIMIT_S):
        async with made.open_channel() as channel:
            assert await channel.receive() == b"ready"
            used = await channel.read_memory_bytes()
        assert await channel.read_memory_bytes() is None
    made.close()
    assert used is not None
    assert 20 << 20 < used < 60 << 20


# the stream ---------------------------------------------------------------------------------------


async def test_ten_megabytes_come_back_byte_for_byte(home: Path) -> None:
    sent = secrets.token_bytes(1 << 20) * 10
    made = backend(home, ECHO)
    got = bytearray()
    with anyio.fail_after(LIMIT_S):
        async with made.open_channel() as channel, anyio.create_task_group() as tasks:
            tasks.start_soon(channel.send, sent)
            while len(got) < len(sent):
                got += await channel.receive()
    made.close()
    assert got == sent


async def test_stderr_is_separate_and_explains_the_exit(home: Path) -> None:
    printed, death = await outcome(home, "import sys; print('out'); sys.exit('no such thing')")
    assert printed == "out\n"
    assert death == "exit code 1. Its last words were 'no such thing'."


async def test_a_signal_is_named(home: Path) -> None:
    code = "import ctypes; ctypes.string_at(1)"  # init is only ended by faults of its own
    assert (await outcome(home, code))[1] == "it was killed by SIGSEGV."


async def test_a_container_that_is_removed_from_outside_ends_the_stream(
    home: Path, engine: docker.APIClient
) -> None:
    made = backend(home, ECHO)
    with anyio.fail_after(LIMIT_S):
        async with made.open_channel() as channel:
            await channel.send(b"hello")
            assert await channel.receive() == b"hello"
            await anyio.to_thread.run_sync(
                lambda: engine.remove_container(channel.info.id, force=True)
            )
            assert await channel.receive() == b""
            assert await channel.explain_exit() == "its container was removed from outside."
            with pytest.raises(SandboxFailed):
                await channel.send(b"x" * 10_000_000)
    made.close()


@pytest.mark.parametrize("piece", [1, 3, 7, 8, 9, 1000])
def test_frames_are_decoded_whatever_chunks_they_arrive_in(piece: int) -> None:
    framed = b"".join(
        bytes((stream, 0, 0, 0)) + len(text).to_bytes(4, "big") + text
        for stream, text in [
            (1, b"one"),
            (2, b"error"),
            (1, b""),
            (1, b"two" * 50),
            (2, b"!" * 9000),
        ]
    )
    frames = AttachDecoder()
    out = b"".join(frames.feed(framed[at : at + piece]) for at in range(0, len(framed), piece))
    assert out == b"one" + b"two" * 50
    assert frames.stderr == b"!" * 4096


# lifetimes ----------------------------------------------------------------------------------------


async def test_ten_sandboxes_opened_and_closed_at_once_leave_nothing(
    home: Path, engine: docker.APIClient
) -> None:
    made = backend(home, ECHO)

    async def use() -> None:
        async with made.open_channel() as channel:
            await channel.send(b"x")
            assert await channel.receive() == b"x"

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(use)
    made.close()
    assert containers(engine, home) == []


@pytest.mark.parametrize("delay", [0, 0.005, 0.02, 0.04, 0.06, 0.1])
async def test_cancelling_at_any_moment_leaves_nothing(
    home: Path, engine: docker.APIClient, delay: float
) -> None:
    made = backend(home, ECHO)
    with anyio.fail_after(LIMIT_S):
        with anyio.move_on_after(delay):
            async with made.open_channel() as channel:
                await channel.receive()
    made.close()
    assert containers(engine, home) == []


async def test_a_killed_servers_sandbox_stops_by_itself_and_is_removed_as_an_orphan(
    home: Path, engine: docker.APIClient
) -> None:
    server = f"""
import anyio, sys
from pathlib import Path
from mcpruntime_server.config import SandboxSettings
from mcpruntime_server.sandbox.docker_backend import DockerBackend
async def main():
    argv = ["python3", "-c", {ECHO!r}]
    home = Path({str(home)!r})
    backend = DockerBackend(SandboxSettings(), home, argv, {{}}, "doomed", lambda owner: True)
    async with backend.open_channel() as channel:
        print(channel.info.id, flush=True)
        await channel.receive()
anyio.run(main)
"""
    async with start_process([sys.executable, "-c", server], stderr=None) as process:
        assert process.stdout is not None
        container = (await process.stdout.receive()).decode().strip()
        process.send_signal(signal.SIGKILL)
    ended = await anyio.to_thread.run_sync(lambda: engine.wait(container, timeout=LIMIT_S))
    assert ended["StatusCode"] == 0
    made = backend(home, ECHO)
    assert await made.remove_orphans() == 1
    assert await made.remove_orphans() == 0
    made.close()
    with pytest.raises(NotFound):
        engine.inspect_container(container)


async def test_sandboxes_of_living_servers_and_other_data_folders_are_no_orphans(
    home: Path, tmp_path: Path
) -> None:
    mine, other = backend(home, ECHO), backend(tmp_path / "other", ECHO, owner="gone")
    with anyio.fail_after(LIMIT_S):
        async with mine.open_channel() as first, other.open_channel() as second:
            assert await mine.remove_orphans() == 0
            for channel in (first, second):
                await channel.send(b"still here")
                assert await channel.receive() == b"still here"
            assert await other.remove_orphans() == 1
            assert await second.receive() == b""
    mine.close()
    other.close()


async def test_a_sandbox_that_was_given_up_is_counted_and_removed(home: Path) -> None:
    def count_sandboxes(checks: list[HealthCheck]) -> Mapping[str, int]:
        return next(check.figures for check in checks if check.name == "sandboxes")

    mine = backend(home, ECHO)
    async with mine.open_channel() as given_up, mine.open_channel() as used:
        assert given_up.info.inputs_folder is not None
        shutil.rmtree(given_up.info.inputs_folder)  # as if the engine had not removed it in time
        counts = count_sandboxes(await mine.run_checks())
        assert counts == {"sandboxes_in_use": 1, "sandboxes_left": 1}
        assert await mine.remove_orphans() == 1
        await used.send(b"still here")
        assert await used.receive() == b"still here"
        counts = count_sandboxes(await mine.run_checks())
        assert counts == {"sandboxes_in_use": 1, "sandboxes_left": 0}
    mine.close()


async def test_labels_name_the_server_and_its_data_folder(
    home: Path, engine: docker.APIClient
) -> None:
    made = backend(home, ECHO)
    async with made.open_channel() as channel:
        found = engine.inspect_container(channel.info.id)
        assert found["Config"]["Labels"][OWNER_LABEL] == "live"
        assert found["Image"] == channel.info.image
    made.close()


# what is wrong outside ----------------------------------------------------------------------------


async def test_a_missing_engine_is_unavailable_with_a_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home}/nothing.sock")
    made = backend(home, ECHO)
    with pytest.raises(
        Unavailable, match=r"nothing\.sock does not answer: No such file.*scripts/docker-engine"
    ):
        async with made.open_channel():
            pass
    (check,) = await made.run_checks()
    assert (check.name, check.is_ok) == ("engine", False)
    assert "scripts/docker-engine" in check.remedy


async def test_a_missing_image_is_unavailable_with_a_remedy(
    home: Path,
) -> None:
    made = backend(home, ECHO, SandboxSettings(packages=("never-built",)))
    with pytest.raises(Unavailable, match="Run `mcpruntime-server image build`"):
        async with made.open_channel():
            pass
    checks = {check.name: check for check in await made.run_checks()}
    made.close()
    assert not checks["image"].is_ok
    assert checks["image"].remedy == "Run `mcpruntime-server image build`."
    assert all(check.is_ok for name, check in checks.items() if name != "image")


async def test_a_runtime_that_the_engine_does_not_have_is_reported(home: Path) -> None:
    made = backend(home, ECHO, SandboxSettings(runtime="no-such-runtime"))
    with pytest.raises(SandboxFailed, match="no-such-runtime"):
        async with made.open_channel():
            pass
    checks = {check.name: check for check in await made.run_checks()}
    made.close()
    assert not checks["runtime"].is_ok


def open_to_all(home: Path) -> Path:
    """A folder with a file in it, for a user that the host does not know."""
    data = home / "data"
    data.mkdir()
    data.chmod(0o777)
    (data / "file").write_text("content")
    return data


async def test_a_mounted_folder_is_read_only_unless_it_says_rw(home: Path) -> None:
    data = open_to_all(home)
    code = """
    try:
        open("/data/new", "w").write("x")
    except OSError as exc:
        print(json.dumps([open("/data/file").read(), exc.strerror]))
    else:
        print(json.dumps([open("/data/file").read(), "written"]))
    """
    for mode, expected in (("", "Read-only file system"), (":rw", "written")):
        settings = replace(SMALL, mounts=(f"{data}:/data{mode}",))
        assert await inside(home, code, settings) == ["content", expected]


@pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator can give folders away")
async def test_a_folder_of_a_user_that_nobody_else_may_enter_can_be_written(home: Path) -> None:
    data = open_to_all(home)
    os.chown(data, 12_345, 12_345)
    data.chmod(0o700)
    code = "open('/data/new', 'w').write('x')\nprint(json.dumps(os.listdir('/data')))"
    settings = replace(SMALL, mounts=(f"{data}:/data:rw",))
    assert sorted(await inside(home, code, settings)) == ["file", "new"]
    assert (data / "new").stat().st_uid == 12_345
    assert check_mounts(settings) == []


def test_a_folder_of_the_administrator_is_reported(tmp_path: Path) -> None:
    settings = SandboxSettings(mounts=(f"{tmp_path}:/data:rw", f"{tmp_path}:/more"))
    if tmp_path.stat().st_uid == 0:
        [check] = check_mounts(settings)
        assert str(tmp_path) in check.detail


@pytest.mark.parametrize(
    "entry",
    [
        "data:/data",
        "/data",
        "/data:data",
        "/data:/d:x",
        "/:/host",
        "/data:/usr",
        "/a:/context",
        "/a:/context/x",
        "/a:/x/../etc",
    ],
)
def test_a_mount_that_makes_no_sense_is_a_config_error(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ConfigError, match="mounts"):
        backend(tmp_path, ECHO, SandboxSettings(mounts=(entry,)))


@pytest.mark.parametrize(
    ("kernel", "runtime", "expected"),
    [
        ("5.4.0-26-generic", "", False),
        ("5.5.0", "", True),
        ("6.10.14-linuxkit", "", True),
        ("6.1.0", "runsc", False),
        ("", "", True),
    ],
)
def test_a_kernel_without_seccomp_listeners_is_reported(
    kernel: str, runtime: str, expected: bool
) -> None:
    assert can_guard_processes(kernel, runtime) is expected


# figures in the engine's forms --------------------------------------------------------------------


def test_memory_is_read_from_both_forms_of_statistics() -> None:
    v1 = {
        "usage": 100,
        "stats": {"active_file": 1, "total_active_file": 20, "total_inactive_file": 30},
    }
    v2 = {"usage": 100, "stats": {"active_file": 20, "inactive_file": 30, "file": 70}}
    assert parse_used_memory(v1) == parse_used_memory(v2) == 50
    assert parse_used_memory({}) is None


def test_a_container_that_still_runs_is_described_so() -> None:
    assert "restarted" in describe_container_exit({"Running": True, "ExitCode": 0}, 512)


def test_stderr_is_quoted_in_the_description_of_an_exit() -> None:
    assert (
        describe_stderr(b"ok\nThe server says: all is well\n")
        == r" Its last words were 'ok\nThe server says: all is well'."
    )
    assert describe_stderr(b"\xff" * 10000).count("\ufffd") == 300


def test_cpus_are_spread_over_sandboxes() -> None:
    settings = SandboxSettings(cpus=1.5)
    taken: list[tuple[int, ...]] = []
    for _ in range(4):
        taken.append(hardening.choose_cpus(settings, taken, 8))
    assert sorted(cpu for cpus in taken for cpu in cpus) == list(range(8))
    assert hardening.choose_cpus(settings, [], 2) == ()
