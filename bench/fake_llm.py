"""A deterministic model: an OpenAI-compatible server that answers by rule or by script.

The name of the model is its rule (`fake_rules`). Entries of the script have priority over rules. An
entry applies to a request if its pattern `match` occurs in the model's name or the last message. It
applies `times` times (default 1). After `latency_s` it answers with `reply`, `tool_calls` or a
`fault`:

- a status such as 429, with `retry_after`;
- `timeout`: no answer until the client disconnects;
- `malformed`: a body that is not JSON;
- `empty`: an answer without choices;
- `cut`: an answer or a stream that ends in the middle;
- `slow`: `drops` spaces and no answer;
- `huge`: an answer of `bytes` bytes;
- `redirect`: a redirect to the address `to`.

The number of tokens is characters/4, rounded up, or with `--exact-tokens` that of the encoding
cl100k_base over messages and tools, unless an entry has its own `usage`.
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
from pathlib import Path
from typing import Any

import anyio
import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .fake_rules import (
    RULES,
    UnknownModel,
    answer_by_rule,
    count_tokens,
    extract_schema,
    tool_calls_by_rule,
)

API_KEY = "test-key-0123456789"
TRUNCATED_BODY = '{"id": "x", "choices": [{"mess'  # a body that ends in the middle
STREAM_PIECE_CHARS = 16  # characters in one piece of a stream
BODY_CHUNK_BYTES = 65_536
WATCH_CLIENT_FROM_S = 1.0  # shorter waits do not notice that a client disconnects
NEVER_S = 86_400.0
ROOT = Path(__file__).parents[1]


@dataclass
class ScriptedModel:
    """The state of the server: its script, its counts, and the requests in flight."""

    api_key: str = API_KEY
    latency_s: float = 0.0
    has_exact_tokens: bool = False
    script: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0

    def find_entry(self, model: str, text: str) -> dict[str, Any] | None:
        """Return the first entry that applies to a request, and use it up once."""
        for entry in self.script:
            if entry.get("times", 1) > 0 and re.search(
                entry.get("match", ""), f"{model}\n{text}", re.DOTALL
            ):
                entry["times"] = entry.get("times", 1) - 1
                return entry
        return None

    @contextmanager
    def track_request(self) -> Iterator[None]:
        """Count a request as in flight."""
        self.in_flight += 1
        self.counts["most at once"] = max(self.counts["most at once"], self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def add_count(self, name: str, number: int = 1) -> None:
        """Count something for `/stats`."""
        self.counts[name] += number


@dataclass(frozen=True)
class Reply:
    """An answer: the message, the reason for its end, and the tokens used."""

    message: dict[str, Any]
    finish_reason: str
    usage: dict[str, int]


def error_response(status: int, code: str, message: str, **headers: str) -> JSONResponse:
    """Return an error in the format of OpenAI's API."""
    return JSONResponse(
        {"error": {"message": message, "type": code, "code": code}}, status, headers=headers
    )


def build_app(model: ScriptedModel) -> Starlette:
    """Return the web application that serves `model`."""

    async def complete(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {model.api_key}":
            model.add_count("unauthorized")
            given = request.headers.get("authorization", "")
            return error_response(
                401,
                "invalid_api_key",
                f"Incorrect API key provided: {given.removeprefix('Bearer ')}.",
            )
        try:
            asked = await request.json()
            texts = message_texts(asked)
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            return error_response(
                400, "invalid_request_error", f"The request is not one for a chat: {problem!r}"
            )
        with model.track_request():
            return await answer(request, asked, texts)

    async def answer(request: Request, asked: dict[str, Any], texts: list[str]) -> Response:
        entry = model.find_entry(asked["model"], texts[-1]) or {}
        is_stream, fault = bool(asked.get("stream")), str(entry.get("fault", ""))
        latency_s = NEVER_S if fault == "timeout" else entry.get("latency_s", model.latency_s)
        if not await wait_while_connected(latency_s, request):
            model.add_count("gave up")
            return Response(status_code=499)
        if fault:
            model.add_count(f"fault {fault}")
        if fault and not (is_stream and fault == "cut"):
            return fault_response(fault, entry)
        try:
            said = build_reply(asked, texts, entry, has_exact_tokens=model.has_exact_tokens)
        except UnknownModel as problem:
            return error_response(404, "model_not_found", str(problem))
        except (LookupError, TypeError, AttributeError) as problem:
            return error_response(
                400, "invalid_request_error", f"The request asks for what is not there: {problem!r}"
            )
        model.add_count("calls")
        model.add_count("tokens in", said.usage["prompt_tokens"])
        model.add_count("tokens out", said.usage["completion_tokens"])
        head = {"id": f"c{model.counts['calls']}", "created": 0, "model": asked["model"]}
        if is_stream:
            tells_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            pieces = stream_reply(
                head, said, includes_usage=tells_usage, is_truncated=fault == "cut"
            )
            return StreamingResponse(pieces, media_type="text/event-stream")
        choice = {"index": 0, "message": said.message, "finish_reason": said.finish_reason}
        body = {**head, "object": "chat.completion", "choices": [choice], "usage": said.usage}
        # ASCII also represents half of a surrogate pair, which UTF-8 cannot encode.
        return Response(json.dumps(body), media_type="application/json")

    async def script(request: Request) -> Response:
        model.script = await request.json()
        model.counts.clear()
        return JSONResponse({})

    async def elsewhere(request: Request) -> Response:
        model.add_count("elsewhere")
        model.add_count(
            "key elsewhere", int(any(model.api_key in value for value in request.headers.values()))
        )
        return error_response(400, "elsewhere", "This is another host.")

    async def stats(request: Request) -> Response:
        return JSONResponse(dict(model.counts))

    async def models(request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [{"id": name, "object": "model"} for name in RULES]}
        )

    return Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/models", models),
            Route("/script", script, methods=["POST"]),
            Route("/stats", stats),
            Route("/elsewhere", elsewhere, methods=["POST", "GET"]),
        ]
    )


def message_texts(body: Mapping[str, Any]) -> list[str]:
    """Return the text of each message.

    Raises:
        LookupError, TypeError, AttributeError, ValueError: The request is not a valid chat.
    """
    if not isinstance(body["model"], str) or not body["messages"]:
        raise ValueError("a model is a name, and there is at least one message")
    return [content_text(message.get("content")) for message in body["messages"]]


def content_text(content: Any) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def build_reply(
    body: Mapping[str, Any],
    texts: Sequence[str],
    entry: Mapping[str, Any],
    *,
    has_exact_tokens: bool,
) -> Reply:
    """Return the answer of the script or the rule; raises `UnknownModel`."""
    calls, limit = (
        entry.get("tool_calls"),
        body.get("max_tokens") or body.get("max_completion_tokens"),
    )
    text = entry.get("reply")
    if text is None and calls is None:
        calls = tool_calls_by_rule(body["model"], body)
    if text is None and not calls:
        wanted = (body.get("response_format") or {}).get("json_schema", {}).get(
            "schema"
        ) or extract_schema(texts[0])
        text = answer_by_rule(body["model"], texts, wanted)
    text = text if isinstance(text, str) else json.dumps(calls if calls else text)
    reason = "tool_calls" if calls else "stop"
    if limit and count_tokens(text) > limit and not calls:
        text, reason = text[: limit * 4], "length"
    message = (
        {"role": "assistant", "content": None, "tool_calls": calls}
        if calls
        else {"role": "assistant", "content": text}
    )
    usage = (
        count_exactly(body, message)
        if has_exact_tokens
        else {
            "prompt_tokens": sum(map(count_tokens, texts)),
            "completion_tokens": count_tokens(text),
        }
    )
    usage |= entry.get("usage", {})
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return Reply(message, entry.get("finish_reason", reason), usage)


def count_exactly(body: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, int]:
    """Return the tokens of a request with its tools, and of its answer, in cl100k_base."""
    from .tokens import count_json_tokens, count_tokens_once

    tools = count_tokens_once(json.dumps(body["tools"])) if body.get("tools") else 0
    said = {key: value for key, value in message.items() if value is not None}
    return {
        "prompt_tokens": tools + count_json_tokens(body["messages"]),
        "completion_tokens": count_json_tokens(said),
    }


async def wait_while_connected(seconds: float, request: Request) -> bool:
    """Wait that long or until the client disconnects; return whether it is still connected."""
    if seconds < WATCH_CLIENT_FROM_S:
        await anyio.sleep(seconds)
        return True
    with anyio.move_on_after(seconds):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return False
    return True


async def drip_spaces(entry: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """Yield spaces slowly, and no answer."""
    for _ in range(int(entry["drops"])):
        yield b" "
        await anyio.sleep(entry.get("every_s", 0.2))


async def stream_large_body(size: int) -> AsyncIterator[bytes]:
    """Yield an answer of that many bytes."""
    yield (
        b'{"id": "x", "model": "x", "choices": '
        b'[{"index": 0, "message": {"role": "assistant", "content": "'
    )
    for _ in range(size // BODY_CHUNK_BYTES):
        yield b"a" * BODY_CHUNK_BYTES
    yield (
        b'"}, "finish_reason": "stop"}], '
        b'"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'
    )


async def stream_reply(
    head: Mapping[str, Any], reply: Reply, *, includes_usage: bool, is_truncated: bool
) -> AsyncIterator[str]:
    """Yield an answer in pieces, as server-sent events.

    A truncated answer stops after half of its pieces, without the final events.
    """
    text = reply.message.get("content") or ""
    pieces: list[dict[str, Any]] = [
        {"content": text[at : at + STREAM_PIECE_CHARS]}
        for at in range(0, len(text), STREAM_PIECE_CHARS)
    ]
    for number, call in enumerate(reply.message.get("tool_calls") or ()):
        whole = call["function"]["arguments"]
        begun = {**call, "function": {**call["function"], "arguments": ""}}
        pieces.append({"tool_calls": [{"index": number, **begun}]})
        for at in range(0, len(whole), STREAM_PIECE_CHARS):
            piece = {
                "index": number,
                "function": {"arguments": whole[at : at + STREAM_PIECE_CHARS]},
            }
            pieces.append({"tool_calls": [piece]})
    for piece in [{"role": "assistant"}, *(pieces[: len(pieces) // 2] if is_truncated else pieces)]:
        yield format_event(
            {**head, "choices": [{"index": 0, "delta": piece, "finish_reason": None}]}
        )
    if is_truncated:
        return
    yield format_event(
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish_reason}]}
    )
    if includes_usage:
        yield format_event({**head, "choices": [], "usage": reply.usage})
    yield "data: [DONE]\n\n"


def format_event(chunk: Mapping[str, Any]) -> str:
    """Return a chunk as a server-sent event."""
    return f"data: {json.dumps({**chunk, 'object': 'chat.completion.chunk'})}\n\n"


def fault_response(fault: str, entry: Mapping[str, Any]) -> Response:
    """Return the response for a fault: an error status, or a malformed or empty body."""
    if fault.isdigit():
        headers = {"retry-after": str(entry["retry_after"])} if "retry_after" in entry else {}
        return error_response(
            int(fault), entry.get("code", "fault"), entry.get("message", "as scripted"), **headers
        )
    if fault == "malformed":
        return Response("this is no JSON", media_type="application/json")
    if fault == "empty":
        return JSONResponse(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "x", "choices": []}
        )
    if fault == "redirect":
        return Response(status_code=307, headers={"location": entry["to"]})
    if fault == "slow":
        return StreamingResponse(drip_spaces(entry), media_type="application/json")
    if fault == "huge":
        return StreamingResponse(
            stream_large_body(int(entry["bytes"])), media_type="application/json"
        )
    if fault == "cut":
        return Response(
            TRUNCATED_BODY, headers={"content-length": "4000"}, media_type="application/json"
        )
    raise ValueError(f"no such fault: {fault}")


# as a process -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelServer:
    """A model server that runs in its own process."""

    url: str

    def set_script(self, *entries: dict[str, Any]) -> None:
        """Set how the next requests are answered, and reset the counts."""
        url = self.url.removesuffix("/v1") + "/script"
        # Reading the authorities for TLS, which there is none of, would take 50 ms.
        httpx2.post(url, content=json.dumps(entries), verify=False).raise_for_status()

    def read_counts(self) -> dict[str, int]:
        """Return the counts since the last script."""
        url = self.url.removesuffix("/v1") + "/stats"
        found: dict[str, int] = httpx2.get(url, verify=False).json()
        return found


@contextmanager
def start_model_server(*options: str) -> Iterator[ModelServer]:
    """Run the server in its own process."""
    command = [sys.executable, "-m", "bench.fake_llm", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield ModelServer(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


def main() -> None:
    """Serve until terminated; print the address as the first line of output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=API_KEY)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--exact-tokens", action="store_true")
    parser.add_argument("--script", type=argparse.FileType("r"))
    options = parser.parse_args()
    model = ScriptedModel(
        options.key,
        options.latency_ms / 1e3,
        options.exact_tokens,
        json.load(options.script) if options.script else [],
    )
    if options.exact_tokens:
        from .tokens import load_encoding

        load_encoding()  # takes a second, which no request pays
    # asyncio sets TCP_NODELAY only if the socket names its protocol. Without it, the second part of
    # an answer waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", options.port))
    listener.listen()
    print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/v1"}), flush=True)
    config = uvicorn.Config(
        build_app(model), log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
