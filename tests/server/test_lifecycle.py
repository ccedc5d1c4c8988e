"""How servers start, stop, die and share a data folder, and what happens to their sessions."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import tty
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mcpruntime_server.sandbox.docker_backend import DATA_FOLDER_LABEL, data_folder_digest

from ..helpers.child_processes import start_process
from ..helpers.forking import forked_command, forked_pid
from ..helpers.server_connection import (
    COMMAND,
    TEST_TIMEOUT_S,
    ServerConnection,
    connect_server,
    write_settings,
)
from ..helpers.sizes import choose_cases
from .test_resume import until

INITIALIZE = (
    '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},'
    '"clientInfo":{"name":"raw","version":"1"}}}\n'
    '{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
)
# What it prints is in no sign of life ("still running"), which comes before its code runs.
ENDLESS = (
    "print('looping', flush=True)\nwhile True:\n    try:\n        while True: pass\n"
    "    except BaseException: pass"
)
END_S = 5.0  # a server that was asked to end is gone by then, and so are its containers


def containers(settings: Path) -> list[str]:
    """Return the containers of all servers, living or dead, on the data folder of `settings`."""
    label = f"{DATA_FOLDER_LABEL}={data_folder_digest(settings.parent / 'data')}"
    found = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"label={label}"],
        capture_output=True,
        check=True,
        text=True,
    )
    return found.stdout.split()


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Path]:
    """Settings of a server with Docker sandboxes; the test ends without leftover containers."""
    path = write_settings(tmp_path, sandbox={"pool_size": 1})
    yield path
    left = containers(path)
    if left:
        subprocess.run(["docker", "rm", "-f", *left], capture_output=True, check=True)
    assert left == []


def run_request(code: str, number: int = 2, **more: Any) -> str:
    """Return the line that asks for `code` to be run, with progress."""
    params = {
        "name": "run_code",
        "arguments": {"code": code, **more},
        "_meta": {"progressToken": "p"},
    }
    request = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    return json.dumps(request) + "\n"


class Raw:
    """A server process whose stdin and stdout are in the test's hands."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self.process = process

    async def say(self, text: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send(text.encode())

    async def hear(self, word: str) -> str:
        """Read stdout until `word` has come; return what was read."""
        assert self.process.stdout is not None
        heard = b""
        with anyio.fail_after(TEST_TIMEOUT_S):
            while word.encode() not in heard:
                heard += await self.process.stdout.receive()
        return heard.decode()

    async def run(self, code: str, number: int = 2, **more: Any) -> None:
        """Ask for `code` to be run, with progress."""
        await self.say(run_request(code, number, **more))

    async def kill(self) -> None:
        """Kill the server, which was forked, and wait for its end."""
        pid = forked_pid(self.process.pid)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await self.end()

    async def end(self) -> int:
        """Wait for the process to end; return its exit code."""
        with anyio.fail_after(END_S):
            return await self.process.wait()


def with_hangup() -> list[str]:
    """Return the start of a command that heeds SIGHUP, even if these tests run under nohup."""
    return ["env", "--default-signal=HUP,INT,TERM"]


async def until_stopping(settings: Path) -> None:
    """Wait until a server has noted in its log that it stops."""
    log = settings.parent / "data" / "logs" / "server.log"
    with anyio.fail_after(TEST_TIMEOUT_S):
        await until(lambda: "stopping: " in log.read_text())


@asynccontextmanager
async def raw_server(settings: Path, wrapper: Sequence[str] = ()) -> AsyncIterator[Raw]:
    """Start a server that has answered; with `wrapper`, the installed command behind it."""
    options = ("--config", str(settings), "--stdio")
    command = [*wrapper, COMMAND, *options] if wrapper else forked_command(*options)
    async with start_process(command, stderr=subprocess.DEVNULL) as process:
        server = Raw(process)
        await server.say(INITIALIZE)
        await server.hear('"id":1')
        yield server


@asynccontextmanager
async def two_servers(settings: Path) -> AsyncIterator[tuple[ServerConnection, ServerConnection]]:
    async with connect_server(settings) as one, connect_server(settings) as other:
        yield one, other


# the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["1", ENDLESS], ids=["idle", "busy"])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stdin"])
async def test_a_stopped_server_leaves_no_container(settings: Path, how: str, code: str) -> None:
    async with raw_server(settings) as server:
        await server.run(code)
        await server.hear("looping" if code == ENDLESS else '"id":2')
        assert containers(settings)
        if how == "stdin":
            assert server.process.stdin is not None
            await server.process.stdin.aclose()
        else:
            server.process.send_signal(getattr(signal, how))
        assert await server.end() == 0
    assert containers(settings) == []


@pytest.mark.parametrize(
    "signals",
    choose_cases(["SIGHUP SIGTERM SIGHUP SIGINT", "SIGTERM SIGTERM", "SIGINT SIGINT"]),
)
async def test_more_signals_do_not_disturb_a_server_that_stops(
    settings: Path, signals: str
) -> None:
    first, *others = (signal.Signals[name] for name in signals.split())
    async with raw_server(settings, with_hangup()) as server:
        await server.run(ENDLESS)
        await server.hear("looping")
        server.process.send_signal(first)
        await until_stopping(settings)
        for number in others:
            server.process.send_signal(number)
        with anyio.fail_after(TEST_TIMEOUT_S):
            assert await server.process.wait() == 0
    assert containers(settings) == []


@pytest.mark.parametrize("has_more_signals", choose_cases([True, False]))
async def test_a_server_whose_terminal_is_closed_leaves_no_container(
    settings: Path, *, has_more_signals: bool
) -> None:
    terminal, server_side = pty.openpty()
    tty.setraw(server_side)
    command = [*with_hangup(), "setsid", "--ctty", COMMAND, "--config", str(settings), "--stdio"]
    async with start_process(
        command, stdin=server_side, stdout=server_side, stderr=server_side
    ) as process:
        os.close(server_side)
        os.write(terminal, f"{INITIALIZE}{run_request(ENDLESS)}".encode())
        heard = b""
        with anyio.fail_after(TEST_TIMEOUT_S):
            while b'"message":"looping' not in heard:
                await anyio.wait_readable(terminal)
                heard += os.read(terminal, 65_536)
            os.close(terminal)
            if has_more_signals:
                await until_stopping(settings)
                for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
                    process.send_signal(number)
            assert await process.wait() == 0
    assert containers(settings) == []


async def test_a_server_under_nohup_ignores_a_hangup(settings: Path) -> None:
    async with raw_server(settings, ["env", "--ignore-signal=HUP"]) as server:
        server.process.send_signal(signal.SIGHUP)
        await server.run("1 + 1")
        await server.hear('"value":2')
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == 0


async def test_a_command_that_is_stopped_twice_leaves_no_container(settings: Path) -> None:
    async with connect_server(settings) as server:
        await server.run("1", session="report")
    command = [COMMAND, "--config", str(settings), "replay", "rerun", "report"]
    code = settings.with_name("endless.py")
    code.write_text(ENDLESS)
    async with start_process(
        [*command, "1", "--code", str(code)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        with anyio.fail_after(TEST_TIMEOUT_S):
            await until(lambda: bool(containers(settings)))
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            assert await process.wait() in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert containers(settings) == []


async def test_a_server_stopped_while_a_sandbox_starts_leaves_no_container(
    settings: Path,
) -> None:
    async with raw_server(settings) as server:
        await server.run("1")
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == 0


async def test_files_of_the_last_run_outlive_a_server_whose_client_leaves_at_once(
    settings: Path,
) -> None:
    size = 20_000_000
    async with connect_server(settings) as server:
        answer = await server.run(f"open('big', 'wb').write(bytes({size}))", session="report")
        assert answer.files == ["big"]
    async with connect_server(settings) as server:
        assert await server.evaluate("import os; os.path.getsize('big')", session="report") == size


async def test_containers_of_a_killed_server_are_gone_after_the_next_start(settings: Path) -> None:
    async with raw_server(settings) as server:
        await server.run(ENDLESS)
        await server.hear("looping")
        await server.kill()
    async with connect_server(settings) as successor:
        await successor.run("1")
        with anyio.fail_after(
            TEST_TIMEOUT_S
        ):  # its session's are left, that of the run that goes on, and the one that is ready
            await until(lambda: len(containers(settings)) <= 3)
            assert (await successor.run("2")).value == 2


async def test_a_session_continues_at_the_next_step_after_its_server_was_killed(
    settings: Path,
) -> None:
    async with raw_server(settings) as server:
        # Unlike ENDLESS it can be interrupted: a run whose interpreter is killed is no step.
        code = "print('looping', flush=True)\nwhile True: pass"
        await server.run(code, session="report", timeout_s=2)
        await server.hear("looping")
        await server.kill()
    async with connect_server(settings) as successor:
        answer = await successor.run("1", session="report")
        assert (answer.status, answer.step) == ("ok", 2)
        assert "was resumed" in answer.note


# sessions -----------------------------------------------------------------------------------------


async def test_a_session_is_resumed_by_the_next_server_with_all_it_had_and_says_so(
    settings: Path,
) -> None:
    async with connect_server(settings) as server:
        first = await server.run("x = 1; open('a.txt', 'w').write('kept')", session="report")
        assert "The session 'report' is new." in first.note
        assert "note" not in (await server.run("x", session="report")).data
    async with connect_server(settings) as server:
        again = await server.run("open('a.txt').read(), x", session="report")
        assert again.value == ["kept", 1]
        assert (again.step, "was resumed" in again.note) == (3, True)


async def test_two_servers_share_a_data_folder_but_no_session(settings: Path) -> None:
    async with two_servers(settings) as (one, other):
        assert await one.evaluate("x = 1", session="report") == 1
        refused = await other.run("x", session="report")
        assert refused.is_error
        assert "in use by another server" in refused.text
        assert await other.evaluate("x = 2", session="other report") == 2
        assert await one.evaluate("x", session="report") == 1
        own = (await one.run("1")).session
        assert "in use by another server" in (await other.run("1", session=own)).text


async def test_an_idle_session_gives_up_its_sandbox_and_comes_back_with_all_it_had(
    tmp_path: Path,
) -> None:
    settings = write_settings(tmp_path, server={"session_idle_s": 0.2}, sandbox={"pool_size": 0})
    async with connect_server(settings) as server:
        await server.run("x = 1; open('a.txt', 'w').write('kept')", session="report")
        with anyio.fail_after(TEST_TIMEOUT_S):
            while containers(settings):
                await anyio.lowlevel.checkpoint()
        again = await server.run("open('a.txt').read(), x", session="report")
        assert again.value == ["kept", 1]
        assert "was resumed" in again.note


async def test_more_sessions_than_allowed_evict_the_one_that_was_idle_longest(
    tmp_path: Path,
) -> None:
    settings = write_settings(tmp_path, server={"max_sessions": 2})
    async with connect_server(settings) as server:
        for name in ("one", "two", "three"):
            await server.run(f"x = '{name}'; open('me', 'w').write(x)", session=name)
        assert await server.evaluate("x", session="two") == "two"
        assert await server.evaluate("open('me').read(), x", session="one") == ["one", "one"]
        assert await server.evaluate("'x' in globals()", session="two") is True


async def test_sessions_that_are_all_busy_are_not_evicted(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, server={"max_sessions": 1})
    async with connect_server(settings) as server, anyio.create_task_group() as tasks:
        started = anyio.Event()

        async def heard(*_: Any) -> None:
            started.set()

        async def be_busy() -> None:
            await server.run(
                "print('on', flush=True)\nimport time; time.sleep(99)",
                session="busy",
                progress_callback=heard,
            )

        tasks.start_soon(be_busy)
        with anyio.fail_after(TEST_TIMEOUT_S):
            await started.wait()
            refused = await server.run("1", session="late")
        assert refused.is_error
        assert "All 1 sessions are busy" in refused.text
        tasks.cancel_scope.cancel()


async def test_every_session_of_many_comes_back_while_they_evict_each_other(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, server={"max_sessions": 2})
    async with connect_server(settings) as server:
        for turn in range(3):
            async with anyio.create_task_group() as tasks:
                for name in ("a", "b", "c", "d"):
                    tasks.start_soon(check_turn, server, name, turn)


async def check_turn(server: ServerConnection, name: str, turn: int) -> None:
    code = (
        "import os\nn = int(open('n').read()) + 1 if os.path.exists('n') else 0\n"
        "open('n', 'w').write(str(n))\nn"
    )
    answer = await server.run(code, session=name)
    while answer.is_error:  # both places were taken
        assert "busy" in answer.text, answer.text
        answer = await server.run(code, session=name)
    assert answer.value == turn, answer.text


# sandboxes that are lost from outside -------------------------------------------------------------


async def test_a_container_that_is_killed_between_runs_is_replaced_with_all_that_was_in_it(
    settings: Path,
) -> None:
    async with connect_server(settings) as server:
        await server.run("x = 1; open('a.txt', 'w').write('kept')", session="report")
        await anyio.run_process(["docker", "kill", *containers(settings)], check=False)
        answer = await server.run("open('a.txt').read(), x", session="report")
        while answer.status == "crashed":  # its death had not been noticed yet
            answer = await server.run("open('a.txt').read(), x", session="report")
        assert answer.value == ["kept", 1]


async def test_a_container_that_is_killed_while_code_runs_ends_the_run_and_not_the_session(
    settings: Path,
) -> None:
    async with connect_server(settings) as server, anyio.create_task_group() as tasks:
        answers = []
        started = anyio.Event()

        async def heard(*_: Any) -> None:
            started.set()

        async def run() -> None:
            code = (
                "open('a.txt', 'w').write('lost')\nprint('on', flush=True)\n"
                "import time; time.sleep(99)"
            )
            answers.append(await server.run(code, session="report", progress_callback=heard))

        await server.run("open('a.txt', 'w').write('kept')", session="report")
        tasks.start_soon(run)
        with anyio.fail_after(TEST_TIMEOUT_S):
            await started.wait()
        await anyio.run_process(["docker", "rm", "-f", *containers(settings)], check=False)
        with anyio.fail_after(TEST_TIMEOUT_S):
            while not answers:
                await anyio.lowlevel.checkpoint()
        assert (answers[0].status, answers[0].stdout) == ("crashed", "on\n")
        assert "continues in a new sandbox" in answers[0].note
        assert await server.evaluate("open('a.txt').read()", session="report") == "kept"


# the data folder ----------------------------------------------------------------------------------


def start(settings: Path, said: str) -> subprocess.CompletedProcess[str]:
    """Start a server that hears `said` and then the end of its stdin."""
    command = [COMMAND, "--config", str(settings), "--stdio"]
    return subprocess.run(
        command, input=said, capture_output=True, text=True, timeout=TEST_TIMEOUT_S, check=False
    )


def test_nothing_but_protocol_is_written_to_stdout(settings: Path) -> None:
    done = start(settings, INITIALIZE)
    assert [line[:16] for line in done.stdout.splitlines()] == ['{"jsonrpc":"2.0"']
    assert done.returncode == 0


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = start(write_settings(tmp_path, server={"data_dir": str(tmp_path / "file" / "data")}), "")
    assert (done.returncode, done.stdout) == (2, "")
    assert str(tmp_path / "file") in done.stderr
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr
