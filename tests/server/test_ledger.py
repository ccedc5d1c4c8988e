"""The list of calls: complete where a retry might repeat something, short after a success."""

from __future__ import annotations

from typing import Literal

from mcpruntime_server.config import Config
from mcpruntime_server.runtime.call_journal import LedgerEntry
from mcpruntime_server.runtime.run_report import RunReport, RunStatus
from mcpruntime_server.server.result_format import build_run_result, format_run_result


def report(status: RunStatus, *calls: LedgerEntry) -> RunReport:
    return RunReport("r_1", "s_1", 1, status=status, calls=list(calls))


def entry(n: int, status: Literal["ok", "error"] = "ok", error: str = "") -> LedgerEntry:
    return LedgerEntry("tools.git.git_show", {"n": n}, status, 1.5, error)


def test_like_calls_of_a_run_that_went_well_share_a_line() -> None:
    result = build_run_result(report("ok", *map(entry, range(65))), "s_1", Config())
    (line,) = result.calls
    assert (line.call, line.times, line.ms) == ("git.git_show(...)", 65, 97.5)
    assert "git.git_show(...) -> ok, 65 times" in format_run_result(result)


def test_few_calls_and_failed_ones_keep_their_arguments() -> None:
    failed = entry(99, "error", "no such commit")
    result = build_run_result(report("ok", *map(entry, range(10)), failed), "s_1", Config())
    assert [line.call for line in result.calls] == ["git.git_show(...)", "git.git_show(n=99)"]
    assert result.calls[1].error == "no such commit"
    few = build_run_result(report("ok", entry(1), entry(2)), "s_1", Config())
    assert [line.call for line in few.calls] == ["git.git_show(n=1)", "git.git_show(n=2)"]


def test_a_run_that_failed_lists_every_call() -> None:
    result = build_run_result(report("error", *map(entry, range(20))), "s_1", Config())
    assert [line.call for line in result.calls] == [f"git.git_show(n={n})" for n in range(20)]
