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

from ...config import LlmSettings
from ...errors import CallFailed, NoModelConfigured
from ..json_schemas import build_messages, build_repair_messages, parse_answer
from ..model_requests import (
    Completion,
    Messages,
    ModelBackend,
    ModelFailed,
    ModelRequest,
    ModelResponse,
    ModelUsage,
)
from .budget import Budget
from .client_model import ClientModel

FIRST_RETRY_DELAY_S, MAX_RETRY_DELAY_S = (
    0.5,
    60.0,
)  # before a question is asked again; who wants us to wait longer has failed
MAX_QUOTED_ANSWER_CHARS = 1_000  # characters of an answer that will not do
PROVIDER_OVERHEAD_TOKENS = 64  # tokens that a provider may add to a question
CLIENT_MODEL_DRIVES_NO_AGENTS = "The client's own model answers questions, and drives no agents."
CONFIGURE_MODEL_REMEDY = "Set [llm] model: of a provider whose key is in the environment, or of a server at [llm] api_base."

RecordUsage = Callable[
    [ModelUsage, float], None
]  # what a question has cost, and the milliseconds that it took


class BudgetedModel:
    """What puts messages before the model of the settings, or another of the same broker."""

    def __init__(self, settings: LlmSettings, backend: ModelBackend | None) -> None:
        self._settings = settings
        self._backend = backend
        self._token_prices: dict[str, tuple[float, float]] = {}

    @property
    def is_client_model(self) -> bool:
        """Whether the client's own model answers: it is asked everything at once, and costs us nothing."""
        return isinstance(self._backend, ClientModel)

    def check_can_drive_agents(self, model: str) -> None:
        """Raise `CallFailed` unless there is a model that can drive an agent, and may."""
        if self.is_client_model:
            raise CallFailed(
                NoModelConfigured.code,
                str(
                    NoModelConfigured(CLIENT_MODEL_DRIVES_NO_AGENTS, remedy=CONFIGURE_MODEL_REMEDY)
                ),
            )
        if self._backend is None or not (
            model or self._settings.model
        ):  # the client's own would be no way out
            raise CallFailed(
                NoModelConfigured.code, str(NoModelConfigured(remedy=CONFIGURE_MODEL_REMEDY))
            )
        self._select_model(model)

    async def complete(
        self,
        messages: Messages,
        budget: Budget,
        *,
        model: str = "",
        max_tokens: int = 0,
        schema: Mapping[str, Any] | None = None,
        record_usage: RecordUsage = lambda used, ms: None,
    ) -> Completion:
        """Put messages before the model, as often as it takes; return what it said and what that cost in all.

        Raises `CallFailed`. Whoever keeps accounts is told with `note` each time that they were put.
        """
        broker, model = self._select_model(model)
        max_tokens = max_tokens or self._settings.max_tokens
        amount = await self._estimate_max_usage(broker, model, messages, max_tokens)
        timeout_s = self._settings.timeout_s
        put = partial(
            broker.complete,
            messages,
            model=model,
            max_tokens=max_tokens,
            timeout_s=timeout_s,
            schema=schema,
        )
        wait_s, spent = FIRST_RETRY_DELAY_S, ModelUsage()
        async with nullcontext() if self.is_client_model else budget.request_slot():
            for attempt in range(self._settings.retries + 1):
                try:
                    done = await self._complete_once(put, amount, budget, record_usage)
                    return replace(done, usage=spent + done.usage)
                except ModelFailed as exc:
                    if (
                        not exc.is_transient
                        or attempt == self._settings.retries
                        or exc.retry_after_s > MAX_RETRY_DELAY_S
                    ):
                        raise CallFailed(exc.kind, describe_failure(exc)) from None
                    spent += exc.usage or ModelUsage(1)
                    pause_s = max(wait_s * random.uniform(0.5, 1.0), exc.retry_after_s)  # noqa: S311
                with budget.time_limit():
                    await anyio.sleep(pause_s)
                wait_s = min(wait_s * 2, MAX_RETRY_DELAY_S)
        raise AssertionError("the last attempt returns or raises")

    def _select_model(self, model: str) -> tuple[ModelBackend, str]:
        """Return who is asked, and for which model; raises `CallFailed` if nobody is, or code may not ask that."""
        broker, settings = self._backend, self._settings
        known = dict.fromkeys(filter(None, (settings.model, *settings.models)))
        may_be_any = self.is_client_model or bool(settings.api_base)
        if (
            broker is None
            or not (known or may_be_any)
            or not (model or settings.model or self.is_client_model)
        ):
            raise CallFailed(NoModelConfigured.code, str(NoModelConfigured()))
        if model and model not in known and not may_be_any:
            raise CallFailed(
                "llm_unknown_model",
                f"Code may not ask the model {model!r:.80}.",
                remedy=f"It may ask {', '.join(known)}; the settings name others under [llm] models.",
            )
        return broker, model or settings.model

    async def _estimate_max_usage(
        self, backend: ModelBackend, model: str, messages: Messages, max_tokens: int
    ) -> ModelUsage:
        """Return what a question can cost: a token has at least one byte."""
        if self.is_client_model:
            return ModelUsage(1)
        if model not in self._token_prices:
            try:
                self._token_prices[model] = await backend.token_prices(model)
            except ModelFailed as exc:
                raise CallFailed(exc.kind, exc.message) from None
        size = (
            sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in messages)
            + PROVIDER_OVERHEAD_TOKENS
        )
        price_in, price_out = self._token_prices[model]
        return ModelUsage(1, size, max_tokens, size * price_in + max_tokens * price_out)

    async def _complete_once(
        self,
        send: Callable[[], Awaitable[Completion]],
        max_usage: ModelUsage,
        budget: Budget,
        record_usage: RecordUsage,
    ) -> Completion:
        """Put messages before the model once, `amount` being what that can cost."""
        reserved, began = budget.reserve(max_usage), time.monotonic()
        used = max_usage  # if it is cut off
        try:
            with nullcontext() if self.is_client_model else budget.time_limit():
                done = await send()
            used = done.usage
            return done
        except ModelFailed as exc:
            used = max_usage if exc.is_interrupted else exc.usage or ModelUsage(1)
            raise
        finally:
            reserved.settle(used)
            record_usage(used, (time.monotonic() - began) * 1e3)


async def answer_request(
    request: ModelRequest, complete: Callable[[Messages], Awaitable[Completion]]
) -> ModelResponse:
    """Return the answer to a question; one that does not follow the schema is asked for once more.

    `complete` puts messages before a model. Raises `CallFailed`, also for one that is cut off.
    """
    messages = build_messages(request)
    said = await complete(messages)
    try:
        return ModelResponse(parse_completion(said, request), len(said.text), said.usage)
    except ValueError as problem:
        again = await complete(build_repair_messages(messages, said.text, str(problem)))
    try:
        return ModelResponse(
            parse_completion(again, request), len(again.text), said.usage + again.usage
        )
    except ValueError as still:
        raise CallFailed(
            "llm_bad_answer",
            f"The model's answer does not follow the schema: {still}.",
            remedy="Ask for less at once, or with another model.",
            data={"text": again.text[:MAX_QUOTED_ANSWER_CHARS]},
        ) from None


def parse_completion(completion: Completion, request: ModelRequest) -> Any:
    """Return what an answer says; raises `ValueError` if not as the schema wants it, `CallFailed` if it is cut off."""
    if not completion.is_truncated:
        return parse_answer(completion.text, request.schema)
    raise CallFailed(
        "llm_bad_answer",
        "The answer has come to as many tokens as it may have, and is cut off.",
        remedy="Ask for less at once, or allow more: `max_tokens` of the question, or [llm] max_tokens.",
        data={"text": completion.text[:MAX_QUOTED_ANSWER_CHARS]},
    )


def describe_failure(failure: ModelFailed) -> str:
    """Return why a model did not answer, and for how long it will not if it says that."""
    wants = (
        f" The provider wants us to wait {failure.retry_after_s:,.0f} s."
        if failure.retry_after_s > MAX_RETRY_DELAY_S
        else ""
    )
    return f"{failure.message}{wants}"
