"""Each connection gets the output and the questions of a run once, and its end to each request."""

from __future__ import annotations

import math

import pytest

from mcpruntime_server.runtime.run_report import RunReport
from mcpruntime_server.server import delivery
from mcpruntime_server.server.delivery import DeliveryCursor


def report(stdout: str = "", stderr: str = "", run: str = "r_1") -> RunReport:
    return RunReport(run, "s_1", 1, stdout=stdout, stderr=stderr)


def read(cursor: DeliveryCursor, found: RunReport) -> tuple[str, str]:
    undelivered = cursor.select_undelivered(found)
    return undelivered.stdout, undelivered.stderr


def test_output_is_delivered_once() -> None:
    cursor = DeliveryCursor()
    assert read(cursor, report("ab", "x")) == ("ab", "x")
    cursor.advance(report("ab", "x"), ())
    assert read(cursor, report("abc", "x")) == ("c", "")
    assert cursor.output_positions("r_1") == {"stdout": 2, "stderr": 1}


def test_the_end_comes_with_the_rest_and_then_a_new_request_gets_everything() -> None:
    cursor = DeliveryCursor()
    cursor.start_request("r_1")
    cursor.advance(report("a"), ())
    cursor.start_request("r_1")
    assert read(cursor, report("ab")) == ("b", "")
    cursor.finish("r_1")
    assert read(cursor, report("ab")) == ("b", "")  # for a request that waited, too
    cursor.start_request("r_1")
    assert read(cursor, report("ab")) == ("ab", "")


def test_what_did_not_reach_the_client_is_delivered_again() -> None:
    cursor = DeliveryCursor()
    cursor.advance(report("a"), ["q1"])
    cursor.rewind("r_1")
    assert read(cursor, report("ab")) == ("ab", "")
    assert set(cursor.delivered_questions("r_1")) == {"q1"}
    cursor.rewind("r_unknown")


def test_questions_and_dismissed_forms_are_kept_by_run() -> None:
    cursor = DeliveryCursor()
    cursor.advance(report(), ["q1"])
    cursor.advance(report(), ["q2"])
    cursor.dismiss_questions("r_1", ["q1"])
    assert set(cursor.delivered_questions("r_1")) == {"q1", "q2"}
    assert set(cursor.dismissed_questions("r_1")) == {"q1"}
    assert set(cursor.delivered_questions("r_2")) == set(cursor.dismissed_questions("r_2")) == set()


def test_connections_do_not_share_what_they_got() -> None:
    one, other = DeliveryCursor(), DeliveryCursor()
    one.advance(report("a"), ["q1"])
    one.record_timed_out("1")
    assert read(other, report("a")) == ("a", "")
    assert not other.delivered_questions("r_1")
    assert not other.take_timed_out("1")


def test_a_request_that_timed_out_is_recognised_once() -> None:
    cursor = DeliveryCursor()
    cursor.record_timed_out("1")
    assert cursor.take_timed_out("1")
    assert not cursor.take_timed_out("1")
    assert not cursor.take_timed_out(None)


def test_the_oldest_positions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MAX_TRACKED_RUNS", 2)
    cursor = DeliveryCursor()
    for run in ("r_1", "r_2", "r_1", "r_3"):
        cursor.advance(report("a", run=run), ())
    assert [read(cursor, report("a", run=run))[0] for run in ("r_1", "r_2", "r_3")] == ["", "a", ""]


async def test_a_question_is_in_a_form_until_that_is_closed_replaced_or_dropped() -> None:
    cursor = DeliveryCursor()
    cursor.open_form("a", "r_1", ["q1", "q2"])
    assert cursor.questions_in_forms("r_1") == {"q1", "q2"}
    assert cursor.questions_in_forms("r_2") == set()
    cursor.open_form("b", "r_1", ["q2"], is_of_task=True)
    assert cursor.questions_in_forms("r_1") == {"q2"}
    assert cursor.questions_in_forms("r_1", with_tasks=False) == set()
    cursor.close_form("b")
    cursor.close_form("a")
    assert cursor.questions_in_forms("r_1") == set()
    cursor.open_form("c", "r_1", ["q3"], open_s=0.0)
    assert (cursor.questions_in_forms("r_1"), cursor.form_left_s()) == (set(), math.inf)
    cursor.open_form("d", "r_1", ["q4"], open_s=60.0)
    assert 0 < cursor.form_left_s() <= 60


def test_the_result_of_a_task_is_full_unless_a_request_got_it_and_stays_so() -> None:
    cursor = DeliveryCursor()
    assert cursor.claim_task_result("r_1")
    cursor.finish("r_1")
    assert cursor.claim_task_result("r_1")
    cursor.advance(report(run="r_2"), ())
    cursor.finish("r_2")
    cursor.start_request("r_2")
    assert not cursor.claim_task_result("r_2")
    assert not cursor.claim_task_result("r_2")
