"""Colour in a terminal: styles by name, and Python with its parts told apart."""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Callable, Mapping, Sequence

STYLES: Mapping[str, str] = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
TOKEN_STYLES: Mapping[str, str] = {
    "STRING": "green",
    "NUMBER": "yellow",
    "COMMENT": "dim",
    **dict.fromkeys(
        ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"), "green"
    ),  # Python >= 3.12 takes them apart
}

StyleText = Callable[[str, str], str]


def apply_style(text: str, style: str) -> str:
    """Return `text` as a terminal shows it in a style."""
    return f"\033[{STYLES[style]}m{text}\033[0m" if text and style else text


def highlight_python(lines: Sequence[str], style_text: StyleText) -> list[str]:
    """Return lines of Python with keywords, strings, numbers and comments painted; what is no Python stays plain."""
    marks: list[list[tuple[int, int, str]]] = [[] for _ in lines]
    source = io.StringIO("\n".join(lines) + "\n")
    try:
        for token in tokenize.generate_tokens(source.readline):
            if style := token_style(token):
                (row, begin), (last, end) = token.start, token.end
                for at in range(row, last + 1):
                    stop = end if at == last else len(lines[at - 1])
                    marks[at - 1].append((begin if at == row else 0, stop, style))
    except (tokenize.TokenError, SyntaxError):
        pass
    return [
        _highlight_line(line, found, style_text) for line, found in zip(lines, marks, strict=True)
    ]


def _highlight_line(line: str, marks: Sequence[tuple[int, int, str]], style_text: StyleText) -> str:
    pieces, at = [], 0
    for begin, end, style in marks:
        pieces += [line[at:begin], style_text(line[begin:end], style)]
        at = end
    return "".join([*pieces, line[at:]])


def token_style(token: tokenize.TokenInfo) -> str:
    """Return how a token is shown, "" for plainly."""
    if token.type == tokenize.NAME and keyword.iskeyword(token.string):
        return "magenta"
    return TOKEN_STYLES.get(tokenize.tok_name[token.type], "")
