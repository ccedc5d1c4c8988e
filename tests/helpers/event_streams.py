"""A client of the HTTP API that reads server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from .http_service import HttpService


@dataclass(frozen=True)
class ReceivedEvent:
    """An event as a client has received it."""

    id: str
    type: str
    data: Any


async def parse_events(lines: AsyncIterator[str]) -> AsyncIterator[ReceivedEvent]:
    """Yield the events of a stream, as the standard describes it."""
    fields: dict[str, str] = {}
    async for line in lines:
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            event = ReceivedEvent(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
            assert event.data.get("id", "") == event.id
            assert event.data.get("type", "error") in (event.type, event.data.get("type"))
            yield event
            fields = {}
        else:
            fields = {}


class ApiClient:
    """Sends requests to the API of a server, with a token."""

    def __init__(self, service: HttpService, http: httpx2.AsyncClient) -> None:
        self.http = http
        self.base = service.url.removesuffix("/mcp")

    async def get(self, path: str, **options: Any) -> httpx2.Response:
        return await self.http.get(self.base + path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        return await self.http.post(self.base + path, json=body or {}, **options)

    async def delete(self, path: str) -> httpx2.Response:
        return await self.http.delete(self.base + path)

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[AsyncIterator[ReceivedEvent]]:
        """Open a stream, which must be one, and yield its events."""
        async with self.http.stream(method, self.base + path, **options) as response:
            if response.status_code != 200:
                raise AssertionError((await response.aread()).decode())
            assert response.headers["content-type"].startswith("text/event-stream")
            yield parse_events(response.aiter_lines())

    async def execute(
        self, code: str, headers: dict[str, str] | None = None, **fields: Any
    ) -> list[ReceivedEvent]:
        """Execute code and return all events of its run."""
        body = {"code": code, **fields}
        async with self.stream(
            "POST", "/execute/stream", json=body, headers=headers or {}
        ) as events:
            return [event async for event in events]

    async def read_events(self, run: str, after: str = "") -> list[ReceivedEvent]:
        """Return the events of a run after the one with the id `after`, until its end."""
        headers = {"Last-Event-ID": after} if after else {}
        response = await self.get(f"/runs/{run}/events", headers=headers)
        if response.status_code == 204:
            return []
        assert response.status_code == 200, response.text

        async def lines() -> AsyncIterator[str]:
            for line in response.text.split("\n"):
                yield line

        return [event async for event in parse_events(lines())]


@asynccontextmanager
async def connect_api(service: HttpService, token: str = "") -> AsyncIterator[ApiClient]:
    """Be a client of the API."""
    async with service.http(token) as http:
        yield ApiClient(service, http)
