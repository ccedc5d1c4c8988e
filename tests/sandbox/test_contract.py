"""What every backend must do: the same cases for containers and for local processes."""

from __future__ import annotations

import anyio
import pytest

from mcpruntime_server.errors import SandboxFailed
from mcpruntime_server.protocol import wire
from mcpruntime_server.sandbox import Backend
from mcpruntime_server.sandbox.link import SandboxLink, open_link

from .conftest import RunRecorder, SandboxDriver, make_setup

# values -------------------------------------------------------------------------------------------


async def test_code_starts_before_modules_are_imported_that_few_runs_need(
    run: SandboxDriver,
) -> None:
    """Each of them would cost every sandbox milliseconds and hundreds of kilobytes."""
    slow = ["asyncio", "ctypes", "dataclasses", "http", "inspect", "ssl", "typing", "weakref"]
    found = await run.evaluate(f"[name for name in {slow} if name in __import__('sys').modules]")
    assert found == "[]"


async def test_variables_imports_and_functions_persist(shared: SandboxDriver) -> None:
    await shared("import math\nx = 20\ndef double(n): return 2 * n")
    assert await shared.evaluate("double(x) + math.floor(1.5)") == "41"


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("1 + 1", "2", "json"),
        ("x = [1, 2]", "[1, 2]", "json"),
        ("x, y = 1, 'a'", '[1, "a"]', "json"),
        ("x = 1\nx += 4", "5", "json"),
        ("n: int = 3", "3", "json"),
        ("float('nan')", "nan", "repr"),
        ("b'bytes'", "b'bytes'", "repr"),
        ("{1, }", "{1}", "repr"),
        ("'\\udc80'", '"\\\\udc80"', "json"),
    ],
)
async def test_the_last_expression_or_assignment_is_the_value(
    shared: SandboxDriver, code: str, text: str, kind: str
) -> None:
    done = await shared(code)
    assert done.value is not None
    assert (done.value["text"], done.value["kind"]) == (text, kind)


async def test_a_statement_has_no_value(shared: SandboxDriver) -> None:
    assert (await shared("if True:\n    1")).value is None
    assert (await shared("x = None")).value is None


async def test_a_cycle_is_shown_by_its_repr(shared: SandboxDriver) -> None:
    assert await shared.evaluate("x = []\nx.append(x)\nx") == "[[...]]"


async def test_a_repr_that_raises_is_reported_and_not_raised(shared: SandboxDriver) -> None:
    text = await shared.evaluate(
        "class Bad:\n    def __repr__(self): raise ValueError('no')\nBad()"
    )
    assert text == "<Bad whose repr failed with ValueError>"


async def test_a_huge_value_is_truncated_and_marked(shared: SandboxDriver) -> None:
    done = await shared("'x' * 100_000_000")
    assert done.value is not None
    assert done.value["cut"]
    assert len(done.value["text"]) <= 11_000


async def test_top_level_await_works_and_its_loop_stays(shared: SandboxDriver) -> None:
    await shared(
        "import asyncio\ntask = asyncio.ensure_future(asyncio.sleep(0, 'later'))\n"
        "await asyncio.sleep(0)"
    )
    assert await shared.evaluate("await task") == '"later"'


async def test_threads_continue_between_runs(run: SandboxDriver) -> None:
    await run(
        "import threading\ngo, seen = threading.Event(), []\n"
        "t = threading.Thread(target=lambda: (go.wait(), seen.append(1)))\nt.start()"
    )
    assert await run.evaluate("go.set(); t.join(); seen") == "[1]"


# errors -------------------------------------------------------------------------------------------


async def test_an_error_shows_the_users_own_lines(shared: SandboxDriver) -> None:
    await shared("def half(n):\n    return n / 0")
    done = await shared("import json\nhalf(3)")
    assert done.status == "error"
    assert done.error is not None
    assert done.error["type"] == "ZeroDivisionError"
    assert done.error["line"] == 1 + 1
    assert "return n / 0" in done.error["traceback"]
    assert "mcpruntime_sandbox" not in done.error["traceback"]


async def test_a_syntax_error_names_the_line(shared: SandboxDriver) -> None:
    done = await shared("x = 1\ny = = 2")
    assert done.error is not None
    assert (done.error["type"], done.error["line"]) == ("SyntaxError", 2)


async def test_a_misspelled_name_gets_a_suggestion(shared: SandboxDriver) -> None:
    done = await shared("counter = 1\ncountre")
    assert done.error is not None
    assert "counter" in done.error["traceback"].splitlines()[-1]


async def test_an_exception_that_cannot_be_printed_is_still_an_error(shared: SandboxDriver) -> None:
    done = await shared("class E(Exception):\n    def __str__(self): raise KeyError\nraise E")
    assert done.status == "error"
    assert (await shared("1")).status == "ok"


async def test_input_fails_clearly(shared: SandboxDriver) -> None:
    done = await shared("input('name? ')")
    assert done.error is not None
    assert "is not available here" in done.error["message"]


async def test_sys_exit_ends_the_run_and_not_the_session(shared: SandboxDriver) -> None:
    await shared("x = 5")
    assert (await shared("import sys; sys.exit()")).status == "ok"
    assert (await shared("sys.exit(3)")).status == "error"
    assert await shared.evaluate("x") == "5"


# output -------------------------------------------------------------------------------------------


async def test_stdout_and_stderr_are_separate(shared: SandboxDriver) -> None:
    await shared("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (shared.recorder.output_text("stdout"), shared.recorder.output_text("stderr")) == (
        "out\n",
        "err\n",
    )


async def test_output_of_child_processes_and_raw_descriptors_arrives(shared: SandboxDriver) -> None:
    await shared(
        "import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(1)'])\n"
        "os.write(1, b'raw')"
    )
    assert shared.recorder.output_text() == "1\nraw"


async def test_short_outputs_are_never_lost(shared: SandboxDriver) -> None:
    for number in range(100):
        await shared(f"print({number}, end='')")
        assert shared.recorder.output_text() == str(number)


async def test_the_first_line_arrives_while_the_code_runs(shared: SandboxDriver) -> None:
    recorder = RunRecorder()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            shared, "print('now', flush=True)\nimport time\ntime.sleep(60)", 60.0, recorder
        )
        with anyio.fail_after(10):
            await recorder.output_arrived.wait()
        shared.link.stop_run("cancelled")
    assert recorder.output_text() == "now\n"


async def test_output_beyond_the_limit_is_counted_and_dropped(shared: SandboxDriver) -> None:
    await shared("for _ in range(1000): print('x' * 9_999)")
    kept = len(shared.recorder.output_text())
    assert kept <= 1 << 20
    assert kept + shared.recorder.dropped == 10_000_000


async def test_a_run_that_closes_its_descriptors_does_not_silence_the_next(
    run: SandboxDriver,
) -> None:
    await run("import os, sys\nfor fd in (0, 1, 2): os.close(fd)")
    await run("sys.stdout = None")
    await run("print('heard')\nos.system('echo too')")
    assert run.recorder.output_text() == "heard\ntoo\n"


async def test_what_a_thread_prints_between_runs_is_in_the_next(run: SandboxDriver) -> None:
    await run(
        "import threading\ngo, said = threading.Event(), threading.Event()\n"
        "threading.Thread(target=lambda: (go.wait(), print('late'), said.set())).start()"
    )
    await run("threading.Timer(0, go.set).start()")
    await run("said.wait()")
    assert run.recorder.output_text() in (
        "late\n",
        "",
    )  # or it was printed before the second run was over


async def test_a_background_process_outlives_its_run_and_prints_into_the_present_one(
    run: SandboxDriver,
) -> None:
    await run(
        "import os, subprocess, time\n"
        "code = 'until [ -e go ]; do sleep 0.01; done; echo between; touch said; '\n"
        "code += 'until [ -e stop ]; do sleep 0.01; done; echo during; touch ended'\n"
        "child = subprocess.Popen(['sh', '-c', code], start_new_session=True)\n"
        "def wait(name):\n    while not os.path.exists(name): time.sleep(0.01)",
        park=False,
    )
    await run("subprocess.Popen(['sh', '-c', 'sleep 0.3; touch go'])", park=False)
    early = run.recorder  # if the machine is slow, the run has not ended before the first line
    await run("wait('said'); open('stop', 'w').close(); wait('ended')", park=False)
    assert early.output_text() + run.recorder.output_text() == "between\nduring\n"
    assert await run.evaluate("child.wait(30)") == "0"


# calls --------------------------------------------------------------------------------------------

CALL = "from mcpruntime_sandbox.sandboxed.library.tools import host, HostError\n"


async def test_a_call_returns_the_answer_of_the_host_and_reports_its_line(
    shared: SandboxDriver,
) -> None:
    assert (
        await shared.evaluate(f"{CALL}host.call('test.echo', {{'a': [1, None]}})")
        == '{"a": [1, null]}'
    )
    assert [(call.target, call.line) for call in shared.recorder.calls] == [("test.echo", 2)]


async def test_an_error_of_the_host_is_raised_where_the_code_called(shared: SandboxDriver) -> None:
    code = (
        CALL + "try:\n    host.call('test.fail', {})\nexcept HostError as e:\n"
        "    r = (e.kind, e.message, e.data)\nr"
    )
    assert await shared.evaluate(code) == '["tool_error", "no", {"why": 1}]'


async def test_threads_call_at_the_same_time(shared: SandboxDriver) -> None:
    code = (
        f"{CALL}from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(32) as pool:\n"
        "    r = list(pool.map(lambda n: host.call('test.nap', {'seconds': 0.2, 'n': n})['n'], "
        "range(32)))\n"
        "r == list(range(32))"
    )
    with anyio.fail_after(shared.concurrent_s):  # one after the other, they take longer
        assert await shared.evaluate(code) == "true"


async def test_tasks_and_threads_call_at_the_same_time(shared: SandboxDriver) -> None:
    code = (
        f"{CALL}import asyncio\n"
        "tasks = [host.acall('test.nap', {'seconds': 0.2, 'n': n}) for n in range(16)]\n"
        "threads = [asyncio.to_thread(host.call, 'test.nap', {'seconds': 0.2, 'n': n}) for n "
        "in range(16, 20)]\n"
        "[r['n'] for r in await asyncio.gather(*tasks, *threads)] == list(range(20))"
    )
    with anyio.fail_after(shared.concurrent_s):
        assert await shared.evaluate(code) == "true"


async def test_arguments_that_are_not_json_are_refused_in_the_code(shared: SandboxDriver) -> None:
    done = await shared(f"{CALL}host.call('test.echo', {{'x': {{1, 2}}}})")
    assert done.error is not None
    assert "not JSON" in done.error["message"]
    assert shared.recorder.calls == []


async def test_a_process_that_code_forks_cannot_call_and_reports_no_result(
    run: SandboxDriver,
) -> None:
    code = (
        f"{CALL}import os\nif os.fork() == 0:\n    host.call('test.echo', {{}})\nos.wait()[1] != 0"
    )
    assert await run.evaluate(code) == "true"
    assert run.recorder.calls == []
    assert await run.evaluate("1") == "1"


# stopping -----------------------------------------------------------------------------------------


async def test_code_is_interrupted_after_its_timeout_and_variables_stay(
    shared: SandboxDriver,
) -> None:
    await shared("x = 1")
    done = await shared("while True: pass", timeout_s=shared.start_s)
    assert (done.status, shared.stopped) == ("interrupted", "timeout")
    assert await shared.evaluate("x") == "1"


async def test_code_that_waits_for_the_host_is_interrupted(shared: SandboxDriver) -> None:
    code = f"{CALL}host.call('test.nap', {{'seconds': 600}})"
    done = await shared(code, timeout_s=shared.start_s)
    assert done.status == "interrupted"
    assert await shared.evaluate("host.call('test.echo', {'a': 1})['a']") == "1"


async def test_code_that_awaits_is_interrupted_and_cleans_up(shared: SandboxDriver) -> None:
    await shared(
        "import asyncio\nclean = []\nasync def f():\n    try: await asyncio.sleep(600)\n"
        "    finally: clean.append(1)"
    )
    done = await shared("await f()", timeout_s=shared.start_s)
    assert done.status == "interrupted"
    assert await shared.evaluate("clean") == "[1]"


async def test_code_that_ignores_interrupts_loses_its_interpreter_but_not_the_sandbox(
    run: SandboxDriver,
) -> None:
    await run("open('kept', 'w').write('file')")
    done = await run(
        "import time\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass",
        timeout_s=run.start_s,
    )
    assert (done.status, run.stopped) == ("died", "timeout")
    assert "did not stop" in run.link.restart_reasons[-1]
    assert await run.evaluate("open('kept').read()") == '"file"'


async def test_a_child_process_that_outlives_a_killed_run_is_killed_too(run: SandboxDriver) -> None:
    code = "import signal, subprocess, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += (
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "open('pid', 'w').write(str(child.pid))\n"
    )
    await run(code + "time.sleep(60)", timeout_s=run.start_s)
    alive = (
        "import os\npid = int(open('pid').read())\n"
        "os.path.exists(f'/proc/{pid}') and 'Z' not in open(f'/proc/{pid}/stat').read().split()[2]"
    )
    assert await run.evaluate(alive) == "false"


# dying --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("import os; os._exit(3)", "code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os; os.closerange(3, 1000)\nimport time; time.sleep(60)", "closed a descriptor"),
        ((
            "import os\nfor fd in range(3, 1000):\n    try: os.write(fd, b'garbage' * 9)\n"
            "    except OSError: pass\nimport time; time.sleep(60)"
        ), "wrote to a descriptor"),
    ],
)  # fmt: skip
async def test_an_interpreter_that_dies_is_replaced(
    run: SandboxDriver, code: str, word: str
) -> None:
    done = await run(code)
    assert done.status == "died"
    assert done.error is not None
    assert word in done.error["message"]
    assert await run.evaluate("'new'") == '"new"'
    assert run.link.restart_reasons


async def test_code_that_damages_the_runtime_gets_a_new_interpreter(
    run: SandboxDriver,
) -> None:
    assert (await run("import os\nos.getpid = None")).status == "died"
    assert await run.evaluate("1") == "1"
    assert "modules that it needs" in run.link.restart_reasons[-1]


@pytest.mark.unlike_gvisor("the first calls end before so many are made")
async def test_endless_calls_are_refused_beyond_a_limit(run: SandboxDriver) -> None:
    code = (
        f"{CALL}import asyncio\n"
        "waits = [asyncio.ensure_future(host.acall('test.wait', {})) for _ in range(1200)]\n"
        "while sum(wait.done() for wait in waits) < 176: await asyncio.sleep(0.01)\n"
        "print('refused', flush=True)\n"
        "ended = await asyncio.gather(*waits, return_exceptions=True)\n"
        "sum(isinstance(each, HostError) for each in ended)"
    )
    assert await run.evaluate(code) == "176"


@pytest.mark.unlike_gvisor("the kernel kills gVisor itself when memory runs out")
async def test_code_that_takes_all_memory_does_not_end_the_sandbox(run: SandboxDriver) -> None:
    done = await run("x = []\nwhile True: x.append(bytearray(10_000_000))")
    assert done.status in (
        "died",
        "error",
    )  # killed where a container counts, MemoryError where a limit refuses
    assert await run.evaluate("1") == "1"


async def test_code_that_kills_its_parent_ends_the_sandbox_with_an_error(
    run: SandboxDriver, backend: Backend
) -> None:
    if backend.is_isolated:
        pytest.skip("signals do not reach the init of a container")
    with pytest.raises(SandboxFailed, match="gone"), anyio.fail_after(20):
        await run("import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")
    assert run.link.closed.is_set()
    with pytest.raises(SandboxFailed):
        await run("1")


# files --------------------------------------------------------------------------------------------


async def test_changed_and_removed_files_are_reported_with_their_content(
    run: SandboxDriver,
) -> None:
    await run(
        "import os\nos.makedirs('a/b')\nopen('a/b/c.txt', 'w').write('one')\n"
        "open('big', 'wb').write(bytes(1_000_000))"
    )
    await run.link.wait_for_files()
    assert run.recorder.files is not None
    assert run.recorder.files.changed == ["a/b/c.txt", "big"]
    assert run.recorder.contents == {"a/b/c.txt": b"one", "big": bytes(1_000_000)}
    await run("os.remove('big')\nopen('a/b/c.txt', 'a').write(' two')")
    await run.link.wait_for_files()
    assert run.recorder.files is not None
    assert (run.recorder.files.changed, run.recorder.files.removed) == (["a/b/c.txt"], ["big"])
    assert run.recorder.contents == {"a/b/c.txt": b"one two"}


async def test_restored_files_are_there_and_do_not_count_as_changed(run: SandboxDriver) -> None:
    run.link.write_file("data/x.bin", 0o640, bytes(range(256)) * 4000)
    run.link.write_file("empty", 0o600, b"")
    code = (
        "import os\n"
        "open('data/x.bin', 'rb').read() == bytes(range(256)) * 4000, "
        "os.stat('data/x.bin').st_mode & 0o777, os.path.getsize('empty')"
    )
    assert await run.evaluate(code) == "[true, 416, 0]"
    assert run.recorder.files is None


async def test_files_that_cannot_be_kept_are_counted(run: SandboxDriver) -> None:
    await run("import os\nopen(b'\\xff', 'w').close()\nopen('named', 'w').close()")
    assert run.recorder.files is not None
    assert (run.recorder.files.changed, run.recorder.files.skipped_count) == (["named"], 1)
    await run("os.remove(b'\\xff')")
    assert run.recorder.files is not None
    assert (run.recorder.files.removed, run.recorder.files.skipped_count) == ([], 0)


async def test_pipes_links_and_sockets_in_the_workspace_do_no_harm(run: SandboxDriver) -> None:
    await run(
        "import os, socket\nos.mkfifo('pipe')\nos.symlink('/etc/passwd', 'link')\n"
        "os.symlink('.', 'loop')\nsocket.socket(socket.AF_UNIX).bind('sock')"
    )
    assert run.recorder.files is None
    assert await run.evaluate("1") == "1"


async def test_a_full_disk_is_an_error_in_the_code(run: SandboxDriver) -> None:
    done = await run(
        "with open('big', 'wb') as f:\n    for _ in range(100): f.write(bytes(1_000_000))"
    )
    assert done.status in ("error", "died")
    await run("import os; os.path.exists('big') and os.remove('big')")
    assert await run.evaluate("open('small', 'w').write('x')") == "1"


# chance and time ----------------------------------------------------------------------------------

DRAW = (
    "import random, secrets, uuid, os\n"
    "str((random.random(), secrets.token_hex(4), uuid.uuid4(), os.urandom(4), {'b', 'a', 'c'}))"
)


async def test_the_same_seed_gives_the_same_randomness(backend: Backend) -> None:
    async def drawn(link: SandboxLink, seed: str) -> str:
        done = await SandboxDriver(link)(DRAW, seed=seed)
        assert done.value is not None
        return str(done.value["text"])

    async with (
        open_link(backend, make_setup(backend)) as one,
        open_link(backend, make_setup(backend)) as other,
    ):
        assert await drawn(one, "one") == await drawn(other, "one")
        assert await drawn(one, "two") != await drawn(other, "three")


async def test_randomness_of_a_run_depends_on_its_own_seed_alone(shared: SandboxDriver) -> None:
    await shared("import os, secrets, uuid")  # `random` keeps a generator, which its import draws
    fresh = "str((os.urandom(4), secrets.token_hex(4), uuid.uuid4()))"
    first, other, again = [(await shared(fresh, seed=seed)).value for seed in ("one", "two", "one")]
    assert first == again != other


async def test_clock_readings_are_recorded(shared: SandboxDriver) -> None:
    done = await shared(
        "import time, datetime\na, b = time.time(), datetime.datetime.now().timestamp()\na, b"
    )
    assert done.value is not None
    assert done.clock_readings is not None
    told = [round(reading, 3) for reading in done.clock_readings["time"]]
    assert told == [round(float(part), 3) for part in done.value["text"].strip("[]").split(",")]
    assert (await shared("1")).clock_readings == {}


async def test_clock_readings_before_a_call_come_with_the_call(
    run: SandboxDriver,
) -> None:
    read = "seen.append(time.time()); "
    done = await run(
        f"{CALL}import time; seen = []; {read}{read}host.call('test.echo', {{}}); {read}\nseen"
    )
    assert done.value is not None
    assert done.clock_readings is not None
    clocks = [call.clock_readings for call in run.recorder.calls]
    assert clocks[0] is not None
    told = [round(reading, 2) for reading in clocks[0]["time"] + done.clock_readings["time"]]
    assert [round(float(part), 2) for part in done.value["text"].strip("[]").split(",")] == told


async def test_recorded_readings_are_replayed_before_those_of_real_clocks(
    run: SandboxDriver,
) -> None:
    code = (
        "import time\na, b, c = time.monotonic(), time.monotonic(), time.time()\n"
        "(a, b > a, c > 1e9)"
    )
    ahead = 1e7
    done = await run(code, clock_readings={"monotonic": [ahead]})
    assert done.value is not None
    assert done.value["text"] == "[10000000.0, true, true]"
    assert await run.evaluate("time.monotonic() > 1e7") == "true"


# the link -----------------------------------------------------------------------------------------


async def test_many_runs_do_not_mix_up_output_or_replies(shared: SandboxDriver) -> None:
    for number in range(50):
        recorder = RunRecorder()
        done = await shared(
            f"{CALL}print({number}); host.call('test.echo', {{'n': {number}}})['n']",
            recorder=recorder,
        )
        assert done.value is not None
        assert (recorder.output_text(), done.value["text"]) == (f"{number}\n", str(number))


async def test_another_protocol_version_is_refused(backend: Backend) -> None:
    setup = make_setup(backend)
    other = wire.Setup(**{**setup.__dict__, "version": wire.PROTOCOL_VERSION + 1})
    with pytest.raises(ExceptionGroup) as failed:
        async with open_link(backend, other):
            raise AssertionError("it came up")
    assert failed.group_contains(SandboxFailed, match="did not start")
