"""One tool as the catalogue knows it: how calls of it are checked, listed and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NoReturn

from mcp import types

from ...errors import CallFailed
from ...journal.events import Effect, canonical_json
from ...protocol.payloads import ToolDescription
from ...protocol.suggestions import did_you_mean, find_misspelled
from .schema_annotations import SchemaDocument
from .shim_generator import ToolShim
from .tool_index import ToolRow

EFFECT_HINTS = ("read_only_hint", "destructive_hint", "idempotent_hint")


@dataclass(frozen=True)
class CatalogTool:
    """One tool, ready to be called; `parameters` and `required` hold the upstream's own names."""

    upstream_name: str
    shim: ToolShim
    signature: str  # as listings show it
    parameters: frozenset[str]
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
        names = [parameter.upstream_name for parameter in self.shim.parameters]
        for name in arguments:
            if name in self.parameters:
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
        listed = ", ".join(p.upstream_name + "*" * p.is_required for p in self.shim.parameters)
        listing = f"Parameters: {listed} (* = required)." if listed else "It takes no parameters."
        raise CallFailed("invalid_arguments", f"{server}.{self.shim.name} {problem} {listing}")


def build_catalog_tool(
    tool: types.Tool, shim: ToolShim, signature: str, *, only_reads: bool = False
) -> CatalogTool:
    """Return `tool` with everything that is needed to check a call.

    With `only_reads`, the user has declared that it changes nothing.
    """
    parts = SchemaDocument(tool.input_schema).object_schema(tool.input_schema)
    hints = tool.annotations or types.ToolAnnotations()
    schemas = canonical_json([tool.input_schema, tool.output_schema])
    return CatalogTool(
        upstream_name=tool.name,
        shim=shim,
        signature=signature,
        parameters=frozenset(parts.properties),
        required=parts.required,
        accepts_extra=parts.accepts_extra,
        effect="read" if only_reads else declared_effect(tool),
        is_destructive=hints.destructive_hint is True and not hints.read_only_hint,
        declares_effect=only_reads
        or any(getattr(hints, name) is not None for name in EFFECT_HINTS),
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


def listing_entry(server: str, tool: CatalogTool) -> ToolDescription:
    """Return one tool as an entry of a listing."""
    shim = tool.shim
    summary = shim.summary
    if shim.function_name != shim.name:
        summary = f"import {shim.function_name}: {summary}"
    return {
        "server": server,
        "tool": shim.name,
        "signature": tool.signature,
        "summary": summary,
        "effect": tool.effect,
    }


def index_row(server: str, shim: ToolShim) -> ToolRow:
    """Return one tool as a row of the search index."""
    return ToolRow(
        server,
        shim.name,
        shim.summary,
        shim.description.removeprefix(shim.summary),
        " ".join(parameter.name for parameter in shim.parameters),
        " ".join(parameter.note for parameter in shim.parameters),
    )
