"""The backend for litellm's models and for servers with OpenAI's API.

A separate process sends the requests. It starts with the first request.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
from anyio.abc import Process, TaskGroup, TaskStatus

from ...config import LlmSettings
from ...config.loader import CREDENTIALS_KEY_VARIABLE
from ..model_requests import Completion, Messages, ModelUsage
from .model_backend import ModelFailed, TokenPrices
from .worker_protocol import (
    API_KEY_VARIABLE,
    MAX_LINE_BYTES,
    CancelCommand,
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

WORKER_MODULE = "mcpruntime_server.capabilities.llm.model_worker"
START_TIMEOUT_S = 60.0  # the first request imports litellm, on a machine that may be busy
EXIT_TIMEOUT_S = 2.0  # for the process to exit after its input ends
REPLY_GRACE_S = 5.0  # added to the timeout of the provider
STUCK_AFTER_S = 60.0  # a late process that has sent no reply for so long is replaced
START_INTERVAL_S = 1.0  # between two starts, so that one that fails at once costs little

logger = logging.getLogger(__name__)


@dataclass
class PendingReply:
    """A command that waits for its reply; `done` without a reply means that the process ended."""

    done: anyio.Event = field(default_factory=anyio.Event)
    reply: WorkerReply | None = None


class ModelProcess:
    """Sends commands to the process; see `open_model_process`."""

    def __init__(self, settings: LlmSettings, tasks: TaskGroup) -> None:
        self._settings = settings
        self._tasks = tasks
        self._process: Process | None = None
        self._start_lock = anyio.Lock()
        self._next_start = 0.0  # not before this time
        self._write_lock = anyio.Lock()
        self._pending: dict[int, PendingReply] = {}
        self._last_id = 0
        self._silent_since: float | None = None  # time of the first command since the last reply

    async def complete(
        self,
        messages: Messages,
        *,
        model: str,
        max_tokens: int,
        timeout_s: float,
        schema: Mapping[str, Any] | None,
    ) -> Completion:
        """Return the model's completion; raises `ModelFailed`."""
        command: CompleteCommand = {
            **self._select(model),
            "id": self._next_id(),
            "command": "complete",
            "messages": list(messages),
            "max_tokens": max_tokens,
            "timeout_s": timeout_s,
            "schema": schema,
        }
        reply = cast(CompletionReply, await self._send_command(command, timeout_s))
        return Completion(reply["text"], model_usage(reply["usage"]), reply["is_truncated"])

    async def token_prices(self, model: str) -> TokenPrices:
        """Return the prices of a model; raises `ModelFailed`."""
        reply = await self._describe(model)
        return TokenPrices(reply["usd_in"], reply["usd_out"])

    async def max_input_tokens(self, model: str) -> int:
        """Return how many tokens a prompt may have; 0 if the limit is unknown."""
        with suppress(ModelFailed):
            return (await self._describe(model))["max_input_tokens"]
        return 0

    async def _describe(self, model: str) -> DescriptionReply:
        command: DescribeCommand = {
            **self._select(model),
            "id": self._next_id(),
            "command": "describe",
        }
        return cast(DescriptionReply, await self._send_command(command, START_TIMEOUT_S))

    def _select(self, model: str) -> ModelSelection:
        settings = self._settings
        return {
            "model": model,
            "is_configured": model in (settings.model, *settings.models),
            "api_base": settings.api_base,
        }

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _send_command(
        self, command: CompleteCommand | DescribeCommand, timeout_s: float
    ) -> CompletionReply | DescriptionReply:
        """Send a command and return its reply; raises `ModelFailed`."""
        process = await self._ensure_started()
        pending = self._pending[command["id"]] = PendingReply()
        try:
            with anyio.move_on_after(timeout_s + REPLY_GRACE_S) as scope:
                await self._write(process, command)
                await pending.done.wait()
            if scope.cancelled_caught:
                self._kill_if_stuck(process)
        finally:
            del self._pending[command["id"]]
            if not pending.done.is_set():
                await self._cancel_command(process, command["id"])
        if pending.reply is None:
            raise ModelFailed(
                "llm_unavailable",
                "The process that sends model requests did not reply.",
                is_transient=True,
            )
        if "error" in pending.reply:
            raise model_failure(pending.reply)
        return pending.reply

    async def _cancel_command(self, process: Process, command_id: int) -> None:
        command: CancelCommand = {"id": command_id, "command": "cancel"}
        with anyio.move_on_after(EXIT_TIMEOUT_S, shield=True), suppress(ModelFailed):
            await self._write(process, command)

    async def _write(self, process: Process, command: Command) -> None:
        assert process.stdin is not None
        line = json.dumps(command).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:  # the process would fail, and all its commands with it
            raise ModelFailed(
                "llm_too_long", f"The request is longer than {MAX_LINE_BYTES:,} bytes."
            )
        self._silent_since = self._silent_since or time.monotonic()
        try:
            async with self._write_lock:
                await process.stdin.send(line)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise ModelFailed(
                "llm_unavailable",
                "The process that sends model requests has ended.",
                is_transient=True,
            ) from None

    def _kill_if_stuck(self, process: Process) -> None:
        """Kill the process if it has not replied to any command for `STUCK_AFTER_S`."""
        if self._silent_since is None or time.monotonic() - self._silent_since <= STUCK_AFTER_S:
            return
        logger.warning("the process that sends model requests is stuck and is killed")
        with suppress(ProcessLookupError):  # another request may have killed it
            process.kill()

    async def _ensure_started(self) -> Process:
        async with self._start_lock:
            if self._process is None:
                await anyio.sleep_until(self._next_start)
                self._next_start = anyio.current_time() + START_INTERVAL_S
                self._process = await self._tasks.start(self._run_process)
            return self._process

    async def _run_process(self, *, task_status: TaskStatus[Process]) -> None:
        """Run the process until it ends, then fail all pending commands."""
        environ = {**os.environ, API_KEY_VARIABLE: self._settings.api_key.get_secret_value()}
        environ.pop(CREDENTIALS_KEY_VARIABLE, None)  # it sends no requests in anybody's name
        command = [sys.executable, "-P", "-m", WORKER_MODULE]  # -P: import nothing from the cwd
        process = await anyio.open_process(command, env=environ, stderr=subprocess.DEVNULL)
        try:
            task_status.started(process)
            await self._read_replies(process)
            logger.warning("the process that sends model requests has ended")
        finally:
            self._process = None
            self._silent_since = None
            for pending in self._pending.values():
                pending.done.set()
            await stop_model_process(process)

    async def _read_replies(self, process: Process) -> None:
        assert process.stdout is not None
        unfinished: list[bytes] = []  # parts of a line
        async for chunk in process.stdout:
            self._silent_since = None
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                reply: WorkerReply = json.loads(b"".join((*unfinished, line)))
                unfinished.clear()
                if pending := self._pending.get(reply["id"]):
                    pending.reply = reply
                    pending.done.set()
            unfinished.append(rest)


async def stop_model_process(process: Process) -> None:
    """End the process: close its input, wait, kill, reap."""
    assert process.stdin is not None
    with anyio.move_on_after(EXIT_TIMEOUT_S, shield=True):
        await process.stdin.aclose()
        await process.wait()
    with suppress(ProcessLookupError):
        process.kill()
    with anyio.CancelScope(shield=True):
        await process.aclose()


def model_usage(usage: WorkerUsage) -> ModelUsage:
    """Return the usage of one request."""
    return ModelUsage(1, usage["tokens_in"], usage["tokens_out"], usage["usd"])


def model_failure(reply: ErrorReply) -> ModelFailed:
    """Return the error of a reply."""
    error: ErrorData = reply["error"]
    return ModelFailed(
        error["kind"],
        error["message"],
        is_transient=error.get("is_transient", False),
        retry_after_s=error.get("retry_after_s", 0.0),
        usage=model_usage(reply["usage"]) if "usage" in reply else None,
        is_interrupted=error.get("is_interrupted", False),
    )


@asynccontextmanager
async def open_model_process(settings: LlmSettings) -> AsyncIterator[ModelProcess]:
    """Yield the backend; its process ends with the context."""
    async with anyio.create_task_group() as tasks:
        yield ModelProcess(settings, tasks)
        tasks.cancel_scope.cancel()
