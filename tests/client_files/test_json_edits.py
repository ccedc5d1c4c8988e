"""Changes of JSON with comments, on random documents: nothing else of the text is touched."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from mcpruntime_server.client_files.json_edits import remove_members, set_member
from mcpruntime_server.client_files.jsonc_syntax import parse_jsonc

WHERE = "x.json"
COMMAS = st.sampled_from(["", ","])
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
SPACES = st.sampled_from(
    ["", " ", "\n", "\n  ", "\t", "\r\n", " // note {}\n", "/* , */", "\n\n\t", " /* \n */ "]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | NAMES
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return a document in an unusual layout, and its content."""
    content = draw(st.dictionaries(NAMES, VALUES, max_size=3))
    if draw(st.booleans()):
        content["servers"] = draw(st.dictionaries(NAMES, VALUES, max_size=3))
    return f"{draw(SPACES)}{write(draw, content)}{draw(SPACES)}", content


def write(draw: st.DrawFn, value: Any) -> str:
    """Return a value as text with random spaces, comments and trailing commas."""

    def space() -> str:
        return draw(SPACES)

    if isinstance(value, dict):
        items = [
            f"{space()}{json.dumps(name)}{space()}:{space()}{write(draw, item)}{space()}"
            for name, item in value.items()
        ]
        end = draw(COMMAS) if items else ""
        return f"{{{','.join(items)}{end}{space()}}}"
    if isinstance(value, list):
        items = [f"{space()}{write(draw, item)}{space()}" for item in value]
        end = draw(COMMAS) if items else ""
        return f"[{','.join(items)}{end}{space()}]"
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


def count_comments(text: str) -> int:
    return len(re.findall(r"note \{\}|/\* , \*/|/\* \n \*/", text))


@given(documents())
def test_a_document_is_read_as_it_was_meant(document: tuple[str, dict[str, Any]]) -> None:
    text, content = document
    assert parse_jsonc(text, WHERE).value == content


@given(documents(), NAMES, VALUES)
@example(('{\n"":[null]/* , */}/* , */', {"": [None]}), "", None)
def test_setting_a_member_changes_nothing_else(
    document: tuple[str, dict[str, Any]], name: str, value: Any
) -> None:
    text, content = document
    changed = set_member(text, ["servers"], name, value, WHERE)
    wanted = {**content, "servers": {**content.get("servers", {}), name: value}}
    assert parse_jsonc(changed, WHERE).value == wanted
    if name not in content.get("servers", {}):
        assert count_comments(changed) == count_comments(text) + count_comments(json.dumps(value))
        again = remove_members(changed, ["servers"], [name], WHERE)
        assert parse_jsonc(again, WHERE).value == {"servers": {}, **content}


@given(documents())
def test_removing_members_leaves_the_others(document: tuple[str, dict[str, Any]]) -> None:
    text, content = document
    names = list(content.get("servers", {}))[::2]
    changed = remove_members(text, ["servers"], names, WHERE)
    if "servers" in content:
        kept = {name: item for name, item in content["servers"].items() if name not in names}
        content = {**content, "servers": kept}
    assert parse_jsonc(changed, WHERE).value == content
