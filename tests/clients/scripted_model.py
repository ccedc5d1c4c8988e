"""A scripted model with the four APIs of the agents: its replies are fixed, its requests are kept.

The turn of a conversation follows from the results of tools in the request alone, so a request that
an agent repeats gets the same reply. Requests without the tool `run_code` (titles, quota checks)
get a short text and are not part of the conversation.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MODEL = "scripted"
FINAL_TEXT = "The work is done."
SIDE_TEXT = "A title"
TOOL = "run_code"


@dataclass(frozen=True)
class Picture:
    """A picture that the model was sent: its type and the length of its base64 text."""

    mime_type: str
    chars: int


@dataclass(frozen=True)
class ToolResult:
    """What the model was sent as the result of one tool call: texts and pictures."""

    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """One request of the conversation, in terms that all four APIs share."""

    tools: dict[str, dict[str, Any]]  # the schema of the arguments by the name of the tool
    results: tuple[ToolResult, ...]
    system: str


@dataclass
class ScriptedModel:
    """The arguments of `run_code` for each turn, and the requests of the conversation."""

    script: Sequence[dict[str, Any]]
    before_turn: Callable[[int], Awaitable[None]]
    requests: list[Conversation] = field(default_factory=list)
    port: int = 0

    @property
    def base_url(self) -> str:
        """The address without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def results(self) -> tuple[ToolResult, ...]:
        """The results that the last request of the conversation had."""
        return max((request.results for request in self.requests), key=len, default=())

    async def next_call(self, conversation: Conversation) -> tuple[str, dict[str, Any]] | None:
        """Return the tool and the arguments of the reply, or None if the reply is text."""
        name = next((name for name in conversation.tools if name.endswith(TOOL)), None)
        if name is None:
            return None
        self.requests.append(conversation)
        turn = len(conversation.results)
        await self.before_turn(turn)
        return (name, self.script[turn]) if turn < len(self.script) else None


def parse_parts(content: Any) -> ToolResult:
    """Return the texts and pictures of content in the formats of Anthropic and OpenAI."""
    if isinstance(content, str):
        return ToolResult(content)
    texts, pictures = [], []
    for part in content or ():
        if part["type"] in ("text", "input_text", "output_text"):
            texts.append(part["text"])
        elif part["type"] == "image":
            source = part["source"]
            pictures.append(Picture(source["media_type"], len(source["data"])))
        elif part["type"] in ("input_image", "image_url"):
            url = part["image_url"]
            head, _, data = (url if isinstance(url, str) else url["url"]).partition(",")
            pictures.append(Picture(head.removeprefix("data:").removesuffix(";base64"), len(data)))
        else:
            texts.append(json.dumps(part))
    return ToolResult("\n".join(texts), tuple(pictures))


def event_stream(events: Iterable[dict[str, Any]]) -> Response:
    """Return a response of server-sent events, named by their type if they have one."""
    lines = []
    for event in events:
        if "type" in event:
            lines.append(f"event: {event['type']}\n")
        lines.append(f"data: {json.dumps(event)}\n\n")
    return Response("".join(lines), media_type="text/event-stream")


def parse_messages(body: dict[str, Any]) -> Conversation:
    """Read a request of Anthropic's Messages API."""
    results = tuple(
        parse_parts(part.get("content"))
        for message in body["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "tool_result"
    )
    tools = {tool["name"]: tool.get("input_schema", {}) for tool in body.get("tools") or ()}
    return Conversation(tools, results, json.dumps(body.get("system", "")))


async def answer_messages(request: Request) -> Response:
    """Answer a request of Anthropic's Messages API."""
    body = await request.json()
    model: ScriptedModel = request.app.state.model
    conversation = parse_messages(body)
    call = await model.next_call(conversation)
    number = len(conversation.results)
    if call is None:
        text = FINAL_TEXT if conversation.tools else SIDE_TEXT
        block: dict[str, Any] = {"type": "text", "text": ""}
        delta: dict[str, Any] = {"type": "text_delta", "text": text}
        whole: dict[str, Any] = {"type": "text", "text": text}
    else:
        name, arguments = call
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(arguments)}
        whole = {**block, "input": arguments}
    reason = "end_turn" if call is None else "tool_use"
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    if not body.get("stream"):
        return JSONResponse({**message, "content": [whole], "stop_reason": reason})
    end = {"stop_reason": reason, "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    return event_stream(events)


def flatten_tools(tools: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the tools of OpenAI's Responses API, those in namespaces included."""
    found: dict[str, dict[str, Any]] = {}
    for tool in tools:
        if tool.get("type") == "namespace":
            found |= flatten_tools(tool["tools"])
        elif "name" in tool:
            found[tool["name"]] = tool.get("parameters") or {}
    return found


def find_namespace(tools: Iterable[dict[str, Any]], name: str) -> str | None:
    """Return the namespace that holds the tool, or None."""
    for tool in tools:
        if tool.get("type") == "namespace" and name in flatten_tools(tool["tools"]):
            return str(tool["name"])
    return None


async def answer_responses(request: Request) -> Response:
    """Answer a request of OpenAI's Responses API."""
    body = await request.json()
    model: ScriptedModel = request.app.state.model
    tools = body.get("tools") or []
    results = tuple(
        parse_parts(item["output"])
        for item in body["input"]
        if item.get("type") == "function_call_output"
    )
    conversation = Conversation(flatten_tools(tools), results, body.get("instructions") or "")
    call = await model.next_call(conversation)
    number = len(results)
    if call is None:
        part = {"type": "output_text", "text": FINAL_TEXT, "annotations": []}
        item: dict[str, Any] = {
            "type": "message",
            "id": f"item_{number}",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }
    else:
        name, arguments = call
        item = {
            "type": "function_call",
            "id": f"item_{number}",
            "call_id": f"call_{number}",
            "name": name,
            "arguments": json.dumps(arguments),
            "status": "completed",
        }
        namespace = find_namespace(tools, name)
        if namespace is not None:
            item["namespace"] = namespace
    usage = {
        "input_tokens": 1,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 2,
    }
    response = {"id": f"resp_{number}", "object": "response", "model": body["model"]}
    done = {**response, "status": "completed", "output": [item], "usage": usage}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "status": "in_progress"}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": done},
    ]
    return event_stream(events)


async def answer_chat(request: Request) -> Response:
    """Answer a request of OpenAI's chat completions API."""
    body = await request.json()
    model: ScriptedModel = request.app.state.model
    results: list[ToolResult] = []
    for message in body["messages"]:
        if message["role"] == "tool":
            results.append(parse_parts(message["content"]))
        elif message["role"] == "user" and results:  # pictures follow in a message of their own
            pictures = parse_parts(message["content"]).pictures
            results[-1] = replace(results[-1], pictures=results[-1].pictures + pictures)
    tools = {
        tool["function"]["name"]: tool["function"].get("parameters") or {}
        for tool in body.get("tools") or ()
    }
    system = "\n".join(
        parse_parts(message["content"]).text
        for message in body["messages"]
        if message["role"] == "system"
    )
    conversation = Conversation(tools, tuple(results), system)
    call = await model.next_call(conversation)
    if call is None:
        delta: dict[str, Any] = {"content": FINAL_TEXT if tools else SIDE_TEXT}
    else:
        name, arguments = call
        function = {"name": name, "arguments": json.dumps(arguments)}
        part = {
            "index": 0,
            "id": f"call_{len(results)}",
            "type": "function",
            "function": function,
        }
        delta = {"tool_calls": [part]}
    reason = "stop" if call is None else "tool_calls"
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    head = {"id": "chat", "created": 0, "model": body["model"]}
    if not body.get("stream"):
        choice = {
            "index": 0,
            "message": {"role": "assistant", **delta},
            "finish_reason": reason,
        }
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice]})
    head["object"] = "chat.completion.chunk"
    first = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": reason}
    events: list[dict[str, Any]] = [
        {**head, "choices": [first]},
        {**head, "choices": [last], "usage": usage},
    ]
    return event_stream(events)


def parse_gemini_response(part: dict[str, Any]) -> ToolResult:
    """Return the result in a function response of Gemini's API."""
    reply = part["functionResponse"]
    text = json.dumps(reply["response"], ensure_ascii=False)
    if set(reply["response"]) == {"output"}:
        text = str(reply["response"]["output"])
    pictures = tuple(
        Picture(inner["inlineData"]["mimeType"], len(inner["inlineData"]["data"]))
        for inner in reply.get("parts") or ()
        if "inlineData" in inner
    )
    return ToolResult(text, pictures)


def parse_gemini(body: dict[str, Any]) -> Conversation:
    """Read a request of Gemini's API."""
    results: list[ToolResult] = []
    for content in body["contents"]:
        for part in content["parts"]:
            if "functionResponse" in part:
                results.append(parse_gemini_response(part))
            elif "inlineData" in part and results:
                data = part["inlineData"]
                picture = Picture(data["mimeType"], len(data["data"]))
                results[-1] = replace(results[-1], pictures=(*results[-1].pictures, picture))
    tools = {
        function["name"]: function.get("parametersJsonSchema") or function.get("parameters") or {}
        for tool in body.get("tools") or ()
        for function in tool.get("functionDeclarations") or ()
    }
    return Conversation(tools, tuple(results), json.dumps(body.get("systemInstruction") or ""))


async def answer_gemini(request: Request) -> Response:
    """Answer a request of Gemini's API."""
    if request.url.path.endswith(":countTokens"):
        return JSONResponse({"totalTokens": 1})
    body = await request.json()
    model: ScriptedModel = request.app.state.model
    conversation = parse_gemini(body)
    call = await model.next_call(conversation)
    if call is None:
        part: dict[str, Any] = {"text": FINAL_TEXT if conversation.tools else SIDE_TEXT}
    else:
        part = {"functionCall": {"name": call[0], "args": call[1]}}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    content = {"role": "model", "parts": [part]}
    reply = {
        "candidates": [{"index": 0, "content": content, "finishReason": "STOP"}],
        "usageMetadata": usage,
        "modelVersion": MODEL,
    }
    if "stream" in request.url.path:
        return event_stream([reply])
    return JSONResponse(reply)


async def answer_other(request: Request) -> Response:
    """Answer what is no turn of a conversation: lists of models, counts of tokens, telemetry."""
    if request.url.path.endswith("/count_tokens"):
        return JSONResponse({"input_tokens": 1})
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "tests"}
    return JSONResponse({"object": "list", "data": [model], "models": []})


def build_app(model: ScriptedModel) -> Starlette:
    """Return the web application that serves `model`."""
    app = Starlette(
        routes=[
            Route("/v1/messages", answer_messages, methods=["POST"]),
            Route("/v1/responses", answer_responses, methods=["POST"]),
            Route("/v1/chat/completions", answer_chat, methods=["POST"]),
            Route("/v1beta/models/{rest:path}", answer_gemini, methods=["POST"]),
            Route("/{rest:path}", answer_other, methods=["GET", "POST", "HEAD"]),
        ]
    )
    app.state.model = model
    return app


async def start_turn(number: int) -> None:
    """Start a turn at once."""


@asynccontextmanager
async def serve_model(
    script: Sequence[dict[str, Any]],
    before_turn: Callable[[int], Awaitable[None]] = start_turn,
) -> AsyncIterator[ScriptedModel]:
    """Serve a model with this script on a free port of loopback.

    `before_turn` is awaited before each reply, with the number of the turn.
    """
    model = ScriptedModel(script, before_turn)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        model.port = listener.getsockname()[1]
        config = uvicorn.Config(build_app(model), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        async with anyio.create_task_group() as group:
            group.start_soon(server.serve, [listener])
            try:
                yield model
            finally:
                server.should_exit = True
                server.force_exit = True
