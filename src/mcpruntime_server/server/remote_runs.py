"""Runs that another server on the data folder executes: answers and cancellations for it.

Both are left in the journal, which every server with live sessions reads about once a second. If
that server is dead, the one that takes over its session finds them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import anyio

from ..errors import Conflict
from ..journal.store import Journal
from ..runtime.pending_questions import PendingQuestion, parse_answer
from ..runtime.run_history import load_recorded_run

POLL_INTERVAL_S = 0.5  # for the end of a run
ALL_OTHERS = "*"  # questions that answers do not name

CheckQuestions = Callable[[Mapping[str, PendingQuestion]], None]


async def cancel_remote_run(journal: Journal, run_id: str, by: str, timeout_s: float) -> None:
    """Let the server that executes a run cancel it, and wait for the end, at most `timeout_s`."""
    await journal.request_cancellation(run_id, by)
    with anyio.move_on_after(timeout_s):
        while not (await journal.load_run(run_id)).is_finished:  # noqa: ASYNC110 - elsewhere
            await anyio.sleep(POLL_INTERVAL_S)


async def answer_remote_run(
    journal: Journal,
    run_id: str,
    answers: Mapping[str, Any],
    by: str,
    check_questions: CheckQuestions,
) -> None:
    """Leave answers for the server that executes a run.

    `check_questions` raises an error if one of the questions, by their ids, may not be answered.
    Raises `Conflict` for a question that is not open, `InvalidRequest` for a wrong answer.
    """
    recorded = await load_recorded_run(journal, await journal.load_run(run_id))
    questions = {
        asked.question_id: PendingQuestion(run_id, asked, "", {}, None)
        for asked in recorded.open_questions
    }
    unknown = [name for name in answers if name != ALL_OTHERS and name not in questions]
    if unknown or not questions:
        name = unknown[0] if unknown else ALL_OTHERS
        raise Conflict(
            f"Run {run_id} has no open question {name!r:.80}.",
            remedy=f"It asks {', '.join(questions)}." if questions else "It asks nothing.",
        )
    named = select_named(questions, answers)
    check_questions(named)
    values = {name: answers.get(name, answers.get(ALL_OTHERS)) for name in named}
    for name, value in values.items():
        parse_answer(questions[name], value, by)
    for name, value in values.items():
        await journal.submit_answer(run_id, name, json.dumps({"answer": value, "by": by}))


def select_named(
    questions: Mapping[str, PendingQuestion], answers: Mapping[str, Any]
) -> dict[str, PendingQuestion]:
    """Return the questions that answers apply to."""
    is_for_all = ALL_OTHERS in answers
    return {name: each for name, each in questions.items() if is_for_all or name in answers}
