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

MAX_BODY_BYTES = 8 * 1024 * 1024  # bytes of an answer
READ_CHUNK_BYTES = 65_536


class HttpStatusError(Exception):
    """The server has answered with an error; the names are those of other clients' errors."""

    def __init__(self, status: int, text: str, headers: Any) -> None:
        super().__init__(text)
        self.status_code = status
        self.headers = headers


class MalformedResponse(Exception):
    """What came is no answer."""


class ResponseTooLarge(MalformedResponse):
    """What came has no end that is worth waiting for."""


def response_too_large() -> ResponseTooLarge:
    """Return the error of an answer that is too large."""
    return ResponseTooLarge(f"The answer is larger than {MAX_BODY_BYTES:,} bytes.")


class OpenAiClient:
    """Speaks to one server, over connections that it keeps; to be made and used in a running loop."""

    def __init__(self, key: str) -> None:
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            json_serialize=json.dumps,
        )

    async def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what the server says; raises `Refused`, `Malformed`, `TooLarge` and others."""
        url = request["api_base"].rstrip("/") + "/chat/completions"
        body = {
            "model": request["model"],
            "messages": request["messages"],
            "max_tokens": request["max_tokens"],
        }
        async with (
            asyncio.timeout(request["timeout_s"]),
            self._http.post(
                url,
                json=body,
                headers=self._headers,
                allow_redirects=False,
                proxy=find_proxy(url),
                timeout=NO_TIMEOUT,
            ) as response,
        ):
            text = await read_body(response)
            if response.status != 200:
                raise HttpStatusError(response.status, error_message(text), response.headers)
        return parse_response(text)


NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # the time is bounded as a whole, around it


def find_proxy(url: str) -> str | None:
    """Return the proxy that the environment has for an address."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body; raises `TooLarge`."""
    found = bytearray()
    async for chunk in response.content.iter_chunked(READ_CHUNK_BYTES):
        found += chunk
        if len(found) > MAX_BODY_BYTES:
            response.close()
            raise response_too_large()
    return bytes(found)


def error_message(body: bytes) -> str:
    """Return what a server says of its refusal."""
    text = body[:READ_CHUNK_BYTES].decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def parse_response(body: bytes) -> dict[str, Any]:
    """Return {content, finish_reason, usage} of an answer; raises `Malformed`."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        content = choice["message"].get("content")
        if isinstance(content, list):
            content = "".join(
                part.get("text", "") for part in content if part.get("type") == "text"
            )
        usage = found.get("usage") or {}
        tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise MalformedResponse("The server has answered with what is no answer.") from None
    if not isinstance(content, str | None):
        raise MalformedResponse("The server has answered with what is no text.")
    return {
        "content": content or "",
        "finish_reason": choice.get("finish_reason"),
        "tokens": tokens,
    }
