"""Bounded presentations of values, texts and exceptions.

Used inside the sandbox, to bound what is sent, and on the host, to bound what a client is shown.
Rule: what is cut keeps its shape. JSON stays JSON, long text keeps head and tail, and each cut says
how much is gone.
"""

from __future__ import annotations

import builtins
import json
import sys

from .suggestions import did_you_mean
from .truncation import (
    ELLIPSIS,
    Arguments,
    CallPresenter,
    JsonPresenter,
    NotJsonData,
    PythonPresenter,
    safe_repr,
    truncate_text,
    type_name,
)

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    import traceback
    from typing import Any, List, Mapping, Optional, Set, Tuple

    from .payloads import JsonObject

MAX_NAME_CHARS = 200  # of a name in a call, and of a path
INPUT_NAMES = ("CONTEXT", "CONTEXT_DATA")  # of a run that was given inputs
JSON_WORDS = {"null": "None", "true": "True", "false": "False"}  # and what Python calls them
SKILL_FILE_PREFIX = "<skills."  # of the file names of skills; their lines are not the step's


def present_value(
    value: Any, max_chars: int, max_items: Optional[int] = None, whole_chars: int = 0
) -> JsonObject:
    """Return `value` as {"kind": "json" | "repr", "text", "type", "cut"}.

    The text has about `max_chars` characters at most, and each container `max_items` items; `cut`
    says whether anything is left out. JSON data is shown as JSON (tuples as arrays), and whole if
    it has at most `whole_chars` characters. Everything else, including NaN, is shown as by `repr`.
    """
    kind, shown = "json", _try_json(value, max_chars, max_items, whole_chars)
    if shown is None:
        kind, shown = "repr", _present_repr(value, max_chars, max_items)
    text, is_cut = shown
    return {"kind": kind, "text": text, "type": type_name(value), "cut": is_cut}


def _try_json(
    value: Any, max_chars: int, max_items: Optional[int], whole_chars: int
) -> Optional[Tuple[str, bool]]:
    try:
        whole = JsonPresenter().fit(value, whole_chars) if whole_chars > max_chars else None
        if whole is not None:
            return whole, False
        return truncate_json(value, max_chars, max_items)
    except NotJsonData:
        return None
    except (RuntimeError, ValueError):  # a thread changes the value, or an integer is too long
        return None


def _present_repr(value: Any, max_chars: int, max_items: Optional[int]) -> Tuple[str, bool]:
    presenter = PythonPresenter(max_items)
    try:
        return presenter.cut(value, max_chars), presenter.is_cut
    except RuntimeError:  # a thread changes the value
        return truncate_text(safe_repr(value), max_chars)


def truncate_json(value: Any, max_chars: int, max_items: Optional[int] = None) -> Tuple[str, bool]:
    """Return JSON data as JSON text of the same shape, and whether anything is left out.

    The text has about `max_chars` characters at most, and each list or object `max_items` items.
    Raises `NotJsonData`.
    """
    presenter = JsonPresenter(max_items)
    return presenter.cut(value, max_chars), presenter.is_cut


def format_call(target: str, arguments: Mapping[str, Any], max_chars: int) -> str:
    """Return a call in Python's notation; its arguments have about `max_chars` characters."""
    named = {truncate_name(key): value for key, value in arguments.items()}
    return format_target(target) + CallPresenter().cut(Arguments(named), max_chars)


def format_stored_call(target: str, arguments: str, max_chars: int) -> str:
    """Return a call in Python's notation; `arguments` should be JSON, but may be any text."""
    try:
        return format_call(target, json.loads(arguments), max_chars)
    except (ValueError, AttributeError, RecursionError):  # an archive may contain any text
        return f"{format_target(target)}({truncate_text(arguments, max_chars)[0]})"


def format_target(target: str) -> str:
    """Return the name of a call's target as code writes it."""
    return truncate_name(target[len("tools.") :] if target.startswith("tools.") else target)


def truncate_name(name: str) -> str:
    """Return a name on one line and of at most `MAX_NAME_CHARS` characters."""
    shown = name if name.isprintable() else repr(name)
    if len(shown) <= MAX_NAME_CHARS:
        return shown
    half = MAX_NAME_CHARS // 2
    return f"{shown[:half]}{ELLIPSIS}{shown[-half:]}"


def describe_error(
    exc: BaseException, source_prefixes: Tuple[str, ...], max_chars: int = 8_000
) -> JsonObject:
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


def format_error(kind: str, message: str, traceback: str) -> str:
    """Return an error as text: the traceback, and the message unless it ends with that."""
    summary = f"{kind}: {message}" if message else kind
    last = traceback.rpartition("\n")[2]
    if traceback and not last.startswith(" "):  # no line of a frame
        return traceback
    return f"{traceback}\n{summary}" if traceback else summary


def _spelling_hint(exc: BaseException) -> str:
    """Return the name that was probably meant, if the traceback of this Python does not say it."""
    if sys.version_info >= (3, 12) or not isinstance(exc, (NameError, AttributeError)):
        return ""
    name = getattr(exc, "name", None)
    if not isinstance(name, str) or "Did you mean" in str(exc):
        return ""
    if isinstance(exc, NameError) and name in (*INPUT_NAMES, *JSON_WORDS):
        return ""  # it is spelled right, and a hint says what to do
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
