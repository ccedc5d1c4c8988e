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
from ..journal.lease import alive
from ..journal.rows import QuestionRow, SessionRow
from ..journal.store import Journal
from ..runtime.history import load_run
from ..runtime.questions import APPROVAL, IN_DOUBT, QUESTION, WORDS
from ..runtime.report import Wait
from .printing import Screen, print_json, printer, safe, took
from .replay import read

Options = argparse.Namespace
ALL = "all"
BY = "a person, on the command line"
ASKED = {
    APPROVAL: "May this be called?",
    IN_DOUBT: "The server died while this was called. Call it again?",
    QUESTION: "Code asks the client's model.",
}


def add_approvals(verbs: Any) -> None:
    """Add the verb."""
    text = "list what runs wait for, or answer it"
    found = verbs.add_parser(
        "approvals",
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog="allow: this call; allow_run: all calls of the tool in this run; allow_session: in this session; deny. "
        "For a call that may have been made when a server died: again, or fail.",
    )
    found.add_argument("run", nargs="?", help="run id; without it, everything that is waited for is listed")
    found.add_argument("question", nargs="?", help=f"question id, or {ALL}: all approvals that the run waits for")
    found.add_argument("answer", nargs="?", help="allow, allow_run, allow_session or deny; again or fail")
    found.add_argument("--json", action="store_true", help="for programs")
    found.set_defaults(verb=approvals)


Found = tuple[QuestionRow, SessionRow, Wait]


async def waits_of(journal: Journal) -> list[Found]:
    """Return all that runs wait for, with their sessions, the oldest first."""
    found: list[Found] = []
    for row in await journal.questions():
        past = await load_run(journal, await journal.run(row.run))
        session = await journal.session(row.session)
        found += [(row, session, wait) for wait in past.open_waits if wait.id == row.question]
    return found


def approvals(config: Config, options: Options) -> int:
    """List what runs wait for, or leave an answer."""
    if options.run is None:
        return list_waits(config, options)
    if options.question is None or options.answer is None:
        raise InvalidRequest("An answer needs a run, a question and the answer.", remedy="`approvals` lists them.")

    async def answer(journal: Journal) -> tuple[int, bool]:
        mine = [each for each in await waits_of(journal) if each[0].run == options.run]
        chosen = [each for each in mine if options.question in (each[0].question, ALL)]
        if options.question == ALL:
            chosen = [each for each in chosen if each[2].kind == APPROVAL and not each[0].is_answered]
        if not chosen:
            raise NotFound(
                f"Run {options.run!r:.80} does not wait for an answer to {options.question!r:.80}.",
                remedy="`approvals` lists what is waited for.",
            )
        for row, _, wait in chosen:
            check_answer(row, wait, options.answer)
        for row, _, _ in chosen:
            await journal.reply(row.run, row.question, json.dumps({"answer": options.answer, "by": BY}))
        owner = chosen[0][1].owner
        return len(chosen), owner is not None and alive(journal.data_dir, owner)

    count, is_live = read(config, answer)
    goes_on = "The run goes on." if is_live else "The run goes on when a server is started on this data folder."
    print(f"{count} {'answer is' if count == 1 else 'answers are'} left for the server. {goes_on}")
    return 0


def check_answer(row: QuestionRow, wait: Wait, answer: str) -> None:
    """Raise `InvalidRequest` if `answer` cannot be one to this question, or comes too late."""
    if wait.kind != QUESTION and answer not in WORDS[wait.kind]:
        words = ", ".join(WORDS[wait.kind])
        raise InvalidRequest(f"{answer!r:.80} is no answer to question {row.question}.", remedy=f"Use {words}.")
    if row.expires < time.time():
        raise InvalidRequest(f"Question {row.question} of run {row.run} has expired: it counts as refused.")


def list_waits(config: Config, options: Options) -> int:
    """Print everything that runs wait for, the arguments of calls in full."""
    found = read(config, waits_of)
    if options.json:
        print_json([data_of(*each) for each in found])
        return 0
    screen = Screen(printer())
    for row, session, wait in found:
        told = " (answered, and not heard yet)" if row.is_answered else ""
        heading = f"run {row.run} {row.question}  session {session.name or session.id}  {ASKED[wait.kind]}{told}"
        screen.line(screen.paint(safe(heading), "bold"))
        for target, args in wait.calls:
            line = f"  (line {wait.line})" if wait.line is not None else ""
            screen.line(f"  {safe(target.removeprefix('tools.'))} {json.dumps(args, sort_keys=True)}{line}")
        for hint in wait.hints:
            screen.line(f"  hint: {safe(hint)}")
        screen.line(f"  expires in {took(max(row.expires - time.time(), 0.0))}")
    if not found:
        screen.line("No run waits for an answer.")
    screen.end()
    return 0


def data_of(row: QuestionRow, session: SessionRow, wait: Wait) -> dict[str, Any]:
    """Return one question for programs."""
    return {
        "run": row.run,
        "question": row.question,
        "session": session.name or session.id,
        "kind": wait.kind,
        "calls": [{"target": target, "args": args} for target, args in wait.calls],
        "line": wait.line,
        "hints": list(wait.hints),
        "expires": row.expires,
        "answered": row.is_answered,
    }
