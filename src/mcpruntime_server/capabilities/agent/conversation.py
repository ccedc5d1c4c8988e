"""The conversation of an agent with its model: what the model is told, and the program that is taken out of its answer.

It is the same for `sub_agent` and for the reference agent, and all of it is text:

- system: `system.txt`. Its first line ends with the mark `[mcpruntime agent, depth D, N steps]`.
- user, first: `Task:`, a line break and the task as it was given; then, each after an empty line and only where there
  is something to say, `CONTEXT: ` with what the variable holds and how it begins, `Skills: ` with those that may help,
  and `Submit: ` with the JSON schema that the answer has to follow.
- assistant: a sentence and one program, fenced with ```python and ```.
- user, after a program: `Step N of M: STATUS`, and what came of it between marks; or `Step N of M: no program` or
  `Step N of M: not submitted`, and what is wrong. `(last step)` follows where the next program is the last.

Rule 1: what comes from data, tools or code stands between the lines `<data X>` and `</data X>`. X is made from what
stands between them, so that its author cannot have known it.
Rule 2: what the model is shown is bounded, however much there is.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from itertools import islice
from string import Template
from typing import Any

from ...protocol.presentation import truncate_text

MAX_FIELD_CHARS = 6_000  # characters of each field of a result
MAX_LISTED_CALLS = 20  # of a result that went wrong
MAX_TASK_CHARS = 100_000
MAX_ANSWER_CHARS = 20_000  # characters of an answer that the model is shown again
OLD_MESSAGE_CHARS = 300  # characters of an old message, where there are too many
RECENT_MESSAGES = 6  # messages at the end that are never shortened
MAX_INNER_FENCES = 20  # that may stand inside one program
OPENING_FENCE = re.compile(r"^[ \t]*(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$", re.MULTILINE)
PYTHON_LANGUAGES = ("python", "py", "python3", "repl", "ipython", "pycon", "tool_code")

NO_PROGRAM_PROBLEM = "There is no Python in the answer. Write one block fenced with ```python and ```; SUBMIT(value) ends the task."
TRUNCATED_PROBLEM = "The answer ends before its program does. Write it again, shorter."


@dataclass(frozen=True)
class AgentTask:
    """What an agent is to do: `context` says what the variable CONTEXT holds, `skills` names some that may help."""

    text: str
    max_steps: int
    depth: int = 0
    material: str = ""
    skills: str = ""
    schema: Mapping[str, Any] | None = None


class NoProgramFound(ValueError):
    """An answer has no program in it; the message is for the model."""


@cache
def load_system_prompt() -> Template:
    """Return the system prompt."""
    return Template(resources.files(__package__).joinpath("system.txt").read_text("utf-8"))


def opening_messages(task: AgentTask) -> list[dict[str, str]]:
    """Return the messages that a conversation begins with."""
    parts = [f"Task:\n{truncate_text(task.text, MAX_TASK_CHARS)[0]}"]
    parts += [f"CONTEXT: {task.material}"] if task.material else []
    parts += [f"Skills: these may help.\n{mark_as_data(task.skills)}"] if task.skills else []
    if task.schema is not None:
        schema = json.dumps(task.schema, ensure_ascii=False)
        parts.append(f"Submit: a value that follows this JSON schema\n{schema}")
    system = load_system_prompt().substitute(depth=task.depth, steps=task.max_steps)
    return [build_message("system", system), build_message("user", "\n\n".join(parts))]


def build_message(role: str, text: str) -> dict[str, str]:
    """Return a message, made sure to be text that can be sent."""
    return {"role": role, "content": text.encode("utf-8", "replace").decode()}


def mark_as_data(text: str) -> str:
    """Return material between marks."""
    mark = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"<data {mark}>\n{text}\n</data {mark}>"


# answers ------------------------------------------------------------------------------------------


def extract_program(answer: str, *, is_truncated: bool = False) -> str:
    """Return the program in an answer: its Python blocks, one after the other; raises `NoProgram`.

    Blocks without a language count where none has one. An answer that is a program itself, and submits, needs no fence.
    Where an answer `is_cut` off, what has no end is no program, though it can be parsed.
    """
    answer = answer.replace("\r\n", "\n")
    blocks = list(fenced_blocks(answer, is_truncated=is_truncated))
    marked = [code for language, code in blocks if language in PYTHON_LANGUAGES]
    found = marked or [code for language, code in blocks if not language]
    program = "\n".join(found)
    if program.strip():
        return program
    if not is_truncated and "SUBMIT(" in answer and is_python(answer):
        return answer.strip()
    raise NoProgramFound(TRUNCATED_PROBLEM if is_truncated else NO_PROGRAM_PROBLEM)


def fenced_blocks(answer: str, *, is_truncated: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the fenced blocks of an answer with their languages; raises `NoProgram` if the last one is cut off.

    A fence may stand inside a program, in a text of several lines: a block that is no Python goes on to the next one.
    """
    place = 0
    while (opened := OPENING_FENCE.search(answer, place)) is not None:
        language = fence_language(opened["info"])
        closing = re.compile(
            rf"^[ \t]*{opened['mark'][0]}{{{len(opened['mark'])},}}[ \t]*$", re.MULTILINE
        )
        begins = min(opened.end() + 1, len(answer))
        ends = [
            found.span() for found in islice(closing.finditer(answer, begins), MAX_INNER_FENCES)
        ]
        if not ends:
            if not is_truncated and is_python(answer[begins:]):
                yield language, dedent_code(answer[begins:]).strip("\n")
                return
            raise NoProgramFound(TRUNCATED_PROBLEM)
        first, place = ends[0]
        if language in PYTHON_LANGUAGES and not is_python(answer[begins:first]):
            first, place = next(
                ((at, end) for at, end in ends[1:] if is_python(answer[begins:at])), ends[0]
            )
        yield language, dedent_code(answer[begins:first]).strip("\n")


def fence_language(info: str) -> str:
    """Return the language that a fence names: `Python`, `{python}` and `python title=x` are one."""
    words = info.strip().strip("{}.").lower().replace(",", " ").split()
    return words[0].strip("{}.") if words else ""


def dedent_code(code: str) -> str:
    """Return code without an indentation that all its lines share."""
    lines = [line for line in code.split("\n") if line.strip()]
    margin = min((len(line) - len(line.lstrip(" \t")) for line in lines), default=0)
    return "\n".join(line[margin:] for line in code.split("\n"))


def is_python(code: str) -> bool:
    """Return whether code can be parsed."""
    try:
        compile(
            dedent_code(code),
            "<program>",
            "exec",
            ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST,
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


# results ------------------------------------------------------------------------------------------


def result_message(result: Mapping[str, Any], step: int, steps: int) -> str:
    """Return what the model is shown of a run: `result` is what `run_code` answers with."""
    return f"{step_heading(step, steps, str(result['status']))}\n{mark_as_data(describe_result(result))}"


def step_heading(step: int, steps: int, outcome: str) -> str:
    """Return the first line of what the model is told after an answer."""
    last = " (last step)" if step == steps - 1 else ""
    return f"Step {step} of {steps}: {outcome}{last}"


def describe_result(result: Mapping[str, Any]) -> str:
    """Return what there is to say of a run; after one that failed, which calls it has made."""
    lines = []
    if (value := result.get("value")) is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"value: {truncate_text(text, MAX_FIELD_CHARS)[0]}")
    for name in ("stdout", "stderr"):
        printed = str(result.get(name, "")).rstrip()
        lines += [f"{name}:\n{truncate_text(printed, MAX_FIELD_CHARS)[0]}"] if printed else []
    if error := result.get("error"):
        lines.append(
            f"error:\n{truncate_text(error['traceback'] or error['message'], MAX_FIELD_CHARS)[0]}"
        )
        calls = [f"  {call['call']} -> {call['status']}" for call in result.get("calls", ())]
        lines += ["calls that were made:", *calls[-MAX_LISTED_CALLS:]] if calls else []
    if files := result.get("files"):
        lines.append(f"files: {truncate_text(', '.join(files), MAX_FIELD_CHARS)[0]}")
    if note := result.get("note"):
        lines.append(f"note: {note}")
    return "\n".join(lines) or "(no value, nothing printed)"


def truncate_conversation(
    messages: Sequence[Mapping[str, str]], max_chars: int
) -> list[dict[str, str]]:
    """Return the conversation within about `room` characters: of old answers and results only the beginning is kept."""
    kept = [dict(each) for each in messages]
    left = sum(len(each["content"]) for each in kept) - max_chars
    for each in kept[2:-RECENT_MESSAGES]:
        if left <= 0:
            break
        if len(each["content"]) > OLD_MESSAGE_CHARS:
            short = f"{each['content'][:OLD_MESSAGE_CHARS]}\n... ({len(each['content']) - OLD_MESSAGE_CHARS:,} characters are left out)"
            left -= len(each["content"]) - len(short)
            each["content"] = short
    return kept
