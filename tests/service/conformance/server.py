"""The server over HTTP, with the tools, prompts and resources that the conformance suite wants.

Everything else is the server's own: its HTTP application, tokens, connections, and errors. The
tools of long work are calls of `run_code`, so that their tasks are the server's tasks.
"""

from __future__ import annotations

import base64
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    Resource,
    ResourceTemplate,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)

from mcpruntime_server.app.composition import App
from mcpruntime_server.app.serving import serve_http
from mcpruntime_server.config import load_config
from mcpruntime_server.errors import NotFound
from mcpruntime_server.service.access_tokens import TokenStore

PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmM"
    "IQAAAABJRU5ErkJggg=="
)
SOUND = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
STATE = "the state of the tool"
# What runs for the tools of long work.
PROGRAMS = {
    "slow_compute": "import time\ntime.sleep({seconds})\n'computed'",
    "failing_job": "import time\ntime.sleep(1)\nraise ValueError('it fails')",
    "confirm_delete": "from tools.counted import add\nadd(item='confirmed')",
}
SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def form(message: str, properties: dict[str, Any]) -> ElicitRequest:
    """Return a form with these required fields."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def prompt_model(text: str, max_tokens: int = 100) -> CreateMessageRequest:
    """Return a request to the client's model."""
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    return CreateMessageRequest(
        params=CreateMessageRequestParams(messages=[message], max_tokens=max_tokens)
    )


NAME_FORM = form("What is your name?", {"name": {"type": "string"}})
COLOR_FORM = form("What is your favourite colour?", {"color": {"type": "string"}})
CONTEXT_FORM = form("What context should the prompt use?", {"context": {"type": "string"}})
CONFIRM_FORM = form("Please confirm", {"ok": {"type": "boolean"}})


def picture() -> ImageContent:
    return ImageContent(type="image", data=PICTURE, mime_type="image/png")


def document(uri: str, mime_type: str = "text/plain", text: str = "a text") -> EmbeddedResource:
    contents = TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return EmbeddedResource(type="resource", resource=contents)


# content ------------------------------------------------------------------------------------------


async def test_simple_text() -> str:
    return "This is a simple text response for testing."


async def greet(name: str) -> str:
    return f"Hello, {name}!"


async def test_image_content() -> list[ImageContent]:
    return [picture()]


async def test_audio_content() -> list[AudioContent]:
    return [AudioContent(type="audio", data=SOUND, mime_type="audio/wav")]


async def test_embedded_resource() -> list[EmbeddedResource]:
    return [document("test://embedded-resource")]


async def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    text = TextContent(type="text", text="Multiple content types test:")
    data = document("test://mixed-content-resource", "application/json", '{"value": 123}')
    return [text, picture(), data]


async def test_error_handling() -> str:
    raise RuntimeError("This tool intentionally returns an error for testing")


async def test_tool_with_progress(ctx: Context[Any]) -> str:
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100, f"{done} of 100")
        await anyio.sleep(0.05)
    return "done"


async def test_tool_with_logging(ctx: Context[Any]) -> str:
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.log("info", text)
        await anyio.sleep(0.05)
    return "done"


async def test_trigger_tool_change(ctx: Context[Any]) -> str:
    await ctx.notify_tools_changed()
    return "done"


async def test_trigger_prompt_change(ctx: Context[Any]) -> str:
    await ctx.notify_prompts_changed()
    return "done"


# questions over a connection ----------------------------------------------------------------------


async def test_sampling(prompt: str, ctx: Context[Any]) -> str:
    params = prompt_model(prompt).params
    answer = await ctx.session.create_message(
        params.messages, max_tokens=100, related_request_id=ctx.request_id
    )
    assert isinstance(answer.content, TextContent)
    return f"LLM response: {answer.content.text}"


async def ask_person(ctx: Context[Any], request: ElicitRequest) -> str:
    """Show a form and return what comes back."""
    params = request.params
    assert isinstance(params, ElicitRequestFormParams)
    answer = await ctx.session.elicit_form(params.message, params.requested_schema, ctx.request_id)
    return f"action={answer.action}, content={json.dumps(answer.content)}"


async def test_elicitation(message: str, ctx: Context[Any]) -> str:
    fields = {name: {"type": "string", "description": name} for name in ("username", "email")}
    return f"User response: {await ask_person(ctx, form(message, fields))}"


async def test_elicitation_sep1034_defaults(ctx: Context[Any]) -> str:
    fields = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {
            "type": "string",
            "enum": ["active", "inactive", "pending"],
            "default": "active",
        },
        "verified": {"type": "boolean", "default": True},
    }
    return f"Elicitation completed: {await ask_person(ctx, form('Please fill in', fields))}"


async def test_elicitation_sep1330_enums(ctx: Context[Any]) -> str:
    plain = ["option1", "option2", "option3"]
    titled = [{"const": f"value{n}", "title": f"Title {n}"} for n in (1, 2, 3)]
    fields = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": plain, "enumNames": ["One", "Two", "Three"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    return f"Elicitation completed: {await ask_person(ctx, form('Please choose', fields))}"


# questions in results -----------------------------------------------------------------------------


def ask(state: str | None = None, **requests: Any) -> InputRequiredResult:
    return InputRequiredResult(input_requests=requests, request_state=state)


def form_content(ctx: Context[Any], name: str) -> dict[str, Any] | None:
    """Return what a person has filled in; None if the form is to be shown (again)."""
    answer = (ctx.input_responses or {}).get(name)
    return dict(answer.content or {}) if isinstance(answer, ElicitResult) else None


async def test_input_required_result_elicitation(ctx: Context[Any]) -> str | InputRequiredResult:
    given = form_content(ctx, "user_name")
    return ask(user_name=NAME_FORM) if given is None else f"Hello, {given.get('name')}!"


async def test_input_required_result_sampling(ctx: Context[Any]) -> str | InputRequiredResult:
    answer = (ctx.input_responses or {}).get("capital_question")
    if answer is None:
        return ask(capital_question=prompt_model("What is the capital of France?"))
    return f"The model says: {answer}"


async def test_input_required_result_list_roots(ctx: Context[Any]) -> str | InputRequiredResult:
    answer = (ctx.input_responses or {}).get("client_roots")
    return ask(client_roots=ListRootsRequest()) if answer is None else f"Roots: {answer}"


async def test_input_required_result_request_state(ctx: Context[Any]) -> str | InputRequiredResult:
    if ctx.request_state is None or form_content(ctx, "confirm") is None:
        return ask(STATE, confirm=CONFIRM_FORM)
    return "state-ok" if ctx.request_state == STATE else "another state"


async def test_input_required_result_tampered_state(ctx: Context[Any]) -> str | InputRequiredResult:
    return await test_input_required_result_request_state(ctx)


async def test_input_required_result_multiple_inputs(
    ctx: Context[Any],
) -> str | InputRequiredResult:
    if len(ctx.input_responses or {}) < 3:
        greeting = prompt_model("Generate a greeting", 50)
        return ask(STATE, user_name=NAME_FORM, greeting=greeting, client_roots=ListRootsRequest())
    return "three answers"


async def test_input_required_result_multi_round(ctx: Context[Any]) -> str | InputRequiredResult:
    if ctx.request_state is None:
        return ask("first", step1=NAME_FORM)
    if ctx.request_state == "first":
        return ask("second", step2=COLOR_FORM)
    return "two rounds"


async def test_input_required_result_capabilities(ctx: Context[Any]) -> str | InputRequiredResult:
    capabilities = ctx.client_capabilities
    requests: dict[str, Any] = {}
    if capabilities is not None and capabilities.sampling is not None:
        requests["sampling"] = prompt_model("Hello")
    if capabilities is not None and capabilities.elicitation is not None:
        requests["form"] = NAME_FORM
    return ask(**requests) if requests else "nobody can be asked"


async def test_missing_capability(ctx: Context[Any]) -> str:
    capabilities = ctx.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        raise MCPError(
            MISSING_REQUIRED_CLIENT_CAPABILITY,
            "This tool needs a client with sampling.",
            {"requiredCapabilities": {"sampling": {}}},
        )
    return "sampling is there"


# long work ----------------------------------------------------------------------------------------


async def slow_compute(seconds: float, label: str = "") -> str:
    raise AssertionError("run_code does it")


async def failing_job() -> str:
    raise AssertionError("run_code does it")


async def confirm_delete(filename: str = "") -> str:
    raise AssertionError("run_code does it")


async def run_programs(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Turn a call of a tool of long work into one of `run_code`."""
    params = dict(ctx.params or {})
    program = PROGRAMS.get(str(params.get("name"))) if ctx.method == "tools/call" else None
    if program is None:
        return await call_next(ctx)
    arguments = params.get("arguments") or {}
    code = program.replace("{seconds}", str(float(arguments.get("seconds", 0))))
    call = {"name": "run_code", "arguments": {"code": code, "background": True}}
    return await call_next(replace(ctx, params={**params, **call}))


TOOLS = (
    test_simple_text,
    greet,
    test_image_content,
    test_audio_content,
    test_embedded_resource,
    test_multiple_content_types,
    test_error_handling,
    test_tool_with_progress,
    test_tool_with_logging,
    test_trigger_tool_change,
    test_trigger_prompt_change,
    test_sampling,
    test_elicitation,
    test_elicitation_sep1034_defaults,
    test_elicitation_sep1330_enums,
    test_input_required_result_elicitation,
    test_input_required_result_sampling,
    test_input_required_result_list_roots,
    test_input_required_result_request_state,
    test_input_required_result_tampered_state,
    test_input_required_result_multiple_inputs,
    test_input_required_result_multi_round,
    test_input_required_result_capabilities,
    test_missing_capability,
    slow_compute,
    failing_job,
    confirm_delete,
)

# prompts ------------------------------------------------------------------------------------------


def say(text: str) -> UserMessage:
    return UserMessage(TextContent(type="text", text=text))


async def test_simple_prompt() -> list[UserMessage]:
    return [say("This is a simple prompt for testing.")]


async def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
    return [say(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")]


async def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    return [UserMessage(document(resourceUri)), say("Please process the resource above.")]


async def test_prompt_with_image() -> list[UserMessage]:
    return [UserMessage(picture()), say("Please look at the picture above.")]


async def test_input_required_result_prompt(
    ctx: Context[Any],
) -> list[UserMessage] | InputRequiredResult:
    given = form_content(ctx, "user_context")
    return ask(user_context=CONTEXT_FORM) if given is None else [say(f"Context: {given}")]


PROMPTS = (
    test_simple_prompt,
    test_prompt_with_arguments,
    test_prompt_with_embedded_resource,
    test_prompt_with_image,
    test_input_required_result_prompt,
)

# resources ----------------------------------------------------------------------------------------


class FixtureResources:
    """The resources of the scheme `test://`."""

    scheme = "test://"

    async def list_resources(self) -> Sequence[Resource]:
        return [
            Resource(uri="test://static-text", name="text", mime_type="text/plain"),
            Resource(uri="test://static-binary", name="binary", mime_type="image/png"),
            Resource(uri="test://watched-resource", name="watched", mime_type="text/plain"),
        ]

    def list_templates(self) -> Sequence[ResourceTemplate]:
        return [ResourceTemplate(uri_template="test://template/{id}/data", name="template")]

    async def read_resource(self, uri: str) -> ReadResourceContents:
        if uri == "test://static-binary":
            return ReadResourceContents(base64.b64decode(PICTURE), "image/png")
        if uri.startswith("test://template/") and uri.endswith("/data"):
            number = uri.removeprefix("test://template/").removesuffix("/data")
            data = {"id": number, "templateTest": True, "data": f"Data for ID: {number}"}
            return ReadResourceContents(json.dumps(data), "application/json")
        if uri in ("test://static-text", "test://watched-resource"):
            text = "This is the content of the static text resource."
            return ReadResourceContents(text, "text/plain")
        raise NotFound(f"There is no resource at {uri!r}.")


# the server ---------------------------------------------------------------------------------------


async def accept(ctx: ServerRequestContext[Any, Any], params: Any) -> EmptyResult:
    """Accept a request whose answer says nothing."""
    return EmptyResult()


def add_fixtures(server: MCPServer[Any]) -> None:
    """Add what the suite wants to a server."""
    for tool in TOOLS:
        server.add_tool(tool, description=tool.__name__, structured_output=False)
    for name in ("json_schema_2020_12_tool", "name_in_header"):
        server.add_tool(greet, name=name, description=name, structured_output=False)
    tools = server._tool_manager
    schema_tool = tools.get_tool("json_schema_2020_12_tool")
    header_tool = tools.get_tool("name_in_header")
    assert schema_tool is not None
    assert header_tool is not None
    schema_tool.parameters = SCHEMA_2020_12
    header_tool.parameters["properties"]["name"]["x-mcp-header"] = "Name"
    for prompt in PROMPTS:
        server.add_prompt(Prompt.from_function(prompt, description=prompt.__name__))
    server._sources = (*server._sources, FixtureResources())  # type: ignore[attr-defined]
    server.middleware.append(run_programs)
    server.completion()(complete)  # type: ignore[no-untyped-call]
    lowlevel = server._lowlevel_server
    lowlevel.add_request_handler("resources/subscribe", SubscribeRequestParams, accept)
    lowlevel.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, accept)
    lowlevel.add_request_handler("logging/setLevel", SetLevelRequestParams, accept)


async def complete(ref: Any, argument: Any, context: Any) -> Completion:
    """Complete any argument to nothing."""
    return Completion(values=[], total=0, has_more=False)


def add_fixtures_to_servers() -> None:
    """Add the fixtures to each MCP server that is opened from now on."""
    open_server = App.open_mcp_server

    async def open_with_fixtures(app: App, *args: Any) -> MCPServer[Any]:
        server = await open_server(app, *args)
        add_fixtures(server)
        return server

    App.open_mcp_server = open_with_fixtures  # type: ignore[method-assign, assignment]


async def main(settings: Path) -> None:
    """Serve until killed; the first line of stdout is the address."""
    config = load_config(settings)
    add_fixtures_to_servers()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
        await serve_http(config, anyio.Event(), listener, TokenStore(config.server.data_dir))


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]))
