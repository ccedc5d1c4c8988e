"""The tool `ask_llm`: a run of the client's session whose code is one call of `ask_llm`.

Journal, replay, budgets, progress and cancelling are therefore those of runs and exist only once.
It is offered where another model than the client's own answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp.types import CallToolResult, InputRequiredResult, ToolAnnotations

from ..config import Config, LlmSettings
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
from .tool_schemas import build_tool

ASK_DESCRIPTION = "Ask another model about data; a JSON schema types the answer."
ASK_EXPRESSION = "__import__('llm').ask_llm"  # code may have assigned to the name `ask_llm`
ERROR_TYPES: Mapping[str, type[McpRuntimeError]] = {
    "BudgetExceeded": BudgetExceeded,
    "LlmAnswerError": InvalidModelResponse,
}
MAX_SCHEMA_DEPTH = 60  # more than the host accepts, less than Python's parser does


class AskToolHandler:
    """Answers calls of `ask_llm`."""

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
        """Return the result of a run with the model's answer as its value.

        Raises `NoModelConfigured`, `BudgetExceeded`, `InvalidModelResponse` or `ModelRequestFailed`
        if there is no answer.
        """
        if ctx.request_state is not None:
            response = await self._runs.receive_input_responses(ctx, ctx.request_state, None)
            return ask_result(response)
        self._check_model_available(ctx)
        code = build_ask_code(prompt, data, schema, model)
        model_timeout_s = self._settings.timeout_s * (self._settings.retries + 1)
        timeout_s = self._default_timeout_s + model_timeout_s
        response = await self._runs.start_run(
            ctx, code, None, timeout_s, None, background=False, dry_run=False
        )
        return ask_result(response)

    def _check_model_available(self, ctx: Context[Any]) -> None:
        if self._settings.effective_broker != "sampling":
            return
        if not sampling.supports_sampling(ctx.client_capabilities):
            raise NoModelConfigured(
                "The model that answers here is the client's own, so it would ask itself.",
                remedy="Answer it yourself, or configure another model with [llm] model.",
            )


def asks_other_model(settings: LlmSettings) -> bool:
    """Return whether the tool is offered: a client that asked its own model would ask itself."""
    return settings.effective_broker in ("litellm", "sampling")


def build_ask_code(
    prompt: str, data: Any, schema: Mapping[str, Any] | None, model: str | None
) -> str:
    """Return the code of the run.

    Raises `InvalidRequest` if `data` is not JSON data or the schema is nested too deeply.
    """
    options: dict[str, Any] = {"schema": schema, "model": model}
    try:
        text = data if data is None or isinstance(data, str) else canonical_json(data)
        canonical_json(schema)
    except ValueError as exc:
        raise InvalidRequest(f"`data` and `schema` must be JSON data. {exc}") from exc
    if schema is not None and exceeds_depth(schema, MAX_SCHEMA_DEPTH):
        raise InvalidRequest("The schema is nested too deeply.", remedy="Ask for less at once.")
    arguments = [repr(prompt)]
    if text is not None:
        arguments.append(repr(text))
    arguments += [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return f"{ASK_EXPRESSION}({', '.join(arguments)})"


def exceeds_depth(value: Any, max_depth: int) -> bool:
    """Return whether JSON data is nested more than `max_depth` levels deep."""
    if max_depth < 0:
        return True
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return any(exceeds_depth(each, max_depth - 1) for each in value)


def ask_result(response: ToolResponse) -> ToolResponse:
    """Return the result of a run as the answer to its question; raises if the run failed."""
    if isinstance(response, InputRequiredResult) or response.structured_content is None:
        return response
    result = RunResult.model_validate({**response.structured_content, "calls": [], "files": []})
    if result.status == "error" and result.error is not None:
        show = f"replay(action='show', session={result.session!r}, run={result.run!r})"
        error_type = ERROR_TYPES.get(result.error.type.rpartition(".")[2], ModelRequestFailed)
        raise error_type(result.error.message, remedy=f"{show} shows the question.")
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

    return build_tool(
        ask_llm,
        ASK_DESCRIPTION,
        ToolAnnotations(title="Ask a model", destructive_hint=False, open_world_hint=True),
        RunResult,
    )
