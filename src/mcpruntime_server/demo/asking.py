"""The act "questions": code asks a model while there is no key, no account and no model but the client's own.

The run waits with all its questions in one go, and the client, whose model has had the code run, answers them. The demo
is the client, and has no model: a script answers in its place, and the demo says so.
"""

from __future__ import annotations

import json

from mcp import Client

from . import programs
from .costs import amount, figures
from .screen import Screen
from .stage import SESSION, Step, request

LEXICON = {"loss": 5, "crash": 4, "never end": 3}  # how bad a message is that has the words
ELSE = 1
SHOWN = 3  # questions
HONESTLY = (
    f"a script of this demo, in the place of a model: it knows {len(LEXICON)} words. In a real client its model reads "
    "the questions, and answers them all in one request."
)
METHOD = (
    "one question a turn: each question and its answer. As a program: the code, what run_code answered to it (all the "
    "questions), the answers, and the result. Left out on both sides: that every further turn has the whole "
    "conversation read again."
)


async def ask_without_key(screen: Screen, client: Client) -> Step:
    """Show code that asks, and the client answering; return how the run ended."""
    screen.heading("questions without a key: code asks the model of the client that runs it")
    screen.program(programs.JUDGE)
    screen.start_clock()
    asked = await request(screen, client, programs.JUDGE, code=programs.JUDGE, session=SESSION)
    questions = {wait["id"]: wait["call"] for wait in asked.result.get("waiting_for", ())}
    screen.streamed(f"{asked.result.get('status', 'failed')}: {len(questions)} questions in one go")
    for question in list(questions.values())[:SHOWN]:
        screen.streamed("  " + " ".join(question.split()))
    if not questions:
        screen.block(asked.text, "red")
        return asked
    screen.line()
    screen.fact("answered by", HONESTLY)
    answers = {name: answered(question) for name, question in questions.items()}
    written = json.dumps({"run": asked.result["run"], "answers": answers})
    done = await request(screen, client, written, run=asked.result["run"], answers=answers)
    screen.line()
    screen.block(str(done.result["value"]) if done.ok else done.text, "green" if done.ok else "red")
    screen.line()
    if done.ok:
        tell(screen, [asked, done], list(questions.values()))
    return done


def answered(question: str) -> str:
    """Return what the script makes of a question."""
    return str(next((points for words, points in LEXICON.items() if words in question), ELSE))


def tell(screen: Screen, steps: list[Step], questions: list[str]) -> None:
    """Say what a model has read and written, and what it would have had to with one question a turn."""
    turns = amount([f"{question}\n{answered(question)}" for question in questions])
    program = amount([text for step in steps for text in (step.program, step.text)])
    screen.table(
        ["", "turns", "characters", "cl100k tokens"],
        [
            ("one question a turn", f"{len(questions)}", *figures(turns)),
            ("a program that asks", f"{len(steps)}", *figures(program)),
        ],
    )
    screen.line()
    screen.fact("counted", METHOD)
