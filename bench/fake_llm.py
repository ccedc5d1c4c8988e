"""A deterministic model: an OpenAI-compatible server that answers by rule or by script, with faults on demand.

The name of the model is its rule (`fake_rules`). A script comes first: each entry answers what its `match` finds in the
model's name and the last message, as often as `times` says (once), after `latency_s`, with `reply`, `tool_calls` or a
`fault`: a status such as 429 (with `retry_after`), `timeout` (nothing is said until the client leaves), `malformed`,
`empty`, `cut` (an answer or a stream that ends in its middle), `slow` (`drops` spaces, no answer), `huge` (`bytes` of
it), `redirect` (`to`). Tokens are characters/4, rounded up, unless an entry has a `usage` of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
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

from fake_rules import RULES, UnknownModel, by_rule, call_by_rule, schema_in, tokens

KEY = "test-key-0123456789"
CUT = '{"id": "x", "choices": [{"mess'  # a body that ends in its middle
PIECE = 16  # characters that a stream sends at once
CHUNK = 65_536
WATCHED_S = 1.0  # from which latency on it is noticed that a client has gone
FOREVER_S = 86_400.0


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

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Count a question as under way."""
        self.under_way += 1
        self.counts["most at once"] = max(self.counts["most at once"], self.under_way)
        try:
            yield
        finally:
            self.under_way -= 1

    def count(self, name: str, number: int = 1) -> None:
        """Count something for `/stats`."""
        self.counts[name] += number


@dataclass(frozen=True)
class Said:
    """An answer: the message, why it ends, and how many tokens it took."""

    message: dict[str, Any]
    reason: str
    usage: dict[str, int]


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
        try:
            asked = await request.json()
            texts = texts_of(asked)
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            return refused(400, "invalid_request_error", f"The request is not one for a chat: {problem!r}")
        with model.at_once():
            return await answer(request, asked, texts)

    async def answer(request: Request, asked: dict[str, Any], texts: list[str]) -> Response:
        entry = model.scripted(asked["model"], texts[-1]) or {}
        is_stream, fault = bool(asked.get("stream")), str(entry.get("fault", ""))
        latency_s = FOREVER_S if fault == "timeout" else entry.get("latency_s", model.latency_s)
        if not await has_waited(latency_s, request):
            model.count("gave up")
            return Response(status_code=499)
        if fault:
            model.count(f"fault {fault}")
        if fault and not (is_stream and fault == "cut"):
            return faulty(fault, entry)
        try:
            said = said_to(asked, texts, entry)
        except UnknownModel as problem:
            return refused(404, "model_not_found", str(problem))
        except (LookupError, TypeError, AttributeError) as problem:
            return refused(400, "invalid_request_error", f"The request asks for what is not there: {problem!r}")
        model.count("calls")
        model.count("tokens in", said.usage["prompt_tokens"])
        model.count("tokens out", said.usage["completion_tokens"])
        head = {"id": f"c{model.counts['calls']}", "created": 0, "model": asked["model"]}
        if is_stream:
            tells_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            pieces = stream(head, said, tells_usage=tells_usage, is_cut=fault == "cut")
            return StreamingResponse(pieces, media_type="text/event-stream")
        choice = {"index": 0, "message": said.message, "finish_reason": said.reason}
        body = {**head, "object": "chat.completion", "choices": [choice], "usage": said.usage}
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
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in RULES]})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/models", models),
            Route("/script", script, methods=["POST"]),
            Route("/stats", stats),
            Route("/elsewhere", elsewhere, methods=["POST", "GET"]),
        ]
    )


def texts_of(asked: Mapping[str, Any]) -> list[str]:
    """Return what each message says; raises `LookupError` and the like where there is none."""
    if not isinstance(asked["model"], str) or not asked["messages"]:
        raise ValueError("a model is a name, and there is at least one message")
    return [text_of(message.get("content")) for message in asked["messages"]]


def text_of(content: Any) -> str:
    """Return the text of a message, which may come in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def said_to(asked: Mapping[str, Any], texts: Sequence[str], entry: Mapping[str, Any]) -> Said:
    """Return what the model says, by script or by rule; raises `UnknownModel`."""
    calls, limit = entry.get("tool_calls"), asked.get("max_tokens") or asked.get("max_completion_tokens")
    text = entry.get("reply")
    if text is None and calls is None:
        calls = call_by_rule(asked["model"], asked)
    if text is None and not calls:
        wanted = (asked.get("response_format") or {}).get("json_schema", {}).get("schema") or schema_in(texts[0])
        text = by_rule(asked["model"], texts, wanted)
    text = text if isinstance(text, str) else json.dumps(calls if calls else text)
    reason = "tool_calls" if calls else "stop"
    if limit and tokens(text) > limit and not calls:
        text, reason = text[: limit * 4], "length"
    usage = {"prompt_tokens": sum(map(tokens, texts)), "completion_tokens": tokens(text)}
    usage |= entry.get("usage", {})
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    message = (
        {"role": "assistant", "content": None, "tool_calls": calls} if calls else {"role": "assistant", "content": text}
    )
    return Said(message, entry.get("finish_reason", reason), usage)


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


async def stream(head: Mapping[str, Any], said: Said, *, tells_usage: bool, is_cut: bool) -> AsyncIterator[str]:
    """Yield an answer in pieces, as server-sent events; one that is cut ends after the first half, without an end."""
    text = said.message.get("content") or ""
    pieces: list[dict[str, Any]] = [{"content": text[at : at + PIECE]} for at in range(0, len(text), PIECE)]
    for number, call in enumerate(said.message.get("tool_calls") or ()):
        whole = call["function"]["arguments"]
        begun = {**call, "function": {**call["function"], "arguments": ""}}
        pieces.append({"tool_calls": [{"index": number, **begun}]})
        for at in range(0, len(whole), PIECE):
            piece = {"index": number, "function": {"arguments": whole[at : at + PIECE]}}
            pieces.append({"tool_calls": [piece]})
    for piece in [{"role": "assistant"}, *(pieces[: len(pieces) // 2] if is_cut else pieces)]:
        yield event({**head, "choices": [{"index": 0, "delta": piece, "finish_reason": None}]})
    if is_cut:
        return
    yield event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": said.reason}]})
    if tells_usage:
        yield event({**head, "choices": [], "usage": said.usage})
    yield "data: [DONE]\n\n"


def event(chunk: Mapping[str, Any]) -> str:
    """Return one piece as a server-sent event."""
    return f"data: {json.dumps({**chunk, 'object': 'chat.completion.chunk'})}\n\n"


def faulty(fault: str, entry: Mapping[str, Any]) -> Response:
    """Return what goes wrong: a status, a body that is none, or an answer without one."""
    if fault.isdigit():
        headers = {"retry-after": str(entry["retry_after"])} if "retry_after" in entry else {}
        return refused(int(fault), entry.get("code", "fault"), entry.get("message", "as scripted"), **headers)
    if fault == "malformed":
        return Response("this is no JSON", media_type="application/json")
    if fault == "empty":
        return JSONResponse({"id": "x", "object": "chat.completion", "created": 0, "model": "x", "choices": []})
    if fault == "redirect":
        return Response(status_code=307, headers={"location": entry["to"]})
    if fault == "slow":
        return StreamingResponse(dripping(entry), media_type="application/json")
    if fault == "huge":
        return StreamingResponse(flowing(int(entry["bytes"])), media_type="application/json")
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
    # With its protocol named, asyncio sends at once; else half of an answer waits 40 ms for the client's word.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", options.port))
    listener.listen()
    print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/v1"}), flush=True)
    config = uvicorn.Config(build(model), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
