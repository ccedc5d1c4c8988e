"""A request to a model, its response, and the protocol of the backends that send requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..model_requests import Completion, Messages, ModelUsage


@dataclass(frozen=True)
class ModelRequest:
    """One request about `data`; the answer must follow `schema`, a JSON schema."""

    prompt: str
    data: str = ""
    schema: Mapping[str, Any] | None = None
    model: str = ""
    max_tokens: int = 0


@dataclass(frozen=True)
class ModelResponse:
    """The answer to a request.

    `value` is its text or, with a schema, the JSON value in the text.
    """

    value: Any
    text_chars: int
    usage: ModelUsage = field(default_factory=ModelUsage)
    is_cached: bool = False


@dataclass(frozen=True)
class TokenPrices:
    """USD for one token of a prompt and for one token of an answer.

    An unknown price is 0.
    """

    usd_in: float = 0.0
    usd_out: float = 0.0

    def cost_usd(self, tokens_in: int, tokens_out: int) -> float:
        """Return the price of that many tokens."""
        return tokens_in * self.usd_in + tokens_out * self.usd_out


class ModelBackend(Protocol):
    """Sends messages to a model."""

    async def complete(
        self,
        messages: Messages,
        *,
        model: str,
        max_tokens: int,
        timeout_s: float,
        schema: Mapping[str, Any] | None,
    ) -> Completion:
        """Return the model's completion; raises `ModelFailed`."""
        ...

    async def token_prices(self, model: str) -> TokenPrices:
        """Return the prices of a model; raises `ModelFailed`."""
        ...


class ModelFailed(Exception):
    """A model did not answer.

    `kind` is the error code. After a transient failure, another attempt may succeed.

    `usage` is the cost of the attempt, if it is known. An interrupted request may have cost as much
    as was reserved.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        is_transient: bool = False,
        retry_after_s: float = 0.0,
        usage: ModelUsage | None = None,
        is_interrupted: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.is_transient = is_transient
        self.retry_after_s = retry_after_s  # the delay that the provider requests
        self.usage = usage
        self.is_interrupted = is_interrupted
