"""Reads calls with large arguments in a process of its own.

The arguments stay text: the journal and an upstream get them as they are, and this process never
builds them, unless something has to look into them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from anyio.lowlevel import checkpoint

from ..journal.events import EncodedArguments
from ..protocol.wire import TYPE_CODES, Call, WireError, decode_message
from .framed_process import FramedProcess

WORKER_MODULE = "mcpruntime_server.capabilities.call_worker"
READ_TIMEOUT_S = 20.0  # for one call, on a machine that may be busy; an honest one takes 0.2 s
MAX_SHOWN_CHARS = 300  # of the arguments of one call, as a client sees them
MAX_GROWTH = 30  # canonical JSON, and the same as a JSON string, are so many times longer at most


class LargeCalls:
    """Reads calls, one at a time."""

    def __init__(self) -> None:
        self._process = FramedProcess(WORKER_MODULE, READ_TIMEOUT_S)

    async def read(self, body: bytes | memoryview) -> Call:
        """Return the call in the body of a frame; raises `WireError` if it is none."""
        request = {"max_shown_chars": MAX_SHOWN_CHARS}
        try:
            head, found = await self._process.ask(lambda: request, body, MAX_GROWTH * len(body))
        except ValueError:  # the process is gone, and the call may be an honest one
            head, found = {}, memoryview(b"")
        if "invalid" in head:
            raise WireError(head["invalid"])
        if not head:
            call = decode_message(TYPE_CODES[Call], bytes(body))
            return cast("Call", call)
        size = head["args_bytes"]
        await checkpoint()  # copying megabytes takes a millisecond or two
        data = bytes(found[:size])
        await checkpoint()
        arguments = EncodedArguments(
            data=data,
            names=tuple(head["names"]),
            digest=head["digest"],
            journaled=bytes(found[size:]),
            shown=head["shown"],
        )
        return Call(args=cast("dict[str, Any]", arguments), **head["fields"])

    async def close(self) -> None:
        """End the process, if there is one."""
        await self._process.close()


@asynccontextmanager
async def open_large_calls() -> AsyncIterator[LargeCalls]:
    """Yield a reader of large calls; its process ends with the context."""
    calls = LargeCalls()
    try:
        yield calls
    finally:
        await calls.close()
