"""What a listing shows of a tool: enough to call it, in one line, whatever its schema is."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from mcp import types

from mcpruntime_server.capabilities.tools.shim_generator import describe_module
from mcpruntime_server.capabilities.tools.signatures import (
    MAX_PARAMETER_CHARS,
    MAX_RECORD_CHARS,
    format_signature,
)

TEXT = {"type": "string"}
LINK = {"type": "object", "properties": {"to": TEXT, "tip": TEXT}, "required": ["to"]}
SCHEMAS = st.recursive(
    st.sampled_from([TEXT, {"type": "integer"}, {}, {"enum": ["a", "Link", 'x"y']}, LINK]),
    lambda inner: st.one_of(
        inner.map(lambda schema: {"type": "array", "items": schema}),
        st.dictionaries(st.text(max_size=6), inner, max_size=4).map(
            lambda properties: {"type": "object", "properties": properties}
        ),
    ),
    max_leaves=8,
)


def signature(
    properties: dict[str, Any], *required: str, chars: int = 240, defs: Any = None
) -> str:
    schema = {
        "type": "object",
        "properties": properties,
        "required": [*required],
        "additionalProperties": False,
        "$defs": defs or {},
    }
    module = describe_module("m", "m", [types.Tool(name="call", input_schema=schema)])
    return format_signature(module, module.tools[0], chars)


def test_a_record_that_is_named_once_stands_in_its_place() -> None:
    links = {"type": "array", "items": LINK}
    shown = signature({"links": links, "name": TEXT}, "links")
    assert shown == "(links: list[{to: str, tip?: str}], name: str | None = None)"


def test_a_record_that_is_named_twice_follows_the_signature() -> None:
    both = {"first": {"$ref": "#/$defs/Link"}, "second": {"$ref": "#/$defs/Link"}}
    shown = signature(both, "first", "second", defs={"Link": LINK})
    assert shown == "(first: Link, second: Link) where Link = {to: str, tip?: str}"


def test_a_record_that_contains_itself_is_shown_once() -> None:
    tree = {"type": "object", "properties": {"name": TEXT, "child": {"$ref": "#/$defs/Tree"}}}
    shown = signature({"tree": {"$ref": "#/$defs/Tree"}}, "tree", defs={"Tree": tree})
    assert shown == "(tree: Tree) where Tree = {name?: str, child?: Tree}"


def test_required_fields_come_first_and_what_is_left_out_is_counted() -> None:
    fields = {f"field{number}": TEXT for number in range(20)}
    record = {"type": "object", "properties": fields, "required": ["field19"]}
    shown = signature({"record": record}, "record", chars=60)
    assert shown.startswith("(record: {field19: str, field0?: str, ")
    assert shown.endswith(" more})")
    assert "Record" in signature({"record": record}, "record", chars=5)


def test_a_choice_that_is_called_like_a_record_is_left_alone() -> None:
    shown = signature({"link": LINK, "kind": {"enum": ["CallLink", "CallKind"]}}, "link", "kind")
    assert shown == "(link: {to: str, tip?: str}, kind: Literal['CallLink', 'CallKind'])"


def test_every_required_parameter_is_shown_however_many_there_are() -> None:
    choice = {"enum": [f"choice{number}" for number in range(30)]}
    names = [f"parameter{number}" for number in range(60)]
    properties = {**dict.fromkeys(names, choice), **{f"other{n}": TEXT for n in range(30)}}
    shown = signature(properties, *names)
    assert all(name in shown for name in names)
    assert " more optional)" in shown
    assert len(shown) < 2 * MAX_PARAMETER_CHARS


@given(st.dictionaries(st.text(max_size=6), SCHEMAS, max_size=5), st.integers(0, 400))
def test_any_schema_gives_one_line_of_bounded_length(schemas: dict[str, Any], chars: int) -> None:
    shown = signature(schemas, *schemas, chars=chars)
    assert shown.isprintable() or not all(map(str.isprintable, schemas))
    assert len(shown) < MAX_PARAMETER_CHARS + 4 * MAX_RECORD_CHARS
