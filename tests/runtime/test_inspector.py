"""After-the-fact prints, questions to a state, and variables: what they see and change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcpruntime_server.errors import Conflict, InvalidRequest
from mcpruntime_server.journal.rows import RunRow
from mcpruntime_server.runtime.inspector import Inspector, ProbeRequest, ProbeResult
from mcpruntime_server.runtime.run import Run
from mcpruntime_server.runtime.runtime import Runtime

from .test_journaled_runs import CALL, finish, running


@pytest.fixture(scope="module")
async def runtime(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    folder: Path = tmp_path_factory.mktemp("inspector")
    async with running(folder) as (runtime, _):
        yield runtime


@pytest.fixture(scope="module")
async def inspector(runtime: Runtime) -> Inspector:
    return Inspector(runtime)


async def row_of(runtime: Runtime, run: Run) -> RunRow:
    return await runtime.journal.load_run(run.id)


def texts(result: ProbeResult) -> list[str]:
    return [hit.value["text"] for hit in result.hits]


async def probe(
    runtime: Runtime, inspector: Inspector, code: str, line: int, expression: str
) -> ProbeResult:
    session = await runtime.open_session(None, "me")
    run = await finish(session, code)
    return await inspector.probe(await row_of(runtime, run), "me", ProbeRequest(line, expression))


LOOP = """\
total = 0
for n in range(4):
    total += n * n
print(total)
total
"""


async def test_a_probe_shows_the_value_of_each_execution_of_a_line(
    runtime: Runtime, inspector: Inspector
) -> None:
    result = await probe(runtime, inspector, LOOP, 3, "n, total")
    assert texts(result) == ["[0, 0]", "[1, 0]", "[2, 1]", "[3, 5]"]
    assert [hit.number for hit in result.hits] == [1, 2, 3, 4]
    assert (result.line, result.hit_count, result.is_faithful) == (3, 4, True)
    assert result.report.stdout == "14\n"


PLACES = '''\
"""Doc."""
from __future__ import annotations
import random

@staticmethod
def area(
    width,
    height,
):
    """Return it."""
    return width * height

class Box:
    """A box."""
    side = 3
    names = [
        area(side, 2),
        1,
    ]

def steps(limit):
    if limit > 2:
        kind = "many"
    elif limit:
        kind = "some"
    else:
        kind = "none"
    try:
        1 / (limit - 1)
    except ZeroDivisionError as exc:
        kind += "!"
    finally:
        yield kind

found = [list(steps(n)) for n in range(4)]
random.random(); tail = [__doc__, area.__doc__, Box.__doc__]

[found, tail, Box.names]
'''


@pytest.mark.parametrize(
    ("line", "expression", "seen"),
    [
        (1, "__doc__", ['"Doc."']),
        (5, "'area' in globals()", ["false"]),
        (10, "width + height", ["5"]),
        (11, "[width * k for k in range(height)]", ["[0, 3]"]),
        (15, "__qualname__", ['"Box"']),
        (17, "side", ["3"]),
        (24, "limit", ["0", "1", "2"]),
        (26, "limit", ["0"]),
        (30, "str(exc)", ['"division by zero"']),
        (32, "kind", ['"none"', '"some!"', '"some"', '"many"']),
        (36, "tail", ["error: NameError: name 'tail' is not defined"]),
        (37, "tail[0]", ['"Doc."']),
        (38, "len(found)", ["4"]),
    ],
)
async def test_a_probe_fits_each_kind_of_line(
    runtime: Runtime, inspector: Inspector, line: int, expression: str, seen: list[str]
) -> None:
    result = await probe(runtime, inspector, PLACES, line, expression)
    assert texts(result) == seen
    assert result.is_faithful, result


VARIED = f"""\
{CALL}import asyncio, os, random, sys, threading, time, uuid
seen = []
def deep(n):
    return deep(n + 1)
try:
    deep(0)
except RecursionError:
    seen.append("deep")
for k in range(3):
    open("log", "a").write(f"{{k}} {{random.random()}}")
    seen.append([k, random.random(), uuid.uuid4().hex, time.time(), os.urandom(3).hex()])
    seen.append(host.call("t.echo", {{"n": k, "t": time.time_ns()}}))
async def late(k):
    await asyncio.sleep(0.001)
    return [k, random.random(), await host.acall("t.echo", {{"a": k}})]
seen.extend(await asyncio.gather(*(late(k) for k in range(2))))
thread = threading.Thread(target=lambda: seen.append(random.random()))
thread.start()
thread.join()
print(sorted(globals()), sys.getrecursionlimit(), file=sys.stderr)
print(len(open("log").read()))
seen
"""
GREEDY = (
    "random.random(), uuid.uuid4(), time.time(), os.urandom(5), seen.clear(), "
    "seen.append(1), print('x' * 1000), globals().update(seen=0), threading.Thread(target=print)"
)
HOSTILE = {
    "while": ("any(0 for _ in iter(int, 1))", "TimeoutError"),
    "memory": ("b'x' * 10**10", "MemoryError"),
    "output": ("print('x' * 10**8)", ""),
    "exit": ("os._exit(3)", "InterpreterDied"),
    "raise": ("sys.exit(3)", "SystemExit"),
    "call": ("host.call('t.echo', {'n': 0})", "RuntimeError"),
    "large": ("'y' * 10**6", "str"),
    "repr": ("type('R', (), {'__repr__': lambda self: 1 / 0})()", "R"),
    "descriptors": (
        "[os.close(fd) for fd in range(3, 300) if os.path.exists(f'/proc/self/fd/{fd}')]",
        "",
    ),
}


@pytest.mark.parametrize("line", [5, 7, 11, 12, 14, 15, 16, 18, 20, 22])
async def test_a_greedy_probe_changes_nothing_in_the_run(
    runtime: Runtime, inspector: Inspector, line: int
) -> None:
    result = await probe(runtime, inspector, VARIED, line, GREEDY)
    assert result.differences == [], result
    assert result.hits
    assert not result.divergence


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_probe_gets_an_error_and_the_run_goes_on(
    runtime: Runtime, inspector: Inspector, name: str
) -> None:
    expression, kind = HOSTILE[name]
    result = await probe(runtime, inspector, VARIED, 11, expression)
    assert len(result.hits) == 3
    assert result.differences == [], result
    for hit in result.hits:
        assert len(hit.value["text"]) < 2_000
        if kind:
            assert hit.value["type"] == kind, hit


async def test_what_cannot_be_probed_says_why(runtime: Runtime, inspector: Inspector) -> None:
    session = await runtime.open_session(None, "me")
    for code, line, expression, reason in [
        ("x = 1", 2, "x", "There is no statement on line 2 or after it."),
        ("x = 1", 1, "x =", "The expression is not valid Python: invalid syntax."),
        ("x =", 1, "x", "not valid Python"),
        ("x = 1", 1, "  ", "An expression has 1 to"),
    ]:
        run = await finish(session, code)
        with pytest.raises(InvalidRequest, match=reason):
            await inspector.probe(await row_of(runtime, run), "me", ProbeRequest(line, expression))


async def test_a_question_sees_the_state_of_its_step_and_leaves_it(
    runtime: Runtime, inspector: Inspector
) -> None:
    session = await runtime.open_session(None, "me")
    first = await finish(session, "x = [1]\nopen('f', 'w').write('one')")
    second = await finish(session, f"{CALL}x.append(host.call('t.echo', {{'n': 2}}))")
    tip, rows = session.tip, len(await runtime.journal.list_runs(session.id))
    for run, value in [(second, '[1, {"n": 2}]'), (first, "[1]"), (second, '[1, {"n": 2}]')]:
        report = await inspector.ask(await row_of(runtime, run), "me", "x.append(0); x[:-1]")
        assert report.status == "ok", report
        assert report.value is not None
        assert report.value["text"] == value
    report = await inspector.ask(
        await row_of(runtime, second),
        "me",
        f"{CALL}open('f', 'w').write('two')\nhost.call('t.echo', {{}})",
    )
    assert report.error is not None
    assert "cannot call anything" in report.error["message"]
    assert (session.tip, len(await runtime.journal.list_runs(session.id))) == (tip, rows)
    live = await finish(session, "x, open('f').read()")
    assert live.report.value is not None
    assert live.report.value["text"] == '[[1, {"n": 2}], "one"]'


async def test_variables_say_what_their_step_changed(
    runtime: Runtime, inspector: Inspector
) -> None:
    session = await runtime.open_session(None, "me")
    code = (
        "import math\nkept, grown, gone, made = 'k', {'a': [1] * 5000}, 1, object()\n"
        "def f(): return 1\nclass C: pass\n"
        "class Loud:\n    def __repr__(self): 1 / 0\nloud = Loud()\nkept_f = f"
    )
    await finish(session, code)
    run = await finish(
        session, "grown['a'][3000] = 2\ndel gone\ndef f(): return 2\nfresh = [1, 2, 3]"
    )
    found = await inspector.list_variables(await row_of(runtime, run), "me")
    changes = {each.name: each.change for each in found.variables}
    assert changes == {
        "math": "unchanged",
        "kept": "unchanged",
        "grown": "changed",
        "made": "unchanged",
        "f": "changed",
        "C": "unchanged",
        "Loud": "unchanged",
        "loud": "unchanged",
        "kept_f": "unchanged",
        "fresh": "added",
    }
    assert found.removed == ["gone"]
    fresh = next(each for each in found.variables if each.name == "fresh")
    assert (fresh.value["text"], fresh.value["type"], fresh.length) == ("[1, 2, 3]", "list", 3)


async def test_a_variable_that_cannot_be_shown_hides_no_other(
    runtime: Runtime, inspector: Inspector
) -> None:
    session = await runtime.open_session(None, "me")
    run = await finish(
        session,
        "class Endless:\n    def __repr__(self):\n        while True: pass\n"
        "class Deadly:\n    def __repr__(self): import os; os._exit(1)\n"
        "a, b, c, d = Endless(), 1, Deadly(), 2\nNone",
    )
    found = await inspector.list_variables(await row_of(runtime, run), "me")
    shown = {each.name: each.value["text"] for each in found.variables}
    assert (shown["b"], shown["d"]) == ("1", "2")
    assert shown["a"].startswith("error")
    assert shown["c"].startswith("error")


async def test_a_probe_connects_to_nothing(runtime: Runtime, inspector: Inspector) -> None:
    code = "import os, socket\nos.environ['https_proxy'] = 'p'\nx = 1"
    expression = "socket.create_connection(('127.0.0.1', 9))"
    result = await probe(runtime, inspector, code, 3, expression)
    assert "it cannot connect to anything" in texts(result)[0]
    result = await probe(runtime, inspector, code, 3, "os.environ.get('https_proxy')")
    assert texts(result) == ["null"]
    assert result.is_faithful


async def test_a_probe_sees_what_led_to_a_death(runtime: Runtime, inspector: Inspector) -> None:
    code = "import os\nfor n in range(5):\n    if n == 3: os._exit(3)\n    x = n"
    result = await probe(runtime, inspector, code, 3, "n")
    assert texts(result) == ["0", "1", "2", "3"]
    assert result.hit_count is None
    assert result.report.status == "crashed"


async def test_a_probe_that_kills_the_replay_says_so(
    runtime: Runtime, inspector: Inspector
) -> None:
    result = await probe(
        runtime, inspector, LOOP, 3, "__import__('os').kill(__import__('os').getppid(), 9)"
    )
    assert "status" in result.differences
    assert result.hit_count is None
    result = await probe(runtime, inspector, LOOP, 3, "n")
    assert texts(result) == ["0", "1", "2", "3"]


async def test_a_state_that_cannot_be_restored_is_a_conflict(
    runtime: Runtime, inspector: Inspector
) -> None:
    session = await runtime.open_session(None, "me")
    run = session.start_run("x = 1\nwhile True: pass", 0.3)
    await run.wait_until_finished()
    then = await finish(session, "x += 1\nx")
    row = await row_of(runtime, then)
    with pytest.raises(Conflict, match="cannot be restored"):
        await inspector.ask(row, "me", "x")
    result = await inspector.probe(
        await row_of(runtime, run), "me", ProbeRequest(1, "'x' in globals()")
    )
    assert texts(result) == ["false"]
    assert "interrupted" in " ".join(result.notes)
