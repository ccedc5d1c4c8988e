"""Read JSON with comments and trailing commas, with the place of everything in the text.

VS Code, Zed and others write their settings in this form. Plain JSON is a part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

MAX_NESTING = 100
BYTE_ORDER_MARK = "\ufeff"
TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+ | //[^\n]* | /\*.*?\*/)
      | (?P<string>"(?:[^"\\\x00-\x1f]|\\.)*")
      | (?P<mark>[{}\[\],:])
      | (?P<word>-?[0-9][0-9.eE+-]*|true|false|null)""",
    re.VERBOSE | re.DOTALL,
)
LITERALS: Mapping[str, Any] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Token:
    """A token that is not space: its kind, its text and where it is."""

    kind: str
    text: str
    start: int
    end: int


@dataclass
class JsonNode:
    """A value with its place; an object has members, anything else has none."""

    start: int
    end: int
    value: Any
    members: list[JsonMember] = field(default_factory=list)

    @property
    def is_object(self) -> bool:
        """Whether it is an object."""
        return isinstance(self.value, dict)


@dataclass
class JsonMember:
    """A name and its value in an object; `comma` is where the comma behind it is, -1 if none."""

    name: str
    start: int
    node: JsonNode
    comma: int = -1


class JsonSyntaxError(Exception):
    """The text is not JSON with comments; `position` is where that shows."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position


def parse_jsonc(text: str, where: object) -> JsonNode:
    """Return the object that a document is; an empty document is an empty object.

    Raises `ConfigError`, which names the line, for anything else.
    """
    try:
        root = DocumentParser(text).parse_document()
    except JsonSyntaxError as exc:
        line, column = find_position(text, exc.position)
        raise ConfigError(
            f"The file {where} is not JSON: line {line}, column {column}: {exc.reason}.",
            remedy="Correct it, or let its program write it again. Nothing was changed.",
        ) from exc
    if not root.is_object:
        raise ConfigError(
            f"The file {where} has no object at its top level.", remedy="Nothing was changed."
        )
    return root


def find_position(text: str, offset: int) -> tuple[int, int]:
    """Return the line and the column of an offset, both from 1."""
    line_start = text.rfind("\n", 0, offset) + 1
    return text.count("\n", 0, offset) + 1, offset - line_start + 1


class DocumentParser:
    """Parses one document."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._iterate_tokens()
        self._current = next(self._tokens)

    def parse_document(self) -> JsonNode:
        """Return the value of the document."""
        if self._current.kind == "end":
            return JsonNode(len(self._text), len(self._text), {})
        root = self._parse_value(0)
        if self._current.kind != "end":
            raise JsonSyntaxError("there is text behind the end of the value", self._current.start)
        return root

    def _iterate_tokens(self) -> Iterator[Token]:
        position = len(BYTE_ORDER_MARK) if self._text.startswith(BYTE_ORDER_MARK) else 0
        while position < len(self._text):
            found = TOKEN.match(self._text, position)
            if found is None:
                raise JsonSyntaxError(self._explain_character(position), position)
            kind = found.lastgroup or ""
            if kind != "space":
                yield Token(kind, found[0], position, found.end())
            position = found.end()
        yield Token("end", "the end of the file", position, position)

    def _explain_character(self, position: int) -> str:
        character = self._text[position]
        if character == '"':
            return "a text in quotes does not end on its line"
        if self._text.startswith("/*", position):
            return "a comment does not end"
        return f"{character!r} is not expected"

    def _advance(self) -> Token:
        token = self._current
        self._current = next(self._tokens, token)
        return token

    def _take_mark(self, mark: str) -> Token | None:
        return self._advance() if self._current.text == mark and self._is_mark() else None

    def _is_mark(self) -> bool:
        return self._current.kind == "mark"

    def _expect_mark(self, mark: str) -> Token:
        if token := self._take_mark(mark):
            return token
        raise JsonSyntaxError(
            f"expected {mark!r}, but there is {self._current.text:.40}", self._current.start
        )

    def _parse_value(self, depth: int) -> JsonNode:
        token = self._advance()
        if depth > MAX_NESTING:
            raise JsonSyntaxError(f"it is nested more than {MAX_NESTING} deep", token.start)
        if token.kind == "string":
            return JsonNode(token.start, token.end, self._decode(token))
        if token.kind == "word":
            return JsonNode(token.start, token.end, self._decode(token))
        if token.kind == "mark" and token.text == "{":
            return self._parse_object(token, depth)
        if token.kind == "mark" and token.text == "[":
            return self._parse_list(token, depth)
        raise JsonSyntaxError(f"expected a value, but there is {token.text:.40}", token.start)

    def _decode(self, token: Token) -> Any:
        if token.text in LITERALS:
            return LITERALS[token.text]
        try:
            return json.loads(token.text)
        except ValueError:
            raise JsonSyntaxError(f"{token.text:.40} is not valid", token.start) from None

    def _parse_object(self, opening: Token, depth: int) -> JsonNode:
        members: list[JsonMember] = []
        while not self._is_mark() or self._current.text != "}":
            name = self._advance()
            if name.kind != "string":
                raise JsonSyntaxError(
                    f"expected a name in quotes, but there is {name.text:.40}", name.start
                )
            self._expect_mark(":")
            member = JsonMember(self._decode(name), name.start, self._parse_value(depth + 1))
            members.append(member)
            comma = self._take_mark(",")
            if comma is None:
                break
            member.comma = comma.start
        closing = self._expect_mark("}")
        value = {member.name: member.node.value for member in members}
        return JsonNode(opening.start, closing.end, value, members)

    def _parse_list(self, opening: Token, depth: int) -> JsonNode:
        items: list[Any] = []
        while not self._is_mark() or self._current.text != "]":
            items.append(self._parse_value(depth + 1).value)
            if self._take_mark(",") is None:
                break
        closing = self._expect_mark("]")
        return JsonNode(opening.start, closing.end, items)
