"""The result of a run: small values whole, large ones truncated, equal in data and text."""

from __future__ import annotations

import json
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.config import Config, ServerSettings
from mcpruntime_server.journal.events import RunError
from mcpruntime_server.protocol.presentation import present_value
from mcpruntime_server.runtime.call_ledger import LedgerEntry
from mcpruntime_server.runtime.run_report import RunReport
from mcpruntime_server.server.result_format import (
    MAX_EXACT_INTEGER,
    MAX_LISTED_CALLS,
    MAX_LISTED_FILES,
    RunResult,
    build_run_result,
    dump_on_one_line,
    format_run_result,
)

from ..helpers.server_connection import ServerConnection, connect_server, write_settings

SETTINGS = Config(server=ServerSettings(result_chars=200, result_items=5))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


def report(**fields: Any) -> RunReport:
    return RunReport(run_id="r_1", session_id="s_1", step=1, status="ok", **fields)


def told(given: RunReport, settings: Config = SETTINGS) -> tuple[RunResult, str]:
    result = build_run_result(given, "report", settings)
    return result, format_run_result(result)


def sizes(value: Any) -> list[int]:
    """Return the sizes of all lists and objects in `value`."""
    if isinstance(value, list):
        return [len(value)] + [size for item in value for size in sizes(item)]
    if isinstance(value, dict):
        return [len(value)] + [size for item in value.values() for size in sizes(item)]
    return []


@given(JSON)
def test_a_shown_value_is_json_within_the_limits(value: Any) -> None:
    result, text = told(report(value=present_value(value, 100_000)))
    shown = json.dumps(result.value, ensure_ascii=False)
    assert len(shown) <= 3 * SETTINGS.server.result_chars
    assert (
        max(sizes(result.value), default=0) <= SETTINGS.server.result_items + 8
    )  # the mark, or items that are not longer than it
    if isinstance(result.value, str):
        assert textwrap.indent(result.value.rstrip("\n"), "  ").strip(" ") in text
    elif result.value is not None:
        assert f"value: {dump_on_one_line(result.value)}" in text


@given(st.text(max_size=2000), st.text(max_size=2000))
def test_data_and_text_carry_the_same_facts(stdout: str, stderr: str) -> None:
    calls = [LedgerEntry("tools.git.log", {"n": 1}, "error", 1.25, "no such branch")]
    error: RunError = {
        "type": "ToolError",
        "message": "no",
        "traceback": "Traceback: no",
        "line": 3,
        "hint": "",
    }
    given = report(
        stdout=stdout,
        stderr=stderr,
        calls=calls,
        error=error,
        changed_files=["a"],
        removed_files=["b"],
        usage={"wall_ms": 3_000.0},
    )
    result, text = told(given)
    for fact in (
        result.run,
        result.session,
        result.status,
        textwrap.indent(result.stdout.rstrip(), "  "),
        textwrap.indent(result.stderr.rstrip(), "  "),
    ):
        assert fact in text
    assert "git.log(n=1) -> error, 1 ms: no such branch" in text
    assert all(fact in text for fact in ("Traceback: no", "a, -b", "wall_ms 3,000", result.note))


def test_integers_that_a_client_would_round_are_text() -> None:
    value = {
        "small": MAX_EXACT_INTEGER,
        "large": [MAX_EXACT_INTEGER + 1, -MAX_EXACT_INTEGER - 1],
        "flag": True,
    }
    result, _ = told(report(value=present_value(value, 10_000)))
    assert result.value == {
        "small": MAX_EXACT_INTEGER,
        "large": [str(MAX_EXACT_INTEGER + 1), str(-MAX_EXACT_INTEGER - 1)],
        "flag": True,
    }


def test_a_long_ledger_and_many_files_are_counted() -> None:
    calls = [
        LedgerEntry("tools.a.b", {"n": n}, "error", error="no") for n in range(MAX_LISTED_CALLS + 7)
    ]
    result, text = told(
        report(calls=calls, changed_files=[f"f{n}" for n in range(MAX_LISTED_FILES + 1)])
    )
    assert (len(result.calls), len(result.files)) == (MAX_LISTED_CALLS, MAX_LISTED_FILES)
    assert result.calls[-1].call == f"a.b(n={MAX_LISTED_CALLS + 6})"
    assert f"{MAX_LISTED_CALLS + 7} lines of calls" in text
    assert f"{MAX_LISTED_FILES + 1} changed files" in text


@pytest.mark.parametrize(
    "args", [{"x": "y" * 9999}, {"x" * 9999: 1}, {"x": [1] * 9999}, {"x": {"y": float("nan")}}]
)
def test_a_call_stays_on_a_line_of_bearable_length(args: dict[str, Any]) -> None:
    result, _ = told(
        report(calls=[LedgerEntry("tools." + "t" * 9999, args, "error", 1.0, "e" * 9999)])
    )
    [line] = result.calls
    assert len(line.call) < 700
    assert len(line.error or "") < 400


# with a real server: the whole is where the note says ---------------------------------------------


@pytest.fixture(scope="module")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server that shows little."""
    shows_little = {"result_chars": 1_000, "result_items": 10}
    settings = write_settings(tmp_path_factory.mktemp("small"), server=shows_little)
    async with connect_server(settings) as connection:
        yield connection


@pytest.mark.parametrize("name", ["stdout", "stderr"])
async def test_code_can_read_the_whole_of_output_that_is_cut(
    small: ServerConnection, name: str
) -> None:
    code = f"import sys\nfor n in range(10_000): print(n, file=sys.{name})"
    answer = await small.run(code, session="cut")
    assert len(answer.data[name]) < 1_100
    path = f".mcpruntime/{answer.run}.{name}"
    assert f"{name} is cut; code can read all of it in {path!r}." in answer.note
    again = await small.run(
        f"open({path!r}).read().split() == [str(n) for n in range(10_000)]", session="cut"
    )
    assert (again.value, "files" in again.data) == (True, False)


@pytest.mark.parametrize(
    "code", ["list(range(30))", "{str(n): n for n in range(30)}", "['x' * 2_000]", "'y' * 2_000"]
)
async def test_code_can_read_the_whole_of_a_value_that_is_cut(
    small: ServerConnection, code: str
) -> None:
    answer = await small.run(code, session="cut")
    path = f".mcpruntime/{answer.run}.value"
    assert f"value is cut; code can read all of it in {path!r}." in answer.note
    check = f"import json\njson.load(open({path!r})) == ({code})"
    assert await small.evaluate(check, session="cut") is True


async def test_kept_texts_never_fill_the_workspace(small: ServerConnection) -> None:
    for _ in range(12):
        await small.run("print('x' * 3_000_000)", session="full")
    code = (
        "import os\n"
        "sum(os.path.getsize(f'.mcpruntime/{name}') for name in os.listdir('.mcpruntime'))"
    )
    assert await small.evaluate(code, session="full") <= 8 * 1024 * 1024
    answer = await small.run(
        "open('own', 'wb').write(bytes(20_000_000)); print('z' * 9_999)", session="full"
    )
    assert (answer.status, answer.files) == ("ok", ["own"])


async def test_a_cut_text_for_which_there_is_no_room_is_said_on_stderr(
    small: ServerConnection,
) -> None:
    fill = """
import itertools
try:
    for n in itertools.count(): open(f'own{n}', 'wb').write(bytes(1_000_000))
except OSError: pass
print('x' * 3_000_000)
"""
    await small.run(fill, session="no room")
    answer = await small.run("1", session="no room")
    assert (answer.status, answer.value) == ("ok", 1)
    assert "could not be restored in the workspace" in answer.stderr


async def test_the_shape_of_a_cut_value_is_kept(small: ServerConnection) -> None:
    answer = await small.run(
        "[{'id': n, 'tags': list(range(100))} for n in range(500)]", session="shape"
    )
    assert isinstance(answer.value, list)
    *items, rest = answer.value
    assert all(set(item) == {"id", "tags"} for item in items)
    assert rest == f"… {500 - len(items)} more items"
