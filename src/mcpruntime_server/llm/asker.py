"""Messages put before a model: within a budget, and again where that passes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import anyio

from ..config import LlmSettings
from ..errors import CallFailed
from .budget import Budget
from .caller import Caller
from .model import Broker, Completion, Messages, ModelFailed, Usage

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # before a question is asked again
OVERHEAD = 64  # tokens that a provider may add to a question
NO_MODEL = (
    "No model is configured. There are three ways to have one: [llm] model with its provider's key in the environment; "
    "[llm] broker = \"caller\", with which the client's own model answers; or [llm] api_base, a server like OpenAI's."
)
NOT_AGENTS = 'The client\'s own model (broker "caller") answers questions, and drives no agents. '


class Asker:
    """What puts messages before the model of the settings, or another of the same broker."""

    def __init__(self, settings: LlmSettings, broker: Broker | None) -> None:
        self._settings = settings
        self._broker = broker
        self._prices: dict[str, tuple[float, float]] = {}

    @property
    def is_caller(self) -> bool:
        """Whether the client's own model answers, which is asked everything at once."""
        return isinstance(self._broker, Caller)

    def check_drives(self, model: str) -> None:
        """Raise `CallFailed` unless there is a model that can drive an agent."""
        if self.is_caller or self._broker is None or not (model or self._settings.model):
            raise CallFailed("no_model", f"{NOT_AGENTS if self.is_caller else ''}{NO_MODEL}")

    async def complete(
        self,
        messages: Messages,
        budget: Budget,
        *,
        model: str = "",
        max_tokens: int = 0,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Put messages before the model, as often as it takes, and return what it said; raises `CallFailed`."""
        settings, model = self._settings, model or self._settings.model
        max_tokens = max_tokens or settings.max_tokens
        broker = self._broker
        if broker is None or not (model or self.is_caller):
            raise CallFailed("no_model", NO_MODEL)
        price_in, price_out = await self._price(broker, model)
        size = sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in messages) + OVERHEAD
        amount = Usage(1, size, max_tokens, size * price_in + max_tokens * price_out)
        wait_s = FIRST_WAIT_S
        async with nullcontext() if self.is_caller else budget.slot():
            for attempt in range(settings.retries + 1):
                reserved = budget.reserve(amount)
                used = Usage(1)
                try:
                    done = await broker.complete(
                        messages, model=model, max_tokens=max_tokens, timeout_s=settings.timeout_s, schema=schema
                    )
                    used = done.usage
                    return done
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
