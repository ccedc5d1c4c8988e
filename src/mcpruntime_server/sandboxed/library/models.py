"""What sandboxed code sees of models: `ask_llm`, `sub_agent` and their like, there without an import, also in `llm`.

Rule 1: as in `guest`: standard library only, Python >= 3.9, few imports, and nothing here knows how a call travels.
Rule 2: what a model did not answer is an exception, never a text that looks like an answer.
"""

from __future__ import annotations

import sys
from types import ModuleType

from ...protocol.library_names import MODELS_MODULE
from .planned import PlannedResult, check_no_planned_result
from .results import Slot, Slots, map_concurrently
from .tools import HostError, host

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Iterable, NoReturn


class LlmError(Exception):
    """A model did not answer; `kind` says why, `data` is plain JSON."""

    __module__ = MODELS_MODULE

    def __init__(self, message: str, kind: str = "llm_failed", data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.data = data


class BudgetExceeded(LlmError):
    """A question would cost more than what is left; nothing was asked."""

    __module__ = MODELS_MODULE


class LlmAnswerError(LlmError):
    """A model has answered, but not as the schema wants it; `data` has what it said."""

    __module__ = MODELS_MODULE


class AgentFailed(LlmError):
    """An agent has come to no answer; `data` says in which session it has worked, and what it said last."""

    __module__ = MODELS_MODULE


class Submitted(SystemExit):
    """The run ends with a value that was submitted; `ended` is the first of the run, whatever the code makes of it."""

    __module__ = MODELS_MODULE
    first_of_run: Submitted | None = None

    def __init__(self, value: Any) -> None:
        super().__init__(None)
        self.value = value


LLM_ERROR_TYPES: dict[str, type[LlmError]] = {  # by kind
    "budget_exceeded": BudgetExceeded,
    "llm_bad_answer": LlmAnswerError,
    "agent_failed": AgentFailed,
}
DEFINITION_KEYS = ("$defs", "definitions")  # of a schema: what it refers to
MAX_CONCURRENT_AGENTS = 8  # agents of a batch


def ask_llm(
    prompt: str,
    data: Any = None,
    *,
    schema: Any = None,
    model: str | None = None,
    max_tokens: int | None = None,
) -> Any:
    """Return a model's answer to `prompt`, about `data`, which it takes for material only.

    `data` is a text, JSON data or a piece of CONTEXT. Without `schema` the answer is a text. `schema` is a JSON schema,
    a TypedDict, a dataclass or a type such as `list[str]`; the answer is then of that kind. Raises `LlmError`:
    `BudgetExceeded`, `LlmAnswerError` and others.
    """
    form = AnswerFormat(schema)
    return form.parse_answer(
        _call_host("llm.ask", build_model_request(prompt, data, form, model, max_tokens))
    )


async def aask_llm(
    prompt: str,
    data: Any = None,
    *,
    schema: Any = None,
    model: str | None = None,
    max_tokens: int | None = None,
) -> Any:
    """Return what `ask_llm` does, from asyncio."""
    form = AnswerFormat(schema)
    asked = build_model_request(prompt, data, form, model, max_tokens)
    try:
        return form.parse_answer(await host.acall("llm.ask", asked))
    except HostError as error:
        raise_llm_error(error)


def ask_llm_batch(
    prompts: str | Iterable[str],
    data: Iterable[Any] | None = None,
    *,
    schema: Any = None,
    model: str | None = None,
    max_tokens: int | None = None,
) -> Slots:
    """Return a slot for each question, in order: `.ok` and `.value`, or else `.error`. They are asked at once.

    `prompts` are several, or one that is asked of each of `data`.
    """
    form = AnswerFormat(schema)
    asked = [
        build_model_request(prompt, each, form, model, max_tokens)
        for prompt, each in pair_with_data(prompts, data)
    ]
    return Slots(build_slot(each, form) for each in _call_host("llm.batch", {"questions": asked}))


def sub_agent(
    task: str,
    context: Any = None,
    *,
    budget: dict[str, Any] | None = None,
    schema: Any = None,
    model: str | None = None,
) -> Any:
    """Have an agent do `task`, in a session of its own with the same tools, and return what it submits.

    `context` (a text, JSON data, or a piece of an input) is its variable CONTEXT. `budget` narrows what it may use:
    calls, tokens_in, tokens_out, usd, wall_s, depth, concurrency and steps. `schema` is as in `ask_llm`. Raises
    `LlmError`: `AgentFailed` where it comes to no answer, `BudgetExceeded` and others.
    """
    form = AnswerFormat(schema)
    return form.parse_submission(
        _call_host("agent.run", build_agent_task(task, context, budget, form, model))
    )


async def asub_agent(
    task: str,
    context: Any = None,
    *,
    budget: dict[str, Any] | None = None,
    schema: Any = None,
    model: str | None = None,
) -> Any:
    """Return what `sub_agent` does, from asyncio."""
    form = AnswerFormat(schema)
    asked = build_agent_task(task, context, budget, form, model)
    if PlannedResult.any_created:
        check_no_planned_result(asked)
    try:
        return form.parse_submission(await host.acall("agent.run", asked))
    except HostError as error:
        if error.kind == "planned":
            return PlannedResult("agent.run", error.data["call"])
        raise_llm_error(error)


def sub_agent_batch(
    tasks: str | Iterable[str],
    contexts: Iterable[Any] | None = None,
    *,
    budget: dict[str, Any] | None = None,
    schema: Any = None,
    model: str | None = None,
    max_concurrency: int = MAX_CONCURRENT_AGENTS,
) -> Slots:
    """Return a slot for each task, in order: `.ok` and `.value`, or else `.error`; so many agents work at once.

    `tasks` are several, or one that is done with each of `contexts`. The budget is that of each.
    """
    return map_concurrently(
        lambda pair: sub_agent(*pair, budget=budget, schema=schema, model=model),
        pair_with_data(tasks, contexts),
        max_concurrency,
    )


def SUBMIT(value: Any = None) -> NoReturn:  # noqa: N802 - a word that nobody uses for anything else
    """End the run with `value` (JSON data, or what is easily made that), as an agent's answer."""
    plain = to_json_data(value)
    _call_host("agent.submit", {"value": plain})
    end = Submitted(plain)
    Submitted.first_of_run = Submitted.first_of_run or end
    raise end


def llm_usage() -> dict[str, Any]:
    """Return what this run, its session and its owner have used of their budgets, agents included."""
    found: dict[str, Any] = _call_host("llm.usage", {})
    return found


def build_model_request(
    prompt: Any, data: Any, answer_format: AnswerFormat, model: str | None, max_tokens: int | None
) -> dict[str, Any]:
    """Return a question as the host takes it; raises `TypeError`."""
    if not isinstance(prompt, str):
        raise TypeError(
            f"a prompt is a text, not {type(prompt).__name__}; what it is about goes into `data`."
        )
    asked = {
        "prompt": prompt,
        "data": serialize_data(data),
        "schema": answer_format.schema,
        "model": model,
        "max_tokens": max_tokens,
    }
    return {name: value for name, value in asked.items() if value is not None}


def pair_with_data(texts: str | Iterable[str], data: Iterable[Any] | None) -> list[tuple[str, Any]]:
    """Return texts with what they are about: one with each, or each with its own; raises `ValueError`, `TypeError`."""
    if isinstance(data, (str, bytes, bytearray, dict)):
        raise TypeError(
            f"a batch goes through a list, and would take a {type(data).__name__} apart: give [data]."
        )
    if isinstance(texts, str):
        return [(texts, each) for each in (data if data is not None else [None])]
    several = list(texts)
    about = [None] * len(several) if data is None else list(data)
    if len(several) != len(about):
        raise ValueError(
            f"{len(several)} texts and {len(about)} pieces of data: there must be as many of both."
        )
    return list(zip(several, about))  # noqa: B905 - Python 3.9 has no `strict`


def build_agent_task(
    task: Any, context: Any, budget: Any, answer_format: AnswerFormat, model: str | None
) -> dict[str, Any]:
    """Return what an agent is to do, as the host takes it; raises `TypeError`."""
    if not isinstance(task, str):
        raise TypeError(
            f"a task is a text, not {type(task).__name__}; what it is about goes into `context`."
        )
    asked = {
        "task": task,
        "context": serialize_data(context),
        "budget": budget,
        "schema": answer_format.unwrapped_schema,
        "model": model,
    }
    return {name: value for name, value in asked.items() if value is not None}


def serialize_data(data: Any) -> Any:
    """Return data as the host takes it: a text, JSON data, or a reference to a piece of an input."""
    if hasattr(data, "to_argument"):
        return data.to_argument()
    if isinstance(data, (bytes, bytearray)):
        return bytes(data).decode("utf-8", "replace")
    return data if isinstance(data, str) or data is None else to_json_data(data)


def to_json_data(value: Any) -> Any:
    """Return what is easily made JSON data as such; raises `TypeError`."""
    import json

    try:
        return json.loads(json.dumps(value, default=_json_default, allow_nan=False))
    except (ValueError, RecursionError) as problem:
        raise TypeError(f"this is not JSON data: {problem}") from None


def _json_default(value: Any) -> Any:
    import dataclasses

    if isinstance(value, PlannedResult):
        check_no_planned_result(value)
    if hasattr(value, "to_argument"):  # pieces of inputs
        return value.text
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if callable(getattr(value, "tolist", None)):  # of numpy's numbers and arrays
        return value.tolist()
    raise TypeError(
        f"{type(value).__name__} is not JSON data: give texts, numbers, lists and dicts."
    )


class AnswerFormat:
    """What an answer has to be like: the schema that the host is told, and what is made of the value."""

    def __init__(self, requested_type: Any) -> None:
        self.requested_type = requested_type
        self.schema: dict[str, Any] | None = None
        self.is_wrapped = False
        if requested_type is None or isinstance(requested_type, dict):
            self.schema = requested_type
        else:
            from . import typed_answers

            self.schema = typed_answers.build_schema(requested_type)
        self.unwrapped_schema = self.schema  # as agents are told it
        if (
            self.schema is not None
            and self.schema.get("type") != "object"
            and "properties" not in self.schema
        ):
            # Providers that follow schemas themselves want an object at the top, where references begin.
            shared = {name: self.schema[name] for name in DEFINITION_KEYS if name in self.schema}
            inner = {name: each for name, each in self.schema.items() if name not in shared}
            self.schema = {
                "type": "object",
                "properties": {"value": inner},
                "required": ["value"],
                **shared,
            }
            self.is_wrapped = True

    def parse_answer(self, answer: Any) -> Any:
        """Return the value of an answer as the code wants it."""
        return self.convert_value(answer["value"]["value"] if self.is_wrapped else answer["value"])

    def parse_submission(self, answer: Any) -> Any:
        """Return what an agent has submitted as the code wants it."""
        if isinstance(answer, PlannedResult):
            return answer
        return self.convert_value(
            answer["value"] if isinstance(answer, dict) and "steps" in answer else answer
        )  # or a person's word

    def convert_value(self, value: Any) -> Any:
        """Return a value that follows the schema as what was wanted."""
        if self.requested_type is None or type(self.requested_type) is dict:
            return value
        from . import typed_answers

        return typed_answers.convert_value(self.requested_type, value)


def build_slot(answer: Any, answer_format: AnswerFormat) -> Slot:
    """Return the slot of one question of a batch."""
    if answer["ok"]:
        try:
            return Slot(value=answer_format.parse_answer(answer))
        except Exception as problem:  # noqa: BLE001 - a class of the user's may refuse a value in any way
            return Slot(error=problem)
    error = answer["error"]
    return Slot(
        error=LLM_ERROR_TYPES.get(error["kind"], LlmError)(
            error["message"], error["kind"], error["data"]
        )
    )


def _call_host(target: str, args: dict[str, Any]) -> Any:
    if PlannedResult.any_created:
        check_no_planned_result(args)
    try:
        return host.call(target, args)
    except HostError as error:
        if error.kind == "planned":
            return PlannedResult(target, error.data["call"])
        raise_llm_error(error)


def raise_llm_error(error: HostError) -> NoReturn:
    """Raise what code is to see instead of `error`."""
    raise LLM_ERROR_TYPES.get(error.kind, LlmError)(error.message, error.kind, error.data) from None


MODEL_EXPORTS: dict[str, Any] = {
    "ask_llm": ask_llm,
    "aask_llm": aask_llm,
    "ask_llm_batch": ask_llm_batch,
    "llm_usage": llm_usage,
    "sub_agent": sub_agent,
    "asub_agent": asub_agent,
    "sub_agent_batch": sub_agent_batch,
    "SUBMIT": SUBMIT,
    "LlmError": LlmError,
    "BudgetExceeded": BudgetExceeded,
    "LlmAnswerError": LlmAnswerError,
    "AgentFailed": AgentFailed,
}


def install_models() -> dict[str, Any]:
    """Make `from llm import ask_llm` work; return the names that code has without it."""
    module = sys.modules[MODELS_MODULE] = ModuleType(MODELS_MODULE, MODELS_DOC)
    module.__dict__.update(MODEL_EXPORTS, __all__=sorted(MODEL_EXPORTS))
    return MODEL_EXPORTS


MODELS_DOC = """Questions to a model, from code: each answer is a value, and what is not answered is an exception.

ask_llm("Which language is this?", text)                    ask_llm("Sum up", rows, schema=Summary)
ask_llm_batch("Positive or negative?", texts)               one slot each: .ok .value .error
await aask_llm(...)                                         llm_usage()
sub_agent("Find the cause", log)                            an agent with a session of its own; await asub_agent(...)
sub_agent_batch("Sum up the chapter", chapters)             one slot each; SUBMIT(value) ends an agent's task
"""
