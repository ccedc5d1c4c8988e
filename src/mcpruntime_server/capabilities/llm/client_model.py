"""The broker without a key: the model of the client, which has had the code run, answers its questions.

The run waits meanwhile, and all questions of a batch are put at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import CallFailed
from ...journal.call_scope import MAX_MODEL_REQUEST_CHARS, current_call_scope
from ..model_requests import Completion, Messages, ModelUsage


class ClientModel:
    """Puts questions before the client's model."""

    async def complete(
        self,
        messages: Messages,
        *,
        model: str,
        max_tokens: int,
        timeout_s: float,
        schema: Mapping[str, Any] | None,
    ) -> Completion:
        """Return what the client's model answers; raises `CallFailed` if nobody does."""
        asked = [message["content"] for message in messages if message["role"] != "system"]
        prompt = "\n\n".join(asked)
        if (
            len(prompt) > MAX_MODEL_REQUEST_CHARS
        ):  # a part of it would be answered as if it were all
            raise CallFailed(
                "llm_too_long",
                f"The question has {len(prompt):,} characters; the client's model is asked at most {MAX_MODEL_REQUEST_CHARS:,}.",
                remedy="Ask about parts of the data, or about less of it.",
            )
        about = {"prompt": prompt, **({} if schema is None else {"schema": schema})}
        said = await current_call_scope().ask_client_model(about)
        return Completion(said if isinstance(said, str) else json.dumps(said), ModelUsage(1))

    async def token_prices(self, model: str) -> tuple[float, float]:
        """Return nothing: the client pays for its own model."""
        return 0.0, 0.0
