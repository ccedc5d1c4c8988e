"""How values, texts and exceptions are shown to somebody who has little room.

Used inside the sandbox (to bound what is sent) and on the host (to bound what a client is shown).
Rule: what is cut keeps its shape. JSON stays JSON, long text keeps head and tail, and each cut says how much is gone.
"""

from __future__ import annotations

import builtins
import json
import sys
from itertools import islice

from .suggestions import did_you_mean
from .wire import escape_surrogates

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    import traceback
    from typing import Any, Dict, List, Optional, Sequence, Tuple

MAX_JSON_DEPTH = 64  # deeper data is shown by `repr`, which also ends cycles
SKILL_FILE_PREFIX = (
    "<skills."  # what the names of skills' source start with; their lines are not lines of the code
)
ELLIPSIS = "\u2026"  # the key under which a cut object says how many entries are missing


def present_value(value: Any, max_chars: int) -> Dict[str, Any]:
    """Return `value` as {"kind": "json" | "repr", "text", "type", "cut"}, the text about `limit` characters at most.

    JSON data is given as JSON (tuples as arrays); everything else, including NaN, by its `repr`.
    """
    kind, shown = "json", _try_json(value, max_chars)
    if shown is None:
        kind, shown = "repr", truncate_text(safe_repr(value), max_chars)
    return {"kind": kind, "text": shown[0], "type": type_name(value), "cut": shown[1]}


def _try_json(value: Any, max_chars: int) -> Optional[Tuple[str, bool]]:
    try:
        return truncate_json(value, max_chars)
    except (
        NotJsonData,
        RuntimeError,
        ValueError,
    ):  # changed by a thread meanwhile, or an integer of too many digits
        return None


_dump_json = json.JSONEncoder(ensure_ascii=False).encode


class NotJsonData(Exception):
    """A value is not JSON data, or is nested too deeply to be shown as such."""


def truncate_json(value: Any, max_chars: int, max_items: Optional[int] = None) -> Tuple[str, bool]:
    """Return JSON data as JSON text of the same shape, of about `limit` characters, and whether anything was cut.

    No list or object in it has more than `max_items` items, if that is given.
    """
    items = max_chars if max_items is None else min(max_chars, max_items)
    characters = max_chars
    while True:
        cutter = _JsonTruncator(items, characters, max_chars)
        text = _dump_json(cutter.truncate(value))
        if len(text) <= max_chars or items + characters <= 16:
            return text, cutter.is_truncated
        items, characters = max(items // 2, 1), max(characters // 2, 15)


class _JsonTruncator:
    """One attempt to copy JSON data with at most so many items a container, characters a string and nodes in all."""

    def __init__(self, max_items: int, max_text_chars: int, max_nodes: int) -> None:
        self.max_items, self.max_text_chars, self.nodes_left = max_items, max_text_chars, max_nodes
        self.is_truncated = False

    def truncate(self, value: Any, depth: int = 0) -> Any:
        self.nodes_left -= 1
        kind = type(value)
        if value is None or kind is bool or kind is int:
            return value
        if kind is str:
            text, was_cut = truncate_text(value, self.max_text_chars)
            self.is_truncated |= was_cut
            return text if text.isascii() else escape_surrogates(text)
        if kind is float and value - value == 0:  # neither NaN nor infinite
            return value
        if depth >= MAX_JSON_DEPTH or hasattr(type(value), "_fields"):
            raise NotJsonData
        if isinstance(value, dict):
            return self.truncate_object(value, depth + 1)
        if isinstance(value, (list, tuple)):
            return self.truncate_array(value, depth + 1)
        raise NotJsonData

    def truncate_array(self, value: Sequence[Any], depth: int) -> List[Any]:
        shown: List[Any] = []
        for item in islice(value, self.max_items):
            if self.nodes_left <= 0:
                break
            shown.append(self.truncate(item, depth))
        if len(shown) < len(value):
            self.is_truncated = True
            shown.append(f"{ELLIPSIS} {len(value) - len(shown):,} more items")
        return shown

    def truncate_object(self, value: Dict[Any, Any], depth: int) -> Dict[str, Any]:
        shown: Dict[str, Any] = {}
        for key in islice(value, self.max_items):
            if type(key) is not str:
                raise NotJsonData
            if self.nodes_left <= 0:
                break
            shown[self.truncate(key)] = self.truncate(value[key], depth)
        if len(shown) < len(value):
            self.is_truncated = True
            shown[ELLIPSIS] = f"{len(value) - len(shown):,} more keys"
        return shown


def type_name(value: Any) -> str:
    """Return the name of `value`'s type, with its module unless that is obvious."""
    cls = type(value)
    module = getattr(cls, "__module__", None)
    name = str(getattr(cls, "__qualname__", cls.__name__))
    return name if module in ("builtins", "__main__", None) else f"{module}.{name}"


def safe_repr(value: Any) -> str:
    """Return `repr(value)`, or a text that says how it failed."""
    try:
        return repr(value)
    except Exception as exc:  # noqa: BLE001 - whatever the user's __repr__ raises is to be shown, not raised
        return f"<{type_name(value)} whose repr failed with {type(exc).__name__}>"


def truncate_text(text: str, max_chars: int) -> Tuple[str, bool]:
    """Return `text` cut to head and tail of about `limit` characters together, and whether it was cut."""
    if len(text) <= max_chars:
        return text, False
    head = max(max_chars * 2 // 3, 1)
    tail = max(max_chars - head, 0)
    missing = len(text) - head - tail
    return (
        f"{text[:head]}\n{ELLIPSIS} {missing:,} characters left out {ELLIPSIS}\n{text[len(text) - tail :]}",
        True,
    )


def describe_error(
    exc: BaseException, source_prefixes: Tuple[str, ...], max_chars: int = 8_000
) -> Dict[str, Any]:
    """Return {"type", "message", "traceback", "line"} of `exc`, with frames of files that start with one of `own`."""
    import traceback  # only now: most runs need none

    shown = traceback.TracebackException.from_exception(exc, lookup_lines=False)
    _filter_frames(shown, source_prefixes, set())
    lines = [
        frame.lineno
        for frame in shown.stack
        if frame.lineno and not frame.filename.startswith(SKILL_FILE_PREFIX)
    ]
    line: Optional[int] = lines[-1] if lines else None
    if isinstance(exc, SyntaxError):
        line = exc.lineno
    hint = _spelling_hint(exc)
    return {
        "type": type_name(exc),
        "message": truncate_text(_error_message(exc), max_chars // 2)[0] + hint,
        "traceback": truncate_text("".join(shown.format()).rstrip(), max_chars)[0] + hint,
        "line": line,
    }


def _spelling_hint(exc: BaseException) -> str:
    """Return the name that was probably meant, where this Python's own traceback does not say it."""
    if sys.version_info >= (3, 12) or not isinstance(exc, (NameError, AttributeError)):
        return ""
    name = getattr(exc, "name", None)
    if not isinstance(name, str) or "Did you mean" in str(exc):
        return ""
    if isinstance(exc, AttributeError):
        hint = did_you_mean(name, dir(exc.obj))  # type: ignore[attr-defined, unused-ignore]
    else:
        at = exc.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        hint = (
            did_you_mean(name, [*at.tb_frame.f_locals, *at.tb_frame.f_globals, *dir(builtins)])
            if at
            else ""
        )
    return f". {hint.rstrip()}" if hint else ""


def _error_message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as failure:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"<{type_name(exc)} whose str failed with {type(failure).__name__}>"


def _filter_frames(
    shown: Optional[traceback.TracebackException],
    source_prefixes: Tuple[str, ...],
    seen: "set[int]",
) -> None:
    if shown is None or id(shown) in seen:
        return
    seen.add(id(shown))
    frames: List[traceback.FrameSummary] = [
        frame for frame in shown.stack if frame.filename.startswith(source_prefixes)
    ]
    shown.stack = type(shown.stack).from_list(frames)
    _filter_frames(shown.__cause__, source_prefixes, seen)
    _filter_frames(shown.__context__, source_prefixes, seen)
    for inner in getattr(shown, "exceptions", None) or ():
        _filter_frames(inner, source_prefixes, seen)
