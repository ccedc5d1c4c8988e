"""The process that describes servers with long lists of tools; see `server_description`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..framed_worker import serve_requests
from .server_description import decode_server, describe_server, encode_description, render_module
from .shim_store import ShimStore


def answer(request: Mapping[str, Any], body: bytes) -> tuple[Any, bytes]:
    """Return the reply to a request about a server."""
    server = decode_server(request, body)
    if request["kind"] == "render":
        return {}, render_module(server, ShimStore(Path(request["folder"]))).data
    return encode_description(describe_server(server))


def main() -> None:
    """Describe servers until there are no more."""
    serve_requests(answer)


if __name__ == "__main__":
    main()
