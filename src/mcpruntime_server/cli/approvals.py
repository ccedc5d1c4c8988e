"""The command `approvals`: the questions that runs wait for, and a person's answers.

An answer is written to the journal. The server that owns the session reads it from there, at once
or when it is next started.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import click

from ..config import Config
from ..errors import InvalidRequest, NotFound
from ..journal.rows import QuestionRow, SessionRow
from ..journal.store import Journal
from ..protocol.payloads import JsonObject
from ..runtime.pending_questions import (
    ANSWER_WORDS,
    APPROVAL_KIND,
    CREDENTIAL_KIND,
    IN_DOUBT_KIND,
    MODEL_REQUEST_KIND,
)
from ..runtime.run_history import load_recorded_run
from ..runtime.run_report import PendingQuestionView
from .console import ConsoleWriter, format_duration
from .journal_access import ANSWERED_BY, has_living_server, read_journal
from .options import json_option, pass_config, principal_option
from .terminal_text import print_json, print_text

ALL_APPROVALS = "all"
QUESTION_TEXTS = {
    APPROVAL_KIND: "May this be called?",
    IN_DOUBT_KIND: "The server died during this call. Call it again?",
    MODEL_REQUEST_KIND: "Code asks the client's model.",
    CREDENTIAL_KIND: "A credential is missing.",
}


@dataclass(frozen=True)
class OpenQuestion:
    """A question that a run waits for: its row, its session, and what it says."""

    row: QuestionRow
    session: SessionRow
    view: PendingQuestionView


@click.command("approvals")
@click.argument("run", required=False)
@click.argument("question", required=False)
@click.argument("answer", required=False)
@principal_option
@json_option
@pass_config
def approvals_command(
    config: Config,
    *,
    run: str | None,
    question: str | None,
    answer: str | None,
    principal: str,
    as_json: bool,
) -> int:
    """List what runs wait for, or a RUN, or answer a QUESTION of it.

    QUESTION is the question's id, or `all` for all approvals that the run waits for.

    ANSWER is allow (this call), allow_run (all calls of the tool in this run), allow_session
    (in this session) or deny. If a server died during a call: again, or fail. If a credential is
    missing: decline; the run goes on by itself when it is stored.
    """
    if run is None or question is None:
        return list_open_questions(config, principal, run, as_json=as_json)
    if answer is None:
        raise InvalidRequest(
            f"Question {question!r:.80} of run {run!r:.80} is given no answer.",
            remedy="Use `approvals RUN QUESTION ANSWER`; `approvals RUN` lists the questions.",
        )
    return submit_answer(config, principal, run, question, answer)


async def load_open_questions(journal: Journal, principal: str) -> list[OpenQuestion]:
    """Return the questions that runs of a principal wait for, the oldest first."""
    questions: list[OpenQuestion] = []
    for row in await journal.list_pending_questions():
        session = await journal.load_session(row.session_id)
        if session.principal != principal:
            continue
        run = await load_recorded_run(journal, await journal.load_run(row.run_id))
        views = [view for view in run.pending_questions if view.id == row.question_id]
        questions += [OpenQuestion(row, session, view) for view in views]
    return questions


# answers ------------------------------------------------------------------------------------------


def submit_answer(
    config: Config, principal: str, run_id: str, question_id: str, answer: str
) -> int:
    """Leave an answer to one question, or to all approvals, in the journal."""

    async def submit(journal: Journal) -> tuple[int, bool]:
        pending = await load_open_questions(journal, principal)
        questions = select_questions(pending, run_id, question_id)
        for question in questions:
            check_question_answer(question, answer)
        content = json.dumps({"answer": answer, "by": ANSWERED_BY})
        for question in questions:
            await journal.submit_answer(question.row.run_id, question.row.question_id, content)
        return len(questions), has_living_server(journal, questions[0].session)

    count, is_alive = read_journal(config, submit)
    answers = "1 answer is" if count == 1 else f"{count} answers are"
    when = "." if is_alive else " when a server is started on this data folder."
    print_text(f"{answers} left for the server. The run continues{when}")
    return 0


def select_questions(
    questions: list[OpenQuestion], run_id: str, question_id: str
) -> list[OpenQuestion]:
    """Return the questions of a run that an answer is for; raises `NotFound` if there are none."""
    of_run = [question for question in questions if question.row.run_id == run_id]
    selected = [question for question in of_run if question.row.question_id == question_id]
    if question_id == ALL_APPROVALS:
        approvals = [question for question in of_run if question.view.kind == APPROVAL_KIND]
        selected = [question for question in approvals if not question.row.is_answered]
    if not selected:
        raise NotFound(
            f"Run {run_id!r:.80} does not wait for an answer to {question_id!r:.80}.",
            remedy="`approvals` lists the questions that runs wait for.",
        )
    return selected


def check_question_answer(question: OpenQuestion, answer: str) -> None:
    """Raise `InvalidRequest` if `answer` is not an answer to this question, or is too late."""
    row, kind = question.row, question.view.kind
    if kind != MODEL_REQUEST_KIND and answer not in ANSWER_WORDS[kind]:
        raise InvalidRequest(
            f"{answer!r:.80} is not an answer to question {row.question_id}.",
            remedy=f"Use {', '.join(ANSWER_WORDS[kind])}.",
        )
    if row.expires_at < time.time():
        raise InvalidRequest(
            f"Question {row.question_id} of run {row.run_id} has expired: it counts as refused."
        )


# the list -----------------------------------------------------------------------------------------


def list_open_questions(
    config: Config, principal: str, run_id: str | None, *, as_json: bool
) -> int:
    """Print everything that runs, or one run, wait for, with the complete arguments of calls."""
    questions = read_journal(config, lambda journal: load_open_questions(journal, principal))
    if run_id is not None:
        questions = [question for question in questions if question.row.run_id == run_id]
    if as_json:
        print_json([serialize_question(question) for question in questions])
        return 0
    writer = ConsoleWriter()
    for question in questions:
        show_question(writer, question)
    if not questions:
        waiting = "No run waits" if run_id is None else f"Run {run_id} does not wait"
        writer.write_line(f"{waiting} for an answer.")
    return 0


def show_question(writer: ConsoleWriter, question: OpenQuestion) -> None:
    """Show a question with everything that helps to answer it."""
    row, session, view = question.row, question.session, question.view
    heading = f"run {row.run_id} {row.question_id}  session {session.name or session.id}"
    state = " (answered, not yet received)" if row.is_answered else ""
    writer.write_line(f"{heading}  {QUESTION_TEXTS[view.kind]}{state}", style="bold")
    line = "" if view.line is None else f"  (line {view.line})"
    for target, args in view.calls:
        name = target.removeprefix("tools.")
        asked = json.dumps(view.model_request or args, sort_keys=True)
        writer.write_line(f"  {name} {asked}{line}")
    for hint in view.hints:
        writer.write_line(f"  hint: {hint}")
    remaining_s = max(row.expires_at - time.time(), 0.0)
    writer.write_line(f"  expires in {format_duration(remaining_s)}")


def serialize_question(question: OpenQuestion) -> JsonObject:
    """Return a question as JSON data."""
    row, session, view = question.row, question.session, question.view
    return {
        "run": row.run_id,
        "question": row.question_id,
        "session": session.name or session.id,
        "kind": view.kind,
        "calls": [{"target": target, "args": args} for target, args in view.calls],
        "model_request": view.model_request,
        "line": view.line,
        "hints": list(view.hints),
        "expires": row.expires_at,
        "answered": row.is_answered,
    }
