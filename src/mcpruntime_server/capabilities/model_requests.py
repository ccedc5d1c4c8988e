"""What a question to a model is, and what comes back. Immutable data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

API_KEY_VARIABLE = "MCPRUNTIME_LLM_KEY"  # in the environment of the process that asks: the key that the settings have

MAX_LINE_BYTES = (
    256 * 1024 * 1024
)  # bytes of a question to that process: all that one may be made of, each byte written as six

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class ModelRequest:
    """One question: `data` is what it is about, apart from it; `schema` a JSON schema that the answer has to follow."""

    prompt: str
    data: str = ""
    schema: Mapping[str, Any] | None = None
    model: str = ""
    max_tokens: int = 0


@dataclass(frozen=True)
class ModelUsage:
    """What questions cost; `usd` is 0 where the price is not known."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0

    def __add__(self, other: ModelUsage) -> ModelUsage:
        return ModelUsage(
            self.calls + other.calls,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.usd + other.usd,
        )


@dataclass(frozen=True)
class Completion:
    """What a model has said, once; whether that `is_cut`, because it came to as many tokens as it was allowed."""

    text: str
    usage: ModelUsage
    is_truncated: bool = False


@dataclass(frozen=True)
class ModelResponse:
    """The answer to a question: `value` is its text, of so many `chars`, or what that says where a schema was given."""

    value: Any
    text_chars: int
    usage: ModelUsage = field(default_factory=ModelUsage)
    is_cached: bool = False


class ModelBackend(Protocol):
    """Whoever puts messages before a model."""

    async def complete(
        self,
        messages: Messages,
        *,
        model: str,
        max_tokens: int,
        timeout_s: float,
        schema: Mapping[str, Any] | None,
    ) -> Completion:
        """Return what the model says; raises `ModelFailed`."""
        ...

    async def token_prices(self, model: str) -> tuple[float, float]:
        """Return USD for a token in, and for one out; 0 where that is not known."""
        ...


class ModelFailed(Exception):
    """A model did not answer; `kind` says why, and whether it may be asked again is `is_passing`'s to say.

    `usage` is what that cost, if it is known. One that `is_cut_off` may have cost anything that was reserved.
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
        self.retry_after_s = retry_after_s  # that the provider wants us to wait
        self.usage = usage
        self.is_interrupted = is_interrupted
