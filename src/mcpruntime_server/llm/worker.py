"""The process that speaks to models, with litellm: a line of JSON for each question, and one for each answer.

It is a process of its own because litellm takes seconds to import and many megabytes to keep, and because what it
prints, logs and knows of credentials stays there. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import partial
from typing import Any

KEY = "MCPRUNTIME_LLM_KEY"  # in the environment: the key that the settings have
LINE = 64 * 1024 * 1024  # bytes of a question
SHOWN = 300  # characters of what a provider says
PASSING = {408, 409, 429, 500, 502, 503, 504, 529}
REFUSED = {401: "llm_unauthorized", 403: "llm_unauthorized", 404: "llm_unknown_model"}


class Worker:
    """Answers what comes in, many questions at a time."""

    def __init__(self, litellm: Any, output: Any) -> None:
        self._litellm = litellm
        self._output = output
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._secrets = sorted(
            (
                value
                for name, value in os.environ.items()
                if name.endswith(("_KEY", "_TOKEN", "_SECRET")) and len(value) > 7
            ),
            key=len,
            reverse=True,
        )

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

    async def _answer(self, number: int, asked: dict[str, Any]) -> None:
        try:
            told = self._price(asked["model"]) if "price" in asked else await self._complete(asked)
        except Exception as exc:  # noqa: BLE001 - whatever a provider's client raises is what became of it
            told = {"error": self._described(exc)}
        self._output.write(json.dumps({"id": number, **told}).encode() + b"\n")

    async def _complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = {"api_base": asked["api_base"]} if asked["api_base"] else {}
        if key := os.environ.get(KEY):
            options["api_key"] = key
        if asked["schema"] is not None and self._litellm.supports_response_schema(asked["model"]):
            form = {"name": "answer", "schema": asked["schema"]}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        done = await self._litellm.acompletion(
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
            return {
                "error": {"kind": "llm_unavailable", "message": "The provider has given no answer.", "passing": True}
            }
        choice = done.choices[0]
        if choice.finish_reason == "content_filter":
            return {"error": {"kind": "llm_refused", "message": "The provider's filter has kept the answer back."}}
        if not choice.message.content:
            return {
                "error": {"kind": "llm_bad_answer", "message": "The model has answered with nothing.", "passing": True}
            }
        usage = done.usage
        try:
            usd = self._litellm.completion_cost(done)
        except Exception:  # noqa: BLE001 - a model without a known price is no failure
            usd = 0.0
        return {"text": choice.message.content, "usage": [usage.prompt_tokens, usage.completion_tokens, usd]}

    def _price(self, model: str) -> dict[str, Any]:
        try:
            known = self._litellm.get_model_info(model)
        except Exception:  # noqa: BLE001 - a model that is not listed has no known price
            known = {}
        price = [known.get("input_cost_per_token") or 0.0, known.get("output_cost_per_token") or 0.0]
        return {"price": price, "window": known.get("max_input_tokens") or 0}

    def _described(self, exc: Exception) -> dict[str, Any]:
        """Return an error without credentials; the provider's own words on a refused key may quote it."""
        status, name = getattr(exc, "status_code", None), type(exc).__name__
        if status in REFUSED:
            what = "refuses the key" if status != 404 else "does not know the model, or the address"
            return {"kind": REFUSED[status], "message": f"The provider {what} (HTTP {status})."}
        text = self._scrubbed(str(exc))
        if name == "ContextWindowExceededError":
            return {"kind": "llm_too_long", "message": f"The question is longer than the model takes: {text}"}
        if name == "ContentPolicyViolationError":
            return {"kind": "llm_refused", "message": f"The provider does not answer this: {text}"}
        if name == "Timeout":
            return {"kind": "llm_timeout", "message": "The model did not answer in time.", "passing": True}
        passing = status in PASSING or name in ("APIConnectionError", "InternalServerError", "ServiceUnavailableError")
        after = getattr(getattr(exc, "response", None), "headers", {}).get("retry-after", "0")
        kind = "llm_unavailable" if passing else "llm_failed"
        message = f"The model could not be asked (HTTP {status}): {text}" if status else f"The model failed: {text}"
        return {
            "kind": kind,
            "message": message,
            "passing": passing,
            "after_s": float(after) if after.isdigit() else 0.0,
        }

    def _scrubbed(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:SHOWN]


async def main() -> None:
    """Serve standard input, answering on what standard output was at the start."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what anybody prints is no answer
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or importing it would ask the network
    os.environ.setdefault("LITELLM_LOG", "CRITICAL")
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await Worker(litellm, output).serve(lines)


if __name__ == "__main__":
    asyncio.run(main())
