"""The MCP server and its tools.

The list of tools is fixed for the life of the process. What upstream servers offer is found from
inside the sandbox.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any

from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.request_state import RequestStateSecurity
from mcp.types import (
    INVALID_PARAMS,
    CallToolResult,
    GetPromptResult,
    InputRequiredResult,
    Resource,
    ResourceTemplate,
    ToolAnnotations,
)
from pydantic import Field, ValidationError, WithJsonSchema

from .. import __version__
from ..capabilities.inputs.store import InputStore
from ..capabilities.knowledge.service import KnowledgeService
from ..capabilities.skills.library import SkillLibrary
from ..capabilities.skills.saving import SkillSaver
from ..config import Config, LlmSettings
from ..errors import InvalidRequest, McpRuntimeError
from ..fair_turns import FairTurns
from ..protocol.sandbox_facts import describe_sandbox
from ..protocol.suggestions import did_you_mean
from ..runtime.runtime import Runtime
from ..runtime.sandbox_facts import collect_facts
from .ask_tool import AskToolHandler, asks_other_model, build_ask_tool
from .connections import find_client_name, find_http_request
from .delivery import FindCursor
from .knowledge import KnowledgeResources, build_grounded_prompt, knowledge_instructions
from .replay_tool import REPLAY_DESCRIPTION as REPLAY
from .replay_tool import ReplayAction, ReplayToolHandler
from .resources import ResourceSource, SkillResources, SkillsExtension
from .result_format import RunResult, error_result, fit_event, has_media, keep_media_visible
from .run_progress import watch_run
from .run_tool import RunToolHandler
from .session_resolver import SessionResolver
from .skill_tools import SkillToolHandler, build_skill_prompt, build_skill_tools
from .tasks_extension import TasksExtension
from .tool_schemas import add_signatures, build_tool, list_fitting_names, list_parameters
from .workspace_resources import WorkspaceResources

# Without a type of the items, some clients turn them into strings and others refuse the schema.
INPUT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "object"}]}
InputItem = Annotated[Any, WithJsonSchema(INPUT_SCHEMA)]  # `resolve_context` checks it

# Of the packages in the description of `run_code`; `tools.list()` returns all.
MAX_PACKAGE_TOKENS = 85
MAX_PACKAGE_TOKENS_WITH_ASK = 18  # when `ask_llm` is listed, too
MAX_TIMEOUT_S = 86_400  # that a request may set
MAX_PROMPT_CHARS = 100_000  # of an argument of a prompt, which the answer repeats

SERVER_INSTRUCTIONS = """\
Write Python and run it with run_code; the interpreter keeps variables, imports and files \
from call to call.
MCP servers are packages there: `from tools.NAME import FUNCTION`; tools.search("words") finds, \
help(FUNCTION) explains.
Failures raise tools.ToolError; `tools.map(fn, items)` runs many at once; top-level await works.
Loop, filter and combine in code; print or return only what you need to see."""
ASK_INSTRUCTIONS = """
ask_llm and ask_llm_batch, available without an import, let a model read what you need not: \
help(ask_llm)."""
ASK_CALLER_INSTRUCTIONS = """
ask_llm and ask_llm_batch, available without an import, ask you: the run waits, and its result \
says how to answer."""
SKILLS_INSTRUCTIONS = """
Code that worked is kept as skills: `from skills.NAME import run`; list_skills or \
skills.search("words") finds. {}"""

ISOLATION_WARNING = "\nWARNING: code runs on this machine without isolation (`local` backend)."


def run_code_description(packages: Sequence[str], max_package_tokens: int) -> str:
    """Return the description of `run_code` for the model."""
    named = list_fitting_names(packages, max_package_tokens) or "none configured"
    return (
        "Run Python in a persistent sandbox: variables and files stay. Returns the last "
        "expression's or assignment's value, what it prints and plots (`show(x)`), calls, files.\n"
        f"MCP servers as packages: {named}. `tools.search('words')` finds functions, "
        "`from tools.NAME import FUNCTION` imports one, `help(FUNCTION)` explains it; "
        "`tools.map(fn, items)`: many at once.\n"
        "A run continues after wait_s, or with background=true: `run` waits for more, with "
        "`answers` to what it asks. dry_run=true plans calls that write; `answers` commits."
    )


def sandbox_instructions(config: Config, python: str, *, is_isolated: bool) -> str:
    """Return what the model reads about the sandbox, in three lines."""
    packages: Sequence[str] = config.sandbox.packages
    if config.sandbox.image or not is_isolated:
        packages = ["what is installed there (help() lists it)"]
    facts = collect_facts(
        config.server, config.sandbox, config.network.rules, is_isolated=is_isolated
    )
    return describe_sandbox(facts, python, packages)


def ask_instructions(settings: LlmSettings) -> str:
    """Return what clients are told about `ask_llm` in code; "" if nobody answers it."""
    if settings.effective_broker == "off":
        return ""
    return ASK_CALLER_INSTRUCTIONS if settings.effective_broker == "caller" else ASK_INSTRUCTIONS


def build_mcp_server(
    config: Config,
    runtime: Runtime,
    library: SkillLibrary,
    saver: SkillSaver,
    providers: KnowledgeService,
    packages: Sequence[str],
    inputs: InputStore,
    find_cursor: FindCursor,
    turns: FairTurns,
    *,
    principal: str,
    is_isolated: bool,
    python: str,
    state_key: bytes,
    signatures: Sequence[str] = (),
    skills_sentence: str = "",
) -> MCPServer[Any]:
    """Return the MCP server through which `principal` uses the runtime.

    `find_cursor` returns the delivery cursor of the connection that a request came through; all
    servers share the `turns` in which long results are written;
    `python` names the interpreter of the sandboxes; `state_key` seals what clients send back;
    `signatures` are those of all functions of the
    packages, if they are few; `skills_sentence` says which skills there are.
    """
    sessions = SessionResolver(runtime, principal)
    replays = ReplayToolHandler(config, runtime, packages, principal)
    runs = RunToolHandler(config, runtime, principal, sessions, find_cursor, inputs, saver, turns)
    instructions = SERVER_INSTRUCTIONS + ask_instructions(config.llm)
    instructions += f"\n{sandbox_instructions(config, python, is_isolated=is_isolated)}"
    instructions += SKILLS_INSTRUCTIONS.format(skills_sentence)
    instructions += knowledge_instructions(providers.names)
    if not is_isolated:
        instructions += ISOLATION_WARNING
    has_ask = asks_other_model(config.llm)
    package_tokens = MAX_PACKAGE_TOKENS_WITH_ASK if has_ask else MAX_PACKAGE_TOKENS
    tools = [
        build_run_tool(runs, packages, package_tokens),
        build_replay_tool(replays, sessions, find_cursor),
        *build_skill_tools(
            SkillToolHandler(library, saver, runtime.journal, principal, config.server.result_chars)
        ),
    ]
    if has_ask:
        tools.append(build_ask_tool(AskToolHandler(config, runs)))
    add_signatures(tools, signatures)
    server = RuntimeMcpServer(
        "mcpruntime-server",
        (
            WorkspaceResources(runtime, principal),
            SkillResources(library),
            KnowledgeResources(providers, config.server.result_chars),
        ),
        version=__version__,
        instructions=instructions,
        log_level="WARNING",
        tools=tools,
        request_state_security=RequestStateSecurity(keys=[state_key], ttl=config.policy.expires_s),
        extensions=[TasksExtension(runs, config.server.keep_days), SkillsExtension(library)],
    )
    server.add_prompt(build_skill_prompt(library))
    if providers.names:
        server.add_prompt(build_grounded_prompt(providers))
    return server


def build_run_tool(
    handler: RunToolHandler, packages: Sequence[str], max_package_tokens: int
) -> Tool:
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
            list[InputItem] | None,
            Field(description="Paths, globs, URIs, {text}: CONTEXT in code"),
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
                    "`answers` and `cancel` apply to a run.", remedy="Name it with `run`."
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

    return build_tool(
        run_code,
        run_code_description(packages, max_package_tokens),
        ToolAnnotations(title="Run Python", destructive_hint=True, open_world_hint=True),
        RunResult,
    )


def check_attach_arguments(
    code: str | None, answers: Any, *, dry_run: bool, cancel: bool, context: Any
) -> None:
    """Raise `InvalidRequest` if these arguments contradict each other or `run`."""
    if code is not None:
        raise InvalidRequest(
            "`code` starts a run and `run` attaches to one.", remedy="Give one of them."
        )
    if context is not None:
        raise InvalidRequest(
            "`context` applies to `code`: an existing run already has its inputs.",
            remedy="Leave it out.",
        )
    if dry_run:
        raise InvalidRequest(
            "`dry_run` applies to `code`: an existing run is a dry run or is not.",
            remedy="Leave it out, or start the code again as a dry run.",
        )
    if answers is not None and cancel:
        raise InvalidRequest(
            "`answers` continues a run and `cancel` ends it.", remedy="Give one of them."
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
            if session is not None:
                handle = session
            elif run is not None:
                handle = await handler.find_handle(run)
            elif action == "list":
                return await handler.list_sessions()
            else:
                handle = (await sessions.resolve_session(None, ctx)).handle
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

    return build_tool(
        replay,
        REPLAY,
        ToolAnnotations(title="Replay", destructive_hint=False, open_world_hint=True),
    )


class RuntimeMcpServer(MCPServer[Any]):
    """The SDK's server with resources from `sources` and with errors that suggest a correction."""

    def __init__(self, name: str, sources: Sequence[ResourceSource], **settings: Any) -> None:
        super().__init__(name, **settings)
        self._sources = sources

    async def list_resources(self) -> list[Resource]:
        """Return the resources of all sources."""
        return [resource for source in self._sources for resource in await source.list_resources()]

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        """Return the address templates of all sources."""
        return [template for source in self._sources for template in source.list_templates()]

    async def read_resource(
        self, uri: Any, context: Context[Any] | None = None
    ) -> Iterable[ReadResourceContents]:
        """Return the resource at an address; raises `ResourceNotFoundError`."""
        for source in self._sources:
            if str(uri).startswith(source.scheme):
                try:
                    return [await source.read_resource(str(uri))]
                except McpRuntimeError as exc:
                    raise ResourceNotFoundError(str(exc)) from None
        schemes = ", ".join(source.scheme for source in self._sources)
        raise ResourceNotFoundError(
            f"There is no resource at {str(uri)!r:.200}: addresses begin with {schemes}."
        )

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Any] | None = None,
    ) -> GetPromptResult | InputRequiredResult:
        """Return a prompt; raises `MCPError` for an unknown name, or arguments that do not fit."""
        prompts = {each.name: each for each in await self.list_prompts()}
        if name not in prompts:
            listed = ", ".join(prompts) or "none"
            raise MCPError(
                INVALID_PARAMS, f"There is no prompt {name!r:.80}. The prompts are {listed}."
            )
        needed = [each.name for each in prompts[name].arguments or () if each.required]
        if missing := [each for each in needed if each not in (arguments or {})]:
            raise MCPError(INVALID_PARAMS, f"The prompt {name} needs {', '.join(missing)}.")
        if any(len(text) > MAX_PROMPT_CHARS for text in (arguments or {}).values()):
            limit = f"An argument of a prompt has at most {MAX_PROMPT_CHARS:,} characters."
            raise MCPError(INVALID_PARAMS, limit)
        return await super().get_prompt(name, arguments, context)

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any] | None = None
    ) -> Any:
        """Call a tool; raises `ToolError` for unknown arguments, which the SDK would ignore."""
        tool = self._tool_manager.get_tool(name)
        if tool is None:
            names = ", ".join(each.name for each in self._tool_manager.list_tools())
            raise ToolError(f"[not_found] There is no tool {name!r:.80}. The tools are {names}.")
        known = tool.parameters["properties"]
        for key in arguments.keys() - known.keys():
            problem = f"{name} has no parameter {key!r:.80}. {did_you_mean(key, known)}"
            raise ToolError(f"[invalid_request] {problem}{list_parameters(tool)}")
        try:
            result = await super().call_tool(name, arguments, context)
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
        if isinstance(result, CallToolResult) and has_media(result) and context is not None:
            visible = keep_media_visible(result, find_client_name(context))
            return visible if find_http_request(context) is None else fit_event(visible)
        return result
