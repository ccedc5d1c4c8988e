"""A deterministic model: an OpenAI-compatible server that answers by rule or by script, with faults on demand.

The name of the model is its rule: `echo`, `sum` (of the integers that it sees), `count:WORD`, `json` (the smallest
value of the schema), `never-json`, and `forgetful:N:RULE`, which sees only the first and the last N/2 characters. A
script comes first: each entry answers what its `match` finds, as often as `times` says. Tokens are characters/4,
rounded up.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "test-key-0123456789"
CHUNK = 65_536
WATCHED_S = 1.0  # from which latency on it is noticed that a client has gone
CUT = '{"id": "x", "choices": [{"mess'  # a body that ends in its middle


@dataclass
class Model:
    """What the server knows: its script, what it has been asked, and how many ask now."""

    key: str = KEY
    latency_s: float = 0.0
    script: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    under_way: int = 0

    def scripted(self, model: str, text: str) -> dict[str, Any] | None:
        """Return the first entry of the script that answers this, once less."""
        for entry in self.script:
            if entry.get("times", 1) > 0 and re.search(entry.get("match", ""), f"{model}\n{text}", re.DOTALL):
                entry["times"] = entry.get("times", 1) - 1
                return entry
        return None

    def count(self, name: str, number: int = 1) -> None:
        """Count something for `/stats`."""
        self.counts[name] += number


def by_rule(model: str, text: str, schema: Mapping[str, Any] | None) -> str:
    """Return what the model says to a text."""
    rule, _, rest = model.rpartition("/")[2].partition(":")
    if rule == "forgetful":
        window, _, other = rest.partition(":")
        half = int(window) // 2
        return by_rule(other, text if len(text) <= int(window) else text[:half] + text[-half:], schema)
    if rule == "sum":
        return str(sum(map(int, re.findall(r"-?\d+", text))))
    if rule == "count":
        return str(len(re.findall(rf"\b{re.escape(rest)}\b", text)))
    if rule == "json":
        return json.dumps(smallest(schema or {}))
    if rule == "never-json":
        return "I would rather not."
    return text


def schema_in(text: str) -> Any:
    """Return the JSON object at the end of a text; None if there is none."""
    try:
        return json.loads(text[text.index("\n{") :])
    except ValueError:
        return None


def smallest(schema: Mapping[str, Any]) -> Any:
    """Return the smallest value that follows a schema."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return smallest(schema["anyOf"][0])
    kind = schema.get("type", "string")
    if kind == "object":
        wanted = schema.get("required", schema.get("properties", {}))
        return {name: smallest(schema["properties"][name]) for name in wanted}
    if kind == "array":
        return [smallest(schema.get("items", {}))] * schema.get("minItems", 0)
    smallest_of = {"string": "", "integer": schema.get("minimum", 0), "number": 0.5, "boolean": False, "null": None}
    return smallest_of[kind if isinstance(kind, str) else kind[0]]


def tokens(text: str) -> int:
    """Return how many tokens a text counts as."""
    return math.ceil(len(text) / 4)


def refused(status: int, code: str, message: str, **headers: str) -> JSONResponse:
    """Return an error as OpenAI's API tells it."""
    return JSONResponse({"error": {"message": message, "type": code, "code": code}}, status, headers=headers)


def build(model: Model) -> Starlette:
    """Return the server."""

    async def complete(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {model.key}":
            model.count("unauthorized")
            given = request.headers.get("authorization", "")
            return refused(401, "invalid_api_key", f"Incorrect API key provided: {given.removeprefix('Bearer ')}.")
        asked = await request.json()
        model.under_way += 1
        model.counts["most at once"] = max(model.counts["most at once"], model.under_way)
        try:
            return await answer(asked, request)
        finally:
            model.under_way -= 1

    async def answer(asked: dict[str, Any], request: Request) -> Response:
        texts = [str(message.get("content") or "") for message in asked["messages"]]
        entry = model.scripted(asked["model"], texts[-1]) or {}
        if not await has_waited(entry.get("latency_s", model.latency_s), request):
            model.count("gave up")
            return Response(status_code=499)
        if fault := entry.get("fault"):
            model.count(f"fault {fault}")
            return faulty(str(fault), entry)
        said = entry.get("reply")
        wanted = (asked.get("response_format") or {}).get("json_schema", {}).get("schema") or schema_in(texts[0])
        said = by_rule(asked["model"], texts[-1], wanted) if said is None else said
        said = said if isinstance(said, str) else json.dumps(said)
        reason = "stop"
        if (limit := asked.get("max_tokens") or asked.get("max_completion_tokens")) and tokens(said) > limit:
            said, reason = said[: limit * 4], "length"
        usage = {"prompt_tokens": sum(map(tokens, texts)), "completion_tokens": tokens(said)}
        usage |= entry.get("usage", {})
        model.count("calls")
        model.count("tokens in", usage["prompt_tokens"])
        model.count("tokens out", usage["completion_tokens"])
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if calls := entry.get("tool_calls"):
            message, reason = {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"
        usage["total_tokens"] = sum(usage.values())
        head = {"id": f"c{model.counts['calls']}", "created": 0, "model": asked["model"]}
        if asked.get("stream"):
            return StreamingResponse(stream(head, message, reason, usage), media_type="text/event-stream")
        choice = {"index": 0, "message": message, "finish_reason": entry.get("finish_reason", reason)}
        body = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        return Response(json.dumps(body), media_type="application/json")  # in ASCII: half a character is told, too

    async def script(request: Request) -> Response:
        model.script = await request.json()
        model.counts.clear()
        return JSONResponse({})

    async def elsewhere(request: Request) -> Response:
        model.count("elsewhere")
        model.count("key elsewhere", int(any(model.key in value for value in request.headers.values())))
        return refused(400, "elsewhere", "This is another host.")

    async def stats(request: Request) -> Response:
        return JSONResponse(dict(model.counts))

    async def models(request: Request) -> Response:
        names = ("echo", "sum", "json", "never-json")
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/models", models),
            Route("/script", script, methods=["POST"]),
            Route("/stats", stats),
            Route("/elsewhere", elsewhere, methods=["POST", "GET"]),
        ]
    )


async def stream(
    head: Mapping[str, Any], message: Mapping[str, Any], reason: str, usage: Mapping[str, int]
) -> AsyncIterator[str]:
    """Yield an answer in pieces, as server-sent events."""
    text = message.get("content") or ""
    pieces: list[dict[str, Any]] = [{"content": text[at : at + 16]} for at in range(0, len(text), 16)]
    if message.get("tool_calls"):
        pieces = [{"tool_calls": [{"index": at, **call} for at, call in enumerate(message["tool_calls"])]}]
    for piece in [{"role": "assistant"}, *pieces]:
        choice = {"index": 0, "delta": piece, "finish_reason": None}
        yield f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
    last = {"index": 0, "delta": {}, "finish_reason": reason}
    yield f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [last]})}\n\n"
    yield f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


async def has_waited(seconds: float, request: Request) -> bool:
    """Wait that long, or until the client has gone; return whether it is still there."""
    if seconds < WATCHED_S:
        await anyio.sleep(seconds)
        return True
    with anyio.move_on_after(seconds):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return False
    return True


async def dripping(entry: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """Yield a space now and then, which no answer follows."""
    for _ in range(int(entry["drops"])):
        yield b" "
        await anyio.sleep(entry.get("every_s", 0.2))


async def flowing(size: int) -> AsyncIterator[bytes]:
    """Yield the beginning of an answer that is so large."""
    yield b'{"id": "x", "model": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "'
    for _ in range(size // CHUNK):
        yield b"a" * CHUNK
    yield b'"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'


def faulty(fault: str, entry: Mapping[str, Any]) -> Response:
    """Return what goes wrong: a status, a body that is none, or an answer without one."""
    if fault.isdigit():
        headers = {"retry-after": str(entry["retry_after"])} if "retry_after" in entry else {}
        return refused(int(fault), entry.get("code", "fault"), entry.get("message", "as scripted"), **headers)
    if fault == "redirect":
        return Response(status_code=307, headers={"location": entry["to"]})
    if fault == "slow":
        return StreamingResponse(dripping(entry), media_type="application/json")
    if fault == "huge":
        return StreamingResponse(flowing(int(entry["bytes"])), media_type="application/json")
    if fault == "malformed":
        return Response("this is no JSON", media_type="application/json")
    if fault == "empty":
        return JSONResponse({"id": "x", "object": "chat.completion", "created": 0, "model": "x", "choices": []})
    if fault == "cut":
        return Response(CUT, headers={"content-length": "4000"}, media_type="application/json")
    raise ValueError(f"no such fault: {fault}")


# as a process -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A model server in a process of its own."""

    url: str

    def script(self, *entries: dict[str, Any]) -> None:
        """Say how the next questions are answered, and forget what was counted."""
        httpx.post(self.url.removesuffix("/v1") + "/script", content=json.dumps(entries)).raise_for_status()

    def stats(self) -> dict[str, int]:
        """Return what was counted since the last script."""
        found: dict[str, int] = httpx.get(self.url.removesuffix("/v1") + "/stats").json()
        return found


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """Run the server beside us."""
    command = [sys.executable, __file__, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


def main() -> None:
    """Serve until told to stop; the first line that is printed has the address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=KEY)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--script", type=argparse.FileType("r"))
    options = parser.parse_args()
    model = Model(options.key, options.latency_ms / 1e3, json.load(options.script) if options.script else [])
    listener = socket.create_server(("127.0.0.1", options.port))
    print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/v1"}), flush=True)
    config = uvicorn.Config(build(model), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
