"""The act "ask": code asks a model, although the server has no key and no model.

The run waits with all its questions at once. The client, whose model ran the code, answers them.
Here the demo is the client and has no model: a script answers in its place, and the demo says so.
"""

from __future__ import annotations

import json

from . import programs
from .costs import format_amount, measure_texts
from .demo_client import SESSION_NAME, DemoStep, call_run_code, show_outcome
from .demo_console import DemoConsole
from .stage import DemoStage

SEVERITY_BY_WORDS = {
    "loss": 5,
    "crash": 4,
    "never end": 3,
}  # of a message that contains the words
DEFAULT_SEVERITY = 1
MAX_SHOWN_QUESTIONS = 3
ANSWERED_BY_TEXT = (
    "a script of this demo, in the place of a model: it knows "
    f"{len(SEVERITY_BY_WORDS)} words. In a real client, its model reads the questions and answers "
    "all of them in one request."
)
COUNTING_METHOD = (
    "one question a turn: each question and its answer. As a program: the code, the answer of "
    "run_code (all questions), the answers, and the result. Left out on both sides: that a model "
    "reads the whole conversation again in each turn."
)


async def ask_client_model(stage: DemoStage) -> bool:
    """Show code that asks and a client that answers; return whether everything succeeded."""
    screen, client = stage.screen, stage.client
    if not await stage.collect():
        return False
    screen.write_program(programs.JUDGE)
    screen.start_clock()
    asked = await call_run_code(
        screen, client, programs.JUDGE, code=programs.JUDGE, session=SESSION_NAME
    )
    questions = {wait["id"]: wait["call"] for wait in asked.result.get("waiting_for", ())}
    screen.write_streamed(
        f"{asked.result.get('status', 'failed')}: {len(questions)} questions in one go"
    )
    for question in list(questions.values())[:MAX_SHOWN_QUESTIONS]:
        screen.write_streamed("  " + " ".join(question.split()))
    if not questions:
        screen.write_block(asked.text, "red")
        return False
    screen.write_line()
    screen.write_fact("answered by", ANSWERED_BY_TEXT)
    answers = {name: answer_question(question) for name, question in questions.items()}
    written = json.dumps({"run": asked.result["run"], "answers": answers})
    done = await call_run_code(screen, client, written, run=asked.result["run"], answers=answers)
    screen.write_line()
    show_outcome(screen, done)
    screen.write_line()
    if done.ok:
        show_savings(screen, [asked, done], list(questions.values()))
    return done.ok


def answer_question(question: str) -> str:
    """Return the answer of the script to a question."""
    return str(
        next(
            (points for words, points in SEVERITY_BY_WORDS.items() if words in question),
            DEFAULT_SEVERITY,
        )
    )


def show_savings(screen: DemoConsole, steps: list[DemoStep], questions: list[str]) -> None:
    """Show how much text a model read and wrote, and how much with one question a turn."""
    turns = measure_texts([f"{question}\n{answer_question(question)}" for question in questions])
    program = measure_texts([text for step in steps for text in (step.program, step.text)])
    screen.write_table(
        ["", "turns", "characters", "cl100k tokens"],
        [
            ("one question a turn", f"{len(questions)}", *format_amount(turns)),
            ("a program that asks", f"{len(steps)}", *format_amount(program)),
        ],
    )
    screen.write_line()
    screen.write_fact("counted", COUNTING_METHOD)
