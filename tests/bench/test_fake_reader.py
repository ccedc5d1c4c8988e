"""The rule `reader` is right on short texts and errs on long ones; an agent gets programs."""

from __future__ import annotations

import ast
import json
import re

import pytest

from bench.fake_programmer import AGENT_MARK, PIECE_CHARS, write_program
from bench.fake_reader import judge_topic, label_lines, read_text
from bench.fake_rules import answer_by_rule
from bench.long_tasks import TASK_KINDS, TaskKind, make_rows, make_task

ROWS = make_rows(2**17)
LIST = {"type": "object", "properties": {"value": {"type": "array"}}}


def asked(question: str, data: str) -> str:
    return f"{question}\n\n<data 0123456789ab>\n{data}\n</data 0123456789ab>"


def test_lines_are_judged_rightly_one_by_one_and_worse_the_more_are_read_at_once() -> None:
    assert label_lines([row.line for row in ROWS]) == [row.topic for row in ROWS]
    wrong = [
        sum(judge_topic(row.line, seen) != row.topic for row in ROWS) / len(ROWS)
        for seen in (4_000, 8_000, 16_000)
    ]
    assert wrong[0] < 0.02 < wrong[1] < 0.1 < wrong[2] < 0.4
    assert judge_topic(ROWS[0].line, 16_000) == judge_topic(ROWS[0].line, 16_000)


def test_it_labels_each_line_as_the_schema_wants_it() -> None:
    lines = [row.line for row in ROWS[:20]]
    said = read_text(
        asked("Say for each line what it is about: one of billing, login.", "\n".join(lines)), LIST
    )
    assert json.loads(said) == {"value": [row.topic for row in ROWS[:20]]}


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_notes_on_parts_answer_for_the_whole(kind: TaskKind) -> None:
    task = make_task(kind, 2**13)
    cut = task.text.index("\n", len(task.text) // 2)
    question = f"Note briefly what it has on this question: {task.question}"
    notes = [
        read_text(asked(question, part), None) for part in (task.text[:cut], task.text[cut + 1 :])
    ]
    said = read_text(
        asked(f"These are notes. Answer from them: {task.question}", "\n".join(notes)), None
    )
    assert task.score(said) > 0.9


def test_what_it_cannot_do_it_says() -> None:
    assert read_text("Write me a poem.", None) == "I do not know."
    assert (
        read_text(
            asked("Which number opens the vault in Oslo?", "The vault in Oslo held 12345 sacks."),
            None,
        )
        == "not found"
    )


def test_a_model_that_forgets_sees_both_ends_only() -> None:
    fact = "Turn to 54321, and you are inside the vault in Oslo."
    question = "Which number opens the vault in Oslo?"
    filler = "It rained in Turku. " * 100
    for text, told in (
        (fact + filler, "Oslo: 54321"),
        (filler + fact, "Oslo: 54321"),
        (filler + fact + filler, "not found"),
    ):
        assert answer_by_rule("forgetful:600:reader", [asked(question, text)], None) == told
    assert answer_by_rule("forgetful:4:echo", ["abcdef"], None) == "abef"
    assert answer_by_rule("forgetful:1:echo", ["abcdef"], None) == ""


def conversation(kind: TaskKind, *results: str) -> list[str]:
    task = make_task(kind, 2**13, 7)
    look = f"Step 1 of 20: ok\n<data 1>\nstdout:\n{task.text[:600]}\n</data 1>"
    return [
        f"An agent. {AGENT_MARK} depth 0, 20 steps]",
        f"Task:\n{task.question}\n\nCONTEXT: text",
        "...",
        look,
        *results,
    ]


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_as_an_agent_it_looks_first_and_then_writes_a_program_that_submits(kind: TaskKind) -> None:
    texts = conversation(kind)
    assert "CONTEXT.peek" in code_of(write_program(texts[:2]))
    told = f"{texts[1]}; it begins\n{texts[3]}"  # as some agents are
    assert write_program([texts[0], told]) == write_program(texts)
    code = code_of(write_program(texts))
    names = {called(node) for node in ast.walk(ast.parse(code))}
    assert {"ask_llm_batch", "SUBMIT"} <= names
    assert (
        not set(make_task(kind, 2**13, 7).truth) & set(re.findall(r"\w+", code))
        or kind == "compare"
    )


def test_after_a_failure_it_tries_with_smaller_pieces() -> None:
    failed = write_program(
        conversation(
            "count", "...", "Step 2 of 20: error\n<data 2>\nerror:\nRuntimeError\n</data 2>"
        )
    )
    assert f"> {PIECE_CHARS // 2}:" in code_of(failed)


def code_of(said: str) -> str:
    found = re.search(r"```python\n(.*?)\n```", said, re.DOTALL)
    assert found is not None
    return found[1]


def called(node: ast.AST) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
