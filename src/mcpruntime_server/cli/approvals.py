"""The verb `approvals`: what runs wait for, and a person's answers.

The answer is left in the journal. The server that has the session takes it from there, now or when it is next started.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from ..config import Config
from ..errors import InvalidRequest, NotFound
from ..journal.rows import QuestionRow, SessionRow
from ..journal.server_lease import is_server_alive
from ..journal.store import Journal
from ..runtime.pending_questions import (
    ANSWER_WORDS,
    APPROVAL_KIND,
    IN_DOUBT_KIND,
    MODEL_REQUEST_KIND,
)
from ..runtime.run_history import load_run
from ..runtime.run_report import PendingQuestionView
from .console import ConsoleWriter, escape_text, format_duration, open_stdout, print_json
from .replay import read_journal

Options = argparse.Namespace
ALL_QUESTIONS = "all"
ANSWERED_BY = "a person, on the command line"
QUESTION_TEXTS = {
    APPROVAL_KIND: "May this be called?",
    IN_DOUBT_KIND: "The server died while this was called. Call it again?",
    MODEL_REQUEST_KIND: "Code asks the client's model.",
}


def add_approvals_command(verbs: Any) -> None:
    """Add the verb."""
    text = "list what runs wait for, or answer it"
    found = verbs.add_parser(
        "approvals",
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog="allow: this call; allow_run: all calls of the tool in this run; allow_session: in this session; deny. "
        "For a call that may have been made when a server died: again, or fail.",
    )
    found.add_argument(
        "run", nargs="?", help="run id; without it, everything that is waited for is listed"
    )
    found.add_argument(
        "question",
        nargs="?",
        help=f"question id, or {ALL_QUESTIONS}: all approvals that the run waits for",
    )
    found.add_argument(
        "answer", nargs="?", help="allow, allow_run, allow_session or deny; again or fail"
    )
    found.add_argument("--json", action="store_true", help="for programs")
    found.set_defaults(verb=handle_approvals)


OpenQuestion = tuple[QuestionRow, SessionRow, PendingQuestionView]


async def load_open_questions(journal: Journal) -> list[OpenQuestion]:
    """Return all that runs wait for, with their sessions, the oldest first."""
    found: list[OpenQuestion] = []
    for row in await journal.list_pending_questions():
        past = await load_run(journal, await journal.load_run(row.run_id))
        session = await journal.load_session(row.session_id)
        found += [
            (row, session, wait) for wait in past.pending_questions if wait.id == row.question_id
        ]
    return found


def handle_approvals(config: Config, options: Options) -> int:
    """List what runs wait for, or leave an answer."""
    if options.run is None:
        return list_open_questions(config, options)
    if options.question is None or options.answer is None:
        raise InvalidRequest(
            "An answer needs a run, a question and the answer.", remedy="`approvals` lists them."
        )

    async def answer(journal: Journal) -> tuple[int, bool]:
        mine = [
            each for each in await load_open_questions(journal) if each[0].run_id == options.run
        ]
        chosen = [each for each in mine if options.question in (each[0].question_id, ALL_QUESTIONS)]
        if options.question == ALL_QUESTIONS:
            chosen = [
                each for each in chosen if each[2].kind == APPROVAL_KIND and not each[0].is_answered
            ]
        if not chosen:
            raise NotFound(
                f"Run {options.run!r:.80} does not wait for an answer to {options.question!r:.80}.",
                remedy="`approvals` lists what is waited for.",
            )
        for row, _, wait in chosen:
            check_answer(row, wait, options.answer)
        for row, _, _ in chosen:
            await journal.submit_answer(
                row.run_id,
                row.question_id,
                json.dumps({"answer": options.answer, "by": ANSWERED_BY}),
            )
        owner = chosen[0][1].owner
        return len(chosen), owner is not None and is_server_alive(journal.data_dir, owner)

    count, is_live = read_journal(config, answer)
    goes_on = (
        "The run goes on."
        if is_live
        else "The run goes on when a server is started on this data folder."
    )
    print(f"{count} {'answer is' if count == 1 else 'answers are'} left for the server. {goes_on}")
    return 0


def check_answer(row: QuestionRow, question: PendingQuestionView, answer: str) -> None:
    """Raise `InvalidRequest` if `answer` cannot be one to this question, or comes too late."""
    if question.kind != MODEL_REQUEST_KIND and answer not in ANSWER_WORDS[question.kind]:
        words = ", ".join(ANSWER_WORDS[question.kind])
        raise InvalidRequest(
            f"{answer!r:.80} is no answer to question {row.question_id}.", remedy=f"Use {words}."
        )
    if row.expires_at < time.time():
        raise InvalidRequest(
            f"Question {row.question_id} of run {row.run_id} has expired: it counts as refused."
        )


def list_open_questions(config: Config, options: Options) -> int:
    """Print everything that runs wait for, the arguments of calls in full."""
    found = read_journal(config, load_open_questions)
    if options.json:
        print_json([serialize_question(*each) for each in found])
        return 0
    screen = ConsoleWriter(open_stdout())
    for row, session, wait in found:
        told = " (answered, and not heard yet)" if row.is_answered else ""
        heading = f"run {row.run_id} {row.question_id}  session {session.name or session.id}  {QUESTION_TEXTS[wait.kind]}{told}"
        screen.write_line(screen.style_text(escape_text(heading), "bold"))
        for target, args in wait.calls:
            line = f"  (line {wait.line})" if wait.line is not None else ""
            screen.write_line(
                f"  {escape_text(target.removeprefix('tools.'))} {json.dumps(args, sort_keys=True)}{line}"
            )
        for hint in wait.hints:
            screen.write_line(f"  hint: {escape_text(hint)}")
        screen.write_line(f"  expires in {format_duration(max(row.expires_at - time.time(), 0.0))}")
    if not found:
        screen.write_line("No run waits for an answer.")
    screen.write_footer()
    return 0


def serialize_question(
    row: QuestionRow, session: SessionRow, question: PendingQuestionView
) -> dict[str, Any]:
    """Return one question for programs."""
    return {
        "run": row.run_id,
        "question": row.question_id,
        "session": session.name or session.id,
        "kind": question.kind,
        "calls": [{"target": target, "args": args} for target, args in question.calls],
        "line": question.line,
        "hints": list(question.hints),
        "expires": row.expires_at,
        "answered": row.is_answered,
    }
