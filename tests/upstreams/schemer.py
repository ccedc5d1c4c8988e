"""A hand-written MCP server whose schemas, answers and address templates take long to check.

Its first argument says which tools it lists: those of `CALLED` (which are called), or those of
`LISTED` (which are only listed and imported).
"""

from __future__ import annotations

import json
import sys
from typing import Any

Schema = dict[str, Any]


def grow(depth: int, keyword: str) -> Schema:
    """Return a schema with 2 ** depth parts where its references are followed."""
    steps = {f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(depth)}
    return {"$ref": "#/$defs/d0", "$defs": {**steps, f"d{depth}": {"type": "object"}}}


def nest(depth: int, value: Any) -> Any:
    """Return a value inside objects."""
    for _ in range(depth):
        value = {"x": value}
    return value


def chain(length: int) -> Schema:
    """Return a schema whose references form a chain."""
    links = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {}}}


def text(pattern: str) -> Schema:
    """Return a schema of an object with a text that matches a pattern."""
    return {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}}


TWICE = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}
ITEMS = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
LETTERS = {"x": "a" * 24 + "!"}
CALLED: dict[str, tuple[Schema, Any]] = {  # output schema and answer
    "pattern_nested": (text("^(a+)+$"), LETTERS),
    "pattern_overlapping": (text("^(a|a?)+$"), LETTERS),
    "pattern_looking_ahead": (text(r"^(?=(a+)+b)a*!$"), LETTERS),
    "pattern_looking_back": (text(r"^((a+)\2?)+$"), LETTERS),
    "pattern_repeating": (text("((a{1,500}){1,500}){1,500}"), LETTERS),
    "pattern_of_names": (
        {"type": "object", "patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
        {"a" * 24 + "!": 1},
    ),
    "pattern_long_text": (text("(.*)(.*)(.*)(.*)x$"), {"x": "a" * 200_000}),
    "growing_all": (grow(28, "allOf"), {}),
    "growing_any": (grow(28, "anyOf"), {"x": 1}),
    "growing_chain": (chain(5_000), {}),
    "growing_values": ({"type": "object", "properties": {"x": TWICE}}, nest(60, 1)),
    "growing_dynamic": (
        {"$dynamicAnchor": "n", "properties": {"x": {"anyOf": [{"$dynamicRef": "#n"}] * 2}},
         "type": "object"},
        nest(60, 1),
    ),
    "growing_unevaluated": (
        {"properties": {"x": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}},
         "unevaluatedProperties": False},
        nest(18, {}),
    ),
    "referring_to_itself": ({"allOf": [{"$ref": "#"}]}, {}),
    "referring_far": ({"$ref": "http://198.51.100.1/schema.json"}, {}),
    "referring_to_a_file": ({"$ref": "file:///etc/passwd"}, {}),
    "unique_items": (ITEMS, {"x": [{"a": n} for n in range(8_000)]}),
    "many_allowed_values": ({"enum": [{"a": n} for n in range(30_000)]}, {"a": -1}),
    "nested_deeply": (nest(150, {}), {}),
    "many_branches": ({"anyOf": [{"required": [f"f{n}"]} for n in range(4_000)]},
                      {"x": [0] * 20_000}),
    "huge_numbers": ({"properties": {"x": {"multipleOf": 1e-300}}}, {"x": 10**300}),
    "no_answer_of_its_kind": ({"type": "object", "required": ["y"]}, {"x": 1}),
}  # fmt: skip
LISTED: dict[str, Schema] = {  # input schemas
    "wide": {"properties": {f"p{n}": {"enum": ["a", "b"]} for n in range(10_000)}},
    "long": {"properties": {"p": {"description": "x" * 1_500_000}}},
    "deep": nest(150, {}),
    "copied": {
        "$defs": {"big": {f"k{n}": n for n in range(9_000)}},
        "properties": {f"p{n}": {"$ref": "#/$defs/big", "title": "t"} for n in range(2_000)},
    },
    "merged": {
        "$defs": {"big": {"properties": {f"k{n}": {} for n in range(5_000)}}},
        "properties": {
            f"p{n}": {"allOf": [{"$ref": "#/$defs/big"}] * 8} for n in range(500)
        },
    },
    "unions": {"properties": {f"p{n}": grow(9, "anyOf") for n in range(80)}},
}  # fmt: skip
OBJECT = {"type": "object"}
TEMPLATES = [f"a://{'{x}a' * n}b" for n in range(1, 21)]


def list_tools() -> list[dict[str, Any]]:
    """Return the tools of this server."""
    if sys.argv[1] == "listed":
        return [
            {"name": name, "inputSchema": {**OBJECT, **schema}} for name, schema in LISTED.items()
        ]
    return [
        {"name": name, "inputSchema": OBJECT, "outputSchema": {**OBJECT, **schema}}
        for name, (schema, _) in CALLED.items()
    ]


def answer(method: str, params: dict[str, Any]) -> Any:
    """Return the result of a request."""
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}, "resources": {}},
            "serverInfo": {"name": "schemer", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": list_tools()}
    if method == "resources/list":
        return {"resources": []}
    if method == "resources/templates/list":
        named = [{"name": f"t{n}", "uriTemplate": each} for n, each in enumerate(TEMPLATES)]
        return {"resourceTemplates": named}
    if method == "tools/call":
        return {"content": [], "structuredContent": CALLED[params["name"]][1]}
    return None


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        result = answer(request["method"], request.get("params") or {})
        said = (
            {"error": {"code": -32601, "message": "no"}} if result is None else {"result": result}
        )
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **said}), flush=True)


if __name__ == "__main__":
    main()
