"""One tool as the catalogue knows it: how calls of it are checked, listed and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NoReturn

import mcp_types as types

from ...errors import CallFailed
from ...journal.events import Effect, canonical_json
from ...protocol.payloads import ToolDescription
from ...protocol.suggestions import did_you_mean, find_misspelled
from .schema_annotations import SchemaDocument
from .shim_generator import ShimModule, ToolShim
from .signatures import MAX_RECORD_CHARS, format_signature
from .tool_index import MAX_INDEXED_CHARS, ToolRow

EFFECT_HINTS = ("read_only_hint", "destructive_hint", "idempotent_hint")


@dataclass(frozen=True, slots=True)
class CatalogTool:
    """One tool, ready to be called, listed and found, without what only its module needs.

    `parameters` and `required` hold the upstream's own names.
    """

    upstream_name: str
    name: str
    function_name: str
    signature: str  # as listings show it
    full_signature: str  # with more fields of records; "" if there are no more
    summary: str
    description: str  # for searches, as the next two are
    parameter_words: str
    parameter_notes: str
    parameters: tuple[str, ...]  # required ones first
    required: frozenset[str]
    accepts_extra: bool
    effect: Effect
    is_destructive: bool  # as the tool declares
    declares_effect: bool  # the effect is known: from annotations, or from the settings
    is_closed_world: bool  # as the tool declares: its answers contain no third-party text
    learns_results: bool  # the tool declares no output schema, so results are observed
    schema_digest: str  # of the input and output schemas

    def check_arguments(self, server: str, arguments: Mapping[str, Any]) -> None:
        """Raise `CallFailed` if a required argument is missing or an argument is unknown."""
        names = self.parameters
        for name in arguments:
            if name in names:
                continue
            if self.accepts_extra and not find_misspelled(name, names, arguments):
                continue
            hint = did_you_mean(name, names)
            problem = f"has no parameter {name[:80]!r}. {hint}"
            self._raise_invalid_arguments(server, problem.strip())
        missing = sorted(self.required.difference(arguments))
        if missing:
            self._raise_invalid_arguments(server, f"needs {', '.join(map(repr, missing))}.")

    def _raise_invalid_arguments(self, server: str, problem: str) -> NoReturn:
        listed = ", ".join(name + "*" * (name in self.required) for name in self.parameters)
        listing = f"Parameters: {listed} (* = required)." if listed else "It takes no parameters."
        raise CallFailed("invalid_arguments", f"{server}.{self.name} {problem} {listing}")


def build_catalog_tool(tool: types.Tool, shim: ToolShim, module: ShimModule) -> CatalogTool:
    """Return `tool` with everything that is needed to check, list and find it."""
    parts = SchemaDocument(tool.input_schema).object_schema(tool.input_schema)
    hints = tool.annotations or types.ToolAnnotations()
    schemas = canonical_json([tool.input_schema, tool.output_schema])
    signature = format_signature(module, shim)
    full_signature = format_signature(module, shim, MAX_RECORD_CHARS)
    return CatalogTool(
        upstream_name=tool.name,
        name=shim.name,
        function_name=shim.function_name,
        signature=signature,
        full_signature=full_signature if full_signature != signature else "",
        summary=shim.summary,
        description=shim.description.removeprefix(shim.summary)[:MAX_INDEXED_CHARS],
        parameter_words=" ".join(each.name for each in shim.parameters)[:MAX_INDEXED_CHARS],
        parameter_notes=" ".join(each.note for each in shim.parameters)[:MAX_INDEXED_CHARS],
        parameters=tuple(each.upstream_name for each in shim.parameters),
        required=parts.required,
        accepts_extra=parts.accepts_extra,
        effect=declared_effect(tool),
        is_destructive=hints.destructive_hint is True and not hints.read_only_hint,
        declares_effect=any(getattr(hints, name) is not None for name in EFFECT_HINTS),
        is_closed_world=hints.open_world_hint is False,
        learns_results=not tool.output_schema,
        schema_digest=sha256(schemas.encode()).hexdigest(),
    )


def declared_effect(tool: types.Tool) -> Effect:
    """Return the effect that `tool` declares; a tool without annotations may write."""
    hints = tool.annotations
    if hints and hints.read_only_hint:
        return "read"
    return "idempotent" if hints and hints.idempotent_hint else "write"


def listing_entry(server: str, tool: CatalogTool, *, in_full: bool = False) -> ToolDescription:
    """Return one tool as an entry of a listing."""
    summary = tool.summary
    if tool.function_name != tool.name:
        summary = f"import {tool.function_name}: {summary}"
    return {
        "server": server,
        "tool": tool.name,
        "signature": (in_full and tool.full_signature) or tool.signature,
        "summary": summary,
        "effect": tool.effect,
    }


def index_row(server: str, tool: CatalogTool) -> ToolRow:
    """Return one tool as a row of the search index."""
    return ToolRow(
        server,
        tool.name,
        tool.summary,
        tool.description,
        tool.parameter_words,
        tool.parameter_notes,
    )
