"""Requests to the configured models, within budgets and with retries.

Rule: a request is sent only after its maximum cost is reserved, and its cost is counted however it
ends.
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
from ..model_requests import Completion, Messages, ModelUsage
from .budget import Budget
from .client_model import ClientModel
from .model_backend import ModelBackend, ModelFailed, TokenPrices

FIRST_RETRY_DELAY_S = 0.5
MAX_RETRY_DELAY_S = 60.0  # if the provider asks for a longer wait, there is no retry
PROVIDER_OVERHEAD_TOKENS = 64  # tokens that a provider may add to a prompt
CLIENT_MODEL_DRIVES_NO_AGENTS = "The client's own model answers requests but cannot drive agents."
CONFIGURE_MODEL_REMEDY = (
    "Set [llm] model to a model of a provider whose key is in the environment, "
    "or of the server at [llm] api_base."
)

RecordUsage = Callable[[ModelUsage, float], None]  # the cost of one attempt, and its milliseconds


ObserveRequest = Callable[[str, ModelUsage, float], None]  # the same, with the model's name


def ignore_usage(used: ModelUsage, duration_ms: float) -> None:
    """Record nothing."""


def ignore_request(model: str, used: ModelUsage, duration_ms: float) -> None:
    """Observe nothing."""


class BudgetedModel:
    """Sends messages to the configured model, or to another model of the same backend."""

    def __init__(
        self,
        settings: LlmSettings,
        backend: ModelBackend | None,
        observe_request: ObserveRequest = ignore_request,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._observe_request = observe_request
        self._token_prices: dict[str, TokenPrices] = {}

    @property
    def is_client_model(self) -> bool:
        """Whether the client's own model answers.

        It receives all requests at once and costs nothing here.
        """
        return isinstance(self._backend, ClientModel)

    def check_can_drive_agents(self, model: str) -> None:
        """Raise `CallFailed` unless `model`, or else the configured model, can drive an agent."""
        if self.is_client_model:
            raise no_model(CLIENT_MODEL_DRIVES_NO_AGENTS, CONFIGURE_MODEL_REMEDY)
        if self._backend is None or not (model or self._settings.model):
            # The default remedy would suggest the client's model.
            raise no_model(remedy=CONFIGURE_MODEL_REMEDY)
        self._select_model(model)

    async def complete(
        self,
        messages: Messages,
        budget: Budget,
        *,
        model: str = "",
        max_tokens: int = 0,
        schema: Mapping[str, Any] | None = None,
        record_usage: RecordUsage = ignore_usage,
    ) -> Completion:
        """Send messages to the model, with retries; return its completion and the total usage.

        `record_usage` is called after each attempt. Raises `CallFailed`.
        """
        backend, model = self._select_model(model)
        max_tokens = max_tokens or self._settings.max_tokens
        max_usage = await self._estimate_max_usage(backend, model, messages, max_tokens)
        send = partial(
            backend.complete,
            messages,
            model=model,
            max_tokens=max_tokens,
            timeout_s=self._settings.timeout_s,
            schema=schema,
        )

        def record(used: ModelUsage, duration_ms: float) -> None:
            record_usage(used, duration_ms)
            self._observe_request(model, used, duration_ms)

        failed_usage = ModelUsage()
        async with nullcontext() if self.is_client_model else budget.request_slot():
            for attempt in range(self._settings.retries + 1):
                try:
                    completion = await self._complete_once(send, max_usage, budget, record)
                    return replace(completion, usage=failed_usage + completion.usage)
                except ModelFailed as failure:
                    if attempt == self._settings.retries or not is_worth_retrying(failure):
                        raise CallFailed(failure.kind, describe_failure(failure)) from None
                    failed_usage += failure.usage or ModelUsage(1)
                    delay_s = max(retry_delay_s(attempt), failure.retry_after_s)
                with budget.time_limit():
                    await anyio.sleep(delay_s)
        raise AssertionError("the last attempt returns or raises")

    def _select_model(self, model: str) -> tuple[ModelBackend, str]:
        """Return the backend and the model to use.

        Raises `CallFailed` if there is none, or if code may not use it.
        """
        settings = self._settings
        allowed = dict.fromkeys(filter(None, (settings.model, *settings.models)))
        allows_any = self.is_client_model or bool(settings.api_base)
        has_default = bool(settings.model) or self.is_client_model
        if self._backend is None or not (allowed or allows_any) or not (model or has_default):
            raise no_model()
        if model and model not in allowed and not allows_any:
            raise CallFailed(
                "llm_unknown_model",
                f"Code may not use the model {model!r:.80}.",
                remedy=f"It may use {', '.join(allowed)}; the setting [llm] models allows others.",
            )
        return self._backend, model or settings.model

    async def _estimate_max_usage(
        self, backend: ModelBackend, model: str, messages: Messages, max_tokens: int
    ) -> ModelUsage:
        """Return the maximum cost of a request: at most one token per byte."""
        if self.is_client_model:
            return ModelUsage(1)
        if model not in self._token_prices:
            try:
                self._token_prices[model] = await backend.token_prices(model)
            except ModelFailed as failure:
                raise CallFailed(failure.kind, failure.message) from None
        tokens_in = PROVIDER_OVERHEAD_TOKENS + sum(
            len(message["content"].encode("utf-8", "surrogatepass")) for message in messages
        )
        usd = self._token_prices[model].cost_usd(tokens_in, max_tokens)
        return ModelUsage(1, tokens_in, max_tokens, usd)

    async def _complete_once(
        self,
        send: Callable[[], Awaitable[Completion]],
        max_usage: ModelUsage,
        budget: Budget,
        record_usage: RecordUsage,
    ) -> Completion:
        """Send messages once, with `max_usage` reserved until the request ends."""
        reservation = budget.reserve(max_usage)
        started_at = time.monotonic()
        used = max_usage  # stays if the request is cancelled
        try:
            with nullcontext() if self.is_client_model else budget.time_limit():
                completion = await send()
            used = completion.usage
            return completion
        except ModelFailed as failure:
            if not failure.is_interrupted:
                used = failure.usage or ModelUsage(1)
            raise
        finally:
            reservation.settle(used)
            record_usage(used, (time.monotonic() - started_at) * 1e3)


def no_model(message: str = "No model is configured.", remedy: str = "") -> CallFailed:
    """Return the error for a request that no model can answer."""
    return CallFailed(NoModelConfigured.code, str(NoModelConfigured(message, remedy=remedy)))


def is_worth_retrying(failure: ModelFailed) -> bool:
    """Return whether a later attempt may succeed soon enough."""
    return failure.is_transient and failure.retry_after_s <= MAX_RETRY_DELAY_S


def retry_delay_s(attempt: int) -> float:
    """Return the seconds to wait after attempt 0, 1, 2, ...: exponential, with jitter."""
    longest: float = min(FIRST_RETRY_DELAY_S * 2.0**attempt, MAX_RETRY_DELAY_S)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


def describe_failure(failure: ModelFailed) -> str:
    """Return the message of a failure, with the requested wait if it is too long."""
    if failure.retry_after_s <= MAX_RETRY_DELAY_S:
        return failure.message
    return f"{failure.message} The provider asks for a wait of {failure.retry_after_s:,.0f} s."
