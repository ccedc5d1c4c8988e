"""The process that speaks to models: a line of JSON for each question, and one for each answer.

It is a process of its own because litellm takes seconds to import and many megabytes to keep, and because what it
prints, logs and knows of credentials stays there. It ends when its input does. Servers like OpenAI's at an address of
the user's own are spoken to directly, which costs a tenth of the time; litellm is imported when a provider needs it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from email.utils import parsedate_to_datetime
from functools import partial
from time import time
from typing import Any

import aiohttp

from ..model_requests import API_KEY_VARIABLE, MAX_LINE_BYTES
from .model_prices import find_max_input_tokens, find_token_prices, list_providers
from .openai_client import (
    MAX_BODY_BYTES,
    MalformedResponse,
    OpenAiClient,
    ResponseTooLarge,
    response_too_large,
)
from .redaction import Redactor, find_secrets

MAX_ANSWER_CHARS = 4_000_000  # characters
MAX_COUNTED_TOKENS = 1_000_000_000  # that are believed to be those of one question
TRANSIENT_STATUSES = {408, 409, 429, 500, 502, 503, 504, 529}
REFUSED_STATUS_KINDS = {401: "llm_unauthorized", 403: "llm_unauthorized", 404: "llm_unknown_model"}
TRANSIENT_ERROR_NAMES = (
    "APIConnectionError",
    "InternalServerError",
    "ServiceUnavailableError",
    "RateLimitError",
)
# How servers that know no code for it say that a question has more tokens than their model takes.
TOO_LONG_PATTERN = re.compile(
    r"context.{0,12}(length|size|window)|too many (input )?tokens|(prompt|input|request) (is )?too (long|large)",
    re.IGNORECASE,
)
JsonObject = dict[str, Any]


class ModelWorker:
    """Answers what comes in, many questions at a time."""

    def __init__(self, output: Any) -> None:
        self._output = output
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._key = os.environ.pop(API_KEY_VARIABLE, "")
        self._redactor = Redactor([*find_secrets(os.environ), *([self._key] if self._key else [])])
        self._openai_client = OpenAiClient(self._key)
        self._litellm: Any = None

    async def serve(self, lines: asyncio.StreamReader) -> None:
        """Answer until there is nothing more to read."""
        while line := await lines.readline():
            asked = json.loads(line)
            number = asked["id"]
            if "cancel" in asked:
                if task := self._tasks.get(asked["cancel"]):
                    task.cancel()
                continue
            task = asyncio.create_task(self._handle_request(number, asked))
            self._tasks[number] = task
            task.add_done_callback(partial(self._remove_task, number))

    def _remove_task(self, number: int, _: asyncio.Task[None]) -> None:
        self._tasks.pop(number, None)

    async def _handle_request(self, number: int, request: JsonObject) -> None:
        try:
            if "price" in request:
                told: JsonObject = {
                    "price": self._token_prices(request),
                    "window": find_max_input_tokens(request["model"]),
                }
            else:
                told = self._withhold_secrets(
                    check_completion(
                        await self._complete(request), find_token_prices(request["model"])
                    )
                )
        except Exception as exc:  # noqa: BLE001 - whatever a provider's client raises is what became of it
            told = {"error": self._describe_error(exc, request)}
        self._output.write(json.dumps({"id": number, **told}).encode() + b"\n")

    async def _complete(self, request: JsonObject) -> JsonObject:
        """Ask the address that the settings have, or the provider that the model's name begins with.

        Code names models, too: only those that the settings name may choose a provider, or the key would go anywhere.
        """
        return await (
            self._complete_with_litellm(request)
            if uses_litellm(request)
            else self._openai_client.complete(request)
        )

    def _token_prices(self, request: JsonObject) -> tuple[float, float]:
        """Return what the model costs, ready to ask it: what takes long is not to be part of a question's time."""
        if uses_litellm(request):
            self._litellm = self._litellm or import_litellm()
        return find_token_prices(request["model"])

    async def _complete_with_litellm(self, request: JsonObject) -> JsonObject:
        litellm = self._litellm = self._litellm or import_litellm()
        options: JsonObject = {"api_base": request["api_base"]} if request["api_base"] else {}
        if self._key:
            options["api_key"] = self._key
        if request["schema"] is not None and litellm.supports_response_schema(request["model"]):
            form = {"name": "answer", "schema": request["schema"]}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        async with asyncio.timeout(
            request["timeout_s"]
        ):  # litellm's own starts anew with each byte that comes
            done = await litellm.acompletion(
                model=request["model"],
                messages=request["messages"],
                max_tokens=request["max_tokens"],
                timeout=request["timeout_s"],
                max_retries=0,
                num_retries=0,
                drop_params=True,
                **options,
            )
        if not done.choices:
            raise MalformedResponse("The provider has given no answer.")
        choice, usage = done.choices[0], getattr(done, "usage", None)
        return {
            "content": choice.message.content or "",
            "finish_reason": choice.finish_reason,
            "tokens": (getattr(usage, "prompt_tokens", 0), getattr(usage, "completion_tokens", 0)),
            "usd": getattr(done, "_hidden_params", {}).get("response_cost"),
        }

    def _withhold_secrets(self, reply: JsonObject) -> JsonObject:
        """Return what is told of an answer, unless it has a key in it: code and the journal are never to see one."""
        if not self._redactor.contains_secret(reply.get("text", "")):
            return reply
        message = "The model's answer is left out, because it quotes a credential."
        return {"error": {"kind": "llm_bad_answer", "message": message}, "usage": reply["usage"]}

    def _describe_error(self, exc: Exception, request: JsonObject) -> JsonObject:
        """Return an error without credentials; the provider's own words on a refused key may quote it."""
        status, name = getattr(exc, "status_code", None), type(exc).__name__
        text = self._redactor.redact(str(exc), request["model"])
        if is_response_too_large(exc):
            return {"kind": "llm_bad_answer", "message": str(response_too_large()), "cut": True}
        if isinstance(exc, MalformedResponse):
            return {"kind": "llm_unavailable", "message": str(exc), "passing": True}
        if isinstance(exc, TimeoutError) or name == "Timeout":
            return {
                "kind": "llm_timeout",
                "message": "The model did not answer in time.",
                "passing": True,
                "cut": True,
            }
        if status in REFUSED_STATUS_KINDS:
            what = "refuses the key" if status != 404 else "does not know the model, or the address"
            return {
                "kind": REFUSED_STATUS_KINDS[status],
                "message": f"The provider {what} (HTTP {status}).",
            }
        if status is not None and 300 <= status < 400:
            message = (
                f"The address sends questions elsewhere (HTTP {status}), where the key must not go."
            )
            return {"kind": "llm_failed", "message": message}
        if name == "ContextWindowExceededError" or (
            status in (400, 413) and TOO_LONG_PATTERN.search(str(exc))
        ):
            return {
                "kind": "llm_too_long",
                "message": f"The question is longer than the model takes: {text}",
            }
        if name == "ContentPolicyViolationError":
            return {"kind": "llm_refused", "message": f"The provider does not answer this: {text}"}
        passing = (
            status in TRANSIENT_STATUSES
            or name in TRANSIENT_ERROR_NAMES
            or isinstance(exc, aiohttp.ClientError)
        )
        message = (
            f"The model could not be asked (HTTP {status}): {text}"
            if status
            else f"The model failed: {text}"
        )
        kind = "llm_unavailable" if passing else "llm_failed"
        return {"kind": kind, "message": message, "passing": passing, "after_s": retry_after_s(exc)}


def uses_litellm(request: JsonObject) -> bool:
    """Return whether a model is asked through litellm."""
    provider, slash, _ = request["model"].partition("/")
    return not request["api_base"] or bool(
        request["named"] and slash and provider in list_providers()
    )


def check_completion(completion: JsonObject, prices: tuple[float, float]) -> JsonObject:
    """Return what is told of an answer: its text and what it cost, or what is wrong with it."""
    text, usd = completion["content"], completion.get("usd")
    tokens_in, tokens_out = (
        min(max(each, 0), MAX_COUNTED_TOKENS) if type(each) is int else 0
        for each in completion["tokens"]
    )
    if not isinstance(usd, int | float) or not 0 <= usd < float("inf"):
        usd = tokens_in * prices[0] + tokens_out * prices[1]
    usage, is_cut = {"usage": [tokens_in, tokens_out, usd]}, completion["finish_reason"] == "length"
    if completion["finish_reason"] == "content_filter":
        message = "The provider's filter has kept the answer back."
        return {"error": {"kind": "llm_refused", "message": message}, **usage}
    if not text:
        message = "The model has answered with nothing" + (
            ", and used all its tokens." if is_cut else "."
        )
        return {
            "error": {"kind": "llm_bad_answer", "message": message, "passing": not is_cut},
            **usage,
        }
    if len(text) > MAX_ANSWER_CHARS:
        message = (
            f"The model's answer has {len(text):,} characters; {MAX_ANSWER_CHARS:,} are taken."
        )
        return {"error": {"kind": "llm_bad_answer", "message": message}, **usage}
    return {"text": text, "is_cut": is_cut, **usage}


def retry_after_s(exc: Exception) -> float:
    """Return the seconds that a provider wants us to wait, as it says in a header: a number, or a date."""
    told = (
        getattr(exc, "headers", None)
        or getattr(getattr(exc, "response", None), "headers", None)
        or {}
    )
    told = told if told.get("retry-after") else getattr(exc, "litellm_response_headers", None) or {}
    value = str(told.get("retry-after") or "")
    try:
        found = (
            float(value)
            if value.replace(".", "", 1).isdigit()
            else parsedate_to_datetime(value).timestamp() - time()
        )
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(found, 0.0)


def import_litellm() -> Any:
    """Return litellm, told to be quiet, to ask the network for nothing of its own, and to follow no redirect."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = (
        "PRODUCTION"  # or it would read an `.env` of whatever folder this runs in
    )
    os.environ.setdefault("LITELLM_LOG", "CRITICAL")
    limit_http_clients()
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


def limit_http_clients() -> None:
    """Have the HTTP clients of this process stay where they are sent, and read no answer that has no end.

    Some would take their keys elsewhere, and all hold an answer several times over.
    """
    import httpx

    class Bounded(httpx.AsyncClient):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "follow_redirects": False})
            hooks = self.event_hooks
            self.event_hooks = {**hooks, "response": [*hooks["response"], bound]}

    async def bound(response: httpx.Response) -> None:
        response.aiter_bytes = partial(limited_chunks, response.aiter_bytes)  # type: ignore[method-assign]

    httpx.AsyncClient = Bounded  # type: ignore[misc]


async def limited_chunks(
    read: Callable[..., AsyncIterator[bytes]], *args: Any, **options: Any
) -> AsyncIterator[bytes]:
    """Yield the parts of an answer, unpacked; raises `TooLarge`."""
    size = 0
    async for part in read(*args, **options):
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise response_too_large()
        yield part


def is_response_too_large(exc: BaseException | None) -> bool:
    """Return whether an error comes from an answer without an end, whatever the clients have made of that."""
    seen: list[BaseException] = []
    while exc is not None and exc not in seen:
        if isinstance(exc, ResponseTooLarge):
            return True
        seen.append(exc)
        exc = exc.__cause__ or exc.__context__
    return False


async def main() -> None:
    """Serve standard input, answering on what standard output was at the start."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what anybody prints is no answer
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await ModelWorker(output).serve(lines)


if __name__ == "__main__":
    asyncio.run(main())
