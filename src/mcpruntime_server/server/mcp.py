"""The MCP server: its tools, and how a request watches a run.

The list of tools is fixed for the life of the process; what upstream servers offer is learnt from inside the sandbox.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field, ValidationError

from .. import __version__
from ..config import Config
from ..errors import McpRuntimeError
from ..kernel.results import did_you_mean
from ..runtime.history import load_report
from ..runtime.session import Session
from ..runtime.sessions import Runtime
from .replay import DESCRIPTION as REPLAY
from .replay import Action, Replay
from .results import RunResult, answer_of, refusal, result_of
from .watch import watch

LISTED_PACKAGES = 50  # names of upstream packages in the description; `tools.list()` knows the rest
KEY_CHARS = 200
KEY = "mcpruntime/idempotency-key"  # in a request's _meta: the same key again is the same request
PRINCIPAL = "local"  # over stdio, whoever started the process

INSTRUCTIONS = """\
Write Python and run it with run_code; the interpreter keeps variables, imports and files from call to call.
MCP servers are packages there: `from tools.NAME import FUNCTION`; tools.search("words") finds, help(FUNCTION) explains.
Loop, filter and combine in code; print or return only what you need to see."""

WARNING = "\nWARNING: code runs on this machine without isolation (`local` backend)."


def description(packages: Sequence[str]) -> str:
    """Return what the model reads about `run_code`."""
    named = ", ".join(packages[:LISTED_PACKAGES]) or "none configured"
    more = f" and {len(packages) - LISTED_PACKAGES} more" if len(packages) > LISTED_PACKAGES else ""
    return (
        "Run Python in a persistent sandbox (top-level await works). Returns the last expression's or assignment's "
        "value, stdout, stderr, the calls made and files changed in the working folder. Variables and files stay for "
        "the session.\n"
        f"MCP servers as packages: {named}{more}. Find functions with `tools.search('words')`, read them with "
        "`help(tools.NAME.FUNCTION)`, call them like `from tools.NAME import FUNCTION`. Results are plain data with "
        "attribute access; failures raise tools.ToolError; `tools.map(fn, items)` runs many at once."
    )


def build_server(
    config: Config, runtime: Runtime, packages: Sequence[str], timed_out: Container[str], *, isolated: bool
) -> MCPServer[Any]:
    """Return the MCP server over `runtime`; `timed_out` holds the ids of requests that clients do not wait for."""
    default = DefaultSession(runtime)

    async def run_code(
        code: Annotated[str, Field(description="Python source")],
        ctx: Context[Any],
        session: Annotated[str | None, Field(description="Handle from a result, or a name of your own")] = None,
        timeout_s: Annotated[float | None, Field(gt=0, le=86_400, description="Seconds")] = None,
    ) -> CallToolResult:
        try:
            key = key_of(ctx)
            if key is not None and (again := await answered(session, key)) is not None:
                return again
            found = await default.find(session)
            run = found.start(code, timeout_s or config.sandbox.timeout_s, key)
            await watch(run, ctx, timed_out)
            if run.failure is not None:
                raise run.failure
        except McpRuntimeError as exc:
            return refusal(exc)
        result = result_of(run.report, found.handle, config.server)  # while the journal is being written
        result.note = " ".join(filter(None, (result.note, await run.recorded())))
        return answer_of(result)

    async def answered(session: str | None, key: str) -> CallToolResult | None:
        """Return what was answered to the same request before, if that is over.

        Between the last look at the session and the return nothing else happens: the caller may start the run.
        """
        found = await default.find(session)
        run = found.run_of(key)
        if run is None:
            row = await runtime.journal.find_request(found.id, key)
            found = await default.find(session)
            run = found.run_of(key) or (row.id if row and row.status != "running" else None)
        if run is None or found.is_under_way(run):
            return None
        return answer_of(result_of(await load_report(runtime.journal, run), found.handle, config.server))

    async def replay(
        action: Action,
        ctx: Context[Any],
        session: str | None = None,
        step: Annotated[int | None, Field(ge=0)] = None,
        run: Annotated[str | None, Field(description="Instead of step")] = None,
        name: Annotated[str | None, Field(description="For the fork")] = None,
        other: Annotated[str | None, Field(description="Run or session to compare with")] = None,
        code: str | None = None,
        live: list[str] | None = None,
        cancel: Annotated[bool, Field(description="Rewind even if a run is under way")] = False,
    ) -> CallToolResult:
        try:
            handle = session or (await default.find(None)).handle
            match action:
                case "list":
                    return await actions.list(handle)
                case "show":
                    return await actions.show(handle, step, run)
                case "rewind":
                    return await actions.rewind(handle, step, run, cancel=cancel)
                case "fork":
                    return await actions.fork(handle, step, run, name)
                case "rerun":
                    watcher = partial(watch, ctx=ctx, timed_out=timed_out)
                    return await actions.rerun(handle, step, run, code, live or (), watcher)
                case "diff":
                    return await actions.diff(handle, step, run, other)
        except McpRuntimeError as exc:
            return refusal(exc)

    actions = Replay(config, runtime, packages, PRINCIPAL)
    run_python = Tool.from_function(
        run_code,
        description=description(packages),
        annotations=ToolAnnotations(title="Run Python", destructive_hint=True, open_world_hint=True),
    )
    run_python.parameters = compact(run_python.parameters)
    run_python.fn_metadata.output_schema = compact(RunResult.model_json_schema(), nested=False)
    move_in_time = Tool.from_function(
        replay,
        description=REPLAY,
        annotations=ToolAnnotations(title="Replay", destructive_hint=False, open_world_hint=True),
    )
    move_in_time.parameters = compact(move_in_time.parameters)
    return Server(
        "mcpruntime-server",
        version=__version__,
        instructions=INSTRUCTIONS + ("" if isolated else WARNING),
        log_level="WARNING",
        tools=[run_python, move_in_time],
    )


def key_of(ctx: Context[Any]) -> str | None:
    """Return the idempotency key of a request, if its client gave one."""
    key = dict(ctx.request_context.meta or {}).get(KEY)
    return None if key is None else str(key)[:KEY_CHARS]


def compact(schema: Mapping[str, Any], *, nested: bool = True) -> dict[str, Any]:
    """Return an object schema without what costs tokens and time: titles, null alternatives, defaults.

    With `nested` false, what is inside arrays and objects is left to the description; clients check results against
    this on every call.
    """
    properties = {}
    for name, given in schema["properties"].items():
        kind: dict[str, Any] = next((each for each in given.get("anyOf", ()) if each.get("type") != "null"), {})
        kept = {key: value for key, value in {**kind, **given}.items() if key not in ("title", "default", "anyOf")}
        if not nested:
            kept = {key: value for key, value in kept.items() if key in ("type", "description", "enum")}
        properties[name] = kept
    return {"type": "object", "properties": properties, "required": list(schema["required"])}


class Server(MCPServer[Any]):
    """The SDK's server, whose refusals name the parameters that would be right."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context[Any] | None = None) -> Any:
        """Call a tool; raises `ToolError` for arguments that it does not take, instead of passing over them."""
        tool = self._tool_manager.get_tool(name)
        if tool is None:
            names = ", ".join(known.name for known in self._tool_manager.list_tools())
            raise ToolError(f"[not_found] There is no tool {name!r:.80}. The tools are {names}.")
        for key in arguments.keys() - tool.parameters["properties"].keys():
            hint = did_you_mean(key, tool.parameters["properties"])
            raise ToolError(f"[invalid_request] {name} has no parameter {key!r:.80}. {hint}{parameters(tool)}")
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as exc:
            if isinstance(exc.__cause__, ValidationError):
                problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}." for each in exc.__cause__.errors()]
                raise ToolError(f"[invalid_request] {' '.join(problems)} {parameters(tool)}") from exc
            raise


def parameters(tool: Tool) -> str:
    """Return the sentence that lists what `tool` takes."""
    required = tool.parameters["required"]
    listed = ", ".join(name + "*" * (name in required) for name in tool.parameters["properties"])
    return f"Parameters: {listed} (* = required)."


class DefaultSession:
    """The session of a client that names none: over stdio, one for the life of the process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._handle: str | None = None
        self._lock = anyio.Lock()

    async def find(self, handle: str | None) -> Session:
        """Return the session `handle`, or without one the default, made at its first use."""
        if handle is not None or self._handle is not None:
            return await self._runtime.session(self._handle if handle is None else handle, PRINCIPAL)
        async with self._lock:
            session = await self._runtime.session(self._handle, PRINCIPAL)
            self._handle = session.id
            return session
