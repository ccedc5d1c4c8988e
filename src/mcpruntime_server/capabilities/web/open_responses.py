"""Responses that code has read in part: the rest waits here until code asks for it.

Rule: each is closed when it is read to its end, when it fails, or when nobody has asked for a piece
of it for a minute. A session has so many at most. When the server has too many, the session with
most of them loses the one that it has not read for longest, so that nobody keeps others out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count

import anyio

from ...errors import CallFailed
from .connections import Answer

PIECE_BYTES = 512 * 1024
MAX_IDLE_S = 60.0
SWEEP_INTERVAL_S = 5.0
MAX_OPEN = 256
MAX_OPEN_PER_SESSION = 64


@dataclass
class OpenResponse:
    """A response whose body has not been read to its end."""

    session_id: str
    answer: Answer
    chunks: AsyncIterator[bytes]
    left_bytes: int  # that it may still have
    buffer: bytearray = field(default_factory=bytearray)
    next_piece: int = 0  # of those after the first
    used_at: float = field(default_factory=time.monotonic)
    is_in_use: bool = False

    async def read_piece(self) -> tuple[bytes, bool]:
        """Return the next piece, and whether it is the last one; raises `CallFailed`."""
        is_last = False
        while len(self.buffer) < PIECE_BYTES:
            chunk = await anext(self.chunks, None)
            if chunk is None:
                is_last = True
                break
            self.left_bytes -= len(chunk)
            if self.left_bytes < 0:
                raise CallFailed(
                    "too_large",
                    "The answer is larger than [network] response_mb allows.",
                    remedy="Ask for a part of it, or raise the limit.",
                )
            self.buffer += chunk
        piece = bytes(self.buffer[:PIECE_BYTES])
        del self.buffer[:PIECE_BYTES]
        return piece, is_last and not self.buffer

    async def read_first(self) -> tuple[bytes, bool]:
        """Return the first piece, and whether it is the last one; closes itself if it is."""
        is_last = True
        try:
            piece, is_last = await self.read_piece()
        finally:
            if is_last:
                self.answer.close()
        return piece, is_last


class OpenResponses:
    """All unfinished responses, by the id that code got for each."""

    def __init__(self) -> None:
        self._by_id: dict[str, OpenResponse] = {}
        self._numbers = count(1)

    def check_room(self, session_id: str) -> None:
        """Raise `CallFailed` if there are too many unfinished responses."""
        own = sum(each.session_id == session_id for each in self._by_id.values())
        if own >= MAX_OPEN_PER_SESSION:
            raise CallFailed(
                "rate_limited",
                f"{own} answers to web requests of this session are not read to their end.",
                remedy="Read or close them first.",
            )

    def add(self, response: OpenResponse) -> str:
        """Keep an unfinished response; return its id."""
        if len(self._by_id) >= MAX_OPEN:
            self._make_room()
        response_id = f"r{next(self._numbers)}"
        self._by_id[response_id] = response
        return response_id

    def _make_room(self) -> None:
        counts = Counter(each.session_id for each in self._by_id.values())
        idle = [
            (-counts[each.session_id], each.used_at, name)
            for name, each in self._by_id.items()
            if not each.is_in_use
        ]
        if idle:
            self._by_id.pop(min(idle)[-1]).answer.close()

    async def read_piece(self, response_id: str, piece: int, session_id: str) -> tuple[bytes, bool]:
        """Return the next piece of a body, and whether it is the last one; raises `CallFailed`."""
        found = self._by_id.get(response_id)
        if found is None or found.session_id != session_id:
            raise CallFailed("unavailable", "The rest of this answer is no longer available.")
        if found.is_in_use or piece != found.next_piece:
            raise CallFailed("invalid_arguments", "The pieces of an answer are read in order.")
        found.is_in_use = True
        is_last = True
        try:
            data, is_last = await found.read_piece()
        finally:
            found.is_in_use = False
            found.used_at = time.monotonic()
            found.next_piece += 1
            if is_last:
                del self._by_id[response_id]
                found.answer.close()
        return data, is_last

    async def close_idle(self) -> None:
        """Close responses that nobody reads, for as long as the server runs."""
        try:
            while True:
                await anyio.sleep(SWEEP_INTERVAL_S)
                oldest = time.monotonic() - MAX_IDLE_S
                for response_id, each in list(self._by_id.items()):
                    if each.used_at < oldest and not each.is_in_use:
                        del self._by_id[response_id]
                        each.answer.close()
        finally:
            for each in self._by_id.values():
                each.answer.close()
