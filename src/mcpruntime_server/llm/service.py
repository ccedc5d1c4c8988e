"""Questions of code, answered: within budgets, from the cache, again where it passes, and as the schema wants it.

Rule 1: a question is asked only when what it may cost is reserved, and what it has cost is counted, however it ends.
Rule 2: errors are errors, never texts that look like answers. Credentials are in none of them.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from hashlib import sha256
from typing import Any

import anyio

from ..config import LlmSettings
from ..errors import CallFailed, McpRuntimeError, NotFound
from ..journal.events import canonical_json
from ..journal.scope import Scope, scope
from ..journal.store import Journal
from .budget import Budget
from .caller import Caller
from .messages import check_schema, messages_of, repaired, value_of
from .model import Answer, Broker, Messages, ModelFailed, Question, Usage

MAX_BATCH = 10_000  # questions of one call
MAX_TEXT = 20_000_000  # characters of a prompt or of its data
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # before a question is asked again
KEPT = 2_000  # answers of a session
SESSIONS = 200  # whose answers and budgets are remembered
OVERHEAD = 64  # tokens that a provider may add to a question
NO_MODEL = (
    "No model is configured. There are three ways to have one: [llm] model with its provider's key in the environment; "
    "[llm] broker = \"caller\", with which the client's own model answers; or [llm] api_base, a server like OpenAI's."
)


class Models:
    """What `ask_llm` and its like ask."""

    def __init__(
        self,
        settings: LlmSettings,
        journal: Journal,
        broker: Broker | None,
        resolved: Callable[[Any], AbstractAsyncContextManager[Any]] = nullcontext,
    ) -> None:
        self._resolved = resolved  # yields what data is that is only a reference, for as long as it is needed
        self._settings = settings
        self._journal = journal
        self._broker = broker
        self._at_once = MAX_BATCH if isinstance(broker, Caller) else None  # its questions are put all at once
        self._prices: dict[str, tuple[float, float]] = {}
        self._principals: dict[str, Budget] = {}
        self._sessions: OrderedDict[str, tuple[Budget, OrderedDict[str, Answer]]] = OrderedDict()
        self._runs: OrderedDict[str, Budget] = OrderedDict()

    async def answer(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `llm.ask {question}`, `llm.batch {questions}` or `llm.usage {}`; raises `CallFailed`."""
        asking = scope()
        budget, cache = await self._budget(asking)
        if target == "llm.usage":
            return budget.told()
        if target == "llm.ask":
            return told(await self._answer(args, budget, cache))
        if target == "llm.batch":
            return await self._batch(args.get("questions"), budget, cache)
        raise CallFailed("unknown_target", f"Models are not asked with {target!r:.80}.")

    # one question -----------------------------------------------------------------------------------

    async def _answer(self, given: Any, budget: Budget, cache: OrderedDict[str, Answer]) -> Answer:
        """Answer a question as code has sent it, with what its data refers to."""
        if not isinstance(given, dict):
            return await self._ask(self._question(given), budget, cache)
        async with self._resolved(given.get("data")) as data:
            return await self._ask(self._question({**given, "data": data}), budget, cache)

    async def _ask(self, question: Question, budget: Budget, cache: OrderedDict[str, Answer]) -> Answer:
        key = sha256(canonical_json([question.__dict__]).encode("utf-8", "surrogatepass")).hexdigest()
        if key in cache:
            cache.move_to_end(key)
            return replace(cache[key], usage=Usage(), is_cached=True)
        messages = messages_of(question)
        said, usage = await self._complete(messages, question, budget)
        try:
            answer = Answer(value_of(said, question.schema), usage)
        except ValueError as problem:
            again, more = await self._complete(repaired(messages, said, str(problem)), question, budget)
            try:
                answer = Answer(value_of(again, question.schema), usage + more)
            except ValueError as still:
                raise CallFailed(
                    "llm_bad_answer",
                    f"The model's answer does not follow the schema: {still}",
                    remedy="Ask for less at once, or with another model.",
                    data={"text": again[:1000]},
                ) from None
        cache[key] = answer
        if len(cache) > KEPT:
            cache.popitem(last=False)
        return answer

    async def _complete(self, messages: Messages, question: Question, budget: Budget) -> tuple[str, Usage]:
        """Put messages before the model, as often as it takes; return what it said and what that cost."""
        settings, model = self._settings, question.model or self._settings.model
        broker = self._broker
        if broker is None or not (model or self._at_once):
            raise CallFailed("no_model", NO_MODEL)
        price_in, price_out = await self._price(broker, model)
        size = sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in messages) + OVERHEAD
        amount = Usage(1, size, question.max_tokens, size * price_in + question.max_tokens * price_out)
        wait_s = FIRST_WAIT_S
        async with budget.slot() if self._at_once is None else nullcontext():
            for attempt in range(settings.retries + 1):
                reserved = budget.reserve(amount)
                used = Usage(1)
                try:
                    done = await broker.complete(
                        messages,
                        model=model,
                        max_tokens=question.max_tokens,
                        timeout_s=settings.timeout_s,
                        schema=question.schema,
                    )
                    used = done.usage
                    return done.text, used
                except ModelFailed as exc:
                    if not exc.is_passing or attempt == settings.retries:
                        raise CallFailed(exc.kind, exc.message) from None
                    pause_s = max(wait_s * random.uniform(0.5, 1.0), min(exc.after_s, LONGEST_WAIT_S))  # noqa: S311
                finally:
                    reserved.settle(used)
                await anyio.sleep(pause_s)
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
        raise AssertionError("the last attempt returns or raises")

    async def _price(self, broker: Broker, model: str) -> tuple[float, float]:
        if model not in self._prices:
            try:
                self._prices[model] = await broker.price(model)
            except ModelFailed as exc:
                raise CallFailed(exc.kind, exc.message) from None
        return self._prices[model]

    # many -------------------------------------------------------------------------------------------

    async def _batch(self, given: Any, budget: Budget, cache: OrderedDict[str, Answer]) -> list[dict[str, Any]]:
        """Answer many questions, each with a slot of its own, in their order."""
        if not isinstance(given, list) or len(given) > MAX_BATCH:
            raise CallFailed("invalid_arguments", f"A batch is a list of at most {MAX_BATCH:,} questions.")
        slots: list[dict[str, Any]] = [{}] * len(given)
        left = iter(enumerate(given))

        async def work() -> None:
            for number, each in left:
                try:
                    slots[number] = {"ok": True, **told(await self._answer(each, budget, cache))}
                except CallFailed as exc:
                    slots[number] = {"ok": False, "error": {"kind": exc.kind, "message": str(exc), "data": exc.data}}

        async with anyio.create_task_group() as tasks:
            for _ in range(min(self._at_once or self._settings.run.concurrency or len(given), len(given))):
                tasks.start_soon(work)
        return slots

    def _question(self, given: Any) -> Question:
        """Return a question as code has sent it; raises `CallFailed`."""
        if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
            raise CallFailed("invalid_arguments", "A question has a prompt, which is a text.")
        prompt, data, schema = given["prompt"], given.get("data"), given.get("schema")
        model, limit = given.get("model") or "", given.get("max_tokens") or self._settings.max_tokens
        data = "" if data is None else data if isinstance(data, str) else canonical_json(data)
        if max(len(prompt), len(data)) > MAX_TEXT:
            raise CallFailed("invalid_arguments", f"A prompt or its data has at most {MAX_TEXT:,} characters.")
        if not isinstance(model, str) or type(limit) is not int or limit < 1:
            raise CallFailed("invalid_arguments", "`model` is a name, and `max_tokens` a number over 0.")
        if schema is not None:
            check_schema(schema)
        return Question(prompt, data, schema, model, limit)

    # budgets ----------------------------------------------------------------------------------------

    async def _budget(self, asking: Scope) -> tuple[Budget, OrderedDict[str, Answer]]:
        """Return the budget of a run, and the answers that its session has had."""
        settings = self._settings
        if asking.session not in self._sessions:
            principal = await self._principal_of(asking.session)
            top = self._principals.setdefault(principal, Budget("principal", settings.principal))
            self._sessions.setdefault(asking.session, (Budget("session", settings.session, top), OrderedDict()))
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(asking.session)
        budget, cache = self._sessions[asking.session]
        if asking.run not in self._runs:
            self._runs[asking.run] = Budget("run", settings.run, budget)
            if len(self._runs) > SESSIONS:
                self._runs.popitem(last=False)
        return self._runs[asking.run], cache

    async def _principal_of(self, session: str) -> str:
        try:
            return (await self._journal.session(session)).principal
        except (NotFound, McpRuntimeError):
            return ""


def told(answer: Answer) -> dict[str, Any]:
    """Return an answer as code gets it."""
    usage = answer.usage
    cost: Mapping[str, Any] = {
        "calls": usage.calls,
        "tokens_in": usage.tokens_in,
        "tokens_out": usage.tokens_out,
        "usd": usage.usd,
    }
    return {"value": answer.value, "usage": cost, "cached": answer.is_cached}


def broker_of(settings: LlmSettings, litellm: Broker) -> Broker | None:
    """Return who answers, as the settings have it; None if nobody does."""
    if settings.broker == "caller":
        return Caller()
    return litellm if settings.model and settings.broker != "off" else None
