"""Questions of code, answered: within budgets, from the cache, again where it passes, and as the schema wants it.

Rule 1: a question is asked only when what it may cost is reserved, and what it has cost is counted, however it ends.
Rule 2: errors are errors, never texts that look like answers. Credentials are in none of them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import anyio

from ..config import Limits, LlmSettings
from ..errors import CallFailed, JournalFailed
from ..journal.events import Spent, canonical_json
from ..journal.scope import Scope, scope
from ..journal.store import Journal
from .accounts import Accounts, Answers, Purse
from .asker import Asker, answered
from .budget import minus
from .caller import Caller
from .messages import check_schema
from .model import Answer, Broker, Completion, Messages, Question, Usage

MAX_BATCH = 10_000  # questions of one call
MAX_TEXT = 20_000_000  # characters of a prompt or of its data
MAX_TOKENS = 10_000_000  # of an answer
MAX_ANSWERS = 20_000_000  # characters of the answers to a batch
TOO_LONG = f"The answers to a batch have at most {MAX_ANSWERS:,} characters: ask fewer questions at once."

logger = logging.getLogger(__name__)


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
        self._asker = Asker(settings, broker)
        self._accounts = Accounts(settings, journal)

    async def answer(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `llm.ask {question}`, `llm.batch {questions}` or `llm.usage {}`; raises `CallFailed`."""
        async with self._accounts.using(scope()) as purse:
            if target == "llm.usage":
                return purse.budget.told()
            if target == "llm.ask":
                return told(await self._answer(args, purse))
            if target == "llm.batch":
                return await self._batch(args.get("questions"), purse)
        raise CallFailed("unknown_target", f"Models are not asked with {target!r:.80}.")

    async def ask_for(self, session: str, prompt: str, data: str, schema: Mapping[str, Any]) -> Any:
        """Return the answer to a question of the server's own about a session, whose owner's budget pays.

        Raises `CallFailed`. The client's own model is not asked: no run waits for it.
        """
        if self._asker.by_client:
            raise CallFailed("no_model", "There is no model but the client's own, which can name what it saves.")
        question = self._question({"prompt": prompt, "data": data, "schema": schema})
        return (await self._ask(question, Purse(await self._accounts.owner(session), Answers()))).value

    # one question -----------------------------------------------------------------------------------

    async def _answer(self, given: Any, purse: Purse) -> Answer:
        """Answer a question as code has sent it, with what its data refers to."""
        if not isinstance(given, dict):
            return await self._ask(self._question(given), purse)
        async with self._resolved(given.get("data")) as data:
            return await self._ask(self._question({**given, "data": data}), purse)

    async def _ask(self, question: Question, purse: Purse) -> Answer:
        key = sha256(canonical_json([question.__dict__]).encode("utf-8", "surrogatepass")).hexdigest()
        return await purse.answers.get(key, lambda: answered(question, partial(self._complete, question, purse)))

    async def _complete(self, question: Question, purse: Purse, messages: Messages) -> Completion:
        """Put messages before the model, and journal what that cost."""
        return await self._asker.complete(
            messages,
            purse.budget,
            model=question.model,
            max_tokens=question.max_tokens,
            schema=question.schema,
            note=partial(self._note, purse),
        )

    def _note(self, purse: Purse, used: Usage, ms: float) -> None:
        if not purse.run:
            return
        spent = Spent(used.calls, used.tokens_in, used.tokens_out, used.usd, round(ms, 3))
        try:
            self._journal.append(purse.session, spent, purse.run)
        except JournalFailed as exc:
            logger.error("what a question in run %s has cost was not journaled: %s", purse.run, exc)

    # agents -----------------------------------------------------------------------------------------

    def check_drives(self, model: str) -> None:
        """Raise `CallFailed` unless there is a model that can drive an agent."""
        self._asker.check_drives(model)

    @asynccontextmanager
    async def hiring(self, asking: Scope, limits: Limits) -> AsyncIterator[Purse]:
        """Yield what an agent pays from that a run begins; raises `CallFailed` beyond the depth."""
        async with self._accounts.using(asking) as purse:
            yield replace(purse, budget=purse.budget.child(limits), answers=Answers())

    @contextmanager
    def agent(self, session: str, purse: Purse) -> Iterator[None]:
        """Have what code in an agent's session asks be paid from the agent's purse."""
        self._accounts.agents[session] = purse
        try:
            yield
        finally:
            del self._accounts.agents[session]

    async def drive(self, messages: Messages, purse: Purse, model: str) -> Completion:
        """Return what the model says that drives an agent; raises `CallFailed`."""
        return await self._asker.complete(messages, purse.budget, model=model, note=partial(self._note, purse))

    def costs(self, run: str) -> dict[str, float]:
        """Return what a run has paid models for, apart from that its agents have; empty if nothing."""
        budget = self._accounts.budget_of(run)
        if budget is None:
            return {}
        own, agents = cost_of(minus(budget.used, budget.of_agents)), cost_of(budget.of_agents)
        found = {**{f"llm_{what}": own[what] for what in own}, **{f"agents_{what}": agents[what] for what in agents}}
        return {name: amount for name, amount in {"agents": budget.begun, **found}.items() if amount}

    # many -------------------------------------------------------------------------------------------

    async def _batch(self, given: Any, purse: Purse) -> list[dict[str, Any]]:
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
                    answer = await self._answer(each, purse)
                    chars += answer.chars
                    if chars > MAX_ANSWERS:
                        raise CallFailed("llm_too_long", TOO_LONG)
                    slots[number] = {"ok": True, **told(answer)}
                except CallFailed as exc:
                    slots[number] = {"ok": False, "error": {"kind": exc.kind, "message": str(exc), "data": exc.data}}

        async with anyio.create_task_group() as tasks:
            at_once = None if self._asker.by_client else self._settings.run.concurrency
            for _ in range(min(at_once or len(given), len(given))):
                tasks.start_soon(work)
        return slots

    def _question(self, given: Any) -> Question:
        """Return a question as code has sent it; raises `CallFailed`."""
        if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
            raise CallFailed("invalid_arguments", "A question has a prompt, which is a text.")
        prompt, data, schema = given["prompt"], given.get("data"), given.get("schema")
        model, limit = given.get("model") or "", given.get("max_tokens", self._settings.max_tokens)
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
    return {"value": answer.value, "usage": cost_of(answer.usage), "cached": answer.is_cached}


def cost_of(usage: Usage) -> dict[str, Any]:
    """Return what questions cost, as code gets it."""
    return {
        "calls": usage.calls,
        "tokens_in": usage.tokens_in,
        "tokens_out": usage.tokens_out,
        "usd": usage.usd,
    }


def broker_of(settings: LlmSettings, litellm: Broker) -> Broker | None:
    """Return who answers, as the settings have it; None if nobody does."""
    brokers: Mapping[str, Broker] = {"litellm": litellm, "caller": Caller(), "sampling": Caller()}
    return brokers.get(settings.answered_by)
