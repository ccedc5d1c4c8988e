"""The schemas of an upstream's tools: bounded when they are listed, and compared with answers.

Rule: a schema past its bounds costs types and checks, not the tool. The tool is listed without that
schema, and its description says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mcp_types as types
from pydantic_core import from_json, to_json

from ...protocol.payloads import JsonSchema
from ..schema_checks import PreparedSchema, SchemaChecker, SchemaCheckFailed
from ..schema_cost import SchemaCost, estimate_cost, find_excess, measure_size
from .tool_results import has_result_wrapper

MAX_WIDTH = 10_000  # comparisons that each part of an answer may need
SCHEMAS_PER_SERVER = 20  # all schemas of a server may have so many times the parts of one
MAX_DESCRIPTION_CHARS = 3_000  # of a tool without one of its schemas, before the note
OPEN_SCHEMA = {"type": "object"}


@dataclass(frozen=True, slots=True)
class DeclaredOutput:
    """The output schema of a tool, as JSON text, and what comparing with it costs."""

    text: bytes
    cost: SchemaCost
    is_wrapped: bool  # results are wrapped in an object

    def prepare(self) -> PreparedSchema:
        """Return the schema, ready for comparisons."""
        return PreparedSchema(from_json(self.text), self.cost)


class ToolBounds:
    """Bounds the schemas of one server's tools; a schema may have `max_parts` parts.

    `outputs` are the output schemas within their bounds, by tool.
    """

    def __init__(self, max_parts: int) -> None:
        self.outputs: dict[str, DeclaredOutput] = {}
        self._max_parts = max_parts
        self._remaining_parts = max_parts * SCHEMAS_PER_SERVER

    def bound_tool(self, tool: types.Tool) -> types.Tool:
        """Return a tool without schemas that exceed the bounds."""
        changes: JsonSchema = {}
        notes = []
        if problem := self._find_problem(tool.input_schema):
            changes["input_schema"] = OPEN_SCHEMA
            notes.append(f"Its input schema {problem} and is not used: parameters have no types.")
        if tool.output_schema is not None:
            problem = self._find_problem(tool.output_schema) or self._prepare_output(tool)
            if problem:
                changes["output_schema"] = None
                notes.append(f"Its output schema {problem} and is not used: results are Any.")
        if not notes:
            return tool
        described = (tool.description or "")[:MAX_DESCRIPTION_CHARS]
        description = f"{described} [{' '.join(notes)}]".strip()
        return tool.model_copy(update={**changes, "description": description})

    def _find_problem(self, schema: Mapping[str, Any]) -> str:
        """Return how a schema exceeds the bounds, as a clause; "" if it does not."""
        size = measure_size(schema, self._max_parts)
        if problem := find_excess(size, self._max_parts):
            return problem
        if size.parts > self._remaining_parts:
            limit = self._max_parts * SCHEMAS_PER_SERVER
            return f"brings the schemas of this server to more than {limit:,} parts"
        self._remaining_parts -= size.parts
        return ""

    def _prepare_output(self, tool: types.Tool) -> str:
        """Prepare the comparisons with an output schema; return why there are none, as a clause."""
        schema = tool.output_schema or {}
        cost = estimate_cost(schema, measure_size(schema, self._max_parts).parts)
        if cost.width is not None and cost.width > MAX_WIDTH:
            return f"grows to more than {MAX_WIDTH:,} parts where its references are followed"
        self.outputs[tool.name] = DeclaredOutput(to_json(schema), cost, has_result_wrapper(tool))
        return ""


class OutputChecks:
    """Compares the answers of one upstream with the output schemas of its tools.

    The data of a schema are built when its tool is called first.
    """

    def __init__(self) -> None:
        self._declared: Mapping[str, DeclaredOutput] = {}
        self._prepared: dict[str, PreparedSchema] = {}
        self._checker = SchemaChecker()

    def replace_schemas(self, declared: Mapping[str, DeclaredOutput]) -> None:
        """Compare with these output schemas, by tool, from now on."""
        if declared != self._declared:
            self._declared, self._prepared = declared, {}

    def find_schema(self, tool: str) -> PreparedSchema | None:
        """Return the output schema of a tool, if it has one."""
        declared = self._declared.get(tool)
        if declared is None:
            return None
        if tool not in self._prepared:
            self._prepared[tool] = declared.prepare()
        return self._prepared[tool]

    def has_wrapper(self, tool: str) -> bool:
        """Return whether the results of a tool are wrapped in an object."""
        declared = self._declared.get(tool)
        return declared is not None and declared.is_wrapped

    async def check(self, tool: str, result: types.CallToolResult) -> None:
        """Raise `ValueError` if a result does not follow the tool's output schema."""
        prepared = self.find_schema(tool)
        if prepared is None or result.is_error:
            return
        if "structured_content" not in result.model_fields_set:
            raise ValueError("there is no structured content, although it has an output schema")
        try:
            violation = await self._checker.find_violation(result.structured_content, prepared)
        except SchemaCheckFailed as exc:
            raise ValueError(f"it cannot be compared with its output schema: {exc}") from None
        if violation:
            raise ValueError(f"it does not follow its output schema: {violation}")

    async def close(self) -> None:
        """End what compares."""
        await self._checker.stop()


async def accept_result(name: str, result: types.CallToolResult) -> None:
    """Accept every result, in place of the SDK's own check, which holds up the event loop."""
