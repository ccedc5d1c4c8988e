"""The conversation of an agent with its model: messages, and the program in an answer.

Sub-agents and the reference agent have the same conversation. All of it is text:

- system: `system.txt`. Its first line ends with the mark `[mcpruntime agent, depth D, N steps]`.
- user, first: `Task:`, a line break and the task. Up to three optional parts follow, each after an
  empty line: `CONTEXT: ` with a description of the variable and the beginning of its content,
  `Skills: ` with the skills that may help, and `Submit: ` with the JSON schema of the answer.
- assistant: a sentence and one program, fenced with ```python and ```.
- user, after a program: `Step N of M: STATUS` and the result between data marks, or `Step N of M:
  no program` or `Step N of M: not submitted` and the problem. `(last step)` follows if the next
  program is the last.

Rule 1: text from data, tools or code stands between data marks.
Rule 2: the text that the model sees has a maximum length, whatever the size of the data.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import islice
from string import Template
from typing import Any

from ...protocol.presentation import format_error
from ...protocol.truncation import truncate_text
from ..data_marks import mark_as_data
from ..model_requests import Messages
from .program_result import ProgramResult

MAX_FIELD_CHARS = 6_000  # of each field of a result
MAX_LISTED_CALLS = 20  # calls shown of a failed program
MAX_TASK_CHARS = 100_000
MAX_ANSWER_CHARS = 20_000  # of an answer that is sent back to the model
OLD_MESSAGE_CHARS = 300  # of an old message, when the conversation is too long
RECENT_MESSAGES = 6  # so many messages at the end are never shortened
MAX_INNER_FENCES = 20  # fences that may stand inside one program
MAX_SEARCHED_CHARS = 200_000  # of an answer; longer ones have no program
MAX_PARSED_CHARS = 20_000  # of a block; a longer one counts as Python, for others have to wait
MAX_ALL_PARSED_CHARS = 200_000  # of all blocks of an answer, each as often as it is tried
# Possessive: a line of marks and spaces is searched in one pass.
OPENING_FENCE = re.compile(
    r"^[ \t]*+(?P<mark>`{3,}+|~{3,}+)[ \t]*+(?P<info>[^`\n]*+)$", re.MULTILINE
)
PYTHON_LANGUAGES = ("python", "py", "python3", "repl", "ipython", "pycon", "tool_code")

NO_PROGRAM_PROBLEM = (
    "The answer contains no Python. Write one block fenced with ```python and ```; "
    "SUBMIT(value) ends the task."
)
TRUNCATED_PROBLEM = "The answer ends before its program does. Write it again, shorter."
TOO_LONG_PROBLEM = "The answer has {:,} characters; the limit is {:,}. Write a shorter program."


@dataclass(frozen=True)
class AgentTask:
    """The task of an agent.

    `material` describes the variable CONTEXT, and `skills` lists skills that may help.
    """

    text: str
    max_steps: int
    depth: int = 0
    material: str = ""
    skills: str = ""
    schema: Mapping[str, Any] | None = None


class NoProgramFound(ValueError):
    """An answer contains no program; the message is for the model."""


@cache
def load_system_prompt() -> Template:
    """Return the template of the system prompt."""
    return Template(resources.files(__package__).joinpath("system.txt").read_text("utf-8"))


def opening_messages(task: AgentTask) -> list[dict[str, str]]:
    """Return the messages that begin a conversation."""
    text, _ = truncate_text(task.text, MAX_TASK_CHARS)
    parts = [f"Task:\n{text}"]
    if task.material:
        parts.append(f"CONTEXT: {task.material}")
    if task.skills:
        parts.append(f"Skills: these may help.\n{mark_as_data(task.skills)}")
    if task.schema is not None:
        schema = json.dumps(task.schema, ensure_ascii=False)
        parts.append(f"Submit: a value that follows this JSON schema\n{schema}")
    system = load_system_prompt().substitute(depth=task.depth, steps=task.max_steps)
    return [build_message("system", system), build_message("user", "\n\n".join(parts))]


def build_message(role: str, text: str) -> dict[str, str]:
    """Return a message in which characters that cannot be sent are replaced."""
    return {"role": role, "content": text.encode("utf-8", "replace").decode()}


# answers ------------------------------------------------------------------------------------------


def extract_program(answer: str, *, is_truncated: bool = False) -> str:
    """Return the program in an answer: its Python blocks joined; raises `NoProgramFound`.

    If no block names Python, the blocks without a language count. An answer that is itself a
    program with `SUBMIT` needs no fence. In a truncated answer, a block without an end is not a
    program, even if it can be parsed.
    """
    if len(answer) > MAX_SEARCHED_CHARS:
        raise NoProgramFound(TOO_LONG_PROBLEM.format(len(answer), MAX_SEARCHED_CHARS))
    answer = answer.replace("\r\n", "\n")
    parser = BoundedParser()
    blocks = list(fenced_blocks(answer, parser, is_truncated=is_truncated))
    programs = [code for language, code in blocks if language in PYTHON_LANGUAGES]
    if not programs:
        programs = [code for language, code in blocks if not language]
    program = "\n".join(programs)
    if program.strip():
        return program
    if is_truncated:
        raise NoProgramFound(TRUNCATED_PROBLEM)
    if "SUBMIT(" in answer and parser.is_python(answer):
        return answer.strip()
    raise NoProgramFound(NO_PROGRAM_PROBLEM)


class BoundedParser:
    """Parses the blocks of one answer, which is hostile, as far as that takes little time."""

    def __init__(self) -> None:
        self._chars_left = MAX_ALL_PARSED_CHARS

    def is_python(self, code: str) -> bool:
        """Return whether code can be parsed; what is too long counts as Python."""
        if len(code) > min(MAX_PARSED_CHARS, self._chars_left):
            return True
        self._chars_left -= len(code)
        return is_python(code)


def fenced_blocks(
    answer: str, parser: BoundedParser, *, is_truncated: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each fenced block.

    A program may contain a fence, in a string of several lines. So a Python block that is not valid
    up to the first closing fence extends to the first one that makes it valid.

    Raises `NoProgramFound` if the last block is truncated.
    """
    position = 0
    while (opening := OPENING_FENCE.search(answer, position)) is not None:
        language = fence_language(opening["info"])
        start = min(opening.end() + 1, len(answer))
        fences = find_closing_fences(answer, start, opening["mark"])
        if not fences:
            if not is_truncated and parser.is_python(answer[start:]):
                yield language, dedent_code(answer[start:]).strip("\n")
                return
            raise NoProgramFound(TRUNCATED_PROBLEM)
        end, position = fences[0]
        if language in PYTHON_LANGUAGES:
            for fence_start, fence_end in fences:
                if parser.is_python(answer[start:fence_start]):
                    end, position = fence_start, fence_end
                    break
        yield language, dedent_code(answer[start:end]).strip("\n")


def find_closing_fences(answer: str, start: int, mark: str) -> list[tuple[int, int]]:
    """Return the start and end of each fence that could close a block opened with `mark`."""
    closing = re.compile(rf"^[ \t]*{mark[0]}{{{len(mark)},}}[ \t]*$", re.MULTILINE)
    return [found.span() for found in islice(closing.finditer(answer, start), MAX_INNER_FENCES)]


def fence_language(info: str) -> str:
    """Return the language that a fence names.

    `Python`, `{python}` and `python title=x` name the same language.
    """
    words = info.strip().strip("{}.").lower().replace(",", " ").split()
    return words[0].strip("{}.") if words else ""


def dedent_code(code: str) -> str:
    """Return code without the indentation that all its lines share."""
    lines = code.split("\n")
    margins = [len(line) - len(line.lstrip(" \t")) for line in lines if line.strip()]
    margin = min(margins, default=0)
    return "\n".join(line[margin:] for line in lines)


def is_python(code: str) -> bool:
    """Return whether code can be parsed."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    try:
        compile(dedent_code(code), "<program>", "exec", flags)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


# results ------------------------------------------------------------------------------------------


def result_message(result: ProgramResult, step: int, steps: int) -> str:
    """Return the message that shows a result to the model."""
    heading = step_heading(step, steps, result["status"])
    return f"{heading}\n{mark_as_data(describe_result(result))}"


def step_heading(step: int, steps: int, outcome: str) -> str:
    """Return the first line of a message that follows an answer."""
    last = " (last step)" if step == steps - 1 else ""
    return f"Step {step} of {steps}: {outcome}{last}"


def describe_result(result: ProgramResult) -> str:
    """Return a result as text; a failed result includes the calls that were made."""
    lines = []
    if (value := result.get("value")) is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"value: {truncate_field(text)}")
    for name, output in (
        ("stdout", result.get("stdout", "")),
        ("stderr", result.get("stderr", "")),
    ):
        if output.rstrip():
            lines.append(f"{name}:\n{truncate_field(output.rstrip())}")
    if error := result.get("error"):
        text = format_error(error["type"], error["message"], error["traceback"])
        lines.append(f"error:\n{truncate_field(text)}")
        if calls := result.get("calls"):
            lines.append("calls that were made:")
            lines += [f"  {each['call']} -> {each['status']}" for each in calls[-MAX_LISTED_CALLS:]]
    if files := result.get("files"):
        lines.append(f"files: {truncate_field(', '.join(files))}")
    if note := result.get("note"):
        lines.append(f"note: {note}")
    return "\n".join(lines) or "(no value, no output)"


def truncate_field(text: str) -> str:
    """Return a field of a result, truncated to its maximum length."""
    return truncate_text(text, MAX_FIELD_CHARS)[0]


def truncate_conversation(messages: Messages, max_chars: int) -> list[dict[str, str]]:
    """Return a conversation of about `max_chars`.

    Only the beginning of old answers and results is kept.
    """
    kept = [dict(message) for message in messages]
    excess = sum(len(message["content"]) for message in kept) - max_chars
    for message in kept[2:-RECENT_MESSAGES]:
        if excess <= 0:
            break
        content = message["content"]
        if len(content) > OLD_MESSAGE_CHARS:
            omitted = len(content) - OLD_MESSAGE_CHARS
            message["content"] = (
                f"{content[:OLD_MESSAGE_CHARS]}\n... ({omitted:,} characters are left out)"
            )
            excess -= len(content) - len(message["content"])
    return kept
