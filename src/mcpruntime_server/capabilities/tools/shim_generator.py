"""Generates one Python module per upstream, which makes its tools importable functions.

Rule 1: everything that an upstream sends is hostile. A value enters a module as its `repr`, a name
as a sanitised identifier, an annotation as checked `SourceText`. The template cannot print
anything else.
Rule 2: a generated module is parsed, and its statements are compared with the expected ones,
before it is used.
Rule 3: importing a module only defines names. It is valid for Python 3.9 and imports only the
standard library and `tools`.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mcp_types as types

from ...protocol.payloads import JsonSchema
from ..python_parsing import parse_module
from ..source_text import SourceText
from .argument_choices import ChoiceFinder, Choices
from .python_names import (
    assign_names,
    describe_collisions,
    is_public_name,
    to_class_name,
    to_identifier,
)
from .schema_annotations import (
    AnnotationBuilder,
    ObjectSchema,
    SchemaDocument,
    TypedDictSpec,
    describe_constraints,
    describe_shape,
)
from .tool_results import has_result_wrapper

MAX_DESCRIPTION_CHARS = 4_000  # of a tool
MAX_NOTE_CHARS = 600  # of a parameter
MAX_NOTES_CHARS = 1_000_000  # of all parameters and results of a server; of others, nothing is said
MAX_DEFAULT_CHARS = 80  # a longer default is shown as `...`
MAX_SUMMARY_CHARS = 160  # of the first sentence
RESERVED_NAMES = frozenset(
    {"shim", "Any", "Literal", "NotRequired", "TypedDict", "TYPE_CHECKING", "annotations"}
)
UNDECLARED_RESULT = """\
Returns: not declared. A text is a str; a text that is a JSON object or array as a whole is parsed
into a dict or list, other JSON ("5", "true") stays text. Several texts are a list, none is None."""
MODULE_HEADER = (ast.Expr, ast.ImportFrom, ast.ImportFrom, ast.ImportFrom, ast.If, ast.Assign)


@dataclass(frozen=True)
class ShimParameter:
    """One parameter of a tool, under its own name and its Python name."""

    upstream_name: str
    name: str
    is_required: bool
    annotation: SourceText
    default: Any
    takes_null: bool
    choices: Choices  # what is allowed; () if that is not known
    note: str

    @property
    def signature_text(self) -> str:
        """The parameter as a signature shows it."""
        default = "" if self.is_required else f" = {self.default!r}"
        return f"{self.name}: {self.annotation}{default}"


@dataclass(frozen=True)
class ToolShim:
    """One tool as the template and the catalogue need it.

    `extra_name` is the name of `**extra` if the tool accepts other parameters, else "". Most tools
    do so only because their schemas do not forbid it. With `declares_extra`, a schema says what
    else it accepts, or names no parameter at all.
    """

    upstream_name: str
    name: str
    function_name: str  # `name`, unless that would hide a builtin of Python
    parameters: tuple[ShimParameter, ...]
    extra_name: str
    declares_extra: bool
    extra_choices: Choices
    returns: SourceText
    summary: str
    description: str
    doc: str

    @property
    def renamed_parameters(self) -> dict[str, str]:
        """The tool's own parameter names, by the Python names that differ from them."""
        return {
            parameter.name: parameter.upstream_name
            for parameter in self.parameters
            if parameter.name != parameter.upstream_name
        }

    @property
    def choices(self) -> dict[str, Choices]:
        """What parameters accept, by Python name, where it is known; `**` is for all others."""
        known = {each.name: each.choices for each in self.parameters if each.choices}
        return {**known, "**": self.extra_choices} if self.extra_choices else known

    @property
    def omitted_parameters(self) -> tuple[str, ...]:
        """Parameters that are not sent if they are None, because the tool does not accept null."""
        return tuple(
            p.name
            for p in self.parameters
            if p.default is None and not p.is_required and not p.takes_null
        )


@dataclass(frozen=True)
class ShimModule:
    """One upstream's module; `problems` lists the tool names that had to change."""

    name: str
    doc: str
    tools: tuple[ToolShim, ...]
    typed_dicts: tuple[TypedDictSpec, ...]
    problems: tuple[str, ...]

    @property
    def function_names(self) -> list[str]:
        """The names under which the tools are imported."""
        return [tool.function_name for tool in self.tools]


def describe_module(
    name: str, upstream: str, tools: Sequence[types.Tool], observed: Mapping[str, Any] | None = None
) -> ShimModule:
    """Return the content of the module `name` for the tools of `upstream`.

    `observed` maps tools to the shapes of their results.
    """
    names = assign_names((tool.name for tool in tools), "tool", RESERVED_NAMES)
    functions = assign_function_names(names.values())
    annotations = AnnotationBuilder({*names.values(), *functions.values(), *RESERVED_NAMES})
    choices, notes = ChoiceFinder(), NoteWriter()
    shown = tuple(
        describe_tool(
            tool,
            names[tool.name],
            functions[names[tool.name]],
            annotations,
            choices,
            notes,
            (observed or {}).get(tool.name),
        )
        for tool in tools
    )
    doc = (
        f"The tools of the MCP server {upstream[:200]!r}. "
        "Generated from the server's own descriptions; do not edit."
    )
    return ShimModule(
        name,
        doc,
        shown,
        tuple(annotations.typed_dicts),
        tuple(describe_collisions(names, "tool", RESERVED_NAMES)),
    )


def assign_function_names(names: Collection[str]) -> dict[str, str]:
    """Return the name of the function of each tool; none is that of a builtin of Python."""
    used = set(names)
    functions = {}
    for name in names:
        function = name
        while hasattr(builtins, name) and function in used:
            function += "_"
        used.add(function)
        functions[name] = function
    return functions


def describe_tool(
    tool: types.Tool,
    name: str,
    function_name: str,
    annotations: AnnotationBuilder,
    choices: ChoiceFinder,
    notes: NoteWriter,
    observed: Any,
) -> ToolShim:
    """Return the content of the shim of `tool`."""
    document = SchemaDocument(tool.input_schema)
    parts = document.object_schema(document.root)
    parameters = build_parameters(document, parts, to_class_name(name), annotations, choices, notes)
    extra = ""
    if parts.accepts_extra:
        extra = to_identifier("extra", "extra", {parameter.name for parameter in parameters})
    result = SchemaDocument(tool.output_schema)
    schema = unwrapped_schema(tool, result)
    returns = SourceText("Any")
    if tool.output_schema:
        returns = annotations.annotate(result, schema, f"{to_class_name(name)}Result")
    text = inspect.cleandoc(cut_end(tool.description or tool.title or "", MAX_DESCRIPTION_CHARS))
    doc = "\n\n".join(
        filter(
            None,
            (
                text,
                format_parameter_section(parameters),
                notes.describe_result(tool, schema, observed),
            ),
        )
    )
    summary = first_sentence(text)
    flat = document.flatten(document.root)
    declares_extra = bool(extra) and ("additionalProperties" in flat or "properties" not in flat)
    return ToolShim(
        tool.name,
        name,
        function_name,
        parameters,
        extra,
        declares_extra,
        choices.find_extra_choices(document) if extra else (),
        returns,
        summary,
        text,
        doc,
    )


def unwrapped_schema(tool: types.Tool, document: SchemaDocument) -> Any:
    """Return the schema of what sandboxed code gets from `tool`, without a result wrapper."""
    return document.root["properties"]["result"] if has_result_wrapper(tool) else document.root


def build_parameters(
    document: SchemaDocument,
    parts: ObjectSchema,
    hint: str,
    annotations: AnnotationBuilder,
    choices: ChoiceFinder,
    notes: NoteWriter,
) -> tuple[ShimParameter, ...]:
    """Return the parameters, required ones first."""
    names = assign_names(parts.properties, "parameter")
    found = [
        describe_parameter(
            document,
            wire,
            names[wire],
            wire in parts.required,
            schema,
            f"{hint}{to_class_name(wire)}",
            annotations,
            choices,
            notes,
        )
        for wire, schema in parts.properties.items()
    ]
    return tuple(sorted(found, key=lambda parameter: not parameter.is_required))


def describe_parameter(
    document: SchemaDocument,
    wire: str,
    name: str,
    required: bool,
    schema: Any,
    hint: str,
    annotations: AnnotationBuilder,
    choices: ChoiceFinder,
    notes: NoteWriter,
) -> ShimParameter:
    """Return one parameter; an optional one without a default gets None."""
    flat = document.flatten(schema)
    annotation = annotations.annotate(document, schema, hint)
    takes_null = annotation == "Any" or annotation.endswith("None") or annotation.endswith("None]")
    default = signature_default(flat.get("default"))
    if not required and default is None and not takes_null:
        annotation = SourceText(f"{annotation} | None")
    return ShimParameter(
        wire,
        name,
        required,
        annotation,
        default,
        takes_null,
        choices.find_choices(document, schema),
        notes.describe_parameter(document, flat),
    )


class NoteWriter:
    """Writes what docstrings say about the schemas of one server.

    References make much text of little, so there is a bound for all tools.
    """

    def __init__(self) -> None:
        self._remaining_chars = MAX_NOTES_CHARS

    def describe_parameter(self, document: SchemaDocument, schema: JsonSchema) -> str:
        """Return description, constraints and shape of a parameter, as far as it has them."""
        if self._remaining_chars <= 0:
            return ""
        parts = []
        description = schema.get("description")
        if isinstance(description, str) and description.strip():
            parts.append(cut_end(" ".join(description.split()), MAX_NOTE_CHARS))
        if constraints := "; ".join(describe_constraints(schema)):
            parts.append(f"[{constraints}]")
        shape = describe_shape(document, schema)
        if "{" in shape and shape != "{str: Any}":
            parts.append(f"Shape: {shape}")
        return self._count(" ".join(parts))

    def describe_result(self, tool: types.Tool, schema: Any, observed: Any) -> str:
        """Return the section of a docstring that describes the result."""
        if self._remaining_chars <= 0:
            return ""
        if tool.output_schema:
            shape = describe_shape(SchemaDocument(tool.output_schema), schema)
            return self._count(f"Returns: {shape}")
        if observed is not None:
            shape = describe_shape(SchemaDocument(observed), observed)
            return self._count(f"Returns (observed, not promised): {shape}")
        return UNDECLARED_RESULT

    def _count(self, text: str) -> str:
        self._remaining_chars -= len(text)
        return text


def signature_default(default: Any) -> Any:
    """Return `default` for a signature, or `...` if it is too long or not JSON."""
    try:
        json.dumps(default, allow_nan=False)
    except (ValueError, RecursionError):
        return SourceText("...")
    return default if len(repr(default)) <= MAX_DEFAULT_CHARS else SourceText("...")


def format_parameter_section(parameters: Sequence[ShimParameter]) -> str:
    """Return the section of a docstring that describes the parameters."""
    if not parameters:
        return ""
    lines = [
        f"    {p.name}{'*' * p.is_required} ({p.annotation}){': ' * bool(p.note)}{p.note}"
        for p in parameters
    ]
    return "\n".join(["Parameters (* = required):", *lines])


def first_sentence(text: str) -> str:
    """Return the first sentence of a description, in one line."""
    line = " ".join(text[: MAX_SUMMARY_CHARS * 4].split())
    end = line.find(". ")
    return cut_end(line[: end + 1] if end > 0 else line, MAX_SUMMARY_CHARS)


def cut_end(text: str, limit: int) -> str:
    """Return `text`, cut to `limit` characters and marked if it is longer."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} ..."


# from description to source -----------------------------------------------------------------------


def python_literal(value: Any) -> str:
    """Return `value` as Python source, one literal per line of text; the filter `py`."""
    if type(value) is str and "\n" in value:
        return "\n    ".join(["(", *map(repr, value.splitlines(keepends=True))]) + "\n    )"
    return repr(value)


def checked_name(value: str) -> str:
    """Return `value` if it is a sanitised name; the filter `name`."""
    if not is_public_name(value):
        raise ValueError(f"{value!r} is not a sanitised name")
    return value


@functools.cache
def load_module_template() -> Any:
    """Return the macros of the parts of a module; only the first shim imports Jinja."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - HTML escapes would be errors in Python source
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters = {"py": python_literal, "name": checked_name}
    return environment.get_template("module.py.jinja").module


def render_shim(module: ShimModule) -> str:
    """Return the source of `module`; raises `ValueError` if it has unexpected statements.

    Each part is checked by itself: the parser holds the interpreter's lock, and takes a second for
    the module of an upstream with many tools.
    """
    template = load_module_template()
    header = str(template.header(module))
    nodes = parse_part(module.name, header)
    if [type(node) for node in nodes] != list(MODULE_HEADER) or get_doc(nodes) != module.doc:
        raise ValueError(f"the shim of {module.name} has unexpected statements")
    parts = [header]
    for record in module.typed_dicts:
        parts.append(str(template.record(record)))
        expected = ast.ClassDef if record.fits_class_body else ast.Assign
        if [type(node) for node in parse_part(module.name, parts[-1])] != [expected]:
            raise ValueError(f"the shim of {module.name} has unexpected statements")
    for tool in module.tools:
        parts.append(str(template.function(module, tool)))
        if not is_function(parse_part(module.name, parts[-1]), tool):
            raise ValueError(f"the shim of {module.name}.{tool.name} has unexpected statements")
    return "\n\n".join(parts)


def parse_part(module: str, source: str) -> list[ast.stmt]:
    """Return the statements of a part of a module; raises `ValueError` for invalid ones."""
    tree = parse_module(source, feature_version=(3, 9))
    # The compiler finds errors that the parser accepts, such as a duplicate parameter.
    compile(tree, f"<{module}>", "exec")
    return tree.body


def is_function(nodes: Sequence[ast.stmt], tool: ToolShim) -> bool:
    """Return whether statements are only the function of `tool`, which has its docstring."""
    match nodes:
        case [ast.FunctionDef(name=name, body=[ast.Expr()] as body)]:
            return name == tool.function_name and get_doc(body) == tool.doc
    return False


def get_doc(nodes: Sequence[ast.stmt]) -> str | None:
    """Return the docstring at the beginning of statements."""
    match nodes:
        case [ast.Expr(value=ast.Constant(value=str() as doc)), *_]:
            return doc
    return None


def source_digest(source: str) -> str:
    """Return the digest by which the journal names a shim."""
    return "sha256:" + hashlib.sha256(source.encode()).hexdigest()
