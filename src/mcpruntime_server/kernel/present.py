"""How values, texts and exceptions are shown to somebody who has little room.

Used inside the sandbox (to bound what is sent) and on the host (to bound what a client is shown).
Rule: what is cut keeps its shape. JSON stays JSON, long text keeps head and tail, and each cut says how much is gone.
"""

from __future__ import annotations

import builtins
import json
import sys
from itertools import islice

from .results import did_you_mean
from .wire import printable

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    import traceback
    from typing import Any, Dict, List, Optional, Sequence, Tuple

MAX_DEPTH = 64  # deeper data is shown by `repr`, which also ends cycles
SKILL_FILE = "<skills."  # what the names of skills' source start with; their lines are not lines of the code
MORE = "\u2026"  # the key under which a cut object says how many entries are missing


def present(value: Any, limit: int) -> Dict[str, Any]:
    """Return `value` as {"kind": "json" | "repr", "text", "type", "cut"}, the text about `limit` characters at most.

    JSON data is given as JSON (tuples as arrays); everything else, including NaN, by its `repr`.
    """
    kind, shown = "json", _as_json(value, limit)
    if shown is None:
        kind, shown = "repr", shorten(safe_repr(value), limit)
    return {"kind": kind, "text": shown[0], "type": type_name(value), "cut": shown[1]}


def _as_json(value: Any, limit: int) -> Optional[Tuple[str, bool]]:
    try:
        return json_text(value, limit)
    except (NotJson, RuntimeError, ValueError):  # changed by a thread meanwhile, or an integer of too many digits
        return None


_json = json.JSONEncoder(ensure_ascii=False).encode


class NotJson(Exception):
    """A value is not JSON data, or is nested too deeply to be shown as such."""


def json_text(value: Any, limit: int, max_items: Optional[int] = None) -> Tuple[str, bool]:
    """Return JSON data as JSON text of the same shape, of about `limit` characters, and whether anything was cut.

    No list or object in it has more than `max_items` items, if that is given.
    """
    items = limit if max_items is None else min(limit, max_items)
    characters = limit
    while True:
        cutter = _Cutter(items, characters, limit)
        text = _json(cutter.cut(value))
        if len(text) <= limit or items + characters <= 16:
            return text, cutter.has_cut
        items, characters = max(items // 2, 1), max(characters // 2, 15)


class _Cutter:
    """One attempt to copy JSON data with at most so many items a container, characters a string and nodes in all."""

    def __init__(self, items: int, characters: int, nodes: int) -> None:
        self.items, self.characters, self.nodes = items, characters, nodes
        self.has_cut = False

    def cut(self, value: Any, depth: int = 0) -> Any:
        self.nodes -= 1
        kind = type(value)
        if value is None or kind is bool or kind is int:
            return value
        if kind is str:
            text, was_cut = shorten(value, self.characters)
            self.has_cut |= was_cut
            return text if text.isascii() else printable(text)
        if kind is float and value - value == 0:  # neither NaN nor infinite
            return value
        if depth >= MAX_DEPTH or hasattr(type(value), "_fields"):
            raise NotJson
        if isinstance(value, dict):
            return self.cut_object(value, depth + 1)
        if isinstance(value, (list, tuple)):
            return self.cut_array(value, depth + 1)
        raise NotJson

    def cut_array(self, value: Sequence[Any], depth: int) -> List[Any]:
        shown: List[Any] = []
        for item in islice(value, self.items):
            if self.nodes <= 0:
                break
            shown.append(self.cut(item, depth))
        if len(shown) < len(value):
            self.has_cut = True
            shown.append(f"{MORE} {len(value) - len(shown):,} more items")
        return shown

    def cut_object(self, value: Dict[Any, Any], depth: int) -> Dict[str, Any]:
        shown: Dict[str, Any] = {}
        for key in islice(value, self.items):
            if type(key) is not str:
                raise NotJson
            if self.nodes <= 0:
                break
            shown[self.cut(key)] = self.cut(value[key], depth)
        if len(shown) < len(value):
            self.has_cut = True
            shown[MORE] = f"{len(value) - len(shown):,} more keys"
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


def shorten(text: str, limit: int) -> Tuple[str, bool]:
    """Return `text` cut to head and tail of about `limit` characters together, and whether it was cut."""
    if len(text) <= limit:
        return text, False
    head = max(limit * 2 // 3, 1)
    tail = max(limit - head, 0)
    missing = len(text) - head - tail
    return f"{text[:head]}\n{MORE} {missing:,} characters left out {MORE}\n{text[len(text) - tail :]}", True


def describe_error(exc: BaseException, own: Tuple[str, ...], limit: int = 8_000) -> Dict[str, Any]:
    """Return {"type", "message", "traceback", "line"} of `exc`, with frames of files that start with one of `own`."""
    import traceback  # only now: most runs need none

    shown = traceback.TracebackException.from_exception(exc, lookup_lines=False)
    _keep_frames(shown, own, set())
    lines = [frame.lineno for frame in shown.stack if frame.lineno and not frame.filename.startswith(SKILL_FILE)]
    line: Optional[int] = lines[-1] if lines else None
    if isinstance(exc, SyntaxError):
        line = exc.lineno
    hint = _suggestion(exc)
    return {
        "type": type_name(exc),
        "message": shorten(_message(exc), limit // 2)[0] + hint,
        "traceback": shorten("".join(shown.format()).rstrip(), limit)[0] + hint,
        "line": line,
    }


def _suggestion(exc: BaseException) -> str:
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
        hint = did_you_mean(name, [*at.tb_frame.f_locals, *at.tb_frame.f_globals, *dir(builtins)]) if at else ""
    return f". {hint.rstrip()}" if hint else ""


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as failure:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"<{type_name(exc)} whose str failed with {type(failure).__name__}>"


def _keep_frames(shown: Optional[traceback.TracebackException], own: Tuple[str, ...], seen: "set[int]") -> None:
    if shown is None or id(shown) in seen:
        return
    seen.add(id(shown))
    frames: List[traceback.FrameSummary] = [frame for frame in shown.stack if frame.filename.startswith(own)]
    shown.stack = type(shown.stack).from_list(frames)
    _keep_frames(shown.__cause__, own, seen)
    _keep_frames(shown.__context__, own, seen)
    for inner in getattr(shown, "exceptions", None) or ():
        _keep_frames(inner, own, seen)
