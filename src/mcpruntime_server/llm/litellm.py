"""The broker for every model that litellm knows, in a process of its own, which starts with the first question."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import Process, TaskGroup, TaskStatus

from ..config import LlmSettings
from .model import Completion, Messages, ModelFailed, Usage
from .worker import KEY

END_S = 2.0  # for the process to end when its input does
LATE_S = 5.0  # that the process may take longer than the provider is given
BACKOFF_S = 1.0  # between a death of the process and the next one
CHUNK = 65_536

logger = logging.getLogger(__name__)


@dataclass
class Pending:
    """A question under way."""

    over: anyio.Event = field(default_factory=anyio.Event)
    told: dict[str, Any] | None = None


class LiteLlm:
    """Puts questions before the process; see `opened`."""

    def __init__(self, settings: LlmSettings, tasks: TaskGroup) -> None:
        self._settings = settings
        self._tasks = tasks
        self._process: Process | None = None
        self._starting = anyio.Lock()
        self._writing = anyio.Lock()
        self._pending: dict[int, Pending] = {}
        self._count = 0

    async def complete(
        self, messages: Messages, *, model: str, max_tokens: int, timeout_s: float, schema: Mapping[str, Any] | None
    ) -> Completion:
        """Return what the model says; raises `ModelFailed`."""
        asked = {
            "model": self._name_of(model),
            "messages": list(messages),
            "max_tokens": max_tokens,
            "timeout_s": timeout_s,
            "schema": schema,
            "api_base": self._settings.api_base,
        }
        told = await self._request(asked, timeout_s)
        tokens_in, tokens_out, usd = told["usage"]
        return Completion(told["text"], Usage(1, tokens_in, tokens_out, usd))

    async def price(self, model: str) -> tuple[float, float]:
        """Return USD for a token in, and for one out; 0 where that is not known."""
        told = await self._request({"price": True, "model": self._name_of(model)}, self._settings.timeout_s)
        one, other = told["price"]
        return one, other

    async def window(self, model: str) -> int:
        """Return how many tokens a model takes in; 0 where that is not known."""
        with suppress(ModelFailed):
            told = await self._request({"price": True, "model": self._name_of(model)}, self._settings.timeout_s)
            return int(told["window"])
        return 0

    def _name_of(self, model: str) -> str:
        """Return a model as litellm names it: behind an address of one's own it speaks OpenAI's protocol."""
        return f"openai/{model}" if self._settings.api_base and "/" not in model else model

    async def _request(self, asked: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        process = await self._started()
        self._count += 1
        number, pending = self._count, Pending()
        self._pending[number] = pending
        try:
            await self._send(process, {"id": number, **asked})
            with anyio.move_on_after(timeout_s + LATE_S):
                await pending.over.wait()
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(END_S), suppress(ModelFailed):
                await self._send(process, {"id": 0, "cancel": number})
            raise
        finally:
            del self._pending[number]
        if pending.told is None:
            raise ModelFailed("llm_unavailable", "The process that asks models gave no answer.", is_passing=True)
        if error := pending.told.get("error"):
            passing, after_s = bool(error.get("passing")), float(error.get("after_s", 0.0))
            raise ModelFailed(error["kind"], error["message"], is_passing=passing, after_s=after_s)
        return pending.told

    async def _send(self, process: Process, message: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        try:
            async with self._writing:
                await process.stdin.send(json.dumps(message).encode() + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise ModelFailed("llm_unavailable", "The process that asks models has ended.", is_passing=True) from None

    async def _started(self) -> Process:
        async with self._starting:
            if self._process is None:
                self._process = await self._tasks.start(self._run)
            return self._process

    async def _run(self, *, task_status: TaskStatus[Process]) -> None:
        """Have the process for as long as it lives; questions that it leaves open have failed."""
        environ = {**os.environ, KEY: self._settings.api_key.get_secret_value()}
        command = [sys.executable, "-m", "mcpruntime_server.llm.worker"]
        process = await anyio.open_process(command, env=environ, stderr=subprocess.DEVNULL)
        try:
            task_status.started(process)
            await self._read(process)
            logger.warning("the process that asks models has ended")
            await anyio.sleep(BACKOFF_S)
        finally:
            self._process = None
            for pending in self._pending.values():
                pending.over.set()
            with anyio.CancelScope(shield=True), anyio.move_on_after(END_S):
                assert process.stdin is not None
                await process.stdin.aclose()
                await process.wait()
            with suppress(ProcessLookupError):
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.aclose()

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        rest = b""
        async for chunk in process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                told = json.loads(line)
                if pending := self._pending.get(told["id"]):
                    pending.told = told
                    pending.over.set()


@asynccontextmanager
async def opened(settings: LlmSettings) -> AsyncIterator[LiteLlm]:
    """Yield the broker; its process ends with this."""
    async with anyio.create_task_group() as tasks:
        yield LiteLlm(settings, tasks)
        tasks.cancel_scope.cancel()
