"""The list of calls and the figures of a result: what a model needs, and nothing twice."""

from __future__ import annotations

from typing import Any

from mcpruntime_server.config import Config
from mcpruntime_server.journal.events import RunError
from mcpruntime_server.protocol.payloads import JsonObject
from mcpruntime_server.protocol.wire import Call
from mcpruntime_server.runtime.call_ledger import CallLedger, CallStatus, LedgerEntry
from mcpruntime_server.runtime.run_report import RunReport, RunStatus
from mcpruntime_server.server.delivery import DeliveryCursor
from mcpruntime_server.server.result_format import (
    MAX_LISTED_CALLS,
    MAX_LISTED_WRITES,
    build_run_result,
    format_call_line,
    format_run_result,
)


def report(status: RunStatus, *calls: LedgerEntry) -> RunReport:
    return RunReport("r_1", "s_1", 1, status=status, calls=list(calls))


def entry(
    n: int, status: CallStatus = "ok", error: str = "", *, effect: str = "read", tool: str = "show"
) -> LedgerEntry:
    return LedgerEntry(f"tools.git.{tool}", {"n": n}, status, 1.4, error, effect)


def listed(*calls: LedgerEntry, status: RunStatus = "ok") -> list[str]:
    result = build_run_result(report(status, *calls), "s_1", Config())
    return [format_call_line(line) for line in result.calls]


def test_reads_are_counted_for_each_tool() -> None:
    calls = [*map(entry, range(65)), *(entry(n, tool="log") for n in range(2)), entry(7, tool="a")]
    assert listed(*calls) == [
        "git.show(...) -> ok, 65 times, 91 ms",
        "git.log(...) -> ok, 2 times, 3 ms",
        "git.a(n=7) -> ok, 1 ms",
    ]
    assert listed(*calls, status="error") == listed(*calls)


def test_writes_and_failures_are_listed() -> None:
    writes = [entry(n, effect="write", tool="push") for n in range(3)]
    failed = entry(99, "error", "no such commit")
    assert listed(*map(entry, range(10)), *writes, failed) == [
        "git.show(...) -> ok, 10 times, 14 ms",
        *(f"git.push(n={n}) -> ok, 1 ms" for n in range(3)),
        "git.show(n=99) -> error, 1 ms: no such commit",
    ]


class CountedArgs(dict[str, Any]):
    """Arguments that count how often they are formatted."""

    formatted = 0

    def items(self) -> Any:
        self.formatted += 1
        return super().items()


def test_only_the_lines_that_are_shown_are_built() -> None:
    args = CountedArgs(n=1)
    failed = LedgerEntry("tools.git.show", args, "error", 1.0, "no such commit")
    assert len(listed(*[failed] * 1_000)) == MAX_LISTED_CALLS == args.formatted


async def test_lines_that_are_cut_are_formatted_before_a_result_is_built() -> None:
    args: JsonObject = {"names": ["x" * 20] * 30}
    ledger = CallLedger()
    for number in range(MAX_LISTED_CALLS + 1):
        ledger.add(Call(number, 1, "tools.git.show", args)).status = "error"
    ledger.add(Call(99, 1, "tools.git.show", args)).status = "started"
    await ledger.format_last()
    first, *others, started = ledger.entries
    assert first.shown == started.shown == ""
    assert {each.shown for each in others[1:]} == {first.format()}


def test_many_writes_of_a_run_that_went_well_end_with_a_count() -> None:
    writes = [entry(n, effect="write") for n in range(MAX_LISTED_WRITES + 30)]
    lines = listed(*writes)
    assert len(lines) == MAX_LISTED_WRITES + 1
    assert lines[-1] == "git.show(...) -> ok, 30 times, 42 ms"
    assert len(listed(*writes, status="error")) == len(writes)


def test_an_error_stands_in_a_result_once() -> None:
    message = "git.show: no such commit: 99"
    frames = 'Traceback (most recent call last):\n  File "<step 1>"'
    error: RunError = {
        "type": "tools.ToolError",
        "message": message,
        "traceback": f"{frames}\ntools.ToolError: {message}",
        "line": 1,
        "hint": "",
    }
    given = report("error", entry(99, "error", "no such commit: 99"))
    given.error = error
    result = build_run_result(given, "s_1", Config())
    assert result.model_dump_json().count("no such commit: 99") == 1
    text = format_run_result(result)
    assert text.count("no such commit: 99") == 1
    assert f'    File "<step 1>"\n  tools.ToolError: {message}' in text


def test_usage_is_shown_where_it_explains_something() -> None:
    given = report("ok")
    given.usage = {"wall_ms": 3.7, "cpu_ms": 3.1, "peak_mb": 14.5, "setup_ms": 0.4, "total_ms": 9.0}
    assert "usage" not in format_run_result(build_run_result(given, "s_1", Config()))
    given.usage |= {"wall_ms": 12_345.678, "peak_mb": 400.3, "llm_usd": 0.02, "llm_calls": 2}
    result = build_run_result(given, "s_1", Config())
    assert result.usage == {"wall_ms": 12_346, "peak_mb": 400, "llm_usd": 0.02, "llm_calls": 2}
    assert "usage: wall_ms 12,346, peak_mb 400" in format_run_result(result)


def test_a_request_that_attaches_again_gets_the_calls_that_are_new() -> None:
    cursor = DeliveryCursor()
    under_way = entry(2, "started", effect="write")
    given = report("running", entry(1, effect="write"), under_way)
    assert len(cursor.select_undelivered(given).calls) == 2
    cursor.advance(given, ())
    under_way.status = "ok"
    given.calls.append(entry(3, effect="write"))
    assert [each.args["n"] for each in cursor.select_undelivered(given).calls] == [2, 3]
