"""The tool `ask_llm`: one question to a model, as a run of the client's session whose code is the call.

So budgets, journal, replay, progress and cancelling are those of runs, and exist once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp.types import CallToolResult, InputRequiredResult, ToolAnnotations

from ..config import Config
from ..errors import (
    BudgetExceeded,
    InvalidModelResponse,
    InvalidRequest,
    McpRuntimeError,
    ModelRequestFailed,
    NoModelConfigured,
)
from ..journal.events import canonical_json
from . import sampling
from .result_format import RunResult, error_result, run_call_result
from .run_tool import RunToolHandler, ToolResponse
from .tool_schemas import compact_schema

ASK_DESCRIPTION = "Ask another model about data; a JSON schema types the answer."
ASK_EXPRESSION = "__import__('llm').ask_llm"  # whatever code has made of the name since
ERROR_TYPES: Mapping[str, type[McpRuntimeError]] = {
    "BudgetExceeded": BudgetExceeded,
    "LlmAnswerError": InvalidModelResponse,
}
MAX_SCHEMA_DEPTH = (
    60  # of a schema: more than the host takes, and less than what Python's parser does
)


class AskToolHandler:
    """Carries out the tool."""

    def __init__(self, config: Config, runs: RunToolHandler) -> None:
        self._settings = config.llm
        self._default_timeout_s = config.sandbox.timeout_s
        self._runs = runs

    async def ask_model(
        self,
        ctx: Context[Any],
        prompt: str,
        data: Any,
        schema: Mapping[str, Any] | None,
        model: str | None,
    ) -> ToolResponse:
        """Ask, and return the result of the run with the answer as its value; raises why there is none."""
        if ctx.request_state is not None:
            return ask_result(
                await self._runs.receive_input_responses(ctx, ctx.request_state, None)
            )
        self._check_model_available(ctx)
        code = build_ask_code(prompt, data, schema, model)
        patience_s = self._settings.timeout_s * (self._settings.retries + 1)
        timeout_s = self._default_timeout_s + patience_s
        return ask_result(
            await self._runs.start_run(
                ctx, code, None, timeout_s, None, background=False, dry_run=False
            )
        )

    def _check_model_available(self, ctx: Context[Any]) -> None:
        by = self._settings.effective_broker
        if by == "off":
            raise NoModelConfigured
        if by == "caller" or (
            by == "sampling" and not sampling.supports_sampling(ctx.client_capabilities)
        ):
            raise NoModelConfigured(
                "The model that answers here is the client's own, and would ask itself.",
                remedy="Answer it yourself; or a person sets [llm] model, for another model to answer.",
            )


def build_ask_code(
    prompt: str, data: Any, schema: Mapping[str, Any] | None, model: str | None
) -> str:
    """Return the code that asks; raises `InvalidRequest` for what is no JSON data, or no schema for its depth."""
    options: dict[str, Any] = {"schema": schema, "model": model}
    try:
        text = data if data is None or isinstance(data, str) else canonical_json(data)
        canonical_json(schema)
    except ValueError as exc:
        raise InvalidRequest(f"`data` and `schema` are JSON data. {exc}") from exc
    if schema is not None and exceeds_depth(schema, MAX_SCHEMA_DEPTH):
        raise InvalidRequest("The schema is nested too deeply.", remedy="Ask for less at once.")
    given = [repr(prompt), *([repr(text)] if text is not None else [])]
    given += [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return f"{ASK_EXPRESSION}({', '.join(given)})"


def exceeds_depth(value: Any, max_depth: int) -> bool:
    """Return whether JSON data is nested more than `depth` deep."""
    if max_depth < 0:
        return True
    inner = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    )
    return any(exceeds_depth(each, max_depth - 1) for each in inner)


def ask_result(response: ToolResponse) -> ToolResponse:
    """Return what became of a run as what became of its question; raises why that has no answer."""
    if isinstance(response, InputRequiredResult) or response.structured_content is None:
        return response
    result = RunResult.model_validate({**response.structured_content, "calls": [], "files": []})
    if result.status == "error" and result.error is not None:
        again = f"replay(action='show', session={result.session!r}, run={result.run!r}) shows the question."
        kind = ERROR_TYPES.get(result.error.type.rpartition(".")[2], ModelRequestFailed)
        raise kind(result.error.message, remedy=again)
    return run_call_result(result)


def build_ask_tool(handler: AskToolHandler) -> Tool:
    """Return the tool `ask_llm`."""

    async def ask_llm(
        ctx: Context[Any],
        prompt: str,
        data: Any = None,
        schema: dict[str, Any] | None = None,
        model: str | None = None,
    ) -> CallToolResult | InputRequiredResult:
        try:
            return await handler.ask_model(ctx, prompt, data, schema, model)
        except McpRuntimeError as exc:
            return error_result(exc)

    tool = Tool.from_function(
        ask_llm,
        description=ASK_DESCRIPTION,
        annotations=ToolAnnotations(
            title="Ask a model", destructive_hint=False, open_world_hint=True
        ),
    )
    tool.parameters = compact_schema(tool.parameters)
    tool.fn_metadata.output_schema = compact_schema(RunResult.model_json_schema(), nested=False)
    return tool
