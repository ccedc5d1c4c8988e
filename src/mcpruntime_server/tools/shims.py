"""Generated Python: one module per upstream, which makes its tools importable functions.

Rule 1: everything that an upstream says is hostile. A value enters a module as its `repr`, a name as a sanitised
identifier, an annotation as checked source text (`schemas.Code`); the template has no other way to print anything.
Rule 2: a module is parsed, and its statements are compared with those expected, before anybody gets to see it.
Rule 3: importing a module defines names and nothing else; it is valid for Python 3.9 and imports the standard
library and `tools` alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp import types

from .names import camel, collisions, identifier, is_name, unique
from .results import is_wrapper
from .schemas import Code, Document, ObjectParts, Record, Types, constraints, shape

if TYPE_CHECKING:
    from jinja2 import Template

MAX_DESCRIPTION = 4_000  # characters of a tool's
MAX_NOTE = 600  # characters of a parameter's
MAX_DEFAULT = 80  # characters; a longer default is not spelled out
MAX_SUMMARY = 160  # characters of the first sentence
MAX_SIGNATURE = 240  # characters in a listing
OWN_NAMES = frozenset({"shim", "Any", "Literal", "NotRequired", "TypedDict", "TYPE_CHECKING", "annotations"})
HEAD = (ast.Expr, ast.ImportFrom, ast.ImportFrom, ast.ImportFrom, ast.If, ast.Assign)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool: `wire` is the tool's own name for it."""

    wire: str
    name: str
    required: bool
    annotation: Code
    default: Any
    takes_null: bool
    note: str

    @property
    def text(self) -> str:
        """The parameter as a signature shows it."""
        return f"{self.name}: {self.annotation}" + ("" if self.required else f" = {self.default!r}")


@dataclass(frozen=True)
class ToolShim:
    """One tool as the template and the catalogue need it; `extra` names `**extra` where the tool takes anything."""

    wire: str
    name: str
    parameters: tuple[Parameter, ...]
    extra: str
    returns: Code
    summary: str
    doc: str

    @property
    def renamed(self) -> dict[str, str]:
        """Python names of parameters that differ from the tool's own."""
        return {parameter.name: parameter.wire for parameter in self.parameters if parameter.name != parameter.wire}

    @property
    def unset(self) -> tuple[str, ...]:
        """Parameters for which None means "left out", because the tool does not take null."""
        return tuple(p.name for p in self.parameters if p.default is None and not p.required and not p.takes_null)

    @property
    def signature(self) -> str:
        """The signature in one line."""
        shown = [parameter.text for parameter in self.parameters] + [f"**{self.extra}: Any"] * bool(self.extra)
        returns = "" if self.returns == "Any" else f" -> {self.returns}"
        text = f"({', '.join(shown)}){returns}"
        return text if len(text) <= MAX_SIGNATURE else f"{text[:MAX_SIGNATURE]} ..."


@dataclass(frozen=True)
class Module:
    """One upstream's module: `problems` says which of its names could not stay as they are."""

    name: str
    doc: str
    tools: tuple[ToolShim, ...]
    records: tuple[Record, ...]
    problems: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The names of all tools."""
        return [tool.name for tool in self.tools]


def describe_module(
    name: str, upstream: str, tools: Sequence[types.Tool], observed: Mapping[str, Any] | None = None
) -> Module:
    """Return what the module `name` for the tools of `upstream` says; `observed` maps tools to schemas of results."""
    names = unique((tool.name for tool in tools), "tool", OWN_NAMES)
    annotations = Types({*names.values(), *OWN_NAMES})
    shown = tuple(describe_tool(tool, names[tool.name], annotations, (observed or {}).get(tool.name)) for tool in tools)
    doc = f"The tools of the MCP server {upstream[:200]!r}. Generated from what it says of itself; not to be edited."
    return Module(name, doc, shown, tuple(annotations.records), tuple(collisions(names, "tool", OWN_NAMES)))


def describe_tool(tool: types.Tool, name: str, annotations: Types, observed: Any) -> ToolShim:
    """Return everything that a shim says of `tool`."""
    document = Document(tool.input_schema)
    parts = document.parts(document.root)
    parameters = describe_parameters(document, parts, camel(name), annotations)
    extra = identifier("extra", "extra", {parameter.name for parameter in parameters}) if parts.open else ""
    result = Document(tool.output_schema)
    schema = as_answered(tool, result)
    returns = annotations.annotation(result, schema, f"{camel(name)}Result") if tool.output_schema else Code("Any")
    text = inspect.cleandoc(clipped(tool.description or tool.title or "", MAX_DESCRIPTION))
    doc = "\n\n".join(filter(None, (text, parameter_docs(parameters), result_doc(tool, schema, observed))))
    return ToolShim(tool.name, name, parameters, extra, returns, first_sentence(text), doc)


def as_answered(tool: types.Tool, document: Document) -> Any:
    """Return the schema of what sandboxed code gets from `tool`: without the wrapper where it has one."""
    return document.root["properties"]["result"] if is_wrapper(tool) else document.root


def describe_parameters(document: Document, parts: ObjectParts, hint: str, annotations: Types) -> tuple[Parameter, ...]:
    """Return the parameters, required ones first."""
    names = unique(parts.properties, "parameter")
    found = [
        describe_parameter(
            document, wire, names[wire], wire in parts.required, schema, f"{hint}{camel(wire)}", annotations
        )
        for wire, schema in parts.properties.items()
    ]
    return tuple(sorted(found, key=lambda parameter: not parameter.required))


def describe_parameter(
    document: Document, wire: str, name: str, required: bool, schema: Any, hint: str, annotations: Types
) -> Parameter:
    """Return one parameter; one that may be left out and has no default of its own gets None."""
    flat = document.flat(schema)
    annotation = annotations.annotation(document, schema, hint)
    takes_null = annotation == "Any" or annotation.endswith("None") or annotation.endswith("None]")
    default = spelled_out(flat.get("default"))
    if not required and default is None and not takes_null:
        annotation = Code(f"{annotation} | None")
    return Parameter(wire, name, required, annotation, default, takes_null, note_on(document, flat))


def spelled_out(default: Any) -> Any:
    """Return a default as it can stand in a signature: itself, or `...` where it is too long or no JSON."""
    try:
        json.dumps(default, allow_nan=False)
    except (ValueError, RecursionError):
        return Code("...")
    return default if len(repr(default)) <= MAX_DEFAULT else Code("...")


def note_on(document: Document, schema: dict[str, Any]) -> str:
    """Return what is to be known of a parameter beyond its type."""
    description = schema.get("description")
    text = clipped(" ".join(description.split()), MAX_NOTE) if isinstance(description, str) else ""
    limits = "; ".join(constraints(schema))
    looks = shape(document, schema)
    pieces = (
        text,
        f"[{limits}]" if limits else "",
        f"Shape: {looks}" if "{" in looks and looks != "{str: Any}" else "",
    )
    return " ".join(filter(None, pieces))


def parameter_docs(parameters: Sequence[Parameter]) -> str:
    """Return the part of a docstring that explains the parameters."""
    if not parameters:
        return ""
    lines = [f"    {p.name}{'*' * p.required} ({p.annotation}){': ' * bool(p.note)}{p.note}" for p in parameters]
    return "\n".join(["Parameters (* = required):", *lines])


def result_doc(tool: types.Tool, schema: Any, observed: Any) -> str:
    """Return the part of a docstring that says what comes back."""
    if tool.output_schema:
        return f"Returns: {shape(Document(tool.output_schema), schema)}"
    if observed is not None:
        return f"Returns (observed, not promised): {shape(Document(observed), observed)}"
    return "Returns: not declared; text, or the data that the text is JSON of."


def first_sentence(text: str) -> str:
    """Return the first sentence of a description, in one line."""
    line = " ".join(text[: MAX_SUMMARY * 4].split())
    end = line.find(". ")
    return clipped(line[: end + 1] if end > 0 else line, MAX_SUMMARY)


def clipped(text: str, limit: int) -> str:
    """Return `text`, cut to `limit` characters and marked if it was."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} ..."


# from description to source -----------------------------------------------------------------------


def literal(value: Any) -> str:
    """Return `value` as Python source: the filter `py`; a text of several lines becomes one literal a line."""
    if type(value) is str and "\n" in value:
        return "\n    ".join(["(", *map(repr, value.splitlines(keepends=True))]) + "\n    )"
    return repr(value)


def name_only(value: str) -> str:
    """Return `value` if it is a name that `names` made: the filter `name`."""
    if not is_name(value):
        raise ValueError(f"{value!r} is not a sanitised name")
    return value


@functools.cache
def template() -> Template:
    """Return the template of a module; Jinja is imported with the first shim, not with the server."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - what is made is Python, where HTML's escapes would be errors
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters = {"py": literal, "name": name_only}
    return environment.get_template("module.py.jinja")


def render(module: Module) -> str:
    """Return the source of `module`; raises `ValueError` if it is not exactly what it should be."""
    source = template().render(module=module)
    tree = ast.parse(source, feature_version=(3, 9))
    compile(tree, f"<{module.name}>", "exec")  # finds what the parser lets pass, such as a parameter given twice
    body = [ast.ClassDef if record.is_plain else ast.Assign for record in module.records]
    expected = [*HEAD, *body, *[ast.FunctionDef] * len(module.tools)]
    if [type(node) for node in tree.body] != expected or ast.get_docstring(tree, clean=False) != module.doc:
        raise ValueError(f"the shim of {module.name} is not made of what it should be")
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for tool, function in zip(module.tools, functions, strict=True):
        if (
            function.name != tool.name
            or len(function.body) != 1
            or ast.get_docstring(function, clean=False) != tool.doc
        ):
            raise ValueError(f"the shim of {module.name}.{tool.name} is not made of what it should be")
    return source


def digest(source: str) -> str:
    """Return the digest by which the journal names a shim."""
    return "sha256:" + hashlib.sha256(source.encode()).hexdigest()
