"""The module `llm`: `ask_llm`, `sub_agent` and others, which code has without an import, too.

Rule 1: as in `tools`: standard library only, Python >= 3.9, few imports, and nothing here knows how
a call travels.
Rule 2: where a model gives no answer, an exception is raised; no text looks like an answer that is
none.
"""

from __future__ import annotations

import sys
from types import ModuleType

from ...protocol.library_names import MODELS_MODULE
from .planned import PlannedResult, check_no_planned_result
from .results import Slot, Slots, map_concurrently
from .tools import HostError, host

TYPE_CHECKING = False  # importing `typing` would slow down every start of a sandbox
if TYPE_CHECKING:
    from typing import Any, Iterable, NoReturn

    from ...protocol.payloads import (
        AgentTaskData,
        BatchAnswer,
        JsonObject,
        JsonSchema,
        ModelRequestData,
    )


class LlmError(Exception):
    """A model gave no answer; `kind` says why, `data` is plain JSON."""

    __module__ = MODELS_MODULE

    def __init__(self, message: str, kind: str = "llm_failed", data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.data = data


class BudgetExceeded(LlmError):
    """A request would cost more than the budget has left; it was not sent."""

    __module__ = MODELS_MODULE


class LlmAnswerError(LlmError):
    """The answer of a model does not follow the schema; `data` has the answer."""

    __module__ = MODELS_MODULE


class AgentFailed(LlmError):
    """An agent has submitted no answer; `data` has its session and its last message."""

    __module__ = MODELS_MODULE


class Submitted(SystemExit):
    """Ends a run with a submitted value.

    `first_of_run` ends the run even if the code catches it.
    """

    __module__ = MODELS_MODULE
    first_of_run: Submitted | None = None

    def __init__(self, value: Any) -> None:
        super().__init__(None)
        self.value = value


LLM_ERROR_TYPES: dict[str, type[LlmError]] = {  # by the kind of the host's error
    "budget_exceeded": BudgetExceeded,
    "llm_bad_answer": LlmAnswerError,
    "agent_failed": AgentFailed,
}
DEFINITION_KEYS = ("$defs", "definitions")  # where a schema has what its references point to
MAX_CONCURRENT_AGENTS = 8  # of one batch


# requests to models -------------------------------------------------------------------------------


def ask_llm(
    prompt: str,
    data: Any = None,
    *,
    schema: Any = None,
    model: str | None = None,
    max_tokens: int | None = None,
) -> Any:
    """Return a model's answer to `prompt` about `data`, which the model treats as material only.

    `data` is text, JSON data or a slice of CONTEXT. Without `schema`, the answer is text. `schema`
    is a JSON schema, a TypedDict, a dataclass or a type such as `list[str]`; the answer then has
    this type. Raises `LlmError`: `BudgetExceeded`, `LlmAnswerError` and others.
    """
    answer_format = AnswerFormat(schema)
    request = build_model_request(prompt, data, answer_format, model, max_tokens)
    return answer_format.parse_answer(_call_host("llm.ask", request))


async def aask_llm(
    prompt: str,
    data: Any = None,
    *,
    schema: Any = None,
    model: str | None = None,
    max_tokens: int | None = None,
) -> Any:
    """Do what `ask_llm` does, for asyncio."""
    answer_format = AnswerFormat(schema)
    request = build_model_request(prompt, data, answer_format, model, max_tokens)
    return answer_format.parse_answer(await _call_host_async("llm.ask", request))


def ask_llm_batch(
    prompts: str | Iterable[str],
    data: Iterable[Any] | None = None,
    *,
    schema: Any = None,
    model: str | None = None,
    max_tokens: int | None = None,
) -> Slots:
    """Send several requests at once; return one slot each, in order.

    A slot has `.ok` and `.value`, or else `.error`.
    `prompts` are several prompts, or one that is sent with each item of `data`.
    """
    answer_format = AnswerFormat(schema)
    requests = [
        build_model_request(prompt, each, answer_format, model, max_tokens)
        for prompt, each in pair_with_data(prompts, data)
    ]
    answers = _call_host("llm.batch", {"questions": requests})
    return Slots(build_slot(answer, answer_format) for answer in answers)


def llm_usage() -> dict[str, Any]:
    """Return what this run, its session and its owner have used of their budgets.

    The agents that they have started are included.
    """
    usage: JsonObject = _call_host("llm.usage", {})
    return usage


def build_model_request(
    prompt: Any,
    data: Any,
    answer_format: AnswerFormat,
    model: str | None,
    max_tokens: int | None,
) -> ModelRequestData:
    """Return the arguments of `llm.ask`; raises `TypeError`."""
    if not isinstance(prompt, str):
        raise TypeError(
            f"a prompt is text, not {type(prompt).__name__}; pass what it is about as `data`."
        )
    request = {
        "prompt": prompt,
        "data": serialize_data(data),
        "schema": answer_format.schema,
        "model": model,
        "max_tokens": max_tokens,
    }
    return _without_none(request)  # type: ignore[return-value] # the keys are those of the type


def build_slot(answer: BatchAnswer, answer_format: AnswerFormat) -> Slot:
    """Return the slot for one answer of a batch."""
    if answer["ok"]:
        try:
            return Slot(value=answer_format.parse_answer(answer))
        except Exception as problem:  # noqa: BLE001 - the user's class raises it
            return Slot(error=problem)
    error = answer["error"]
    error_type = LLM_ERROR_TYPES.get(error["kind"], LlmError)
    return Slot(error=error_type(error["message"], error["kind"], error["data"]))


# agents -------------------------------------------------------------------------------------------


def sub_agent(
    task: str,
    context: Any = None,
    *,
    budget: dict[str, Any] | None = None,
    schema: Any = None,
    model: str | None = None,
) -> Any:
    """Let an agent do `task` in a session of its own with the same tools; return what it submits.

    `context` (text, JSON data, or a slice of an input) becomes its variable CONTEXT. `budget`
    limits what it may use: calls, tokens_in, tokens_out, usd, wall_s, depth, concurrency and steps.
    `schema` is as in `ask_llm`. Raises `LlmError`: `AgentFailed` if it submits nothing,
    `BudgetExceeded` and others.
    """
    answer_format = AnswerFormat(schema)
    request = build_agent_task(task, context, budget, answer_format, model)
    return answer_format.parse_submission(_call_host("agent.run", request))


async def asub_agent(
    task: str,
    context: Any = None,
    *,
    budget: dict[str, Any] | None = None,
    schema: Any = None,
    model: str | None = None,
) -> Any:
    """Do what `sub_agent` does, for asyncio."""
    answer_format = AnswerFormat(schema)
    request = build_agent_task(task, context, budget, answer_format, model)
    return answer_format.parse_submission(await _call_host_async("agent.run", request))


def sub_agent_batch(
    tasks: str | Iterable[str],
    contexts: Iterable[Any] | None = None,
    *,
    budget: dict[str, Any] | None = None,
    schema: Any = None,
    model: str | None = None,
    max_concurrency: int = MAX_CONCURRENT_AGENTS,
) -> Slots:
    """Let several agents work at once; return one slot each, in order.

    A slot has `.ok` and `.value`, or else `.error`.
    `tasks` are several tasks, or one that is done with each of `contexts`. Each agent has the whole
    `budget`.
    """
    return map_concurrently(
        lambda pair: sub_agent(*pair, budget=budget, schema=schema, model=model),
        pair_with_data(tasks, contexts),
        max_concurrency,
    )


def SUBMIT(value: Any = None) -> NoReturn:  # noqa: N802 - no code uses this name for anything else
    """End the run with `value`, which is or converts to JSON data, as an agent's answer."""
    plain = to_json_data(value)
    _call_host("agent.submit", {"value": plain})
    end = Submitted(plain)
    Submitted.first_of_run = Submitted.first_of_run or end
    raise end


def build_agent_task(
    task: Any, context: Any, budget: Any, answer_format: AnswerFormat, model: str | None
) -> AgentTaskData:
    """Return the arguments of `agent.run`; raises `TypeError`."""
    if not isinstance(task, str):
        raise TypeError(
            f"a task is text, not {type(task).__name__}; pass what it is about as `context`."
        )
    request = {
        "task": task,
        "context": serialize_data(context),
        "budget": budget,
        "schema": answer_format.unwrapped_schema,
        "model": model,
    }
    return _without_none(request)  # type: ignore[return-value] # the keys are those of the type


# data and answers ---------------------------------------------------------------------------------


def pair_with_data(texts: str | Iterable[str], data: Iterable[Any] | None) -> list[tuple[str, Any]]:
    """Return each text with its data, or one text with each item.

    Raises `ValueError`, `TypeError`.
    """
    if isinstance(data, (str, bytes, bytearray, dict)):
        kind = type(data).__name__
        raise TypeError(f"a batch needs a list of data and would split this {kind}: pass [data].")
    if isinstance(texts, str):
        items = [None] if data is None else data
        return [(texts, each) for each in items]
    all_texts = list(texts)
    all_data = [None] * len(all_texts) if data is None else list(data)
    if len(all_texts) != len(all_data):
        raise ValueError(
            f"{len(all_texts)} texts and {len(all_data)} items of data: "
            "there must be as many of both."
        )
    return list(zip(all_texts, all_data))  # noqa: B905 - Python 3.9 has no `strict`


def _without_none(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def serialize_data(data: Any) -> Any:
    """Return data as it is sent: text, JSON data, or a reference to a slice of an input."""
    if hasattr(data, "to_argument"):
        return data.to_argument()
    if isinstance(data, (bytes, bytearray)):
        return bytes(data).decode("utf-8", "replace")
    return data if isinstance(data, str) or data is None else to_json_data(data)


def to_json_data(value: Any) -> Any:
    """Return a value as JSON data; raises `TypeError` if it cannot be converted."""
    import json

    try:
        return json.loads(json.dumps(value, default=_json_default, allow_nan=False))
    except (ValueError, RecursionError) as problem:
        raise TypeError(f"this is not JSON data: {problem}") from None


def _json_default(value: Any) -> Any:
    import dataclasses

    check_no_planned_result(value)
    if hasattr(value, "to_argument"):  # a slice of an input
        return value.text
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if callable(getattr(value, "tolist", None)):  # a number or an array of numpy
        return value.tolist()
    kind = type(value).__name__
    raise TypeError(f"{kind} is not JSON data: pass text, numbers, lists and dicts.")


class AnswerFormat:
    """The requested type of an answer: the schema for the host, and the conversion of the value.

    `requested_type` is None, a JSON schema, or a type.
    """

    def __init__(self, requested_type: Any) -> None:
        self.requested_type = requested_type
        self.schema: JsonSchema | None = None
        self.is_wrapped = False
        if requested_type is None or isinstance(requested_type, dict):
            self.schema = requested_type
        else:
            from . import typed_answers

            self.schema = typed_answers.build_schema(requested_type)
        self.unwrapped_schema = self.schema  # for agents
        if self.schema is not None and not _is_object_schema(self.schema):
            self.schema = _wrap_schema(self.schema)
            self.is_wrapped = True

    def parse_answer(self, answer: Any) -> Any:
        """Return the value of an answer as the requested type."""
        value = answer["value"]
        return self.convert_value(value["value"] if self.is_wrapped else value)

    def parse_submission(self, answer: Any) -> Any:
        """Return what an agent has submitted as the requested type."""
        if isinstance(answer, PlannedResult):
            return answer
        is_agents = isinstance(answer, dict) and "steps" in answer  # else a person has answered
        return self.convert_value(answer["value"] if is_agents else answer)

    def convert_value(self, value: Any) -> Any:
        """Return a value that follows the schema as the requested type."""
        if self.requested_type is None or type(self.requested_type) is dict:
            return value
        from . import typed_answers

        return typed_answers.convert_value(self.requested_type, value)


def _is_object_schema(schema: JsonSchema) -> bool:
    return schema.get("type") == "object" or "properties" in schema


def _wrap_schema(schema: JsonSchema) -> JsonSchema:
    """Return the schema of an object that has the value under the key `value`.

    Providers that enforce schemas need an object at the top, where references start.
    """
    definitions = {name: schema[name] for name in DEFINITION_KEYS if name in schema}
    inner = {name: each for name, each in schema.items() if name not in definitions}
    return {"type": "object", "properties": {"value": inner}, "required": ["value"], **definitions}


# calls --------------------------------------------------------------------------------------------


def _call_host(target: str, args: Any) -> Any:
    check_no_planned_result(args)
    try:
        return host.call(target, args)
    except HostError as error:
        return _planned_answer(error, target)


async def _call_host_async(target: str, args: Any) -> Any:
    check_no_planned_result(args)
    try:
        return await host.acall(target, args)
    except HostError as error:
        return _planned_answer(error, target)


def _planned_answer(error: HostError, target: str) -> PlannedResult:
    """Return the result of a planned call; raises `LlmError` for any other error."""
    if error.kind == "planned":
        return PlannedResult(target, error.data["call"])
    error_type = LLM_ERROR_TYPES.get(error.kind, LlmError)
    raise error_type(error.message, error.kind, error.data) from None


# the module ---------------------------------------------------------------------------------------

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
    """Make `from llm import ask_llm` work; return the names that code has without an import."""
    module = sys.modules[MODELS_MODULE] = ModuleType(MODELS_MODULE, MODELS_DOC)
    module.__dict__.update(MODEL_EXPORTS, __all__=sorted(MODEL_EXPORTS))
    return MODEL_EXPORTS


MODELS_DOC = """Requests to models: each answer is a value, and a missing answer is an exception.

ask_llm("Which language is this?", text)          ask_llm("Sum up", rows, schema=Summary)
ask_llm_batch("Positive or negative?", texts)     one slot each: .ok .value .error
await aask_llm(...)                               llm_usage()
sub_agent("Find the cause", log)                  an agent with a session of its own
await asub_agent(...)                             the same for asyncio
sub_agent_batch("Sum up the chapter", chapters)   one slot each
SUBMIT(value)                                     ends an agent's task
"""
