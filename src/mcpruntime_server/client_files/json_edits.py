"""Change members of objects in JSON with comments, and nothing else of the text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from .jsonc_syntax import JsonMember, JsonNode, find_position, parse_jsonc

DEFAULT_INDENT = "  "
REST_OF_LINE = re.compile(r"[ \t]*(?://[^\n]*?|/\*(?:[^*\n]|\*(?!/))*\*/[ \t]*)?(?=\r?\n|$)")

KeyPath = Sequence[str]
TextEdit = tuple[int, int, str]  # from, to, and what takes the place of the text between


def set_member(text: str, path: KeyPath, name: str, value: Any, where: object) -> str:
    """Return the text with `value` as the member `name` of the object at `path`.

    Objects on the way are made where they are missing. An existing member is replaced in its
    place. Raises `ConfigError` if something else than an object is there.
    """
    node = parse_jsonc(text, where)
    depth = 0
    for key in path:
        member = find_member(node, key, text, where)
        if member is None:
            break
        node = member.node
        depth += 1
        if not node.is_object:
            line, _ = find_position(text, node.start)
            raise ConfigError(
                f"The file {where} has no object as {'.'.join(path[:depth])!r} (line {line}).",
                remedy="Correct it. Nothing was changed.",
            )
    missing = [*path[depth:], name]
    for key in reversed(missing[1:]):
        value = {key: value}
    layout = Layout(text)
    existing = find_member(node, missing[0], text, where)
    if existing:
        base = layout.indent_at(existing.start)
        shown = layout.render(value, base, is_compact="\n" not in text[node.start : node.end])
        return apply_edits(text, [(existing.node.start, existing.node.end, shown)])
    return apply_edits(text, layout.insert_member(node, missing[0], value))


def remove_members(text: str, path: KeyPath, names: Sequence[str], where: object) -> str:
    """Return the text without some members of the object at `path`; absent ones are ignored."""
    for name in names:
        node: JsonNode | None = parse_jsonc(text, where)
        for key in path:
            member = find_member(node, key, text, where) if node else None
            node = member.node if member else None
        if node and find_member(node, name, text, where):
            text = apply_edits(text, Layout(text).remove_member(node, name))
    return text


def find_member(node: JsonNode, name: str, text: str, where: object) -> JsonMember | None:
    """Return the member `name` of an object; raises `ConfigError` if there are several."""
    found = [member for member in node.members if member.name == name]
    if len(found) > 1:
        lines = [str(find_position(text, member.start)[0]) for member in found]
        raise ConfigError(
            f"The file {where} has {name!r:.100} more than once, in lines {', '.join(lines)}.",
            remedy="Remove all but one. Nothing was changed.",
        )
    return found[0] if found else None


def apply_edits(text: str, edits: Sequence[TextEdit]) -> str:
    """Return the text with changes that do not overlap; those at one place keep their order."""
    for start, end, replacement in sorted(edits, key=lambda edit: edit[0])[::-1]:
        text = text[:start] + replacement + text[end:]
    return text


class Layout:
    """How the lines of a document are broken and indented."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"
        found = re.search(r'\n([ \t]+)"', text)
        self._unit = found[1] if found else DEFAULT_INDENT

    def indent_at(self, offset: int) -> str:
        """Return the space at the beginning of the line of an offset."""
        line_start = self._text.rfind("\n", 0, offset) + 1
        found = re.compile(r"[ \t]*").match(self._text, line_start)
        return found[0] if found else ""

    def render(self, value: Any, base: str, *, is_compact: bool = False) -> str:
        """Return a value as JSON; lines after the first begin with `base`, lists are one line."""
        if is_compact or not isinstance(value, dict) or not value:
            return json.dumps(value, ensure_ascii=False)
        inner = base + self._unit
        members = (
            f"{self._newline}{inner}{self._render_member(name, item, inner)}"
            for name, item in value.items()
        )
        return f"{{{','.join(members)}{self._newline}{base}}}"

    def insert_member(self, node: JsonNode, name: str, value: Any) -> list[TextEdit]:
        """Return the changes that add a member at the end of an object."""
        if node.start == node.end:  # the document is empty
            return [(node.start, node.end, self.render({name: value}, "") + self._newline)]
        if node.members:
            return self._append_member(node, name, value)
        closing = self.indent_at(node.start)
        base = closing + self._unit
        lines = f"{self._newline}{base}{self._render_member(name, value, base)}"
        inner = self._text[node.start + 1 : node.end - 1]
        start = node.start + 1 + len(inner.rstrip())  # behind a comment, if there is one
        return [(start, node.end - 1, f"{lines}{self._newline}{closing}")]

    def _append_member(self, node: JsonNode, name: str, value: Any) -> list[TextEdit]:
        last = node.members[-1]
        end = last.node.end if last.comma < 0 else last.comma + 1
        edits: list[TextEdit] = [] if last.comma >= 0 else [(end, end, ",")]
        if not self._starts_line(last):
            shown = self.render({name: value}, "", is_compact=True)[1:-1]
            comma = "," if last.comma >= 0 else ""
            return [*edits, (end, end, f" {shown}{comma}")]
        base = self.indent_at(last.start)
        rest = REST_OF_LINE.match(self._text, end)
        place = rest.end() if rest else end
        comma = "," if last.comma >= 0 else ""
        shown = self._render_member(name, value, base)
        return [*edits, (place, place, f"{self._newline}{base}{shown}{comma}")]

    def _render_member(self, name: str, value: Any, base: str) -> str:
        return f"{json.dumps(name, ensure_ascii=False)}: {self.render(value, base)}"

    def remove_member(self, node: JsonNode, name: str) -> list[TextEdit]:
        """Return the changes that remove a member, its line break and its comma."""
        place = next(n for n, member in enumerate(node.members) if member.name == name)
        member = node.members[place]
        if len(node.members) == 1:
            inner = (node.start + 1, node.end - 1)
            start, end = self._member_span(member)
            rest = self._text[inner[0] : start] + self._text[end : inner[1]]
            if not rest.strip():
                return [(*inner, "")]
        edits = [(*self._member_span(member), "")]
        before = node.members[place - 1] if place else None
        if before and member.comma < 0:
            edits.append((before.comma, before.comma + 1, ""))
        return edits

    def _member_span(self, member: JsonMember) -> tuple[int, int]:
        end = member.node.end if member.comma < 0 else member.comma + 1
        start = len(self._text[: member.start].rstrip(" \t"))
        if not self._starts_line(member):
            return start, end
        rest = REST_OF_LINE.match(self._text, end)
        if rest is None:  # more follows, which must not land in a comment of the line before
            return start, end
        return len(self._text[:start].removesuffix("\n").removesuffix("\r")), rest.end()

    def _starts_line(self, member: JsonMember) -> bool:
        return self._text[: member.start].rstrip(" \t").endswith("\n")
