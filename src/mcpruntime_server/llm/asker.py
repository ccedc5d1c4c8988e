"""Messages put before a model: within a budget, and again where that passes.

Rule: a question is asked only when what it may cost is reserved, and what it has cost is counted, however it ends.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import anyio

from ..config import LlmSettings
from ..errors import CallFailed, NoModel
from .budget import Budget
from .caller import Caller
from .messages import messages_of, repaired, value_of
from .model import Answer, Broker, Completion, Messages, ModelFailed, Question, Usage

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0  # before a question is asked again; who wants us to wait longer has failed
SHOWN = 1_000  # characters of an answer that will not do
OVERHEAD = 64  # tokens that a provider may add to a question
NOT_AGENTS = "The client's own model answers questions, and drives no agents."
DRIVERS = "Set [llm] model: of a provider whose key is in the environment, or of a server at [llm] api_base."

Note = Callable[[Usage, float], None]  # what a question has cost, and the milliseconds that it took


class Asker:
    """What puts messages before the model of the settings, or another of the same broker."""

    def __init__(self, settings: LlmSettings, broker: Broker | None) -> None:
        self._settings = settings
        self._broker = broker
        self._prices: dict[str, tuple[float, float]] = {}

    @property
    def by_client(self) -> bool:
        """Whether the client's own model answers: it is asked everything at once, and costs us nothing."""
        return isinstance(self._broker, Caller)

    def check_drives(self, model: str) -> None:
        """Raise `CallFailed` unless there is a model that can drive an agent, and may."""
        if self.by_client:
            raise CallFailed(NoModel.code, str(NoModel(NOT_AGENTS, remedy=DRIVERS)))
        if self._broker is None or not (model or self._settings.model):  # the client's own would be no way out
            raise CallFailed(NoModel.code, str(NoModel(remedy=DRIVERS)))
        self._asked(model)

    async def complete(
        self,
        messages: Messages,
        budget: Budget,
        *,
        model: str = "",
        max_tokens: int = 0,
        schema: Mapping[str, Any] | None = None,
        note: Note = lambda used, ms: None,
    ) -> Completion:
        """Put messages before the model, as often as it takes; return what it said and what that cost in all.

        Raises `CallFailed`. Whoever keeps accounts is told with `note` each time that they were put.
        """
        broker, model = self._asked(model)
        max_tokens = max_tokens or self._settings.max_tokens
        amount = await self._at_most(broker, model, messages, max_tokens)
        timeout_s = self._settings.timeout_s
        put = partial(broker.complete, messages, model=model, max_tokens=max_tokens, timeout_s=timeout_s, schema=schema)
        wait_s, spent = FIRST_WAIT_S, Usage()
        async with nullcontext() if self.by_client else budget.slot():
            for attempt in range(self._settings.retries + 1):
                try:
                    done = await self._put(put, amount, budget, note)
                    return replace(done, usage=spent + done.usage)
                except ModelFailed as exc:
                    if not exc.is_passing or attempt == self._settings.retries or exc.after_s > LONGEST_WAIT_S:
                        raise CallFailed(exc.kind, told_failure(exc)) from None
                    spent += exc.usage or Usage(1)
                    pause_s = max(wait_s * random.uniform(0.5, 1.0), exc.after_s)  # noqa: S311
                with budget.in_time():
                    await anyio.sleep(pause_s)
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
        raise AssertionError("the last attempt returns or raises")

    def _asked(self, model: str) -> tuple[Broker, str]:
        """Return who is asked, and for which model; raises `CallFailed` if nobody is, or code may not ask that."""
        broker, settings = self._broker, self._settings
        known = dict.fromkeys(filter(None, (settings.model, *settings.models)))
        may_be_any = self.by_client or bool(settings.api_base)
        if broker is None or not (known or may_be_any) or not (model or settings.model or self.by_client):
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
        if self.by_client:
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
        self, put: Callable[[], Awaitable[Completion]], amount: Usage, budget: Budget, note: Note
    ) -> Completion:
        """Put messages before the model once, `amount` being what that can cost."""
        reserved, began = budget.reserve(amount), time.monotonic()
        used = amount  # if it is cut off
        try:
            with nullcontext() if self.by_client else budget.in_time():
                done = await put()
            used = done.usage
            return done
        except ModelFailed as exc:
            used = amount if exc.is_cut_off else exc.usage or Usage(1)
            raise
        finally:
            reserved.settle(used)
            note(used, (time.monotonic() - began) * 1e3)


async def answered(question: Question, complete: Callable[[Messages], Awaitable[Completion]]) -> Answer:
    """Return the answer to a question; one that does not follow the schema is asked for once more.

    `complete` puts messages before a model. Raises `CallFailed`, also for one that is cut off.
    """
    messages = messages_of(question)
    said = await complete(messages)
    try:
        return Answer(whole(said, question), len(said.text), said.usage)
    except ValueError as problem:
        again = await complete(repaired(messages, said.text, str(problem)))
    try:
        return Answer(whole(again, question), len(again.text), said.usage + again.usage)
    except ValueError as still:
        raise CallFailed(
            "llm_bad_answer",
            f"The model's answer does not follow the schema: {still}.",
            remedy="Ask for less at once, or with another model.",
            data={"text": again.text[:SHOWN]},
        ) from None


def whole(said: Completion, question: Question) -> Any:
    """Return what an answer says; raises `ValueError` if not as the schema wants it, `CallFailed` if it is cut off."""
    if not said.is_cut:
        return value_of(said.text, question.schema)
    raise CallFailed(
        "llm_bad_answer",
        "The answer has come to as many tokens as it may have, and is cut off.",
        remedy="Ask for less at once, or allow more: `max_tokens` of the question, or [llm] max_tokens.",
        data={"text": said.text[:SHOWN]},
    )


def told_failure(exc: ModelFailed) -> str:
    """Return why a model did not answer, and for how long it will not if it says that."""
    wants = f" The provider wants us to wait {exc.after_s:,.0f} s." if exc.after_s > LONGEST_WAIT_S else ""
    return f"{exc.message}{wants}"
