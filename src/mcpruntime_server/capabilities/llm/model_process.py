"""The broker for every model that litellm knows, and for servers like OpenAI's: a process of its own.

It starts with the first question; until then nothing of this costs anything.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import Process, TaskGroup, TaskStatus

from ...config import LlmSettings
from ..model_requests import (
    API_KEY_VARIABLE,
    MAX_LINE_BYTES,
    Completion,
    Messages,
    ModelFailed,
    ModelUsage,
)

START_TIMEOUT_S = (
    60.0  # for what a first question needs to be imported, on a machine with much to do
)
EXIT_TIMEOUT_S = 2.0  # for the process to end when its input does
REPLY_GRACE_S = 5.0  # that the process may take longer than the provider is given
STUCK_AFTER_S = 60.0  # that it has said nothing to what it was asked, when it is late, for another to take its place
RESTART_DELAY_S = 1.0  # between a death of the process and the next one

logger = logging.getLogger(__name__)


@dataclass
class PendingReply:
    """A question under way."""

    done: anyio.Event = field(default_factory=anyio.Event)
    reply: dict[str, Any] | None = None


class ModelProcess:
    """Puts questions before the process; see `opened`."""

    def __init__(self, settings: LlmSettings, tasks: TaskGroup) -> None:
        self._settings = settings
        self._tasks = tasks
        self._process: Process | None = None
        self._start_lock = anyio.Lock()
        self._write_lock = anyio.Lock()
        self._pending: dict[int, PendingReply] = {}
        self._last_id = 0
        self._silent_since: float | None = (
            None  # when it was asked first, since it said something last
        )

    async def complete(
        self,
        messages: Messages,
        *,
        model: str,
        max_tokens: int,
        timeout_s: float,
        schema: Mapping[str, Any] | None,
    ) -> Completion:
        """Return what the model says; raises `ModelFailed`."""
        asked = {
            **self._model_fields(model),
            "messages": list(messages),
            "max_tokens": max_tokens,
            "timeout_s": timeout_s,
            "schema": schema,
        }
        told = await self._send_request(asked, timeout_s)
        tokens_in, tokens_out, usd = told["usage"]
        return Completion(told["text"], ModelUsage(1, tokens_in, tokens_out, usd), told["is_cut"])

    async def token_prices(self, model: str) -> tuple[float, float]:
        """Return USD for a token in, and for one out; 0 where that is not known."""
        told = await self._send_request(
            {"price": True, **self._model_fields(model)}, START_TIMEOUT_S
        )
        one, other = told["price"]
        return one, other

    async def max_input_tokens(self, model: str) -> int:
        """Return how many tokens a model takes in; 0 where that is not known."""
        with suppress(ModelFailed):
            return int(
                (
                    await self._send_request(
                        {"price": True, **self._model_fields(model)}, START_TIMEOUT_S
                    )
                )["window"]
            )
        return 0

    def _model_fields(self, model: str) -> dict[str, Any]:
        settings = self._settings
        return {
            "model": model,
            "named": model in (settings.model, *settings.models),
            "api_base": settings.api_base,
        }

    async def _send_request(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        process = await self._ensure_started()
        self._last_id += 1
        number, pending = self._last_id, PendingReply()
        self._pending[number] = pending
        try:
            with anyio.move_on_after(timeout_s + REPLY_GRACE_S) as patience:
                await self._send(process, {"id": number, **request})
                await pending.done.wait()
            if patience.cancelled_caught:
                self._kill_if_stuck(process)
        finally:
            del self._pending[number]
            if not pending.done.is_set():
                with (
                    anyio.CancelScope(shield=True),
                    anyio.move_on_after(EXIT_TIMEOUT_S),
                    suppress(ModelFailed),
                ):
                    await self._send(process, {"id": 0, "cancel": number})
        if pending.reply is None:
            raise ModelFailed(
                "llm_unavailable", "The process that asks models gave no answer.", is_transient=True
            )
        if error := pending.reply.get("error"):
            raise model_failure(error, pending.reply.get("usage"))
        return pending.reply

    def _kill_if_stuck(self, process: Process) -> None:
        """End a process that is late, and has been silent for long: it could answer nobody any more."""
        if self._silent_since is not None and time.monotonic() - self._silent_since > STUCK_AFTER_S:
            logger.warning("the process that asks models is stuck, and is ended")
            with suppress(ProcessLookupError):  # others may have found that, too
                process.kill()

    async def _send(self, process: Process, message: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        line = json.dumps(message).encode() + b"\n"
        if (
            len(line) > MAX_LINE_BYTES
        ):  # it would be the end of the process, and of what others have asked
            raise ModelFailed(
                "llm_too_long", f"The question is longer than {MAX_LINE_BYTES:,} bytes."
            )
        self._silent_since = self._silent_since or time.monotonic()
        try:
            async with self._write_lock:
                await process.stdin.send(line)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise ModelFailed(
                "llm_unavailable", "The process that asks models has ended.", is_transient=True
            ) from None

    async def _ensure_started(self) -> Process:
        async with self._start_lock:
            if self._process is None:
                self._process = await self._tasks.start(self._run_process)
            return self._process

    async def _run_process(self, *, task_status: TaskStatus[Process]) -> None:
        """Have the process for as long as it lives; questions that it leaves open have failed."""
        environ = {**os.environ, API_KEY_VARIABLE: self._settings.api_key.get_secret_value()}
        command = [
            sys.executable,
            "-P",
            "-m",
            "mcpruntime_server.capabilities.llm.model_worker",
        ]  # -P: nothing of the folder it is in
        process = await anyio.open_process(command, env=environ, stderr=subprocess.DEVNULL)
        try:
            task_status.started(process)
            await self._read_replies(process)
            logger.warning("the process that asks models has ended")
            await anyio.sleep(RESTART_DELAY_S)
        finally:
            self._process = self._silent_since = None
            for pending in self._pending.values():
                pending.done.set()
            with anyio.CancelScope(shield=True), anyio.move_on_after(EXIT_TIMEOUT_S):
                assert process.stdin is not None
                await process.stdin.aclose()
                await process.wait()
            with suppress(ProcessLookupError):
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.aclose()

    async def _read_replies(self, process: Process) -> None:
        assert process.stdout is not None
        parts: list[bytes] = []  # of a line that is not whole yet
        async for chunk in process.stdout:
            self._silent_since = None
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                told = json.loads(b"".join((*parts, line)))
                parts.clear()
                if pending := self._pending.get(told["id"]):
                    pending.reply = told
                    pending.done.set()
            parts.append(rest)


def model_failure(error: Mapping[str, Any], usage: Sequence[float] | None) -> ModelFailed:
    """Return an error as the process has told it."""
    cost = ModelUsage(1, int(usage[0]), int(usage[1]), usage[2]) if usage is not None else None
    return ModelFailed(
        error["kind"],
        error["message"],
        is_transient=bool(error.get("passing")),
        retry_after_s=float(error.get("after_s", 0.0)),
        usage=cost,
        is_interrupted=bool(error.get("cut")),
    )


@asynccontextmanager
async def open_model_process(settings: LlmSettings) -> AsyncIterator[ModelProcess]:
    """Yield the broker; its process ends with this."""
    async with anyio.create_task_group() as tasks:
        yield ModelProcess(settings, tasks)
        tasks.cancel_scope.cancel()
