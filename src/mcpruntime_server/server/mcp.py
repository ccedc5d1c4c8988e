"""The MCP server and its tools.

The list of tools is fixed for the life of the process; what upstream servers offer is learnt from inside the sandbox.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
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
from .schemas import compact, parameters
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
    actions = Replay(config, runtime, packages, PRINCIPAL)
    return Server(
        "mcpruntime-server",
        version=__version__,
        instructions=INSTRUCTIONS + ("" if isolated else WARNING),
        log_level="WARNING",
        tools=[run_tool(config, runtime, default, packages, timed_out), replay_tool(actions, default, timed_out)],
    )


def run_tool(
    config: Config, runtime: Runtime, default: DefaultSession, packages: Sequence[str], timed_out: Container[str]
) -> Tool:
    """Return the tool `run_code`."""

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

    tool = Tool.from_function(
        run_code,
        description=description(packages),
        annotations=ToolAnnotations(title="Run Python", destructive_hint=True, open_world_hint=True),
    )
    tool.parameters = compact(tool.parameters)
    tool.fn_metadata.output_schema = compact(RunResult.model_json_schema(), nested=False)
    return tool


def replay_tool(actions: Replay, default: DefaultSession, timed_out: Container[str]) -> Tool:
    """Return the tool `replay`."""

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
            handle = (await default.find(None)).handle if session is None else session
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

    tool = Tool.from_function(
        replay,
        description=REPLAY,
        annotations=ToolAnnotations(title="Replay", destructive_hint=False, open_world_hint=True),
    )
    tool.parameters = compact(tool.parameters)
    return tool


def key_of(ctx: Context[Any]) -> str | None:
    """Return the idempotency key of a request, if its client gave one."""
    key = dict(ctx.request_context.meta or {}).get(KEY)
    return None if key is None else str(key)[:KEY_CHARS]


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
