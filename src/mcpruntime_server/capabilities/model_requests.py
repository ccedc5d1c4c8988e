"""Messages, completions and usage of models: the types that capabilities share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

Messages = Sequence[Mapping[str, str]]


class UsageData(TypedDict):
    """`ModelUsage` as JSON data."""

    calls: int
    tokens_in: int
    tokens_out: int
    usd: float


@dataclass(frozen=True)
class ModelUsage:
    """What model requests used; `usd` is 0 where the price is not known."""

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

    def __sub__(self, other: ModelUsage) -> ModelUsage:
        return ModelUsage(
            self.calls - other.calls,
            self.tokens_in - other.tokens_in,
            self.tokens_out - other.tokens_out,
            max(self.usd - other.usd, 0.0),  # sums of floats are slightly off
        )

    def to_data(self) -> UsageData:
        """Return the usage as JSON data."""
        return {
            "calls": self.calls,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "usd": self.usd,
        }


@dataclass(frozen=True)
class Completion:
    """The text that a model returned; `is_truncated` if it reached its limit of tokens."""

    text: str
    usage: ModelUsage
    is_truncated: bool = False
