"""The backend without a key: the model of the MCP client that started the run answers its requests.

The run waits for the answer. All requests of a batch are sent at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import CallFailed
from ...journal.call_scope import MAX_MODEL_REQUEST_CHARS, current_call_scope
from ..model_requests import Completion, Messages, ModelUsage
from .model_backend import TokenPrices


class ClientModel:
    """Sends requests to the client's model."""

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
        texts = [message["content"] for message in messages if message["role"] != "system"]
        prompt = "\n\n".join(texts)
        if len(prompt) > MAX_MODEL_REQUEST_CHARS:  # a truncated prompt would get a wrong answer
            raise CallFailed(
                "llm_too_long",
                f"The prompt has {len(prompt):,} characters; the client's model accepts "
                f"{MAX_MODEL_REQUEST_CHARS:,}.",
                remedy="Ask about parts of the data, or about less of it.",
            )
        question: dict[str, Any] = {"prompt": prompt}
        if schema is not None:
            question["schema"] = schema
        answer = await current_call_scope().ask_client_model(question)
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return Completion(text, ModelUsage(1))

    async def token_prices(self, model: str) -> TokenPrices:
        """Return no prices: the client pays for its own model."""
        return TokenPrices()
