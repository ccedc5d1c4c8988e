"""Questions of code, answered: within budgets, from the cache, again where it passes, and as the schema wants it.

Rule 1: a question is asked only when what it may cost is reserved, and what it has cost is counted, however it ends.
Rule 2: errors are errors, never texts that look like answers. Credentials are in none of them.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from hashlib import sha256
from typing import Any

import anyio

from ..config import LlmSettings
from ..errors import CallFailed, JournalFailed, NoModel
from ..journal.events import Spent, canonical_json
from ..journal.scope import scope
from ..journal.store import Journal
from .accounts import Accounts, Answers
from .budget import Budget
from .caller import Caller
from .messages import check_schema, messages_of, repaired, value_of
from .model import Answer, Broker, Completion, Messages, ModelFailed, Question, Usage

MAX_BATCH = 10_000  # questions of one call
MAX_TEXT = 20_000_000  # characters of a prompt or of its data
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0  # before a question is asked again; who wants us to wait longer has failed
MAX_TOKENS = 10_000_000  # of an answer
MAX_ANSWERS = 20_000_000  # characters of the answers to a batch
TOO_LONG = f"The answers to a batch have at most {MAX_ANSWERS:,} characters: ask fewer questions at once."
OVERHEAD = 64  # tokens that a provider may add to a question


logger = logging.getLogger(__name__)


class Models:
    """What `ask_llm` and its like ask."""

    def __init__(self, settings: LlmSettings, journal: Journal, broker: Broker | None) -> None:
        self._settings = settings
        self._journal = journal
        self._broker = broker
        self._by_client = isinstance(broker, Caller)  # its questions are put all at once, and cost us nothing
        self._prices: dict[str, tuple[float, float]] = {}
        self._accounts = Accounts(settings, journal)

    async def answer(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `llm.ask {question}`, `llm.batch {questions}` or `llm.usage {}`; raises `CallFailed`."""
        async with self._accounts.using(scope()) as (budget, answers):
            if target == "llm.usage":
                return budget.told()
            if target == "llm.ask":
                return told(await self._ask(self._question(args), budget, answers))
            if target == "llm.batch":
                return await self._batch(args.get("questions"), budget, answers)
        raise CallFailed("unknown_target", f"Models are not asked with {target!r:.80}.")

    # one question -----------------------------------------------------------------------------------

    async def _ask(self, question: Question, budget: Budget, answers: Answers) -> Answer:
        key = sha256(canonical_json([question.__dict__]).encode("utf-8", "surrogatepass")).hexdigest()
        return await answers.get(key, partial(self._ask_anew, question, budget))

    async def _ask_anew(self, question: Question, budget: Budget) -> Answer:
        """Return the answer; one that does not follow the schema is asked for once more."""
        messages = messages_of(question)
        said, usage = await self._complete(messages, question, budget)
        try:
            return Answer(value_of(said, question.schema), len(said), usage)
        except ValueError as problem:
            again, more = await self._complete(repaired(messages, said, str(problem)), question, budget)
        try:
            return Answer(value_of(again, question.schema), len(again), usage + more)
        except ValueError as still:
            raise CallFailed(
                "llm_bad_answer",
                f"The model's answer does not follow the schema: {still}",
                remedy="Ask for less at once, or with another model.",
                data={"text": again[:1000]},
            ) from None

    async def _complete(self, messages: Messages, question: Question, budget: Budget) -> tuple[str, Usage]:
        """Put messages before the model, as often as it takes; return what it said and what that cost."""
        broker, model = self._asked(question.model)
        amount = await self._at_most(broker, model, messages, question.max_tokens)
        wait_s, spent = FIRST_WAIT_S, Usage()
        async with nullcontext() if self._by_client else budget.slot():
            for attempt in range(self._settings.retries + 1):
                try:
                    done = await self._put(broker, model, messages, question, amount, budget)
                    return done.text, spent + done.usage
                except ModelFailed as exc:
                    if not exc.is_passing or attempt == self._settings.retries or exc.after_s > LONGEST_WAIT_S:
                        raise CallFailed(exc.kind, told_failure(exc)) from None
                    spent += exc.usage or Usage(1)
                    pause_s = max(wait_s * random.uniform(0.5, 1.0), exc.after_s)  # noqa: S311
                await anyio.sleep(pause_s)
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
        raise AssertionError("the last attempt returns or raises")

    def _asked(self, model: str) -> tuple[Broker, str]:
        """Return who is asked, and for which model; raises `CallFailed` if nobody is, or code may not ask that."""
        broker, settings = self._broker, self._settings
        known = dict.fromkeys(filter(None, (settings.model, *settings.models)))
        may_be_any = self._by_client or bool(settings.api_base)
        if broker is None or not (known or may_be_any) or not (model or settings.model or self._by_client):
            raise CallFailed(NoModel.code, str(NoModel()))
        if model and model not in known and not may_be_any:
            raise CallFailed(
                "llm_unknown_model",
                f"Code may not ask the model {model!r:.80}.",
                remedy=f"It may ask {', '.join(known)}; the settings name others under [llm] models.",
            )
        return broker, model or settings.model

    async def _at_most(self, broker: Broker, model: str, messages: Messages, max_tokens: int) -> Usage:
        """Return what a question can cost: a token has at least one byte."""
        if self._by_client:
            return Usage(1)
        if model not in self._prices:
            try:
                self._prices[model] = await broker.price(model)
            except ModelFailed as exc:
                raise CallFailed(exc.kind, exc.message) from None
        size = sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in messages) + OVERHEAD
        price_in, price_out = self._prices[model]
        return Usage(1, size, max_tokens, size * price_in + max_tokens * price_out)

    async def _put(
        self, broker: Broker, model: str, messages: Messages, question: Question, amount: Usage, budget: Budget
    ) -> Completion:
        """Put messages before the model once; what that has cost is counted and journaled, however it ends."""
        reserved, began = budget.reserve(amount), time.monotonic()
        used = amount  # if it is cut off
        try:
            with nullcontext() if self._by_client else budget.in_time():
                done = await broker.complete(
                    messages,
                    model=model,
                    max_tokens=question.max_tokens,
                    timeout_s=self._settings.timeout_s,
                    schema=question.schema,
                )
                used = done.usage
            return done
        except ModelFailed as exc:
            used = amount if exc.is_cut_off else exc.usage or Usage(1)
            raise
        finally:
            reserved.settle(used)
            self._note(used, (time.monotonic() - began) * 1e3)

    def _note(self, used: Usage, ms: float) -> None:
        asking = scope()
        spent = Spent(used.calls, used.tokens_in, used.tokens_out, used.usd, round(ms, 3))
        try:
            self._journal.append(asking.session, spent, asking.run)
        except JournalFailed as exc:
            logger.error("what a question in run %s has cost was not journaled: %s", asking.run, exc)

    # many -------------------------------------------------------------------------------------------

    async def _batch(self, given: Any, budget: Budget, answers: Answers) -> list[dict[str, Any]]:
        """Answer many questions, each with a slot of its own, in their order."""
        if not isinstance(given, list) or len(given) > MAX_BATCH:
            raise CallFailed("invalid_arguments", f"A batch is a list of at most {MAX_BATCH:,} questions.")
        slots: list[dict[str, Any]] = [{}] * len(given)
        left = iter(enumerate(given))
        chars = 0

        async def work() -> None:
            nonlocal chars
            for number, each in left:
                try:
                    answer = await self._ask(self._question(each), budget, answers)
                    chars += answer.chars
                    if chars > MAX_ANSWERS:
                        raise CallFailed("llm_too_long", TOO_LONG)
                    slots[number] = {"ok": True, **told(answer)}
                except CallFailed as exc:
                    slots[number] = {"ok": False, "error": {"kind": exc.kind, "message": str(exc), "data": exc.data}}

        async with anyio.create_task_group() as tasks:
            for _ in range(
                len(given) if self._by_client else min(self._settings.run.concurrency or len(given), len(given))
            ):
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
        if not isinstance(model, str) or type(limit) is not int or not 0 < limit <= MAX_TOKENS:
            raise CallFailed("invalid_arguments", f"`model` is a name, and `max_tokens` from 1 to {MAX_TOKENS:,}.")
        if schema is not None:
            check_schema(schema)
        return Question(prompt, data, schema, model, limit)


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


def told_failure(exc: ModelFailed) -> str:
    """Return why a model did not answer, and for how long it will not if it says that."""
    wants = f" The provider wants us to wait {exc.after_s:,.0f} s." if exc.after_s > LONGEST_WAIT_S else ""
    return f"{exc.message}{wants}"


def broker_of(settings: LlmSettings, litellm: Broker) -> Broker | None:
    """Return who answers, as the settings have it; None if nobody does."""
    brokers: Mapping[str, Broker] = {"litellm": litellm, "caller": Caller(), "sampling": Caller()}
    return brokers.get(settings.answered_by)
