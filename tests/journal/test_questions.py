"""Queued runs, pending questions, and answers that other processes submit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mcpruntime_server.errors import InvalidRequest, JournalFailed, NotFound
from mcpruntime_server.journal.archive import export_session, import_session
from mcpruntime_server.journal.events import (
    CallStarted,
    OutputWritten,
    QuestionAnswered,
    QuestionAsked,
    RunFinished,
    RunQueued,
    RunStarted,
)
from mcpruntime_server.journal.store import Journal


def started(run: str, parent: str | None = None, step: int = 1) -> RunStarted:
    return RunStarted(
        run_id=run, parent_id=parent, step=step, code="", name="<step>", timeout_s=1.0, seed="00"
    )


async def begin(journal: Journal) -> None:
    await journal.create_session("s_7", "seven", "me")
    journal.append("s_7", started("r_1"), "r_1")
    journal.append("s_7", CallStarted(1, "tools.a.b", "{}", "write", 0), "r_1")


async def test_a_queued_run_is_no_step_until_it_starts_and_starts_once(journal: Journal) -> None:
    await journal.create_session("s_7", "seven", "me")
    journal.append("s_7", RunQueued("r_1", "1", 1.0, "key"), "r_1")
    assert [
        (row.id, row.status, row.is_finished) for row in await journal.list_queued_runs("s_7")
    ] == [("r_1", "queued", False)]
    assert await journal.list_visited_runs("s_7") == []
    found = await journal.find_run_by_key("s_7", "key")
    assert found is not None
    assert found.id == "r_1"
    journal.append("s_7", started("r_1"), "r_1")
    assert await journal.list_queued_runs("s_7") == []
    assert [(row.id, row.status) for row in await journal.list_visited_runs("s_7")] == [
        ("r_1", "running")
    ]
    journal.append("s_7", RunFinished("ok"), "r_1")
    assert (await journal.load_run("r_1")).is_finished
    assert [stored.sequence for stored in await journal.load_events("s_7", run_id="r_1")] == [
        1,
        2,
        3,
    ]


async def test_what_people_are_asked_is_announced_and_other_events_are_not(
    journal: Journal,
) -> None:
    await begin(journal)
    announced = journal.next_queue_change()
    journal.append("s_7", OutputWritten("stdout", "x"), "r_1")
    assert not announced.is_set()
    for event in (
        QuestionAsked("q1", "approval", 1, time.time() + 60),
        QuestionAnswered("q1", "allow"),
        RunFinished("ok"),
    ):
        announced = journal.next_queue_change()
        journal.append("s_7", event, "r_1")
        assert announced.is_set()


async def test_a_cancelled_queued_run_does_not_move_the_tip(journal: Journal) -> None:
    await begin(journal)
    journal.append("s_7", RunQueued("r_2", "1", 1.0), "r_2")
    journal.append("s_7", RunFinished("cancelled", flags=["undone"]), "r_2")
    row = await journal.load_session("s_7")
    assert row.tip == "r_1"
    assert [run.id for run in await journal.list_visited_runs("s_7")] == ["r_1"]


async def test_a_started_run_cannot_start_again(journal: Journal) -> None:
    await begin(journal)
    journal.append("s_7", started("r_1"), "r_1")
    with pytest.raises(JournalFailed, match="already"):
        await journal.flush()


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_queued_run_starts_once_and_in_its_own_session(
    journal: Journal, *, is_over: bool
) -> None:
    await begin(journal)
    journal.append("s_7", RunQueued("r_2", "1", 1.0), "r_2")
    journal.append("s_1", started("r_2"), "r_2")
    with pytest.raises(JournalFailed, match="already a run 'r_2'"):
        await journal.flush()
    journal.append("s_7", started("r_2", "r_1", 2), "r_2")
    if is_over:
        journal.append("s_7", RunFinished("ok"), "r_2")
    journal.append("s_7", started("r_2", None, 7), "r_2")
    with pytest.raises(JournalFailed, match="already a run 'r_2'"):
        await journal.flush()
    row = await journal.load_run("r_2")
    assert (row.session_id, row.parent_id, row.step) == ("s_7", "r_1", 2)
    assert row.status == ("ok" if is_over else "running")
    assert (await journal.load_session("s_7")).tip == "r_2"
    assert await journal.list_queued_runs("s_7") == []


async def test_questions_are_pending_until_they_are_answered_or_their_run_has_finished(
    journal: Journal,
) -> None:
    await begin(journal)
    expires = time.time() + 60
    for name in ("q1", "q2", "q3"):
        journal.append("s_7", QuestionAsked(name, "approval", 1, expires), "r_1")
    assert [
        (row.run_id, row.question_id, row.session_id)
        for row in await journal.list_pending_questions("me")
    ] == [("r_1", name, "s_7") for name in ("q1", "q2", "q3")]
    assert await journal.list_pending_questions("somebody else") == []
    await journal.submit_answer("r_1", "q2", '"allow"')
    assert [row.is_answered for row in await journal.list_pending_questions()] == [
        False,
        True,
        False,
    ]
    assert [
        (reply.run_id, reply.question_id, reply.answer_json)
        for reply in await journal.list_submitted_answers()
    ] == [("r_1", "q2", '"allow"')]
    with pytest.raises(InvalidRequest, match="answered already"):
        await journal.submit_answer("r_1", "q2", '"deny"')
    with pytest.raises(NotFound):
        await journal.submit_answer("r_1", "q9", '"allow"')
    journal.append("s_7", QuestionAnswered("q2", "allow"), "r_1")
    assert [row.question_id for row in await journal.list_pending_questions()] == ["q1", "q3"]
    assert await journal.list_submitted_answers() == []
    journal.append("s_7", RunFinished("cancelled"), "r_1")
    assert await journal.list_pending_questions() == []


async def test_an_archive_contains_no_queued_runs_and_no_approvals(
    journal: Journal, tmp_path: Path
) -> None:
    await journal.create_session("s_7", "seven", "me")
    approved = {"target": "tools.a.b", "args": "{}", "nth": 0, "sent": "{}", "person": True}
    begun = started("r_1")
    journal.append(
        "s_7", RunStarted(**{**vars(begun), "dry_run": True, "approved_calls": [approved]}), "r_1"
    )
    journal.append("s_7", QuestionAsked("q1", "approval", 1, time.time() + 60), "r_1")
    journal.append("s_7", QuestionAnswered("q1", "allow", "session", "me", "tools.a.b"), "r_1")
    journal.append("s_7", QuestionAsked("q2", "approval", 1, time.time() + 60), "r_1")
    journal.append("s_7", RunQueued("r_2", "secret", 1.0), "r_2")
    journal.append("s_7", RunFinished("ok"), "r_1")
    manifest = await export_session(journal, "s_7", tmp_path / "a.zip")
    assert (manifest.run_count, manifest.event_count) == (1, 5)
    imported = await import_session(journal, tmp_path / "a.zip", "other")
    events = [stored.event for stored in await journal.load_events(imported.id)]
    assert [event.approved_calls for event in events if isinstance(event, RunStarted)] == [[]]
    assert [event.scope for event in events if isinstance(event, QuestionAnswered)] == ["once"]
    assert not [event for event in events if isinstance(event, RunQueued)]
    assert await journal.list_pending_questions("other") == []
