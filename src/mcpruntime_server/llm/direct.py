"""The client for servers like OpenAI's, at an address of the user's own: one request a question, and little else.

Rule 1: the key goes to the address that the settings have, and never with a redirect to another.
Rule 2: an answer is bounded in time and in size, however slowly or generously it comes.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

MAX_BODY = 8 * 1024 * 1024  # bytes of an answer
CHUNK = 65_536


class Refused(Exception):
    """The server has answered with an error; the names are those of other clients' errors."""

    def __init__(self, status: int, text: str, headers: Any) -> None:
        super().__init__(text)
        self.status_code = status
        self.headers = headers


class Malformed(Exception):
    """What came is no answer."""


class TooLarge(Malformed):
    """What came has no end that is worth waiting for."""


def too_large() -> TooLarge:
    """Return the error of an answer that is too large."""
    return TooLarge(f"The answer is larger than {MAX_BODY:,} bytes.")


class Direct:
    """Speaks to one server, over connections that it keeps; to be made and used in a running loop."""

    def __init__(self, key: str) -> None:
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            json_serialize=json.dumps,
        )

    async def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return what the server says; raises `Refused`, `Malformed`, `TooLarge` and others."""
        url = asked["api_base"].rstrip("/") + "/chat/completions"
        body = {"model": asked["model"], "messages": asked["messages"], "max_tokens": asked["max_tokens"]}
        async with (
            asyncio.timeout(asked["timeout_s"]),
            self._session.post(
                url, json=body, headers=self._headers, allow_redirects=False, proxy=proxy_for(url), timeout=NO_LIMIT
            ) as response,
        ):
            text = await read(response)
            if response.status != 200:
                raise Refused(response.status, reason_of(text), response.headers)
        return parsed(text)


NO_LIMIT = aiohttp.ClientTimeout(total=None)  # the time is bounded as a whole, around it


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment has for an address."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


async def read(response: aiohttp.ClientResponse) -> bytes:
    """Return the body; raises `TooLarge`."""
    found = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK):
        found += chunk
        if len(found) > MAX_BODY:
            response.close()
            raise too_large()
    return bytes(found)


def reason_of(body: bytes) -> str:
    """Return what a server says of its refusal."""
    text = body[:CHUNK].decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def parsed(body: bytes) -> dict[str, Any]:
    """Return {content, finish_reason, usage} of an answer; raises `Malformed`."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        content = choice["message"].get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
        usage = found.get("usage") or {}
        tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Malformed("The server has answered with what is no answer.") from None
    if not isinstance(content, str | None):
        raise Malformed("The server has answered with what is no text.")
    return {"content": content or "", "finish_reason": choice.get("finish_reason"), "tokens": tokens}
