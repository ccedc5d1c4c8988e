"""What one message of an upstream may be, and how it is parsed within these limits.

An upstream is hostile: a message may be too long, have too many values, be nested too deep, or
never end. Values are counted as the bytes arrive, so that what is refused is never built.

Rule 1: parsing stops at a limit. It uses the parser of pydantic, which refuses deep nesting itself
and takes a fifth of the time of `json`. Large messages are parsed in a process of their own: a
thread would hold the interpreter's lock (`large_answers`).
Rule 2: `LimitExceeded` names the limit and the setting that raises it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from ...config import UpstreamSettings
from ...protocol.json_limits import ValueCounter

MB = 1_000_000
MAX_DEPTH = 200  # of nested containers in a message, as in the parser
MAX_CONTENT_BLOCKS = 10_000  # in one result
LARGE_BYTES = 256_000  # a longer message is counted as it arrives, and parsed in a thread
MAX_SDK_VALUES = 10_000  # in a large answer that the SDK gets
LISTS = ("tools", "resources", "resourceTemplates", "prompts")
LIMIT_ERROR_CODE = -32097  # in place of an answer that was refused here
RECURSION_PROBLEM = "recursion limit exceeded"  # of the parser


class LimitExceeded(ValueError):
    """A message exceeds a limit; `limit` is a clause, `setting` what raises it, if anything."""

    def __init__(self, limit: str, setting: str = "") -> None:
        super().__init__(limit)
        self.limit = limit
        self.setting = setting


@dataclass(frozen=True)
class MessageLimits:
    """The limits of what one upstream sends."""

    message_bytes: int
    values: int
    listed: int  # in one page of a list
    messages_per_s: float  # that nobody has asked for

    @classmethod
    def from_settings(cls, settings: UpstreamSettings) -> MessageLimits:
        """Return the limits that the settings of an upstream give."""
        return cls(
            settings.answer_mb * MB,
            settings.answer_items,
            settings.max_tools,
            settings.messages_per_s,
        )

    @property
    def bytes_exceeded(self) -> LimitExceeded:
        """The error of a message that is too long."""
        return LimitExceeded(f"more than {self.message_bytes // MB:,} MB", "answer_mb")

    @property
    def values_exceeded(self) -> LimitExceeded:
        """The error of a message with too many values."""
        return LimitExceeded(f"more than {self.values:,} JSON values", "answer_items")


def parse_upstream_message(line: bytes | bytearray) -> Any:
    """Return the JSON data in `line`; raises `LimitExceeded`, or `ValueError` if it is not JSON.

    Invalid text is repaired: half a character becomes a replacement character.
    """
    try:
        return from_json(line)
    except ValueError as problem:
        if RECURSION_PROBLEM in str(problem):
            raise _depth_exceeded() from None
    try:
        return mend_text(json.loads(line.decode("utf-8", "replace")), MAX_DEPTH)
    except RecursionError:
        raise _depth_exceeded() from None


def parse_for_sdk(line: bytes | bytearray) -> Any:
    """Return the JSON data in a large line that the SDK waits for; raises what the parser raises.

    What the SDK asks for has one long text at most: with few values, this takes milliseconds.
    """
    if ValueCounter().feed(line) > MAX_SDK_VALUES:
        raise LimitExceeded(f"more than {MAX_SDK_VALUES:,} JSON values in {LARGE_BYTES:,} bytes")
    return parse_upstream_message(line)


def mend_text(value: Any, depth: int) -> Any:
    """Return JSON data with replacement characters for halves of characters.

    Raises `LimitExceeded` if it is nested more than `depth` levels deep.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if not isinstance(value, list | dict):
        return value
    if depth == 0:
        raise _depth_exceeded()
    if isinstance(value, list):
        return [mend_text(each, depth - 1) for each in value]
    return {mend_text(key, 0): mend_text(each, depth - 1) for key, each in value.items()}


def _depth_exceeded() -> LimitExceeded:
    return LimitExceeded(f"values nested more than {MAX_DEPTH} levels deep")


def check_result(message: Any, limits: MessageLimits) -> bool:
    """Shorten the lists in a message to what may be listed and one more; return whether one was.

    Validating each entry takes the event loop long. Raises `LimitExceeded` for a result of too many
    content blocks.
    """
    result = message.get("result") if isinstance(message, Mapping) else None
    if not isinstance(result, dict):
        return False
    is_shortened = False
    for name in LISTS:
        listed = result.get(name)
        if isinstance(listed, list) and len(listed) > limits.listed:
            del listed[limits.listed + 1 :]
            is_shortened = True
    check_content(result)
    return is_shortened


def check_content(result: Mapping[str, Any]) -> None:
    """Raise `LimitExceeded` for a result of too many content blocks."""
    content = result.get("content")
    if isinstance(content, list) and len(content) > MAX_CONTENT_BLOCKS:
        raise LimitExceeded(f"more than {MAX_CONTENT_BLOCKS:,} content blocks")
