"""Long code and long answers arrive whole, by each transport, and are recorded as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from ..helpers.http_service import open_http_service
from ..helpers.server_connection import ServerConnection, connect_server, write_local_settings

pytestmark = pytest.mark.anyio
TEXT = 'a"\\\n\u20ac\U0001f600' * 100_000


@asynccontextmanager
async def connect(transport: str, settings: Path) -> AsyncIterator[ServerConnection]:
    """Be a client of a server over stdio, or over HTTP in either era of the protocol."""
    if transport == "stdio":
        async with connect_server(settings) as connection:
            yield connection
        return
    async with open_http_service(settings) as service:
        token = service.create_token("ann")
        async with service.connect(token, transport) as connection:
            yield connection


@pytest.fixture(params=["stdio", "auto", "legacy"])
async def connection(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[ServerConnection]:
    settings = write_local_settings(tmp_path, llm={"broker": "caller"})
    async with connect(request.param, settings) as opened:
        yield opened


async def test_long_code_and_long_answers_arrive_whole(connection: ServerConnection) -> None:
    shown = "len(text), sha256(text.encode()).hexdigest()"
    code = f"from hashlib import sha256\ntext = {TEXT!r}\n{shown}"
    done = await connection.run(code, "long")
    assert done.value == [len(TEXT), sha256(TEXT.encode()).hexdigest()], done.text
    again = await connection.replay("rerun", "long", step=1)
    assert (again.status, again.value) == ("ok", done.value), again.text
    asked = await connection.run("answer = ask_llm('Which?')\nanswer == text", "long")
    answered = await connection.run_request(asked.run, answers={"q1": TEXT})
    assert (answered.status, answered.value) == ("ok", True), answered.text
    again = await connection.replay("rerun", "long", step=2)
    assert (again.status, again.value) == ("ok", True), again.text
