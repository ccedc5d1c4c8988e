"""What sandboxed code sees of models: `ask_llm` and its like, names that are there without an import, also in `llm`.

Rule 1: as in `guest`: standard library only, Python >= 3.9, few imports, and nothing here knows how a call travels.
Rule 2: what a model did not answer is an exception, never a text that looks like an answer.
"""

from __future__ import annotations

import sys
from types import ModuleType

from .guest import HostError, host
from .planned import Planned, check_known
from .results import Slot, Slots

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import Any, Iterable, NoReturn

PACKAGE = "llm"


class LlmError(Exception):
    """A model did not answer; `kind` says why, `data` is plain JSON."""

    __module__ = PACKAGE

    def __init__(self, message: str, kind: str = "llm_failed", data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.data = data


class BudgetExceeded(LlmError):
    """A question would cost more than what is left; nothing was asked."""

    __module__ = PACKAGE


class LlmAnswerError(LlmError):
    """A model has answered, but not as the schema wants it; `data` has what it said."""

    __module__ = PACKAGE


ERRORS: dict[str, type[LlmError]] = {"budget_exceeded": BudgetExceeded, "llm_bad_answer": LlmAnswerError}  # by kind


def ask_llm(
    prompt: str, data: Any = None, *, schema: Any = None, model: str | None = None, max_tokens: int | None = None
) -> Any:
    """Return a model's answer to `prompt`, about `data` (a text, or JSON data), which it takes for material only.

    Without `schema` the answer is a text. `schema` is a JSON schema, a TypedDict, a dataclass or a type such as
    `list[str]`; the answer is then of that kind. Raises `LlmError`: `BudgetExceeded`, `LlmAnswerError` and others.
    """
    form = Form(schema)
    return form.value(_call("llm.ask", question(prompt, data, form, model, max_tokens)))


async def aask_llm(
    prompt: str, data: Any = None, *, schema: Any = None, model: str | None = None, max_tokens: int | None = None
) -> Any:
    """Return what `ask_llm` does, from asyncio."""
    form = Form(schema)
    asked = question(prompt, data, form, model, max_tokens)
    try:
        return form.value(await host.acall("llm.ask", asked))
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
    form = Form(schema)
    if isinstance(prompts, str):
        pairs = [(prompts, each) for each in (data if data is not None else [None])]
    else:
        texts = list(prompts)
        about = [None] * len(texts) if data is None else list(data)
        if len(texts) != len(about):
            raise ValueError(f"{len(texts)} prompts and {len(about)} pieces of data: there must be as many of both.")
        pairs = list(zip(texts, about))  # noqa: B905 - Python 3.9 has no `strict`
    asked = [question(prompt, each, form, model, max_tokens) for prompt, each in pairs]
    return Slots(slot_of(each, form) for each in _call("llm.batch", {"questions": asked}))


def llm_usage() -> dict[str, Any]:
    """Return what this run, its session and its owner have used of their budgets."""
    found: dict[str, Any] = _call("llm.usage", {})
    return found


def question(prompt: Any, data: Any, form: Form, model: str | None, max_tokens: int | None) -> dict[str, Any]:
    """Return a question as the host takes it; raises `TypeError`."""
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt is a text, not {type(prompt).__name__}; what it is about goes into `data`.")
    if isinstance(data, (bytes, bytearray)):
        data = bytes(data).decode("utf-8", "replace")
    elif isinstance(data, (list, tuple)):
        data = [each.text if hasattr(each, "as_data") else each for each in data]
    elif hasattr(data, "as_data"):
        data = data.as_data()
    asked = {"prompt": prompt, "data": data, "schema": form.schema, "model": model, "max_tokens": max_tokens}
    return {name: value for name, value in asked.items() if value is not None}


class Form:
    """What an answer has to be like: the schema that the host is told, and what is made of the value."""

    def __init__(self, wanted: Any) -> None:
        self.wanted = wanted
        self.schema: dict[str, Any] | None = None
        self.is_wrapped = False
        if wanted is None or type(wanted) is dict:
            self.schema = wanted
        else:
            from . import typed

            self.schema = typed.schema_of(wanted)
        if self.schema is not None and self.schema.get("type") != "object" and "properties" not in self.schema:
            # Providers that follow schemas themselves want an object at the top.
            self.schema = {"type": "object", "properties": {"value": self.schema}, "required": ["value"]}
            self.is_wrapped = True

    def value(self, told: Any) -> Any:
        """Return the value of an answer as the code wants it."""
        value = told["value"]
        if self.is_wrapped:
            value = value["value"]
        if self.wanted is None or type(self.wanted) is dict:
            return value
        from . import typed

        return typed.made(self.wanted, value)


def slot_of(told: Any, form: Form) -> Slot:
    """Return the slot of one question of a batch."""
    if told["ok"]:
        try:
            return Slot(value=form.value(told))
        except (TypeError, ValueError) as problem:
            return Slot(error=problem)
    error = told["error"]
    return Slot(error=ERRORS.get(error["kind"], LlmError)(error["message"], error["kind"], error["data"]))


def _call(target: str, args: dict[str, Any]) -> Any:
    if Planned.any_made:
        check_known(args)
    try:
        return host.call(target, args)
    except HostError as error:
        raise_llm_error(error)


def raise_llm_error(error: HostError) -> NoReturn:
    """Raise what code is to see instead of `error`."""
    raise ERRORS.get(error.kind, LlmError)(error.message, error.kind, error.data) from None


NAMES: dict[str, Any] = {
    "ask_llm": ask_llm,
    "aask_llm": aask_llm,
    "ask_llm_batch": ask_llm_batch,
    "llm_usage": llm_usage,
    "LlmError": LlmError,
    "BudgetExceeded": BudgetExceeded,
    "LlmAnswerError": LlmAnswerError,
}


def install() -> dict[str, Any]:
    """Make `from llm import ask_llm` work; return the names that code has without it."""
    module = sys.modules[PACKAGE] = ModuleType(PACKAGE, DOC)
    module.__dict__.update(NAMES, __all__=sorted(NAMES))
    return NAMES


DOC = """Questions to a model, from code: each answer is a value, and what is not answered is an exception.

ask_llm("Which language is this?", text)                    ask_llm("Sum up", rows, schema=Summary)
ask_llm_batch("Positive or negative?", texts)               one slot each: .ok .value .error
await aask_llm(...)                                         llm_usage()
"""
