"""The backend without a key: the model of the MCP client that started the run answers its requests.

The run waits for the answer. Hundreds of requests of a batch are open at once; the client gets as
many as one result holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import CallFailed
from ...journal.call_scope import current_call_scope
from ...journal.events import ClientModelRequest
from ..model_requests import Completion, Messages, ModelUsage
from .model_backend import TokenPrices

MAX_REPEATED_ANSWER_CHARS = 200  # of a wrong answer, in the request for another one


class ClientModel:
    """Sends requests of at most `max_chars`, counted as JSON, to the client's model."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars

    async def complete(
        self,
        messages: Messages,
        *,
        model: str,
        max_tokens: int,
        timeout_s: float,
        schema: Mapping[str, Any] | None,
    ) -> Completion:
        """Return the answer of the client's model; raises `CallFailed` if there is none."""
        prompt = "\n\n".join(format_message(each) for each in messages if each["role"] != "system")
        request: ClientModelRequest = {"prompt": prompt, "schema": schema}
        size = len(prompt)
        if size <= self._max_chars:  # else it is too long whatever it is as JSON
            size = len(json.dumps(request, ensure_ascii=False))
        if size > self._max_chars:  # a client that truncates it would give a wrong answer
            raise CallFailed(
                "llm_too_long",
                f"The request has at least {size:,} characters as JSON; the client's model accepts "
                f"{self._max_chars:,}.",
                remedy="Ask about parts of the data, or about less of it. For a client that shows "
                "longer results, raise [server] result_chars.",
            )
        answer = await current_call_scope().ask_client_model(request)
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return Completion(text, ModelUsage(1))

    async def token_prices(self, model: str) -> TokenPrices:
        """Return no prices: the client pays for its own model."""
        return TokenPrices()


def format_message(message: Mapping[str, str]) -> str:
    """Return a message of a request as the client's model gets it."""
    if message["role"] == "assistant":
        answer = message["content"][:MAX_REPEATED_ANSWER_CHARS]
        return f"Your answer was: {json.dumps(answer, ensure_ascii=False)}"
    return message["content"]
