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

from .direct import MAX_BODY, Direct, Malformed, TooLarge, too_large
from .model import KEY, LINE
from .prices import price_of, providers, window_of
from .words import Words, secrets_in

MAX_ANSWER = 4_000_000  # characters
MAX_TOKENS = 1_000_000_000  # that are believed to be those of one question
PASSING = {408, 409, 429, 500, 502, 503, 504, 529}
REFUSED = {401: "llm_unauthorized", 403: "llm_unauthorized", 404: "llm_unknown_model"}
UNREACHED = ("APIConnectionError", "InternalServerError", "ServiceUnavailableError", "RateLimitError")
# How servers that know no code for it say that a question has more tokens than their model takes.
TOO_LONG = re.compile(
    r"context.{0,12}(length|size|window)|too many (input )?tokens|(prompt|input|request) (is )?too (long|large)",
    re.IGNORECASE,
)
Told = dict[str, Any]


class Worker:
    """Answers what comes in, many questions at a time."""

    def __init__(self, output: Any) -> None:
        self._output = output
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._key = os.environ.pop(KEY, "")
        self._words = Words([*secrets_in(os.environ), *([self._key] if self._key else [])])
        self._direct = Direct(self._key)
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
            task = asyncio.create_task(self._answer(number, asked))
            self._tasks[number] = task
            task.add_done_callback(partial(self._forget, number))

    def _forget(self, number: int, _: asyncio.Task[None]) -> None:
        self._tasks.pop(number, None)

    async def _answer(self, number: int, asked: Told) -> None:
        try:
            if "price" in asked:
                told: Told = {"price": self._price(asked), "window": window_of(asked["model"])}
            else:
                told = self._without_keys(checked(await self._ask(asked), price_of(asked["model"])))
        except Exception as exc:  # noqa: BLE001 - whatever a provider's client raises is what became of it
            told = {"error": self._described(exc, asked)}
        self._output.write(json.dumps({"id": number, **told}).encode() + b"\n")

    async def _ask(self, asked: Told) -> Told:
        """Ask the address that the settings have, or the provider that the model's name begins with.

        Code names models, too: only those that the settings name may choose a provider, or the key would go anywhere.
        """
        return await (self._ask_litellm(asked) if is_provided(asked) else self._direct.complete(asked))

    def _price(self, asked: Told) -> tuple[float, float]:
        """Return what the model costs, ready to ask it: what takes long is not to be part of a question's time."""
        if is_provided(asked):
            self._litellm = self._litellm or imported()
        return price_of(asked["model"])

    async def _ask_litellm(self, asked: Told) -> Told:
        litellm = self._litellm = self._litellm or imported()
        options: Told = {"api_base": asked["api_base"]} if asked["api_base"] else {}
        if self._key:
            options["api_key"] = self._key
        if asked["schema"] is not None and litellm.supports_response_schema(asked["model"]):
            form = {"name": "answer", "schema": asked["schema"]}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        async with asyncio.timeout(asked["timeout_s"]):  # litellm's own starts anew with each byte that comes
            done = await litellm.acompletion(
                model=asked["model"],
                messages=asked["messages"],
                max_tokens=asked["max_tokens"],
                timeout=asked["timeout_s"],
                max_retries=0,
                num_retries=0,
                drop_params=True,
                **options,
            )
        if not done.choices:
            raise Malformed("The provider has given no answer.")
        choice, usage = done.choices[0], getattr(done, "usage", None)
        return {
            "content": choice.message.content or "",
            "finish_reason": choice.finish_reason,
            "tokens": (getattr(usage, "prompt_tokens", 0), getattr(usage, "completion_tokens", 0)),
            "usd": getattr(done, "_hidden_params", {}).get("response_cost"),
        }

    def _without_keys(self, told: Told) -> Told:
        """Return what is told of an answer, unless it has a key in it: code and the journal are never to see one."""
        if not self._words.quotes(told.get("text", "")):
            return told
        message = "The model's answer is left out, because it quotes a credential."
        return {"error": {"kind": "llm_bad_answer", "message": message}, "usage": told["usage"]}

    def _described(self, exc: Exception, asked: Told) -> Told:
        """Return an error without credentials; the provider's own words on a refused key may quote it."""
        status, name = getattr(exc, "status_code", None), type(exc).__name__
        text = self._words.fit(str(exc), asked["model"])
        if is_too_large(exc):
            return {"kind": "llm_bad_answer", "message": str(too_large()), "cut": True}
        if isinstance(exc, Malformed):
            return {"kind": "llm_unavailable", "message": str(exc), "passing": True}
        if isinstance(exc, TimeoutError) or name == "Timeout":
            return {"kind": "llm_timeout", "message": "The model did not answer in time.", "passing": True, "cut": True}
        if status in REFUSED:
            what = "refuses the key" if status != 404 else "does not know the model, or the address"
            return {"kind": REFUSED[status], "message": f"The provider {what} (HTTP {status})."}
        if status is not None and 300 <= status < 400:
            message = f"The address sends questions elsewhere (HTTP {status}), where the key must not go."
            return {"kind": "llm_failed", "message": message}
        if name == "ContextWindowExceededError" or (status in (400, 413) and TOO_LONG.search(str(exc))):
            return {"kind": "llm_too_long", "message": f"The question is longer than the model takes: {text}"}
        if name == "ContentPolicyViolationError":
            return {"kind": "llm_refused", "message": f"The provider does not answer this: {text}"}
        passing = status in PASSING or name in UNREACHED or isinstance(exc, aiohttp.ClientError)
        message = f"The model could not be asked (HTTP {status}): {text}" if status else f"The model failed: {text}"
        kind = "llm_unavailable" if passing else "llm_failed"
        return {"kind": kind, "message": message, "passing": passing, "after_s": after(exc)}


def is_provided(asked: Told) -> bool:
    """Return whether a model is asked through litellm."""
    provider, slash, _ = asked["model"].partition("/")
    return not asked["api_base"] or bool(asked["named"] and slash and provider in providers())


def checked(found: Told, price: tuple[float, float]) -> Told:
    """Return what is told of an answer: its text and what it cost, or what is wrong with it."""
    text, usd = found["content"], found.get("usd")
    tokens_in, tokens_out = (min(max(each, 0), MAX_TOKENS) if type(each) is int else 0 for each in found["tokens"])
    if not isinstance(usd, int | float) or not 0 <= usd < float("inf"):
        usd = tokens_in * price[0] + tokens_out * price[1]
    usage, is_cut = {"usage": [tokens_in, tokens_out, usd]}, found["finish_reason"] == "length"
    if found["finish_reason"] == "content_filter":
        message = "The provider's filter has kept the answer back."
        return {"error": {"kind": "llm_refused", "message": message}, **usage}
    if not text:
        message = "The model has answered with nothing" + (", and used all its tokens." if is_cut else ".")
        return {"error": {"kind": "llm_bad_answer", "message": message, "passing": not is_cut}, **usage}
    if len(text) > MAX_ANSWER:
        message = f"The model's answer has {len(text):,} characters; {MAX_ANSWER:,} are taken."
        return {"error": {"kind": "llm_bad_answer", "message": message}, **usage}
    return {"text": text, "is_cut": is_cut, **usage}


def after(exc: Exception) -> float:
    """Return the seconds that a provider wants us to wait, as it says in a header: a number, or a date."""
    told = getattr(exc, "headers", None) or getattr(getattr(exc, "response", None), "headers", None) or {}
    told = told if told.get("retry-after") else getattr(exc, "litellm_response_headers", None) or {}
    value = str(told.get("retry-after") or "")
    try:
        found = (
            float(value) if value.replace(".", "", 1).isdigit() else parsedate_to_datetime(value).timestamp() - time()
        )
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(found, 0.0)


def imported() -> Any:
    """Return litellm, told to be quiet, to ask the network for nothing of its own, and to follow no redirect."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"  # or it would read an `.env` of whatever folder this runs in
    os.environ.setdefault("LITELLM_LOG", "CRITICAL")
    bound_clients()
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


def bound_clients() -> None:
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
        response.aiter_bytes = partial(bounded, response.aiter_bytes)  # type: ignore[method-assign]

    httpx.AsyncClient = Bounded  # type: ignore[misc]


async def bounded(read: Callable[..., AsyncIterator[bytes]], *args: Any, **options: Any) -> AsyncIterator[bytes]:
    """Yield the parts of an answer, unpacked; raises `TooLarge`."""
    size = 0
    async for part in read(*args, **options):
        size += len(part)
        if size > MAX_BODY:
            raise too_large()
        yield part


def is_too_large(exc: BaseException | None) -> bool:
    """Return whether an error comes from an answer without an end, whatever the clients have made of that."""
    seen: list[BaseException] = []
    while exc is not None and exc not in seen:
        if isinstance(exc, TooLarge):
            return True
        seen.append(exc)
        exc = exc.__cause__ or exc.__context__
    return False


async def main() -> None:
    """Serve standard input, answering on what standard output was at the start."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what anybody prints is no answer
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await Worker(output).serve(lines)


if __name__ == "__main__":
    asyncio.run(main())
