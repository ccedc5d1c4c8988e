"""Ask a model to name and describe a skill, where `[skills] describe` wants that.

Rule 1: the model sees code and types only. Defaults, docstrings, comments, texts that equal an
input, answers and results are left out, because they may be private.
Rule 2: its answer is untrusted. It becomes a name and texts in docstrings; no other part of the
code changes.
Rule 3: the request is not in the journal, because no run made it. The version has the model's name,
the owner's budget pays.
Rule 4: without a usable answer, the words that were read from the code stay, with the reason.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import anyio

from ...config.credentials import find_known_credential
from ...errors import McpRuntimeError, SkillRefused, Unavailable
from ...protocol.payloads import JsonSchema
from .lint import check_source
from .model import TOOL_PREFIX, Skill
from .skill_names import choose_free_name, name_problem
from .source import (
    INDENT,
    annotation_of,
    entry_of,
    hide_defaults,
    parse_source,
    render_module,
    source_shape,
    to_docstring_line,
    without_docstrings,
)

ANSWER_TIMEOUT_S = 60.0  # for the model, and for its process to start
SAVING_RESERVE_S = 1.0  # of the caller's time, to save the skill
MAX_SHOWN_CHARS = 30_000  # of code and types
MAX_SHOWN_TOOLS = 20
MAX_SUMMARY_CHARS, MAX_PARAMETER_CHARS = 110, 100
MAX_GIVEN_SUMMARY_CHARS = 300  # of a description that the caller of `save_skill` gives
MIN_HIDDEN_CHARS = 4  # a shorter text is not private, even if it equals an input

PROMPT = """\
Name and describe the Python function `run` for programmers who look for code like it.
name: two to five lowercase words joined by underscores, for what it does in general.
summary: one sentence of at most 100 characters that begins with a verb.
parameters: of each, in a few words, what it is.
Values that it was used with are left out on purpose."""

AskModel = Callable[
    [str, str, str, Mapping[str, Any]], Awaitable[Any]
]  # session, prompt, data, schema


# What to tell the caller of `save_skill` about the model.
NAMED_BY = "It was named and described by {}."
NOT_DESCRIBED = "A model was asked for a description, but the code's own words stay: {}"


async def describe_skill(
    ask_model: AskModel,
    model: str,
    skill: Skill,
    session: str,
    taken_names: Collection[str] | None,
    test_s: float = 0.0,
) -> tuple[Skill, str]:
    """Return a skill with the words of a model, and what to tell the caller about it.

    The owner of `session` pays. The name changes only if `taken_names` are given. Afterwards the
    caller tests the skill with these words, which takes about `test_s` seconds.
    """
    time_left_s = anyio.current_effective_deadline() - anyio.current_time()
    timeout_s = min(ANSWER_TIMEOUT_S, time_left_s - SAVING_RESERVE_S - 2 * test_s)

    def apply(answer: Any) -> Skill:
        name, summary, parameters = read_answer(answer)
        return replace(
            skill,
            name=skill.name if taken_names is None else choose_free_name(name, taken_names),
            summary=summary,
            source=set_docstrings(skill.source, summary, parameters),
            described_by=model,
        )

    try:
        data = format_data(skill)
        with anyio.move_on_after(timeout_s):
            answer = await ask_model(session, PROMPT, data, make_schema(skill))
            return await anyio.to_thread.run_sync(apply, answer), NAMED_BY.format(model)
        raise Unavailable(f"It did not answer within {max(timeout_s, 0.0):.0f} seconds.")
    except McpRuntimeError as exc:
        return skill, NOT_DESCRIBED.format(exc.message)


def apply_summary(skill: Skill, summary: str) -> Skill:
    """Return a skill with the words of the person or model that saves it.

    The docstring of code that somebody has written stays as it is.

    Raises `SkillRefused` if it is empty or holds what looks like a credential.
    """
    line = to_docstring_line(summary, MAX_GIVEN_SUMMARY_CHARS).rstrip(".")
    if not line:
        raise SkillRefused("The description is empty.", remedy="Leave it out, or say what it does.")
    if kind := find_known_credential(line):
        raise SkillRefused(f"The description holds what looks like {kind}.")
    line = f"{line}."
    source = skill.source if skill.is_hand_written else set_docstrings(skill.source, line, {})
    return replace(skill, summary=line, source=source)


def needs_description(skill: Skill) -> bool:
    """Return whether no author has described the code: it was generated, or has no docstring."""
    return not skill.is_hand_written or ast.get_docstring(skill.entry) is None


# the request --------------------------------------------------------------------------------------


def format_data(skill: Skill) -> str:
    """Return the code and the types of the last case that the model sees, as JSON.

    Raises `SkillRefused` if that is too long.
    """
    case = skill.cases[-1]
    tree = without_docstrings(parse_source(skill.source))
    hidden = {text for text in find_texts(dict(case.inputs)) if len(text) >= MIN_HIDDEN_CHARS}
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            hide_defaults(node)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in hidden
        ):
            node.value = "..."
    answers = {
        call.target: annotation_of(call.value)
        for call in case.calls
        if call.target.startswith(TOOL_PREFIX)
    }
    data = {
        "code": ast.unparse(tree),
        "parameters": {
            name: annotation_of(case.inputs.get(name)) for name in skill.signature.parameters
        },
        "returns": case.result_annotation or "Any",
        "answers": dict(list(answers.items())[:MAX_SHOWN_TOOLS]),
    }
    text = json.dumps(data, ensure_ascii=False, indent=1)
    if len(text) > MAX_SHOWN_CHARS:
        raise SkillRefused(
            f"It has {len(text):,} characters, and the model is shown at most {MAX_SHOWN_CHARS:,}."
        )
    return text


def find_texts(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from find_texts(each)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from (*find_texts(key), *find_texts(each))


def make_schema(skill: Skill) -> JsonSchema:
    """Return the JSON schema of the model's answer."""
    text = {"type": "string"}
    parameters = _object_schema(dict.fromkeys(skill.signature.parameters, text))
    return _object_schema({"name": text, "summary": text, "parameters": parameters})


def _object_schema(properties: Mapping[str, Any]) -> JsonSchema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# the answer ---------------------------------------------------------------------------------------


def read_answer(answer: Any) -> tuple[str, str, dict[str, str]]:
    """Return the name, the summary and the parameters' descriptions in an answer.

    Raises `SkillRefused`.
    """
    name = answer["name"].strip().lower().replace("-", "_").replace(" ", "_")
    if problem := name_problem(name):
        raise SkillRefused(f"{answer['name']!r:.80} cannot name a skill: {problem}.")
    summary = to_docstring_line(answer["summary"], MAX_SUMMARY_CHARS).rstrip(".")
    if not summary:
        raise SkillRefused("Its summary is empty.")
    parameters = {
        parameter: to_docstring_line(text, MAX_PARAMETER_CHARS)
        for parameter, text in answer["parameters"].items()
    }
    for text in (summary, *parameters.values()):
        if kind := find_known_credential(text):
            raise SkillRefused(f"Its answer holds what looks like {kind}.")
    return name, f"{summary}.", parameters


def set_docstrings(source: str, summary: str, parameters: Mapping[str, str]) -> str:
    """Return source with other docstrings, and the same code.

    Comments are lost, so it is for generated source only.

    Raises `SkillRefused` if that is not possible.
    """
    tree = parse_source(source)
    entry = entry_of(tree)
    docstring = summary
    described = [f"{INDENT}{name}: {text}" for name, text in parameters.items() if text]
    if described:
        docstring += "\n".join(["\n", *described])
    _, separator, rest = (ast.get_docstring(entry, clean=False) or "").partition("\n")
    if separator:
        docstring += f"\n{rest}"
    elif described:
        docstring += f"\n{INDENT}"
    if ast.get_docstring(entry) is not None:
        del entry.body[0]
    entry.body.insert(0, ast.Expr(ast.Constant(docstring)))
    body = tree.body
    if ast.get_docstring(tree) is not None:
        body = body[1:]
    made = render_module(
        summary, [node for node in body if getattr(node, "module", "") != "__future__"]
    )
    check_source(made, None)
    if source_shape(made) != source_shape(source):
        raise SkillRefused("Its words do not fit into the code.")
    return made
