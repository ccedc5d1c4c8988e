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

from ..config import LlmSettings
from .model import KEY, LINE, Completion, Messages, ModelFailed, Usage

START_S = 60.0  # for what a first question needs to be imported, on a machine with much to do
END_S = 2.0  # for the process to end when its input does
LATE_S = 5.0  # that the process may take longer than the provider is given
STUCK_S = 60.0  # that it has said nothing to what it was asked, when it is late, for another to take its place
BACKOFF_S = 1.0  # between a death of the process and the next one

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
        self._unheard_since: float | None = None  # when it was asked first, since it said something last

    async def complete(
        self, messages: Messages, *, model: str, max_tokens: int, timeout_s: float, schema: Mapping[str, Any] | None
    ) -> Completion:
        """Return what the model says; raises `ModelFailed`."""
        asked = {
            **self._about(model),
            "messages": list(messages),
            "max_tokens": max_tokens,
            "timeout_s": timeout_s,
            "schema": schema,
        }
        told = await self._request(asked, timeout_s)
        tokens_in, tokens_out, usd = told["usage"]
        return Completion(told["text"], Usage(1, tokens_in, tokens_out, usd), told["is_cut"])

    async def price(self, model: str) -> tuple[float, float]:
        """Return USD for a token in, and for one out; 0 where that is not known."""
        told = await self._request({"price": True, **self._about(model)}, START_S)
        one, other = told["price"]
        return one, other

    async def window(self, model: str) -> int:
        """Return how many tokens a model takes in; 0 where that is not known."""
        with suppress(ModelFailed):
            return int((await self._request({"price": True, **self._about(model)}, START_S))["window"])
        return 0

    def _about(self, model: str) -> dict[str, Any]:
        settings = self._settings
        return {
            "model": model,
            "named": model in (settings.model, *settings.models),
            "api_base": settings.api_base,
        }

    async def _request(self, asked: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        process = await self._started()
        self._count += 1
        number, pending = self._count, Pending()
        self._pending[number] = pending
        try:
            with anyio.move_on_after(timeout_s + LATE_S) as patience:
                await self._send(process, {"id": number, **asked})
                await pending.over.wait()
            if patience.cancelled_caught:
                self._end_if_stuck(process)
        finally:
            del self._pending[number]
            if not pending.over.is_set():
                with anyio.CancelScope(shield=True), anyio.move_on_after(END_S), suppress(ModelFailed):
                    await self._send(process, {"id": 0, "cancel": number})
        if pending.told is None:
            raise ModelFailed("llm_unavailable", "The process that asks models gave no answer.", is_passing=True)
        if error := pending.told.get("error"):
            raise failure(error, pending.told.get("usage"))
        return pending.told

    def _end_if_stuck(self, process: Process) -> None:
        """End a process that is late, and has been silent for long: it could answer nobody any more."""
        if self._unheard_since is not None and time.monotonic() - self._unheard_since > STUCK_S:
            logger.warning("the process that asks models is stuck, and is ended")
            with suppress(ProcessLookupError):  # others may have found that, too
                process.kill()

    async def _send(self, process: Process, message: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        line = json.dumps(message).encode() + b"\n"
        if len(line) > LINE:  # it would be the end of the process, and of what others have asked
            raise ModelFailed("llm_too_long", f"The question is longer than {LINE:,} bytes.")
        self._unheard_since = self._unheard_since or time.monotonic()
        try:
            async with self._writing:
                await process.stdin.send(line)
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
        command = [sys.executable, "-P", "-m", "mcpruntime_server.llm.worker"]  # -P: nothing of the folder it is in
        process = await anyio.open_process(command, env=environ, stderr=subprocess.DEVNULL)
        try:
            task_status.started(process)
            await self._read(process)
            logger.warning("the process that asks models has ended")
            await anyio.sleep(BACKOFF_S)
        finally:
            self._process = self._unheard_since = None
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
        parts: list[bytes] = []  # of a line that is not whole yet
        async for chunk in process.stdout:
            self._unheard_since = None
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                told = json.loads(b"".join((*parts, line)))
                parts.clear()
                if pending := self._pending.get(told["id"]):
                    pending.told = told
                    pending.over.set()
            parts.append(rest)


def failure(error: Mapping[str, Any], usage: Sequence[float] | None) -> ModelFailed:
    """Return an error as the process has told it."""
    cost = Usage(1, int(usage[0]), int(usage[1]), usage[2]) if usage is not None else None
    return ModelFailed(
        error["kind"],
        error["message"],
        is_passing=bool(error.get("passing")),
        after_s=float(error.get("after_s", 0.0)),
        usage=cost,
        is_cut_off=bool(error.get("cut")),
    )


@asynccontextmanager
async def opened(settings: LlmSettings) -> AsyncIterator[LiteLlm]:
    """Yield the broker; its process ends with this."""
    async with anyio.create_task_group() as tasks:
        yield LiteLlm(settings, tasks)
        tasks.cancel_scope.cancel()
