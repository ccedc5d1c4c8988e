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
from ..errors import BadAnswer, BudgetExceeded, InvalidRequest, LlmFailed, McpRuntimeError, NoModel
from ..journal.events import canonical_json
from . import sampling
from .results import RunResult, answer_of, refusal
from .runs import Answer, Runs
from .schemas import compact

ASK = "Ask another model about data; a JSON schema types the answer."
CALL = "__import__('llm').ask_llm"  # whatever code has made of the name since
ERRORS: Mapping[str, type[McpRuntimeError]] = {"BudgetExceeded": BudgetExceeded, "LlmAnswerError": BadAnswer}
MAX_DEPTH = 60  # of a schema: more than the host takes, and less than what Python's parser does


class Asking:
    """Carries out the tool."""

    def __init__(self, config: Config, runs: Runs) -> None:
        self._settings = config.llm
        self._usual_s = config.sandbox.timeout_s
        self._runs = runs

    async def ask(
        self, ctx: Context[Any], prompt: str, data: Any, schema: Mapping[str, Any] | None, model: str | None
    ) -> Answer:
        """Ask, and return the result of the run with the answer as its value; raises why there is none."""
        if ctx.request_state is not None:
            return told(await self._runs.answer_form(ctx, ctx.request_state, None))
        self._check_somebody_answers(ctx)
        code = code_of(prompt, data, schema, model)
        patience_s = self._settings.timeout_s * (self._settings.retries + 1)
        timeout_s = self._usual_s + patience_s
        return told(await self._runs.start(ctx, code, None, timeout_s, None, background=False, dry_run=False))

    def _check_somebody_answers(self, ctx: Context[Any]) -> None:
        by = self._settings.answered_by
        if by == "nobody":
            raise NoModel
        if by == "caller" or (by == "sampling" and not sampling.is_offered(ctx.client_capabilities)):
            raise NoModel(
                "The model that answers here is the client's own, and would ask itself.",
                remedy="Answer it yourself; or a person sets [llm] model, for another model to answer.",
            )


def code_of(prompt: str, data: Any, schema: Mapping[str, Any] | None, model: str | None) -> str:
    """Return the code that asks; raises `InvalidRequest` for what is no JSON data, or no schema for its depth."""
    options: dict[str, Any] = {"schema": schema, "model": model}
    try:
        text = data if data is None or isinstance(data, str) else canonical_json(data)
        canonical_json(schema)
    except ValueError as exc:
        raise InvalidRequest(f"`data` and `schema` are JSON data. {exc}") from exc
    if schema is not None and is_deeper(schema, MAX_DEPTH):
        raise InvalidRequest("The schema is nested too deeply.", remedy="Ask for less at once.")
    given = [repr(prompt), *([repr(text)] if text is not None else [])]
    given += [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return f"{CALL}({', '.join(given)})"


def is_deeper(value: Any, depth: int) -> bool:
    """Return whether JSON data is nested more than `depth` deep."""
    if depth < 0:
        return True
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(is_deeper(each, depth - 1) for each in inner)


def told(answer: Answer) -> Answer:
    """Return what became of a run as what became of its question; raises why that has no answer."""
    if isinstance(answer, InputRequiredResult) or answer.structured_content is None:
        return answer
    result = RunResult.model_validate({**answer.structured_content, "calls": [], "files": []})
    if result.status == "error" and result.error is not None:
        again = f"replay(action='show', session={result.session!r}, run={result.run!r}) shows the question."
        kind = ERRORS.get(result.error.type.rpartition(".")[2], LlmFailed)
        raise kind(result.error.message, remedy=again)
    return answer_of(result)


def ask_tool(questions: Asking) -> Tool:
    """Return the tool `ask_llm`."""

    async def ask_llm(
        ctx: Context[Any],
        prompt: str,
        data: Any = None,
        schema: dict[str, Any] | None = None,
        model: str | None = None,
    ) -> CallToolResult | InputRequiredResult:
        try:
            return await questions.ask(ctx, prompt, data, schema, model)
        except McpRuntimeError as exc:
            return refusal(exc)

    tool = Tool.from_function(
        ask_llm,
        description=ASK,
        annotations=ToolAnnotations(title="Ask a model", destructive_hint=False, open_world_hint=True),
    )
    tool.parameters = compact(tool.parameters)
    tool.fn_metadata.output_schema = compact(RunResult.model_json_schema(), nested=False)
    return tool
