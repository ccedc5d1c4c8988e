"""Words of a model for a skill: a name, one line, and what its parameters are, where `[skills] describe` wants that.

Rule 1: the model is shown the code, and types. What the code was recorded with is no business of its provider's:
defaults, docstrings, comments and whatever else equals an input are left out, and so are all answers and results.
Rule 2: what it says is checked like anything that a stranger types, and becomes a name, or a text in a docstring. No
statement of code that has passed the gate is another afterwards.
Rule 3: where it says nothing of use, the code's own words stand, and why is told.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import anyio

from ...config.credentials import find_known_credential
from ...errors import McpRuntimeError, SkillRefused, Unavailable
from .annotate import annotation_of
from .docstrings import to_one_line, without_docstrings
from .lint import FunctionNode, check_source, entry_of, parse_source
from .model import TOOL_PREFIX, ExtractedSkill, RecordedCase
from .skill_names import choose_free_name, name_problem

ANSWER_S = 60.0  # for the model, and for the process that asks it to start
KEEPING_S = 1.0  # of the time that there is, left for keeping the skill
MAX_SHOWN = 30_000  # characters of code that a model is shown
SUMMARY, ABOUT = 110, 100  # characters of a summary, and of what is said about a parameter
SHORT = 3  # characters up to which a text is no secret, though it is an input

PROMPT = """Name and describe the Python function `run` for programmers who look for code that does the same.
name: two to five lowercase words joined by underscores, for what it does in general.
summary: one sentence of at most 100 characters that begins with a verb.
parameters: of each, in a few words, what it is.
Values that it was used with are left out on purpose."""

Ask = Callable[[str, str, str, Mapping[str, Any]], Awaitable[Any]]  # session, prompt, data, schema


@dataclass(frozen=True)
class Described:
    """What a skill is called and said to do, in its source as well; `by` a model, unless there was a `problem`."""

    name: str
    summary: str
    source: str
    by: str = ""
    problem: str = ""

    @property
    def note(self) -> str:
        """What whoever keeps it is told of that; "" if no model was asked."""
        if self.problem:
            return f"A model was asked to describe it, and its words are the code's own: {self.problem}"
        return f"It was named and described by {self.by}." if self.by else ""


class SkillDescriber:
    """Asks the model `by`, through `ask`."""

    def __init__(self, ask: Ask, by: str) -> None:
        self._ask = ask
        self._by = by

    async def describe_skill(
        self,
        own: Described,
        made: ExtractedSkill,
        case: RecordedCase,
        session: str,
        taken: Collection[str] | None,
    ) -> Described:
        """Return better words than its `own` for what `made` is, if the model has some; the owner of `session` pays.

        The name stays unless those are given that are `taken`.
        """
        try:
            data, schema = shown(own.source, made, case), schema_of(made)
            limit = min(
                ANSWER_S, anyio.current_effective_deadline() - anyio.current_time() - KEEPING_S
            )
            with anyio.move_on_after(limit):
                said = await self._ask(session, PROMPT, data, schema)
                return await anyio.to_thread.run_sync(self._taken, own, said, taken)
            raise Unavailable(f"It did not answer within {max(limit, 0.0):.0f} seconds.")
        except McpRuntimeError as exc:
            return replace(own, problem=exc.message)

    def _taken(self, own: Described, said: Any, taken: Collection[str] | None) -> Described:
        name, summary, about = words_in(said)
        source = with_words(own.source, summary, about)
        return Described(
            own.name if taken is None else choose_free_name(name, taken), summary, source, self._by
        )


def is_describable(made: ExtractedSkill) -> bool:
    """Return whether nobody has said yet what code does: it was extracted, or is a function without a docstring."""
    return (
        not made.is_hand_written or ast.get_docstring(entry_of(parse_source(made.source))) is None
    )


# what the model is shown ------------------------------------------------------------------------------


def shown(source: str, made: ExtractedSkill, case: RecordedCase) -> str:
    """Return the code and the types that the model is to see, as JSON; raises `SkillRefused` if that is too much."""
    tree = without_docstrings(parse_source(source))
    hidden = {text for text in texts_in(dict(case.inputs)) if len(text) > SHORT}
    for node in ast.walk(tree):
        if isinstance(node, (FunctionNode, ast.Lambda)):
            node.args.defaults = [ast.Constant(...) for _ in node.args.defaults]
            node.args.kw_defaults = [each and ast.Constant(...) for each in node.args.kw_defaults]
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in hidden
        ):
            node.value = "..."
    output = case.result or {}
    answers = {
        call.target: annotation_of(call.value)
        for call in case.calls
        if call.target.startswith(TOOL_PREFIX)
    }
    about = {
        "code": ast.unparse(tree),
        "parameters": {
            each.name: annotation_of(case.inputs.get(each.name))
            for each in made.signature.parameters
        },
        "returns": annotation_of(json.loads(output["text"])) if is_whole(output) else "Any",
        "answers": dict(list(answers.items())[:20]),
    }
    text = json.dumps(about, ensure_ascii=False, indent=1)
    if len(text) > MAX_SHOWN:
        raise SkillRefused(
            f"It has {len(text):,} characters, and a model is shown {MAX_SHOWN:,} at most."
        )
    return text


def is_whole(output: Mapping[str, Any]) -> bool:
    """Return whether a recorded result is JSON, all of it."""
    return output.get("kind") == "json" and not output.get("cut")


def texts_in(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts_in(each)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from (*texts_in(key), *texts_in(each))


def schema_of(made: ExtractedSkill) -> dict[str, Any]:
    """Return the JSON schema of the answer."""
    names = [each.name for each in made.signature.parameters]
    return _object(
        name={"type": "string"},
        summary={"type": "string"},
        parameters=_object(**{name: {"type": "string"} for name in names}),
    )


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# what becomes of the answer -----------------------------------------------------------------------------


def words_in(said: Any) -> tuple[str, str, dict[str, str]]:
    """Return the name, the summary and the words on parameters of an answer; raises `SkillRefused`."""
    name = said["name"].strip().lower().replace("-", "_").replace(" ", "_")
    if problem := name_problem(name):
        raise SkillRefused(f"{said['name']!r:.80} cannot name a skill: {problem}.")
    summary = plain(said["summary"], SUMMARY).rstrip(".")
    if not summary:
        raise SkillRefused("It said nothing about what it does.")
    about = {name: plain(text, ABOUT) for name, text in said["parameters"].items()}
    for text in (summary, *about.values()):
        if kind := find_known_credential(text):
            raise SkillRefused(f"It said what looks like {kind}.")
    return name, f"{summary}.", about


def plain(text: str, limit: int) -> str:
    """Return a text as a line that ends neither a docstring nor front matter."""
    line = to_one_line(text[: limit * 4]).replace("\\", "/").replace('"', "'")
    while "---" in line:
        line = line.replace("---", "--")
    return line if len(line) <= limit else f"{line[: limit - 3].rstrip()}..."


def with_words(source: str, summary: str, about: Mapping[str, str]) -> str:
    """Return source whose docstrings say this; raises `SkillRefused` if anything else of it were another."""
    tree = parse_source(source)
    entry = entry_of(tree)
    first, indent = entry.body[0], " " * entry.body[0].col_offset
    lines = source.split("\n")
    rest: list[str] = []
    if ast.get_docstring(entry) is not None:
        old = lines[first.lineno - 1 : first.end_lineno]
        rest, at = old[1:-1], slice(first.lineno - 1, first.end_lineno)
    else:
        at = slice(first.lineno - 1, first.lineno - 1)
    told = [f"{indent}{name}: {text}" for name, text in about.items() if text]
    body = [*(["", *told] if told else []), *rest]
    lines[at] = (
        [f'{indent}"""{summary}', *body, f'{indent}"""'] if body else [f'{indent}"""{summary}"""']
    )
    opening = tree.body[0]
    if ast.get_docstring(tree) is not None and opening is not entry:
        lines[opening.lineno - 1 : opening.end_lineno] = [f'"""{summary}"""']
    made = "\n".join(lines)
    check_source(made, None)
    if ast.dump(without_docstrings(parse_source(made))) != ast.dump(
        without_docstrings(parse_source(source))
    ):
        raise SkillRefused("Its words do not fit into the code.")
    return made
