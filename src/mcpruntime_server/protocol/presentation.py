"""Bounded presentations of values, texts and exceptions.

Used inside the sandbox, to bound what is sent, and on the host, to bound what a client is shown.
Rule: what is cut keeps its shape. JSON stays JSON, long text keeps head and tail, and each cut says
how much is gone.
"""

from __future__ import annotations

import builtins
import json
import sys
from itertools import islice

from .suggestions import did_you_mean
from .wire import escape_surrogates

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    import traceback
    from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

MAX_NAME_CHARS = 200  # of a name in a call, and of a path
MAX_JSON_DEPTH = 64  # deeper data is shown by `repr`, which also ends cycles
SKILL_FILE_PREFIX = "<skills."  # of the file names of skills; their lines are not the step's
ELLIPSIS = "\u2026"  # marks what is left out; as a key, it counts an object's missing keys


def present_value(value: Any, max_chars: int) -> Dict[str, Any]:
    """Return `value` as {"kind": "json" | "repr", "text", "type", "cut"}.

    The text has about `max_chars` characters at most; `cut` says whether anything is left out. JSON
    data is shown as JSON (tuples as arrays), everything else, including NaN, by its `repr`.
    """
    kind, shown = "json", _try_json(value, max_chars)
    if shown is None:
        kind, shown = "repr", truncate_text(safe_repr(value), max_chars)
    text, is_cut = shown
    return {"kind": kind, "text": text, "type": type_name(value), "cut": is_cut}


def _try_json(value: Any, max_chars: int) -> Optional[Tuple[str, bool]]:
    try:
        return truncate_json(value, max_chars)
    except NotJsonData:
        return None
    except (RuntimeError, ValueError):  # a thread changes the value, or an integer is too long
        return None


_dump_json = json.JSONEncoder(ensure_ascii=False).encode


class NotJsonData(Exception):
    """A value is not JSON data, or is nested too deeply to be shown as such."""


def truncate_json(value: Any, max_chars: int, max_items: Optional[int] = None) -> Tuple[str, bool]:
    """Return JSON data as JSON text of the same shape, and whether anything is left out.

    The text has about `max_chars` characters at most, and each list or object `max_items` items.
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
    """One attempt to copy JSON data with a limited number of items, characters and nodes."""

    def __init__(self, max_items: int, max_text_chars: int, max_nodes: int) -> None:
        self.max_items, self.max_text_chars, self.nodes_left = max_items, max_text_chars, max_nodes
        self.is_truncated = False

    def truncate(self, value: Any, depth: int = 0) -> Any:
        """Return a truncated copy of `value`; raises `NotJsonData`."""
        self.nodes_left -= 1
        kind = type(value)
        if value is None or kind is bool or kind is int:
            return value
        if kind is str:
            text, is_cut = truncate_text(value, self.max_text_chars)
            self.is_truncated |= is_cut
            return text if text.isascii() else escape_surrogates(text)
        if kind is float and value - value == 0:  # neither NaN nor infinite
            return value
        if depth >= MAX_JSON_DEPTH or hasattr(type(value), "_fields"):
            raise NotJsonData
        if isinstance(value, dict):
            return self._truncate_object(value, depth + 1)
        if isinstance(value, (list, tuple)):
            return self._truncate_array(value, depth + 1)
        raise NotJsonData

    def _truncate_array(self, value: Sequence[Any], depth: int) -> List[Any]:
        shown: List[Any] = []
        for item in islice(value, self.max_items):
            if self.nodes_left <= 0:
                break
            shown.append(self.truncate(item, depth))
        if len(shown) < len(value):
            self.is_truncated = True
            shown.append(f"{ELLIPSIS} {len(value) - len(shown):,} more items")
        return shown

    def _truncate_object(self, value: Dict[Any, Any], depth: int) -> Dict[str, Any]:
        shown: Dict[str, Any] = {}
        for key in islice(value, self.max_items):
            if type(key) is not str:
                raise NotJsonData
            if self.nodes_left <= 0:
                break
            shown[self.truncate(key)] = self.truncate(value[key], depth)
        if len(shown) < len(value):
            self.is_truncated = True
            shown.pop(ELLIPSIS, None)  # a key of the value gives way to the mark
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
    except Exception as exc:  # noqa: BLE001 - a __repr__ of user code may raise anything
        return f"<{type_name(value)} whose repr failed with {type(exc).__name__}>"


def truncate_text(text: str, max_chars: int) -> Tuple[str, bool]:
    """Return head and tail of `text` with about `max_chars` characters, and whether it is cut."""
    if len(text) <= max_chars:
        return text, False
    head_chars = max(max_chars * 2 // 3, 1)
    tail_chars = max(max_chars - head_chars, 0)
    missing = len(text) - head_chars - tail_chars
    head, tail = text[:head_chars], text[len(text) - tail_chars :]
    return f"{head}\n{ELLIPSIS} {missing:,} characters left out {ELLIPSIS}\n{tail}", True


def format_call(target: str, arguments: Mapping[str, Any], max_chars: int) -> str:
    """Return a call in Python's notation; its values together have about `max_chars` characters."""
    values = [
        f"{truncate_name(name)}={present_value(value, max_chars)['text']}"
        for name, value in arguments.items()
    ]
    listed, _ = truncate_text(", ".join(values), max_chars)
    name = target[len("tools.") :] if target.startswith("tools.") else target
    return f"{truncate_name(name)}({listed})"


def truncate_name(name: str) -> str:
    """Return a name on one line and of at most `MAX_NAME_CHARS` characters."""
    shown = name if name.isprintable() else repr(name)
    if len(shown) <= MAX_NAME_CHARS:
        return shown
    half = MAX_NAME_CHARS // 2
    return f"{shown[:half]}{ELLIPSIS}{shown[-half:]}"


def describe_error(
    exc: BaseException, source_prefixes: Tuple[str, ...], max_chars: int = 8_000
) -> Dict[str, Any]:
    """Return {"type", "message", "traceback", "line"} of `exc`.

    The traceback has only the frames of files whose names start with one of `source_prefixes`.
    """
    import traceback  # most runs need none

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
    """Return the name that was probably meant, if the traceback of this Python does not say it."""
    if sys.version_info >= (3, 12) or not isinstance(exc, (NameError, AttributeError)):
        return ""
    name = getattr(exc, "name", None)
    if not isinstance(name, str) or "Did you mean" in str(exc):
        return ""
    known: List[str] = []
    if isinstance(exc, AttributeError):
        known = dir(exc.obj)  # type: ignore[attr-defined, unused-ignore]
    elif exc.__traceback__ is not None:
        entry = exc.__traceback__
        while entry.tb_next is not None:
            entry = entry.tb_next
        known = [*entry.tb_frame.f_locals, *entry.tb_frame.f_globals, *dir(builtins)]
    hint = did_you_mean(name, known)
    return f". {hint.rstrip()}" if hint else ""


def _error_message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as failure:  # noqa: BLE001 - a __str__ of user code may raise anything
        return f"<{type_name(exc)} whose str failed with {type(failure).__name__}>"


def _filter_frames(
    shown: Optional[traceback.TracebackException],
    source_prefixes: Tuple[str, ...],
    seen: Set[int],
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
