"""Reads large JSON without holding up the event loop.

The parser holds the interpreter's lock for tens of milliseconds, in a thread as well. A process of
its own takes the long texts out, which arrive here as they are; only what is left is parsed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from anyio.lowlevel import checkpoint

from ..journal.events import decode_json
from .framed_process import Data, FramedProcess

WORKER_MODULE = "mcpruntime_server.capabilities.json_worker"
READ_TIMEOUT_S = 20.0  # for one text, on a machine that may be busy; an honest one takes 0.1 s
LARGE_BYTES = 256 * 1024  # of JSON; more is not parsed on the event loop
MAX_GROWTH = 6  # a character is written as an escape of so many bytes at most
TURN_BYTES = 256 * 1024  # of texts that are decoded at once


@dataclass(frozen=True)
class SplitJson:
    """JSON whose long texts are empty, and these with their paths in it."""

    rest: bytes
    texts: Sequence[tuple[Sequence[Any], str]] = ()

    def fill_in(self, data: Any) -> Any:
        """Return the data of `rest` with its long texts, which are put in their places."""
        for path, text in self.texts:
            if not path:
                return text
            place = data
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = text
        return data


class LargeJson:
    """Reads JSON, one text at a time."""

    def __init__(self) -> None:
        self._process = FramedProcess(WORKER_MODULE, READ_TIMEOUT_S)

    async def decode(self, data: Data) -> Any:
        """Return the data in JSON, lone surrogates escaped; raises `ValueError`."""
        split = await self.split(data)
        return split.fill_in(decode_json(split.rest.decode()))

    async def split(self, data: Data, within: Sequence[str] = ()) -> SplitJson:
        """Return JSON and its long texts apart; b"" stands for what is not JSON.

        With `within`, only texts in these members of its `params` are taken out, and others that
        are very long are not allowed.
        """
        request = {"within": list(within)}
        try:
            head, found = await self._process.ask(lambda: request, data, MAX_GROWTH * len(data))
        except ValueError:  # the process is gone, and the text may be an honest one
            return SplitJson(bytes(data))
        return await read_reply(head, found)

    async def close(self) -> None:
        """End the process, if there is one."""
        await self._process.close()


async def read_reply(head: Mapping[str, Any], found: memoryview) -> SplitJson:
    """Return what the process has found."""
    if "invalid" in head:
        return SplitJson(b"")
    start = head["rest_bytes"]
    rest, end = bytes(found[:start]), start + head["index_bytes"]
    texts: list[tuple[Sequence[Any], str]] = []
    turn_end = end + TURN_BYTES
    for path, size in json.loads(bytes(found[start:end])):
        if end > turn_end:
            await checkpoint()
            turn_end = end + TURN_BYTES
        texts.append((path, str(found[end : end + size], "utf-8")))
        end += size
    return SplitJson(rest, texts)


@asynccontextmanager
async def open_large_json() -> AsyncIterator[LargeJson]:
    """Yield a reader of large JSON; its process ends with the context."""
    reader = LargeJson()
    try:
        yield reader
    finally:
        await reader.close()
