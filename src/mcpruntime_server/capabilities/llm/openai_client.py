"""An HTTP client for servers with OpenAI's API at an address that the user configures.

Rule 1: the key goes to the configured address only; redirects are not followed.
Rule 2: the time and the size of an answer are limited.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from .worker_protocol import CompleteCommand

MAX_BODY_BYTES = 8 * 1024 * 1024
READ_CHUNK_BYTES = 65_536
MAX_REASON_BYTES = 65_536  # read from an error page
KEEPALIVE_S = 4.0  # common servers close an idle connection after 5 s; a request must not meet that


@dataclass(frozen=True)
class ProviderAnswer:
    """The answer of a provider.

    The token counts and the price are the provider's claims and are not checked.
    """

    text: str
    finish_reason: Any
    tokens_in: Any = None
    tokens_out: Any = None
    usd: Any = None


class HttpStatusError(Exception):
    """The server answered with an error; the attributes are named as in the errors of litellm."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str]) -> None:
        super().__init__(reason)
        self.status_code = status
        self.headers = headers


class MalformedResponse(Exception):
    """The response is not an answer in OpenAI's format."""


class ResponseTooLarge(MalformedResponse):
    """The response has more bytes than are read."""

    def __init__(self) -> None:
        super().__init__(f"The answer is larger than {MAX_BODY_BYTES:,} bytes.")


class OpenAiClient:
    """Sends requests to one server over persistent connections.

    Create it in a running event loop.
    """

    def __init__(self, api_key: str) -> None:
        headers = {"content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._http = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # the whole request has one limit, below
        )

    async def complete(self, command: CompleteCommand) -> ProviderAnswer:
        """Return the server's answer.

        Raises `HttpStatusError`, `MalformedResponse`, `TimeoutError` and others.
        """
        url = f"{command['api_base'].rstrip('/')}/chat/completions"
        body = json.dumps(
            {
                "model": command["model"],
                "messages": command["messages"],
                "max_tokens": command["max_tokens"],
            }
        )
        async with (
            asyncio.timeout(command["timeout_s"]),
            self._http.post(
                url, data=body.encode(), allow_redirects=False, proxy=find_proxy(url)
            ) as response,
        ):
            chunks = limited_chunks(response.content.iter_chunked(READ_CHUNK_BYTES))
            content = b"".join([chunk async for chunk in chunks])
        if response.status != 200:
            raise HttpStatusError(response.status, error_reason(content), response.headers)
        return parse_response(content)


def find_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for an address.

    aiohttp's `trust_env` would also send credentials from a `.netrc` file.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


async def limited_chunks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks of a response; raises `ResponseTooLarge`."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise ResponseTooLarge
        yield chunk


def error_reason(body: bytes) -> str:
    """Return why a server refused a request: the message in its error, else its whole text."""
    text = body[:MAX_REASON_BYTES].decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def parse_response(body: bytes) -> ProviderAnswer:
    """Return the answer in a response; raises `MalformedResponse`."""
    try:
        response = json.loads(body)
        choice = response["choices"][0]
        content = choice["message"].get("content")
        if isinstance(content, list):
            content = "".join(
                part.get("text", "") for part in content if part.get("type") == "text"
            )
        usage = response.get("usage") or {}
        answer = ProviderAnswer(
            content or "",
            choice.get("finish_reason"),
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise MalformedResponse(
            f"The model server returned an invalid response (HTTP 200, {len(body):,} bytes)."
        ) from None
    if not isinstance(answer.text, str):
        raise MalformedResponse("The model server returned an answer that is not text.")
    return answer
