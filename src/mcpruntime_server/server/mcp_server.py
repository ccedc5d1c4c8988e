"""The MCP server and its tools.

The list of tools is fixed for the life of the process; what upstream servers offer is learnt from inside the sandbox.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.types import (
    CallToolResult,
    InputRequiredResult,
    Resource,
    ResourceTemplate,
    ToolAnnotations,
)
from pydantic import Field, ValidationError

from .. import __version__
from ..capabilities.inputs.store import InputStore
from ..capabilities.knowledge.service import KnowledgeService
from ..capabilities.skills.auto_save import AutoSaver
from ..capabilities.skills.library import SkillLibrary
from ..capabilities.skills.saving import SkillSaver
from ..config import Config
from ..errors import InvalidRequest, McpRuntimeError
from ..protocol.suggestions import did_you_mean
from ..runtime.runtime import Runtime
from .ask_tool import AskToolHandler, build_ask_tool
from .delivery import FindCursor
from .knowledge import KnowledgeResources, build_grounded_prompt, knowledge_instructions
from .replay_tool import REPLAY_DESCRIPTION as REPLAY
from .replay_tool import ReplayAction, ReplayToolHandler
from .resources import ResourceSource, SkillResources, SkillsExtension
from .result_format import RunResult, error_result
from .run_progress import watch_run
from .run_tool import RunToolHandler
from .session_resolver import LOCAL_PRINCIPAL, SessionResolver
from .skill_tools import SkillToolHandler, build_skill_prompt, build_skill_tools
from .tasks_extension import TasksExtension
from .tool_schemas import compact_schema, list_parameters

MAX_LISTED_PACKAGES = (
    50  # names of upstream packages in the description; `tools.list()` knows the rest
)
MAX_TIMEOUT_S = 86_400  # that a request may ask for

SERVER_INSTRUCTIONS = """\
Write Python and run it with run_code; the interpreter keeps variables, imports and files from call to call.
MCP servers are packages there: `from tools.NAME import FUNCTION`; tools.search("words") finds, help(FUNCTION) explains.
Failures raise tools.ToolError; `tools.map(fn, items)` runs many at once; top-level await works.
Loop, filter and combine in code; print or return only what you need to see.
ask_llm and ask_llm_batch, there without an import, have a model read what you need not: help(ask_llm)."""
SKILLS_INSTRUCTIONS = """
Code that worked is kept as skills: `from skills.NAME import run`; list_skills or skills.search("words") finds. {}"""

ISOLATION_WARNING = "\nWARNING: code runs on this machine without isolation (`local` backend)."


def run_code_description(packages: Sequence[str]) -> str:
    """Return what the model reads about `run_code`."""
    named = ", ".join(packages[:MAX_LISTED_PACKAGES]) or "none configured"
    more = (
        f" and {len(packages) - MAX_LISTED_PACKAGES} more"
        if len(packages) > MAX_LISTED_PACKAGES
        else ""
    )
    return (
        "Run Python in a persistent sandbox: variables and files stay. Returns the last expression's or assignment's "
        "value, stdout, stderr, calls, changed files.\n"
        f"MCP servers as packages: {named}{more}. Find functions with `tools.search('words')`, read "
        "`help(tools.NAME.FUNCTION)`, call via `from tools.NAME import FUNCTION`; `tools.map(fn, items)`: many at "
        "once.\n"
        "A run goes on after wait_s, or with background=true: `run` waits for more, with `answers` to what it asks. "
        "dry_run=true plans calls that write; `answers` commits."
    )


def build_mcp_server(
    config: Config,
    runtime: Runtime,
    library: SkillLibrary,
    saver: SkillSaver,
    providers: KnowledgeService,
    packages: Sequence[str],
    inputs: InputStore,
    find_cursor: FindCursor,
    *,
    is_isolated: bool,
    skills_sentence: str = "",
) -> MCPServer[Any]:
    """Return the MCP server over `runtime`.

    `find_cursor` returns the delivery cursor of the connection that a request came through;
    `skills_sentence` says which skills there are.
    """
    default = SessionResolver(runtime)
    actions = ReplayToolHandler(config, runtime, packages, LOCAL_PRINCIPAL)
    auto = config.skills.auto
    evolution = (
        None if auto == "off" else AutoSaver(saver, may_activate=auto == "active-on-second-success")
    )
    runs = RunToolHandler(config, runtime, default, find_cursor, inputs, evolution)
    server = RuntimeMcpServer(
        "mcpruntime-server",
        (SkillResources(library), KnowledgeResources(providers)),
        version=__version__,
        instructions=SERVER_INSTRUCTIONS
        + SKILLS_INSTRUCTIONS.format(skills_sentence)
        + knowledge_instructions(providers.names)
        + ("" if is_isolated else ISOLATION_WARNING),
        log_level="WARNING",
        tools=[
            build_run_tool(runs, packages),
            build_replay_tool(actions, default, find_cursor),
            *build_skill_tools(SkillToolHandler(library, saver, runtime.journal, LOCAL_PRINCIPAL)),
            build_ask_tool(AskToolHandler(config, runs)),
        ],
        extensions=[TasksExtension(runs, config.server.keep_days), SkillsExtension(library)],
    )
    server.add_prompt(build_skill_prompt(library))
    if providers.names:
        server.add_prompt(build_grounded_prompt(providers))
    return server


def build_run_tool(handler: RunToolHandler, packages: Sequence[str]) -> Tool:
    """Return the tool `run_code`."""

    async def run_code(
        ctx: Context[Any],
        code: str | None = None,
        session: Annotated[str | None, Field(description="Handle or own name")] = None,
        timeout_s: Annotated[float | None, Field(gt=0, le=MAX_TIMEOUT_S)] = None,
        wait_s: Annotated[float | None, Field(ge=0, le=MAX_TIMEOUT_S)] = None,
        background: bool = False,
        dry_run: bool = False,
        context: Annotated[
            list[Any] | None, Field(description="Paths, URIs, {text}: CONTEXT in code")
        ] = None,
        run: str | None = None,
        answers: dict[str, Any] | None = None,
        cancel: bool = False,
    ) -> CallToolResult | InputRequiredResult:
        try:
            if ctx.request_state is not None:
                return await handler.receive_input_responses(ctx, ctx.request_state, wait_s)
            if run is not None:
                check_attach_arguments(
                    code, answers, dry_run=dry_run, cancel=cancel, context=context
                )
                return await handler.attach_to_run(
                    ctx, run, answers, 0.0 if background else wait_s, cancel=cancel
                )
            if code is None:
                raise InvalidRequest(
                    "There is nothing to run.", remedy="Give `code`, or `run` to attach to one."
                )
            if answers is not None or cancel:
                raise InvalidRequest(
                    "`answers` and `cancel` are about a run.", remedy="Name it with `run`."
                )
            return await handler.start_run(
                ctx,
                code,
                session,
                timeout_s,
                wait_s,
                background=background,
                dry_run=dry_run,
                context=context,
            )
        except McpRuntimeError as exc:
            return error_result(exc)

    tool = Tool.from_function(
        run_code,
        description=run_code_description(packages),
        annotations=ToolAnnotations(
            title="Run Python", destructive_hint=True, open_world_hint=True
        ),
    )
    tool.parameters = compact_schema(tool.parameters)
    tool.fn_metadata.output_schema = compact_schema(RunResult.model_json_schema(), nested=False)
    return tool


def check_attach_arguments(
    code: str | None, answers: Any, *, dry_run: bool, cancel: bool, context: Any
) -> None:
    """Raise `InvalidRequest` if these do not go with each other, or not with `run`."""
    if code is not None:
        raise InvalidRequest(
            "`code` starts a run and `run` attaches to one.", remedy="Give one of them."
        )
    if context is not None:
        raise InvalidRequest(
            "`context` is about `code`: a run that there is has its inputs.", remedy="Leave it out."
        )
    if dry_run:
        raise InvalidRequest(
            "`dry_run` is about `code`: how a run that there is meets the world is settled.",
            remedy="Leave it out, or plan the code itself.",
        )
    if answers is not None and cancel:
        raise InvalidRequest(
            "A run goes on with `answers` and ends with `cancel`.", remedy="Give one of them."
        )


def build_replay_tool(
    handler: ReplayToolHandler, sessions: SessionResolver, find_cursor: FindCursor
) -> Tool:
    """Return the tool `replay`."""

    async def replay(
        action: ReplayAction,
        ctx: Context[Any],
        session: str | None = None,
        step: Annotated[int | None, Field(ge=0)] = None,
        run: str | None = None,
        name: str | None = None,
        other: str | None = None,
        code: str | None = None,
        live: list[str] | None = None,
        cancel: bool = False,
    ) -> CallToolResult:
        try:
            handle = (await sessions.resolve_session(None)).handle if session is None else session
            match action:
                case "list":
                    return await handler.list_steps(handle)
                case "show":
                    return await handler.show_run(handle, step, run)
                case "rewind":
                    return await handler.rewind_session(handle, step, run, cancel=cancel)
                case "fork":
                    return await handler.fork_session(handle, step, run, name)
                case "rerun":
                    watcher = partial(watch_run, ctx=ctx, cursor=find_cursor(ctx))
                    return await handler.rerun_steps(handle, step, run, code, live or (), watcher)
                case "diff":
                    return await handler.compare_runs(handle, step, run, other)
        except McpRuntimeError as exc:
            return error_result(exc)

    tool = Tool.from_function(
        replay,
        description=REPLAY,
        annotations=ToolAnnotations(title="Replay", destructive_hint=False, open_world_hint=True),
    )
    tool.parameters = compact_schema(tool.parameters)
    return tool


class RuntimeMcpServer(MCPServer[Any]):
    """The SDK's server, whose resources come from `sources`, and whose refusals name what would be right."""

    def __init__(self, name: str, sources: Sequence[ResourceSource], **settings: Any) -> None:
        super().__init__(name, **settings)
        self._sources = sources

    async def list_resources(self) -> list[Resource]:
        """Return what all sources have."""
        return [resource for source in self._sources for resource in await source.list_resources()]

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        """Return the forms of addresses of all sources."""
        return [template for source in self._sources for template in source.list_templates()]

    async def read_resource(
        self, uri: Any, context: Context[Any] | None = None
    ) -> Iterable[ReadResourceContents]:
        """Return what an address stands for; raises `ResourceNotFoundError`."""
        for source in self._sources:
            if str(uri).startswith(source.scheme):
                try:
                    return [await source.read_resource(str(uri))]
                except McpRuntimeError as exc:
                    raise ResourceNotFoundError(str(exc)) from None
        schemes = ", ".join(source.scheme for source in self._sources)
        raise ResourceNotFoundError(
            f"There is nothing at {str(uri)!r:.200}: addresses begin with {schemes}."
        )

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any] | None = None
    ) -> Any:
        """Call a tool; raises `ToolError` for arguments that it does not take, instead of passing over them."""
        tool = self._tool_manager.get_tool(name)
        if tool is None:
            names = ", ".join(known.name for known in self._tool_manager.list_tools())
            raise ToolError(f"[not_found] There is no tool {name!r:.80}. The tools are {names}.")
        for key in arguments.keys() - tool.parameters["properties"].keys():
            hint = did_you_mean(key, tool.parameters["properties"])
            raise ToolError(
                f"[invalid_request] {name} has no parameter {key!r:.80}. {hint}{list_parameters(tool)}"
            )
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as exc:
            if isinstance(exc.__cause__, ValidationError):
                problems = [
                    f"{'.'.join(map(str, each['loc']))}: {each['msg']}."
                    for each in exc.__cause__.errors()
                ]
                raise ToolError(
                    f"[invalid_request] {' '.join(problems)} {list_parameters(tool)}"
                ) from exc
            raise
