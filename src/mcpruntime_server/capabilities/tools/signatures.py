"""What a listing shows of a tool: its signature, and the fields of the records that it names.

Rule 1: every parameter is shown as long as it fits; a required one is never left out.
Rule 2: what is left out is counted, and `help` shows it.
Rule 3: a brief signature is for the description of a tool, next to the server's own words. It has
no text of an upstream but names and short words.
Rule 4: names and types come from `shim_generator`, which has checked them. A field name is quoted
unless it is a plain name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from ..python_parsing import parse_expression
from ..source_text import SourceText
from .schema_annotations import TypedDictSpec
from .shim_generator import ShimModule, ShimParameter, ToolShim

MAX_PARAMETER_CHARS = 1_000  # of all optional parameters; required ones may need more
MAX_LISTED_RECORD_CHARS = 240  # of the records of one tool in a long listing
MAX_RECORD_CHARS = 1_200  # of the records of a tool that is shown in full
MAX_FIELD_NAME_CHARS = 40
MAX_ANNOTATION_CHARS = 80  # of a required parameter, once its signature is too long
PLAIN_TYPES = frozenset({"str", "int", "float", "bool", "list", "dict", "Any", "Literal"})
SHORT_WORD = re.compile(r"[A-Za-z0-9_.:/-]{0,20}")
WORD = re.compile(r"\w+")
USE_PATTERN = r"(?<![\w'\"]){}(?![\w'\"])"  # of a whole name that is not quoted
OPTIONAL_FIELD = re.compile(r"NotRequired\[(.*)\]")


def format_signature(
    module: ShimModule, tool: ToolShim, record_chars: int = MAX_LISTED_RECORD_CHARS
) -> str:
    """Return the signature of `tool` in one line, with `record_chars` of what its parameters take.

    A record that is named once stands in the place of its name, others follow the signature.
    """
    returns = "" if tool.returns == "Any" else f" -> {tool.returns}"
    signature = f"({format_parameters(tool)}){returns}"
    taken = select_records(module, [each.annotation for each in tool.parameters], record_chars)
    returned = select_records(module, [tool.returns], MAX_LISTED_RECORD_CHARS)
    texts = {"": signature, **taken, **returned, **taken}
    for name in {**taken, **returned}:
        uses = [key for key, text in texts.items() for _ in find_uses(name, text)]
        if len(uses) == 1 and uses != [name]:
            body = texts.pop(name)
            texts[uses[0]] = replace_use(name, texts[uses[0]], body)
    signature = texts.pop("")
    named = ", ".join(f"{name} = {body}" for name, body in texts.items())
    return f"{signature} where {named}" if named else signature


def format_brief_signature(server: str, tool: ToolShim) -> str | None:
    """Return a signature like `git.log(path: str, limit=10)`, or None if it needs a record."""
    if not all(map(needs_no_record, tool.parameters)):
        return None
    parameters = ", ".join(map(format_brief_parameter, tool.parameters))
    extra = f"{', ' * bool(parameters)}**{tool.extra_name}" if tool.declares_extra else ""
    return f"{server}.{tool.name}({parameters}{extra})"


def needs_no_record(parameter: ShimParameter) -> bool:
    """Return whether the annotation has only types that Python has."""
    nodes = ast.walk(parse_expression(parameter.annotation))
    return all(node.id in PLAIN_TYPES for node in nodes if isinstance(node, ast.Name))


def format_brief_parameter(parameter: ShimParameter) -> str:
    """Return a parameter with its default, or with its type if there is none."""
    if parameter.default is not None:
        is_short = is_short_word(parameter.default)
        return f"{parameter.name}={repr(parameter.default) if is_short else '...'}"
    nodes = ast.walk(parse_expression(parameter.annotation))
    choices = (node.value for node in nodes if isinstance(node, ast.Constant))
    return parameter.signature_text if all(map(is_short_word, choices)) else parameter.name


def is_short_word(value: object) -> bool:
    """Return whether a value is a number, a flag, None or one short word."""
    if isinstance(value, str):
        return SHORT_WORD.fullmatch(value) is not None and not isinstance(value, SourceText)
    return value is None or isinstance(value, bool | int | float)


def format_parameters(tool: ToolShim) -> str:
    """Return the parameters of `tool`; optional ones that do not fit are counted."""
    required = [each for each in tool.parameters if each.is_required]
    optional = [each for each in tool.parameters if not each.is_required]
    shown = [each.signature_text for each in required]
    if sum(map(len, shown)) > MAX_PARAMETER_CHARS:
        shown = list(map(format_short_parameter, required))
    room = MAX_PARAMETER_CHARS - sum(map(len, shown))
    texts = [each.signature_text for each in optional]
    count = count_fitting(texts, room)
    shown += texts[:count]
    if count < len(texts):
        shown.append(f"... {len(texts) - count} more optional")
    if tool.declares_extra:
        shown.append(f"**{tool.extra_name}: Any")
    return ", ".join(shown)


def format_short_parameter(parameter: ShimParameter) -> str:
    """Return a required parameter without an annotation that is long."""
    is_short = len(parameter.annotation) <= MAX_ANNOTATION_CHARS
    return parameter.signature_text if is_short else parameter.name


def select_records(module: ShimModule, annotations: Iterable[str], room: int) -> dict[str, str]:
    """Return the fields of the records that `annotations` name, then of those that they name.

    A record is left out if none of its fields fits into `room`.
    """
    known = {record.name: record for record in module.typed_dicts}
    waiting = [name for text in annotations for name in find_record_names(text, known)]
    found: dict[str, str] = {}
    for name in waiting:  # grows while it is read
        if name in found:
            continue
        fields = select_fields(known[name], room)
        if not fields:
            continue
        found[name] = f"{{{', '.join(format_field(*field) for field in fields)}"
        left_out = len(known[name].fields) - len(fields)
        found[name] += f", ... {left_out} more}}" if left_out else "}"
        room -= len(found[name])
        waiting += [each for _, text in fields for each in find_record_names(text, known)]
    return found


def select_fields(record: TypedDictSpec, room: int) -> Sequence[tuple[str, str]]:
    """Return the fields that fit into `room` characters, required ones first."""
    fields = sorted(record.fields.items(), key=lambda field: is_optional_field(field[1]))
    return fields[: count_fitting([format_field(*field) for field in fields], room)]


def find_record_names(annotation: str, known: Mapping[str, TypedDictSpec]) -> list[str]:
    """Return the names of `known` records in `annotation`, in their order."""
    if known.keys().isdisjoint(WORD.findall(annotation)):
        return []
    nodes = ast.walk(parse_expression(annotation))
    names = dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name))
    return [name for name in names if name in known]


def find_uses(name: str, text: str) -> list[str]:
    """Return the places where `text` names a record."""
    return re.findall(USE_PATTERN.format(name), text)


def replace_use(name: str, text: str, body: str) -> str:
    """Return `text` with `body` in place of the name of a record."""
    return re.sub(USE_PATTERN.format(name), lambda _: body, text)


def is_optional_field(annotation: str) -> bool:
    """Return whether a field may be left out."""
    return OPTIONAL_FIELD.fullmatch(annotation) is not None


def format_field(name: str, annotation: str) -> str:
    """Return one field of a record; `?` marks an optional one."""
    optional = OPTIONAL_FIELD.fullmatch(annotation)
    shown = name if name.isidentifier() and name.isascii() else json.dumps(name)
    if len(shown) > MAX_FIELD_NAME_CHARS:
        shown = f"{shown[:MAX_FIELD_NAME_CHARS]}..."
    return f"{shown}?: {optional[1]}" if optional else f"{shown}: {annotation}"


def count_fitting(texts: Sequence[str], room: int) -> int:
    """Return how many of `texts`, joined by commas, fit into `room` characters."""
    for count, text in enumerate(texts):
        room -= len(text) + 2
        if room < 0:
            return count
    return len(texts)
