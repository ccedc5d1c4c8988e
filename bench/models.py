"""The models that do tasks: any model of litellm, or the scripted one of the bench.

Rule: a failing model is a failure of the task, with its reason; it never stops a suite.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
REQUEST_TIMEOUT_S = 300.0


class ModelFailed(Exception):
    """The model gave no answer."""


@dataclass(frozen=True)
class Completion:
    """An answer of a model: a text, or calls of functions."""

    message: Message
    tokens_in: int
    tokens_out: int
    usd: float

    @property
    def text(self) -> str:
        """The text of the answer."""
        return str(self.message.get("content") or "")

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls of functions."""
        return list(self.message.get("tool_calls") or ())


@dataclass
class Usage:
    """What a model has used in one task."""

    turns: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    requests_of_programs: int = 0  # their tokens and cost are in the sums above

    def add_programs(self, figures: Mapping[str, float]) -> None:
        """Add what the programs of a run, and the agents that they started, asked of models."""
        for prefix in ("llm_", "agents_"):
            self.requests_of_programs += int(figures.get(f"{prefix}calls", 0))
            self.tokens_in += int(figures.get(f"{prefix}tokens_in", 0))
            self.tokens_out += int(figures.get(f"{prefix}tokens_out", 0))
            self.usd += figures.get(f"{prefix}usd", 0.0)


@dataclass
class ChatModel:
    """A model with its address, and what it has used."""

    name: str
    api_base: str = ""
    api_key: str = ""
    seed: int = 0
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        """Import litellm, which takes seconds that no task pays."""
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

        litellm.suppress_debug_info = True  # a model without a price is no reason to print

    async def complete(
        self, messages: Sequence[Message], functions: Sequence[dict[str, Any]] = ()
    ) -> Completion:
        """Return the next message of the model; raises `ModelFailed`."""
        import litellm

        options: dict[str, Any] = {"model": self.name, "messages": list(messages)}
        options |= {"temperature": 0, "timeout": REQUEST_TIMEOUT_S, "num_retries": 0}
        options |= {"drop_params": True, "seed": self.seed}
        options |= {"api_base": self.api_base} if self.api_base else {}
        options |= {"api_key": self.api_key} if self.api_key else {}
        options |= {"tools": list(functions)} if functions else {}
        began = time.monotonic()
        try:
            response = await litellm.acompletion(**options)
        except Exception as exc:  # litellm has no common class of its errors
            raise ModelFailed(f"{type(exc).__name__}: {exc}") from exc
        finally:
            self.usage.seconds += time.monotonic() - began
        message = response.choices[0].message.model_dump(exclude_none=True)
        message = {key: message[key] for key in ("role", "content", "tool_calls") if key in message}
        completion = count_usage(message, response)
        self.usage.turns += 1
        self.usage.tokens_in += completion.tokens_in
        self.usage.tokens_out += completion.tokens_out
        self.usage.usd += completion.usd
        return completion


def count_usage(message: Message, response: Any) -> Completion:
    """Return a message with the tokens that its provider counted, and their price."""
    import litellm

    try:
        usd = float(litellm.completion_cost(completion_response=response))
    except Exception:  # noqa: BLE001 - a model without a price costs nothing
        usd = 0.0
    used = response.usage
    return Completion(message, used.prompt_tokens, used.completion_tokens, usd)


def parse_arguments(text: str) -> dict[str, Any]:
    """Return the arguments of a call; raises `ValueError` if they are no JSON object."""
    arguments = json.loads(text or "{}")
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments are a JSON object, not {text[:100]}")
    return arguments
