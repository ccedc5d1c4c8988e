"""Large answers over HTTP: the SDK takes every answer there, so it gets a small one in their place.

The small answer has a name that nobody can guess. By it, the sender of the request finds what
`LargeAnswers` has read.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from mcp import MCPError
from pydantic_core import from_json

from ...protocol.payloads import JsonObject
from .direct_requests import LIST_METHODS
from .large_answers import LargeAnswers, LargeResult, ListPage, PageBounds, ToolContract
from .message_limits import parse_for_sdk

MAX_STASHED_S = 60.0  # the SDK passes an answer on in milliseconds
STASH_KEY = "mcpruntime/answer"  # of the name, in the member `_meta`
COMPLETE = {"resultType": "complete"}  # required in newer protocol revisions, ignored in older ones
UNCACHED = {"ttlMs": 0, "cacheScope": "private"}  # likewise, of a list
LIST_KEYS = {method: key for key, method in LIST_METHODS.items()}


class StashedAnswers:
    """What the large answers to the requests of one connection have become."""

    def __init__(
        self,
        answers: LargeAnswers,
        find_contract: Callable[[str], ToolContract],
        bounds: Mapping[str, PageBounds],
    ) -> None:
        self._answers = answers
        self._find_contract = find_contract
        self._bounds = bounds  # by the key of a list
        self._stash: dict[str, tuple[float, LargeResult | ListPage]] = {}  # by name, with its time

    async def replace(self, request: bytes, answer: bytes | bytearray) -> bytes:
        """Return what the SDK gets in place of the large answer to a request.

        Raises `OtherAnswer` for what answers something else, and `ValueError` for what cannot be
        used.
        """
        asked = await anyio.to_thread.run_sync(from_json, request or b"{}")
        request_id, method, params = asked.get("id"), asked.get("method"), asked.get("params") or {}
        try:
            if method == "tools/call":
                contract = self._find_contract(params["name"])
                found = await self._answers.read_result(request_id, answer, contract)
                result = {"content": [], **COMPLETE, **self._keep(found)}
            elif method in LIST_KEYS:
                key = LIST_KEYS[method]
                page = await self._answers.read_page(request_id, answer, key, self._bounds[key])
                result = {key: [], "nextCursor": page.next_cursor, **COMPLETE, **UNCACHED}
                result |= self._keep(page)
            else:
                await anyio.to_thread.run_sync(parse_for_sdk, answer)
                return bytes(answer)
        except MCPError as exc:
            error = exc.error.model_dump(by_alias=True, exclude_none=True)
            return encode_answer(request_id, error=error)
        return encode_answer(request_id, result=result)

    def _keep(self, found: LargeResult | ListPage) -> JsonObject:
        name, now = secrets.token_hex(16), time.monotonic()
        while self._stash and next(iter(self._stash.values()))[0] < now - MAX_STASHED_S:
            del self._stash[next(iter(self._stash))]  # nobody waits for it
        self._stash[name] = now, found
        return {"_meta": {STASH_KEY: name}}

    def take(self, meta: Any) -> LargeResult | ListPage | None:
        """Return what stands behind an answer with this `_meta`; None for any other one."""
        name = meta.get(STASH_KEY) if isinstance(meta, Mapping) else None
        return self._stash.pop(name, (0.0, None))[1] if isinstance(name, str) else None


def encode_answer(request_id: Any, **content: Any) -> bytes:
    """Return an answer to a request."""
    return json.dumps({"jsonrpc": "2.0", "id": request_id, **content}).encode()
