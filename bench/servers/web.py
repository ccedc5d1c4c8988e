"""Requests to a real HTTP server on this machine (`shop_api`)."""

from __future__ import annotations

import os
from typing import Any

import httpx2
from typing_extensions import TypedDict

from .base import StatefulServer, ToolError
from .names import API_VARIABLE

server = StatefulServer("web")
TIMEOUT_S = 60.0  # on a machine that is busy


class Response(TypedDict):
    """An HTTP response; `retry_after` is in seconds, or 0."""

    status: int
    body: Any
    retry_after: int


@server.tool()
async def request(method: str, path: str, body: dict[str, Any] | None = None) -> Response:
    """Send a request to the shop's API and return the response, whatever its status.

    GET /products?page=N, GET /products/ID, PATCH /products/ID, GET /orders?page=N, POST /orders,
    GET /orders/ID, DELETE /orders/ID. Pages count from 1, and an empty page ends a list.
    """
    if not path.startswith("/"):
        raise ToolError(f"A path begins with a slash: {path!r}.")
    # Reading the authorities for TLS, which there is none of, would take 50 ms.
    base = os.environ[API_VARIABLE]
    async with httpx2.AsyncClient(base_url=base, timeout=TIMEOUT_S, verify=False) as client:
        response = await client.request(method, path, json=body)
    data = response.json() if response.content else None
    retry_after = int(response.headers.get("retry-after", "0"))
    return {"status": response.status_code, "body": data, "retry_after": retry_after}


if __name__ == "__main__":
    server.run()
