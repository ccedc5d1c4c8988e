"""The process that takes the long texts out of large JSON; see `large_json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..protocol.wire import escape_surrogates
from .framed_worker import serve_requests

MIN_LONG_CHARS = 1_000  # of a text that is taken out
MAX_LEFT_CHARS = 64 * 1024  # of another, and of a name: parsing it takes its reader a millisecond

encode = json.JSONEncoder(separators=(",", ":")).encode


def split_json(request: Mapping[str, Any], body: bytes) -> tuple[Any, bytes]:
    """Return JSON whose long texts are empty, where these belong, and these, one after the other.

    Of an object with `params`, only the texts in the members `within` of these are taken out, if
    that is not empty; then no name and no other text may be long. The head says only `invalid` for
    what is not JSON, or not allowed.
    """
    try:
        data = {"": json.loads(body)}
        roots = find_roots(data, request["within"])
        found = [(path, escape_surrogates(text)) for root in roots for path, text in take_out(root)]
        if request["within"]:
            check_left(data)
        rest = encode(data[""]).encode("ascii")
    except (ValueError, RecursionError):
        return {"invalid": True}, b""
    texts = [text.encode() for _, text in found]
    places = [[path[1:], len(text)] for (path, _), text in zip(found, texts, strict=True)]
    index = encode(places).encode("ascii")
    head = {"rest_bytes": len(rest), "index_bytes": len(index)}
    return head, b"".join((rest, index, *texts))


def find_roots(data: dict[str, Any], within: list[str]) -> list[tuple[list[Any], Any]]:
    """Return the containers in which texts are taken out, each with its path."""
    if not within:
        return [([], data)]
    params = data[""].get("params") if isinstance(data[""], dict) else None
    if not isinstance(params, dict):
        return []
    return [(["", "params", name], params[name]) for name in within if name in params]


def take_out(root: tuple[list[Any], Any]) -> Iterator[tuple[list[Any], str]]:
    """Yield each long text below a container with its path, and leave an empty one."""
    path, container = root
    start = len(path)
    stack = [iter_members(container)]
    while stack:
        name, item = next(stack[-1], (None, None))
        if name is None:
            stack.pop()
            del path[max(start, len(path) - 1) :]
        elif isinstance(item, dict | list):
            path.append(name)
            stack.append(iter_members(item))
        elif isinstance(item, str) and len(item) >= MIN_LONG_CHARS:
            yield [*path, name], item


def check_left(data: Any) -> None:
    """Raise `ValueError` if a name is long, or a text that was not taken out."""
    waiting = [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str) and len(item) > MAX_LEFT_CHARS:
            raise ValueError("a name or a text is too long")
        if isinstance(item, dict):
            waiting += item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def iter_members(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the names and items of an object, or numbers and items of a list; texts are emptied."""
    if not isinstance(container, dict | list):
        return
    members = container.items() if isinstance(container, dict) else enumerate(container)
    for name, item in list(members):
        if isinstance(item, str) and len(item) >= MIN_LONG_CHARS:
            container[name] = ""
        yield name, item


if __name__ == "__main__":
    serve_requests(split_json)
