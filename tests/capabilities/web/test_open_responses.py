"""Responses that are read in part: who has many of them keeps nobody else from the web."""

from __future__ import annotations

from itertools import count

import pytest

from mcpruntime_server.capabilities.web import open_responses
from mcpruntime_server.capabilities.web.addresses import AddressPolicy, make_tls_context
from mcpruntime_server.capabilities.web.connections import ConnectionPool, Destination
from mcpruntime_server.capabilities.web.http_messages import Request
from mcpruntime_server.capabilities.web.open_responses import OpenResponse, OpenResponses
from mcpruntime_server.errors import CallFailed

from .test_connections import OK, TIMEOUT_S, serve

pytestmark = pytest.mark.anyio


async def test_the_session_with_most_responses_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_responses, "MAX_OPEN", 6)
    pool, responses = ConnectionPool(AddressPolicy(), make_tls_context("")), OpenResponses()
    principals = count()
    async with serve(*[OK] * 9) as server:

        async def open_one(session: str) -> str:
            where = Destination(f"p{next(principals)}", b"", False, "127.0.0.1", server.port)
            request = Request("GET", "/", [(b"Host", b"a")], b"")
            answer = await pool.send(where, request, may_repeat=False, timeout_s=TIMEOUT_S)
            return responses.add(OpenResponse(session, answer, answer.iter_body(), 1_000))

        hostile = [await open_one(f"hostile {n % 2}") for n in range(6)]
        honest = [await open_one("honest") for _ in range(2)]
        assert await open_one("another")
        for each in honest:
            assert await responses.read_piece(each, 0, "honest") == (b"ok", True)
        with pytest.raises(CallFailed, match="no longer available"):
            await responses.read_piece(hostile[0], 0, "hostile 0")
