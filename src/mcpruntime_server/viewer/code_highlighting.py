"""Turn code into lines of markup; the text of every token is escaped here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from markupsafe import Markup, escape
from pygments.lexers.python import PythonLexer
from pygments.token import STANDARD_TYPES, _TokenType

MAX_HIGHLIGHTED_CHARS = 20_000  # longer code is shown without colours: a token takes 20 us
MAX_CODE_LINES = 5_000  # a line is 300 bytes of a page
MAX_KNOWN_CODES = 16  # highlighted, a megabyte each at most


def highlight_python(code: str) -> tuple[Markup, ...]:
    """Return the lines of Python code, highlighted."""
    if len(code) > MAX_HIGHLIGHTED_CHARS:
        return tuple(map(escape, code.splitlines()[:MAX_CODE_LINES]))
    return _highlight_short(code)


@lru_cache(MAX_KNOWN_CODES)
def _highlight_short(code: str) -> tuple[Markup, ...]:
    lines: list[list[Markup]] = [[]]
    for kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens(code):
        first, *rest = text.split("\n")
        lines[-1].append(wrap_token(kind, first))
        lines.extend([wrap_token(kind, part)] for part in rest)
    if len(lines) > 1 and not any(lines[-1]):
        lines.pop()
    return tuple(Markup("").join(parts) for parts in lines[:MAX_CODE_LINES])


def wrap_token(kind: _TokenType, text: str) -> Markup:
    """Return the text of a token in an element with the class of its kind."""
    name = next(iter_class_names(kind), "")
    if not text or not name:
        return escape(text)
    return Markup('<span class="tok-{}">{}</span>').format(name, text)


def iter_class_names(kind: _TokenType) -> Iterator[str]:
    """Yield the short names of a kind of token, the most specific one first."""
    while kind is not None:
        if name := STANDARD_TYPES.get(kind, ""):
            yield name
        kind = kind.parent
