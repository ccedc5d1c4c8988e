"""A cache of the answers of a session or an agent, so that each request is sent only once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio

from ..model_requests import ModelUsage
from .model_backend import ModelResponse

MAX_CACHED_ANSWERS = 2_000
MAX_CACHED_CHARS = 4_000_000


class AnswerCache:
    """A cache that drops the least recently used answers.

    Equal requests that run concurrently are sent once.
    """

    def __init__(self) -> None:
        self._responses: OrderedDict[str, ModelResponse] = OrderedDict()
        self._total_chars = 0
        self._in_flight: dict[str, anyio.Event] = {}

    async def get_or_ask(
        self, key: str, ask: Callable[[], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Return the cached response for `key`, or else call `ask` and cache what it returns."""
        while key in self._in_flight:
            await self._in_flight[key].wait()
        if key in self._responses:
            self._responses.move_to_end(key)
            return replace(self._responses[key], usage=ModelUsage(), is_cached=True)
        self._in_flight[key] = anyio.Event()
        try:
            response = await ask()
        finally:
            self._in_flight.pop(key).set()
        self._responses[key] = response
        self._total_chars += response.text_chars
        self._evict()
        return response

    def _evict(self) -> None:
        while len(self._responses) > MAX_CACHED_ANSWERS or self._total_chars > MAX_CACHED_CHARS:
            _, oldest = self._responses.popitem(last=False)
            self._total_chars -= oldest.text_chars
