"""Hostile and faulty code from a real client: clear answers, and no effect on other sessions.

After each test the fixture `server` checks that another session has kept its variables and files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from ..helpers.forged_messages import (
    FORGE,
    find_container,
    run_compromised,
    signal_supervisor,
)
from ..helpers.server_connection import ServerConnection, ToolAnswer, write_settings
from ..helpers.server_connection import connect_server as connect_to
from ..helpers.sizes import choose_cases, choose_size

OUTPUT_MB = choose_size("OUTPUT_MB", short=100, long=1000)
LATE_S = 50.0  # limit of code that ends by itself, on a busy machine
PAUSE_S = 0.03  # after a step, so that the sandbox falls idle and parks its state
STATUSES = {"ok", "error", "timeout", "crashed"}


async def attack(
    server: ServerConnection, code: str, timeout_s: float = 2.0
) -> tuple[ToolAnswer, ToolAnswer]:
    """Run `code` in a session of its own; return its answer and that of a harmless run after it."""
    session = f"victim {abs(hash(code))}"
    await server.run("before = 1; open('file', 'w').write('kept')", session=session)
    with anyio.fail_after(timeout_s + LATE_S):
        answer = await server.run(code, session=session, timeout_s=timeout_s)
        after = await server.run(
            "print('alive')\nimport os\nos.stat('file').st_size", session=session
        )
    assert (after.data.get("status"), after.data.get("stdout"), after.value) == (
        "ok",
        "alive\n",
        4,
    ), after.text
    return answer, after


# code that is wrong, or ends in an unusual way ----------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        ("def", "error", "SyntaxError"),
        ("x = 1\x00", "error", "null bytes"),
        ("", "ok", ""),
        ("\ufeffx = 1", "ok", "value: 1"),
        ("raise SystemExit", "ok", ""),
        ("raise GeneratorExit", "error", "GeneratorExit"),
        ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
        ("class B(BaseException): pass\nraise B('base')", "error", "B: base"),
        (
            "raise BaseExceptionGroup('g', [KeyboardInterrupt(), SystemExit(3)])",
            "error",
            "BaseExceptionGroup",
        ),
        (
            "import sys, threading\nt = threading.Thread(target=sys.exit); t.start(); t.join()",
            "ok",
            "",
        ),
        ("def f(): f()\nf()", "error", "RecursionError"),
        ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "error", "E"),
        ("raise ValueError('\\ud800')", "error", "\\ud800"),
        ("class A:\n    def __del__(self): raise SystemExit\na = A()\ndel a\n1", "ok", "value: 1"),
        ("import os; os._exit(3)", "crashed", "code 3"),
        ("import os; os.abort()", "crashed", "SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "crashed", "SIGSEGV"),
        ("import signal; signal.alarm(1)\nwhile True: pass", "crashed", "SIGALRM"),
        ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", "crashed", "interpreter"),
        (
            "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict): o.clear()",
            "crashed",
            "interpreter",
        ),
    ],
)
async def test_an_unusual_end_is_told_as_it_was(
    server: ServerConnection, code: str, status: str, word: str
) -> None:
    answer, _ = await attack(server, code, timeout_s=LATE_S)
    assert (answer.status, word in answer.text) == (status, True), answer.text


@pytest.mark.parametrize(
    "code",
    [
        "import json\njson.dumps = json.loads = None",
        "import builtins\nfor name in ('len', 'type', 'str', 'repr', 'eval', 'int'): "
        "setattr(builtins, name, None)",
        "import sys\nsys.modules.clear()",
        "import traceback, ast, select\n"
        "traceback.TracebackException = ast.parse = select.select = None",
        "import sys\nsys.settrace(lambda *a: 1 / 0)\nx = 1",
        "import sys\nsys.stdout = sys.stderr = sys.excepthook = sys.displayhook = None\n1 / 0",
        "from resource import RLIMIT_NOFILE, setrlimit\nsetrlimit(RLIMIT_NOFILE, (0, 0))",
        "import sys\ndel sys.modules['__main__']\nglobals().clear()",
        "import os\nos.makedirs('/tmp/gone')\nos.chdir('/tmp/gone')\nos.rmdir('/tmp/gone')\n"
        "os.chdir('/workspace')",
    ],
)
async def test_code_that_breaks_its_own_interpreter_harms_no_later_run(
    server: ServerConnection, code: str
) -> None:
    answer, _ = await attack(server, code)
    assert answer.status in STATUSES


# code that takes too much -------------------------------------------------------------------------


async def test_a_flood_of_output_is_cut_and_counted(server: ServerConnection) -> None:
    code = f"line = 'x' * 9_999\nprint('first')\nfor _ in range({OUTPUT_MB * 100}): print(line)"
    answer, _ = await attack(server, code, timeout_s=LATE_S)
    assert answer.status == "ok"
    assert answer.stdout.startswith("first\n")
    assert "bytes of output dropped" in answer.stdout
    assert "stdout is cut" in answer.note
    assert len(answer.text) < 25_000


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("x = []\nwhile True: x.append(bytearray(10_000_000))", "crashed"),
        (
            "import threading, time\nwhile True: threading.Thread(target=time.sleep, "
            "args=(99,)).start()",
            "error",
        ),
        ("with open('big', 'wb') as f:\n    while True: f.write(bytes(1_000_000))", "error"),
        ("with open('/tmp/big', 'wb') as f:\n    while True: f.write(bytes(1_000_000))", "error"),
        ("import itertools\nfor n in itertools.count(): open(f'many{n}', 'w').close()", "error"),
        ("import os\nopen_files = []\nwhile True: open_files.append(os.open('/', 0))", "error"),
    ],
)
async def test_code_that_takes_all_there_is_of_something_gets_no_more(
    server: ServerConnection, code: str, status: str
) -> None:
    answer, _ = await attack(server, code, timeout_s=LATE_S)
    assert answer.status == status, answer.text


@pytest.mark.alone
@pytest.mark.parametrize("fork", ["os.fork()", "os.fork() or os.setsid()"])
async def test_a_fork_bomb_is_stopped_at_its_time_limit(
    server: ServerConnection, fork: str
) -> None:
    code = f"import os\nwhile True:\n    try: {fork}\n    except OSError: pass"
    answer, _ = await attack(server, code)
    assert answer.status == "timeout", answer.text


ENDLESS = [  # and whether the variables are kept
    ("while True: pass", True),
    ("import time\ntime.sleep(600)", True),
    ("import asyncio\nawait asyncio.sleep(600)", True),
    ("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", False),
    ("import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass", False),
    ("class A:\n    def __repr__(self):\n        while True: pass\nA()", True),
    ("class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E", False),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", False),
]

TRIED_ENDLESS = choose_cases(ENDLESS, short=3, class_of=lambda case: case[1])


@pytest.mark.parametrize(("code", "is_kept"), TRIED_ENDLESS)
async def test_endless_code_is_stopped_at_its_time_limit(
    server: ServerConnection, code: str, is_kept: bool
) -> None:
    session = f"endless {abs(hash(code))}"
    await server.run("before = 7", session=session)
    await anyio.sleep(PAUSE_S)
    answer = await server.run(code, session=session, timeout_s=0.5)
    assert answer.status == "timeout"
    assert "Stopped after 0.5 s" in answer.note
    assert ("are kept as they were" in answer.note) is is_kept
    assert ("back as they were before this step" in answer.note) is not is_kept
    assert await server.evaluate("before", session=session) == 7


# code that attacks what it runs in ----------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor fd in (0, 1, 2): os.close(fd)",
        "import os\nos.closerange(3, 1024)",
        "import os\nfor fd in range(99, 999):\n    try: os.write(fd, b'?' * 9)\n"
        "    except OSError: pass\nwhile 1: 0",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nwhile True: pass",
        "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nwhile True: pass",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
        "import os, signal\nos.kill(1, signal.SIGTERM)",
    ],
)
async def test_code_that_attacks_its_surroundings_loses_its_variables_at_most(
    server: ServerConnection, code: str
) -> None:
    answer, _ = await attack(server, code)
    assert answer.status in STATUSES


async def test_a_stopped_supervisor_costs_the_sandbox_and_not_the_session(
    server: ServerConnection,
) -> None:
    await server.run("open('file', 'w').write('kept')", "stopped")
    await signal_supervisor(await find_container(server, "stopped"), "SIGSTOP")
    answer = await server.run("while True: pass", "stopped", timeout_s=0.5)
    assert "did not react" in answer.text
    assert await server.evaluate("open('file').read()", "stopped") == "kept"


ODD = (
    b'{"run_number":2,"status":"?","value":{"kind":"json","text":"NaN","type":5},"error":{"line":"x","message":[1]},'
    b'"usage":{"wall_ms":NaN,"cpu_ms":1e999},"clock_readings":{"time":[NaN,1,"x"]}}'
)
NAN = b'{"call_id":9,"run_number":2,"target":"tools.lively.echo","args":{"a":NaN}}'
BIG = "{'type': 'e' * 9_000_000, 'message': 'm' * 9_000_000, 'traceback': 't', 'line': 10 ** 30}"
FORGERIES = {
    "types": "say(frame('RunDone', {'run_number': 'x'}))",
    "huge length": "say(b'\\xff' * 9)",
    "no length": "say(bytes(9))",
    "half a frame": "say(frame('RunDone', {'run_number': run, 'status': 'ok'})[:10])",
    "a type of the host's": "say(frame('Execute', {'run_number': 9, 'code': '', 'filename': ''}))",
    "a type of the supervisor's": "say(frame('WorkerRestarted', {'reason': 'x'}))",
    "twice": "say(frame('RunDone', {'run_number': run, 'status': 'ok'}) * 2)",
    "another run": "say(frame('RunDone', {'run_number': 99, 'status': 'ok'}))",
    "odd fields": f"say(frame('RunDone', {ODD!r}))",
    "huge figures": "say(frame('RunDone', {'run_number': run, 'status': 'ok', 'usage': "
    "{'wall_ms': 10 ** 400}}))",
    "deep": "text = '[' * 500 + ']' * 500\n"
    "say(frame('RunDone', {'run_number': run, 'status': 'ok', 'value': "
    "{'kind': 'json', 'text': text}}))",
    "huge texts": "text = json.dumps('x' * 9_000_000)\n"
    "say(frame('RunDone', {'run_number': run, 'status': 'ok', 'value': "
    "{'kind': 'json', 'text': text}, 'error': " + BIG + "}))",
    "a call with odd types": "say(frame('Call', {'call_id': 'x', 'run_number': run, 'target': "
    "'tools.a.b', 'args': {}}))",
    "a call of nothing": "long = 't' * 999_999\n"
    "say(frame('Call', {'call_id': -1, 'run_number': 9, 'target': long, 'args': {long: 1}}))",
    "a call with NaN": f"say(frame('Call', {NAN!r}))",
    "one id a thousand times": "call = {'call_id': 1, 'run_number': 2, 'target': "
    "'catalog.servers', 'args': {}}\n"
    "say(frame('Call', call) * 1000)",
}
OUTSIDE_FORGERIES = {
    "garbage outside": "say_outside(b'\\xff' * 99)",
    "files outside": "say_outside(frame('FilesChanged', {'run_number': run, 'changed': "
    "['../x'], 'removed': ['y' * 99_999]})"
    " + frame('FileData', {'run_number': run, 'path': '../../x', 'mode': 511, 'is_last': "
    "True}, b'evil'))",
    "NUL in a path": "say_outside(frame('FilesChanged', {'run_number': run, 'changed': ['x'], "
    "'removed': []})"
    " + frame('FileData', {'run_number': run, 'path': 'a\\0b', 'mode': 511, 'is_last': True}, "
    "b'evil'))",
    "endless output": "head = {'run_number': run, 'stream': 'stdout', 'dropped_bytes': -5}\n"
    "for _ in range(300): say_outside(frame('Output', head, b'y' * 99_999))",
    "deaths": "say_outside(frame('WorkerRestarted', {'reason': 'r' * 999_999}))",
}


@pytest.mark.parametrize(
    "forgery",
    choose_cases(
        [*FORGERIES, *OUTSIDE_FORGERIES], short=4, class_of=lambda name: name in OUTSIDE_FORGERIES
    ),
)
async def test_forged_frames_cost_their_own_sandbox_at_most(
    server: ServerConnection, forgery: str
) -> None:
    session = f"forger {forgery.replace(chr(39), '')}"
    await server.run("open('file', 'w').write('kept')", session=session)
    with anyio.fail_after(60):
        if forgery in OUTSIDE_FORGERIES:
            code = "import time\ntime.sleep(1)"
            outside = OUTSIDE_FORGERIES[forgery]
            answer = await run_compromised(server, session, outside, code, timeout_s=2)
        else:
            code = f"{FORGE}{FORGERIES[forgery]}\ntime.sleep(0.2)"
            answer = await server.run(code, session=session, timeout_s=2)
        assert answer.status in STATUSES, answer.text
        assert len(answer.text) < 60_000
        await server.run(
            "1", session=session
        )  # which may have to hear what the forger's interpreter says belatedly
        assert await server.evaluate("open('file').read()", session=session) == "kept"


# values that are hard to show ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (
            "class A:\n    def __repr__(self): raise ValueError\nA()",
            "<A whose repr failed with ValueError>",
        ),
        ("class A:\n    def __repr__(self): return 3\nA()", "<A whose repr failed with TypeError>"),
        (
            "x = []\nfor _ in range(10**6): x = [x]\nx",
            "[" * 65 + "..." + "]" * 65,
        ),
        ("2 ** 20_000", "<int whose repr failed with ValueError>"),
        ("[float('nan'), float('inf'), 1.5]", "[nan, inf, 1.5]"),
        ("b'\\xff\\x00'", "b'\\xff\\x00'"),
        ("x = {}\nx['a'] = x\nx", "{'a': {...}}"),
        ("{'\\ud800': '\\udfff'}", {"\\ud800": "\\udfff"}),
        (
            "[2 ** 64, -(2 ** 64), 2 ** 53]",
            ["18446744073709551616", "-18446744073709551616", 2**53],
        ),
        ("{1: 2}", "{1: 2}"),
        ("[[], {}, '', 0, False, None]", [[], {}, "", 0, False, None]),
        ("0", 0),
        ("False", False),
        ("''", ""),
    ],
)
async def test_every_value_is_shown_as_json_or_as_its_repr(
    server: ServerConnection, code: str, value: Any
) -> None:
    answer = await server.run(code, session="values")
    assert (answer.status, answer.value) == ("ok", value)


@pytest.mark.parametrize(
    "made", ["'x' * 100_000_000", "type('A', (), {'__repr__': lambda self: 'x' * 100_000_000})()"]
)
async def test_a_value_of_100_mb_is_cut(server: ServerConnection, made: str) -> None:
    answer = await server.run(made, session="huge values")
    assert answer.status == "ok"
    assert "characters left out" in answer.value
    assert "value is cut" in answer.note


async def test_lone_surrogates_in_output_names_and_arguments_do_no_harm(
    server: ServerConnection,
) -> None:
    code = """
import sys
from tools.lively import echo
print('\\udc80'); print('\\udc81', file=sys.stderr)
open('\\udc80name', 'w').close(); open('good', 'w').close()
echo(text='\\ud83d')
"""
    answer = await server.run(code, session="surrogates")
    assert (answer.stdout, answer.stderr, answer.files) == ("\\udc80\n", "\\udc81\n", ["good"])
    assert (answer.status, answer.value) == ("ok", "\\ud83d")


async def test_file_names_stay_on_one_line_and_of_bearable_length(server: ServerConnection) -> None:
    code = (
        "import os\nd = 'd' * 250\nos.makedirs(d)\nopen(f'{d}/{d}', 'w').close()\nopen('two\\n"
        "lines', 'w').close()"
    )
    answer = await server.run(code, session="names")
    assert answer.files[1] == "'two\\nlines'"
    assert len(answer.files[0]) <= 201


# upstreams that are not well ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing", "garbage", "silent", "dies", "shapeless"])
async def test_an_upstream_that_cannot_be_used_is_a_clear_error_in_the_code(
    server: ServerConnection, name: str
) -> None:
    answer = await server.run(
        f"from tools.{name} import anything", session="upstreams", timeout_s=30
    )
    assert answer.status == "error"
    assert name in answer.error["message"]
    assert (await server.run("1", session="upstreams")).value == 1


async def test_an_upstream_that_says_garbage_between_its_answers_is_used_all_the_same(
    server: ServerConnection,
) -> None:
    assert await server.evaluate("tools.noisy.grow()", session="upstreams") == "ok"


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ("lively.crash()", "crash"),
        ("slow.hang()", "0.5 s"),
        ("lively.fail(reason='because')", "because"),
        ("lively.lies()", "schema"),
        ("lively.echo(txt='x')", "Did you mean 'text'?"),
        ("lively.ecko(text='x')", "Did you mean 'echo'?"),
        ("livly.echo(text='x')", "Did you mean 'lively'?"),
        ("lively.echo(text=float('nan'))", "not JSON"),
    ],
)
async def test_a_call_that_fails_is_an_error_that_names_it(
    server: ServerConnection, call: str, word: str
) -> None:
    answer = await server.run(f"tools.{call}", session="calls", timeout_s=30)
    assert answer.status == "error"
    assert word in answer.text
    after = await server.run("tools.lively.echo(text='well')", session="calls", timeout_s=30)
    assert (after.value, [call["status"] for call in after.calls]) == ("well", ["ok"]), after.text


async def test_hostile_tools_can_be_listed_and_called(server: ServerConnection) -> None:
    answer = await server.run(
        "found = tools.list('hostile')\nlen(found)", session="hostile", timeout_s=60
    )
    assert answer.value > 20
    assert not await anyio.Path("/tmp/pwned").exists()
    assert await server.evaluate("tools.hostile.class_()", session="hostile") == "class"


# requests that are wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["[invalid_request]", "Give `code`, or `run`"]),
        ({"code": "1", "run": "r_1"}, ["[invalid_request]", "Give one of them"]),
        ({"code": "1", "answers": {"q1": "allow"}}, ["[invalid_request]", "Name it with `run`"]),
        ({"code": "1", "cancel": True}, ["[invalid_request]", "Name it with `run`"]),
        ({"run": "r_unknown"}, ["[not_found]", "no run 'r_unknown'"]),
        ({"run": "r_unknown", "answers": {"*": "allow"}}, ["[not_found]"]),
        ({"run": "x" * 10_000}, ["[not_found]"]),
        ({"run": "r_1", "answers": "allow"}, ["[invalid_request]", "answers"]),
        ({"code": "1", "wait_s": -1}, ["[invalid_request]", "greater than or equal to 0"]),
        ({"code": "1", "wait_s": "soon"}, ["[invalid_request]", "wait_s"]),
        ({"code": "1", "background": "maybe"}, ["[invalid_request]", "background"]),
        ({"code": 5}, ["[invalid_request]", "valid string"]),
        ({"code": "1", "sesion": "x"}, ["[invalid_request]", "Did you mean 'session'?"]),
        ({"code": "1", "timeout_s": -1}, ["[invalid_request]", "greater than 0"]),
        ({"code": "1", "timeout_s": 1e9}, ["[invalid_request]", "86400"]),
        ({"code": "1", "session": "s_unknown"}, ["[not_found]", "Leave `session` out"]),
        ({"code": "1", "session": "../up"}, ["[invalid_request]", "letters, digits"]),
        ({"code": "1", "session": ""}, ["[invalid_request]", "letters, digits"]),
        ({"code": "1", "session": "x" * 65}, ["[invalid_request]", "letters, digits"]),
        ({"code": "#" * 17_000_000}, ["[invalid_request]", "the limit is"]),
    ],
)
async def test_a_wrong_request_is_refused_with_what_would_be_right(
    server: ServerConnection, arguments: dict[str, Any], words: list[str]
) -> None:
    result = await server.client.call_tool("run_code", arguments)
    assert result.is_error
    text = result.content[0].text  # type: ignore[union-attr]
    assert all(word in text for word in words), text
    assert "pydantic" not in text


async def test_an_unknown_tool_is_refused_with_the_names_of_the_known_ones(
    server: ServerConnection,
) -> None:
    result = await server.client.call_tool("run_codes", {})
    assert result.is_error
    assert "run_code" in result.content[0].text  # type: ignore[union-attr]


async def test_five_megabytes_of_code_run(server: ServerConnection) -> None:
    code = "data = '" + "x" * 5_000_000 + "'\nlen(data)"
    assert await server.evaluate(code, session="large code") == 5_000_000


# no engine, no image ------------------------------------------------------------------------------


async def test_without_an_image_the_answer_names_the_command_that_makes_it(tmp_path: Path) -> None:
    async with connect_to(
        write_settings(tmp_path, sandbox={"image": "mcpruntime-no-such:image"})
    ) as server:
        for _ in range(2):
            answer = await server.run("1")
            assert answer.is_error
            assert "mcpruntime-no-such:image" in answer.text


async def test_without_an_engine_the_answer_names_the_remedy_and_once_it_answers_code_runs(
    tmp_path: Path,
) -> None:
    address = tmp_path / "engine.sock"
    env = {"DOCKER_HOST": f"unix://{address}"}
    async with connect_to(write_settings(tmp_path), env) as server:
        for _ in range(3):
            answer = await server.run("1", session="patient")
            assert answer.is_error
            assert "[unavailable]" in answer.text
            assert "scripts/docker-engine" in answer.text
        address.symlink_to("/var/run/docker.sock")
        answer = await server.run("1 + 1", session="patient")
        assert (answer.status, answer.value) == ("ok", 2), answer.text
