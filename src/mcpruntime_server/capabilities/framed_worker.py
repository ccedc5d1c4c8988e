"""What a helper process does beside its work: it reads requests and writes replies.

Its server is a `framed_process`. It ends with its stdin, after a while without work, and when a
request takes more processor time than the limit.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Mapping
from typing import Any

from .process_frames import PREFIX, encode_frame
from .process_limits import limit_process, limit_processor_time

IDLE_S = 60.0

Answer = Callable[[Mapping[str, Any], bytes], tuple[Any, bytes]]


def serve_requests(answer: Answer) -> None:
    """Answer requests until there are no more."""
    limit_process()
    while select.select([0], [], [], IDLE_S)[0]:
        try:
            head_bytes, body_bytes = PREFIX.unpack(read_exactly(PREFIX.size))
            request = json.loads(read_exactly(head_bytes))
            received = bytes(read_exactly(body_bytes))
        except EOFError:
            return
        limit_processor_time()
        reply, body = answer(request, received)
        del received
        write_all(encode_frame(reply, len(body)))
        write_all(body)


def read_exactly(size: int) -> bytearray:
    """Return so many bytes of stdin; raises `EOFError` if it ends before."""
    data = bytearray()
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def write_all(data: bytes) -> None:
    """Write to stdout."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]
