"""The process that sends model requests; `worker_protocol` has its messages.

It is a separate process for two reasons. The import of litellm takes seconds and many megabytes.
And litellm's output, logs and credentials stay in this process. The process ends when its input
ends.

Servers with OpenAI's API at a configured address are called without litellm, in a fraction of the
time. litellm is imported on first use.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from time import time
from typing import Any, BinaryIO

import aiohttp

from .model_backend import TokenPrices
from .model_prices import find_max_input_tokens, find_token_prices, list_providers
from .openai_client import (
    MalformedResponse,
    OpenAiClient,
    ProviderAnswer,
    ResponseTooLarge,
    limited_chunks,
)
from .redaction import Redactor, find_secrets
from .worker_protocol import (
    API_KEY_VARIABLE,
    MAX_LINE_BYTES,
    Command,
    CompleteCommand,
    CompletionReply,
    DescribeCommand,
    DescriptionReply,
    ErrorData,
    ErrorReply,
    ModelSelection,
    WorkerReply,
    WorkerUsage,
)

MAX_ANSWER_CHARS = 4_000_000
MAX_COUNTED_TOKENS = 1_000_000_000  # per request; a provider's higher claim is reduced to this
TRANSIENT_STATUSES = {408, 409, 429, 500, 502, 503, 504, 529}
TRANSIENT_ERROR_NAMES = (
    "APIConnectionError",
    "InternalServerError",
    "ServiceUnavailableError",
    "RateLimitError",
)
# Messages of servers that have no error code for a prompt that exceeds the model's limit.
TOO_LONG_PATTERN = re.compile(
    r"context.{0,12}(length|size|window)|too many (input )?tokens|"
    r"(prompt|input|request) (is )?too (long|large)",
    re.IGNORECASE,
)


class ModelWorker:
    """Handles many commands concurrently."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._api_key = os.environ.pop(API_KEY_VARIABLE, "")
        secrets = find_secrets(os.environ)
        if self._api_key:
            secrets.append(self._api_key)
        self._redactor = Redactor(secrets)
        self._openai_client = OpenAiClient(self._api_key)
        self._litellm: Any = None

    async def serve(self, lines: asyncio.StreamReader) -> None:
        """Handle commands until there are no more."""
        while line := await lines.readline():
            command: Command = json.loads(line)
            if command["command"] == "cancel":
                if task := self._tasks.get(command["id"]):
                    task.cancel()
                continue
            task = asyncio.create_task(self._handle_command(command))
            self._tasks[command["id"]] = task
            task.add_done_callback(partial(self._remove_task, command["id"]))

    def _remove_task(self, command_id: int, _: asyncio.Task[None]) -> None:
        self._tasks.pop(command_id, None)

    async def _handle_command(self, command: CompleteCommand | DescribeCommand) -> None:
        reply: WorkerReply
        try:
            if command["command"] == "describe":
                reply = self._describe(command)
            else:
                answer = await self._complete(command)
                reply = check_answer(command["id"], answer, find_token_prices(command["model"]))
                reply = self._withhold_secrets(reply)
        except Exception as exc:  # noqa: BLE001 - a provider's client may raise anything
            reply = {"id": command["id"], "error": self._describe_error(exc, command["model"])}
        self._output.write(json.dumps(reply).encode() + b"\n")

    def _describe(self, command: DescribeCommand) -> DescriptionReply:
        """Return the description of a model, and import what it needs before the first request."""
        if uses_litellm(command):
            self._import_litellm()
        prices = find_token_prices(command["model"])
        return {
            "id": command["id"],
            "usd_in": prices.usd_in,
            "usd_out": prices.usd_out,
            "max_input_tokens": find_max_input_tokens(command["model"]),
        }

    async def _complete(self, command: CompleteCommand) -> ProviderAnswer:
        if uses_litellm(command):
            return await self._complete_with_litellm(command)
        return await self._openai_client.complete(command)

    def _import_litellm(self) -> Any:
        if self._litellm is None:
            self._litellm = import_litellm()
        return self._litellm

    async def _complete_with_litellm(self, command: CompleteCommand) -> ProviderAnswer:
        litellm = self._import_litellm()
        options: dict[str, Any] = {}
        if command["api_base"]:
            options["api_base"] = command["api_base"]
        if self._api_key:
            options["api_key"] = self._api_key
        if command["schema"] is not None and litellm.supports_response_schema(command["model"]):
            json_schema = {"name": "answer", "schema": command["schema"]}
            options["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        # litellm's own timeout starts again with each byte that arrives
        async with asyncio.timeout(command["timeout_s"]):
            response = await litellm.acompletion(
                model=command["model"],
                messages=command["messages"],
                max_tokens=command["max_tokens"],
                timeout=command["timeout_s"],
                max_retries=0,
                num_retries=0,
                drop_params=True,
                **options,
            )
        if not response.choices:
            raise MalformedResponse("The provider returned no answer.")
        choice = response.choices[0]
        usage = getattr(response, "usage", None)
        return ProviderAnswer(
            choice.message.content or "",
            choice.finish_reason,
            getattr(usage, "prompt_tokens", 0),
            getattr(usage, "completion_tokens", 0),
            getattr(response, "_hidden_params", {}).get("response_cost"),
        )

    def _withhold_secrets(self, reply: WorkerReply) -> WorkerReply:
        """Return a reply; an answer that contains a credential becomes an error.

        Code and the journal see the answer.
        """
        if "text" not in reply or not self._redactor.contains_secret(reply["text"]):
            return reply
        message = "The model's answer is withheld, because it quotes a credential."
        return error_reply(reply["id"], "llm_bad_answer", message, usage=reply["usage"])

    def _describe_error(self, exc: Exception, model: str) -> ErrorData:
        """Return an error without credentials.

        A provider may quote a refused key in its message.
        """
        if is_response_too_large(exc):
            message = str(ResponseTooLarge())
            return {"kind": "llm_bad_answer", "message": message, "is_interrupted": True}
        if isinstance(exc, MalformedResponse):
            return {"kind": "llm_unavailable", "message": str(exc), "is_transient": True}
        name = type(exc).__name__
        if isinstance(exc, TimeoutError) or name == "Timeout":
            return {
                "kind": "llm_timeout",
                "message": "The model did not answer in time.",
                "is_transient": True,
                "is_interrupted": True,
            }
        status = getattr(exc, "status_code", None)
        reason = self._redactor.redact(str(exc), model) or name
        if error := describe_status(status):
            return error
        if name == "ContextWindowExceededError" or (
            status in (400, 413) and TOO_LONG_PATTERN.search(str(exc))
        ):
            message = f"The prompt is longer than the model accepts: {reason}"
            return {"kind": "llm_too_long", "message": message}
        if name == "ContentPolicyViolationError":
            message = f"The provider refuses this request: {reason}"
            return {"kind": "llm_refused", "message": message}
        is_transient = (
            status in TRANSIENT_STATUSES
            or name in TRANSIENT_ERROR_NAMES
            or isinstance(exc, aiohttp.ClientError)
        )
        failed = f"failed (HTTP {status})" if status else "failed"
        return {
            "kind": "llm_unavailable" if is_transient else "llm_failed",
            "message": f"The model request {failed}: {reason}",
            "is_transient": is_transient,
            "retry_after_s": retry_after_s(exc),
        }


def uses_litellm(command: ModelSelection) -> bool:
    """Return whether a request goes through litellm.

    Code can choose a model, too. Only a configured model may name a provider. Otherwise code could
    send the key to any provider.
    """
    if not command["api_base"]:
        return True
    provider, slash, _ = command["model"].partition("/")
    return bool(command["is_configured"] and slash and provider in list_providers())


def describe_status(status: int | None) -> ErrorData | None:
    """Return the error for a status whose meaning is clear without the body; None for others."""
    if status in (401, 403):
        message = f"The provider refused the key (HTTP {status})."
        return {"kind": "llm_unauthorized", "message": message}
    if status == 404:
        message = "The provider does not know the model, or the address is wrong (HTTP 404)."
        return {"kind": "llm_unknown_model", "message": message}
    if status is not None and 300 <= status < 400:
        message = f"The address redirects requests (HTTP {status}); the key must not follow."
        return {"kind": "llm_failed", "message": message}
    return None


def error_reply(command_id: int, kind: str, message: str, *, usage: WorkerUsage) -> ErrorReply:
    """Return the error reply for an unusable answer, with its cost."""
    return {"id": command_id, "error": {"kind": kind, "message": message}, "usage": usage}


def check_answer(
    command_id: int, answer: ProviderAnswer, prices: TokenPrices
) -> CompletionReply | ErrorReply:
    """Return the reply for an answer: its text and cost, or an error."""
    usage = check_usage(answer, prices)
    is_truncated = answer.finish_reason == "length"
    if answer.finish_reason == "content_filter":
        message = "The provider's content filter withheld the answer."
        return error_reply(command_id, "llm_refused", message, usage=usage)
    if not answer.text:
        end = ", and used all its tokens." if is_truncated else "."
        reply = error_reply(
            command_id, "llm_bad_answer", f"The model returned an empty answer{end}", usage=usage
        )
        reply["error"]["is_transient"] = not is_truncated
        return reply
    if len(answer.text) > MAX_ANSWER_CHARS:
        message = (
            f"The answer has {len(answer.text):,} characters; the limit is {MAX_ANSWER_CHARS:,}."
        )
        return error_reply(command_id, "llm_bad_answer", message, usage=usage)
    return {
        "id": command_id,
        "text": answer.text,
        "is_truncated": is_truncated,
        "usage": usage,
    }


def check_usage(answer: ProviderAnswer, prices: TokenPrices) -> WorkerUsage:
    """Return the plausible part of the usage that a provider claims."""
    tokens_in = check_tokens(answer.tokens_in)
    tokens_out = check_tokens(answer.tokens_out)
    usd = answer.usd
    if not isinstance(usd, int | float) or not 0 <= usd < float("inf"):
        usd = prices.cost_usd(tokens_in, tokens_out)
    return {"tokens_in": tokens_in, "tokens_out": tokens_out, "usd": usd}


def check_tokens(count: Any) -> int:
    """Return a plausible number of tokens."""
    return min(max(count, 0), MAX_COUNTED_TOKENS) if type(count) is int else 0


def retry_after_s(exc: Exception) -> float:
    """Return the seconds that a provider asks to wait before the next request.

    Its header contains a number or a date.
    """
    value = str(find_headers(exc).get("retry-after") or "")
    try:
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(parsedate_to_datetime(value).timestamp() - time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def find_headers(exc: Exception) -> Mapping[str, Any]:
    """Return the response headers of an error of our client or of litellm's."""
    response = getattr(exc, "response", None)
    headers = getattr(exc, "headers", None) or getattr(response, "headers", None) or {}
    if headers.get("retry-after"):
        return headers
    return getattr(exc, "litellm_response_headers", None) or {}


def import_litellm() -> Any:
    """Return litellm: quiet, without network access of its own, and with limited HTTP clients."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"  # otherwise it reads `.env` in the working directory
    os.environ.setdefault("LITELLM_LOG", "CRITICAL")
    limit_http_clients()
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


def limit_http_clients() -> None:
    """Stop litellm's HTTP clients from following redirects with the key; bound what they read."""
    import httpx

    class LimitedClient(httpx.AsyncClient):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "follow_redirects": False})
            hooks = self.event_hooks
            self.event_hooks = {**hooks, "response": [*hooks["response"], limit_response]}

    async def limit_response(response: httpx.Response) -> None:
        read_chunks = response.aiter_bytes
        response.aiter_bytes = (  # type: ignore[method-assign]
            lambda chunk_size=None: limited_chunks(read_chunks(chunk_size))
        )

    httpx.AsyncClient = LimitedClient  # type: ignore[misc]


def is_response_too_large(exc: BaseException | None) -> bool:
    """Return whether an error was caused by `ResponseTooLarge`, however a client wrapped it."""
    seen: list[BaseException] = []
    while exc is not None and exc not in seen:
        if isinstance(exc, ResponseTooLarge):
            return True
        seen.append(exc)
        exc = exc.__cause__ or exc.__context__
    return False


async def main() -> None:
    """Serve commands on standard input and reply on the original standard output."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # printed text must not look like a reply
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await ModelWorker(output).serve(lines)


if __name__ == "__main__":
    asyncio.run(main())
