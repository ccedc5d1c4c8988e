"""Turn what code wrote for a terminal into markup: colours become classes, all else is text.

Sequences that move the cursor or address the terminal are left out. What a carriage return
overwrites is left out, too, as a terminal shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from markupsafe import Markup, escape

from ..journal.encoded_text import STYLE_RESETS

# Control sequences, operating system commands, and other escapes, complete or cut off.
ESCAPE = re.compile(
    r"\x1b\[(?P<numbers>[0-9;]*)(?P<final>m)"
    r"|\x1b\[[0-?]*[ -/]*[@-~]?"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"
    r"|\x1b[ -/]*[0-~]?"
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
MAX_LINE_CHARS = 4_000
EXTENDED_COLOURS = (38, 48)
MAX_KNOWN_CODES = 4_096


@dataclass(frozen=True)
class TextStyle:
    """How a terminal shows text; colours are numbers from 0 to 15, None for the usual ones."""

    is_bold: bool = False
    is_dim: bool = False
    is_italic: bool = False
    is_underlined: bool = False
    is_inverse: bool = False
    foreground: int | None = None
    background: int | None = None

    @property
    def class_names(self) -> str:
        """The classes of an element with such text."""
        names = [
            name
            for name, is_set in (
                ("b", self.is_bold),
                ("dim", self.is_dim),
                ("i", self.is_italic),
                ("u", self.is_underlined),
                ("inv", self.is_inverse),
            )
            if is_set
        ]
        if self.foreground is not None:
            names.append(f"fg{self.foreground}")
        if self.background is not None:
            names.append(f"bg{self.background}")
        return " ".join(f"ansi-{name}" for name in names)


PLAIN = TextStyle()
ATTRIBUTES: Mapping[int, Any] = {
    1: {"is_bold": True},
    2: {"is_dim": True},
    3: {"is_italic": True},
    4: {"is_underlined": True},
    7: {"is_inverse": True},
    22: {"is_bold": False, "is_dim": False},
    23: {"is_italic": False},
    24: {"is_underlined": False},
    27: {"is_inverse": False},
}


@lru_cache(MAX_KNOWN_CODES)
def apply_codes(style: TextStyle, numbers: str) -> TextStyle:
    """Return a style after a sequence that selects colours and attributes."""
    codes = [int(each[:4] or 0) for each in numbers.split(";")] if numbers else [0]
    position = 0
    while position < len(codes):
        code = codes[position]
        position += 1
        if code in EXTENDED_COLOURS:
            colour, used = read_extended_colour(codes[position:])
            position += used
            if code == 38:
                style = replace(style, foreground=colour)
            else:
                style = replace(style, background=colour)
        else:
            style = apply_code(style, code)
    return style


def apply_code(style: TextStyle, code: int) -> TextStyle:
    """Return a style after one code that has no arguments."""
    if code == 0:
        return PLAIN
    if code in ATTRIBUTES:
        return replace(style, **ATTRIBUTES[code])
    if 30 <= code <= 37 or 90 <= code <= 97:
        return replace(style, foreground=code - 30 if code < 40 else code - 82)
    if 40 <= code <= 47 or 100 <= code <= 107:
        return replace(style, background=code - 40 if code < 50 else code - 92)
    if code == 39:
        return replace(style, foreground=None)
    return replace(style, background=None) if code == 49 else style


def read_extended_colour(codes: list[int]) -> tuple[int | None, int]:
    """Return the basic colour that is nearest to an extended one, and how many codes it takes."""
    if codes[:1] == [5] and len(codes) >= 2:
        number = codes[1]
        if number < 16:
            return number, 2
        if number >= 232:
            return (8 if number < 244 else 7), 2
        red, green, blue = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
        return nearest_colour(red * 51, green * 51, blue * 51), 2
    if codes[:1] == [2] and len(codes) >= 4:
        return nearest_colour(*codes[1:4]), 4
    return None, len(codes)


def nearest_colour(red: int, green: int, blue: int) -> int:
    """Return the number of the basic colour that is like a mixture, which has parts up to 255."""
    strongest = max(red, green, blue)
    if strongest < 48:
        return 0
    bits = sum(1 << place for place, part in enumerate((red, green, blue)) if part * 2 > strongest)
    return bits + (8 if strongest > 200 and bits != 7 else 0)


def render_line(text: str, style: TextStyle) -> tuple[Markup, TextStyle]:
    """Return a line as markup, and the style in which the next one begins."""
    pieces: list[Markup] = []
    shown = 0
    position = 0
    text = text.removesuffix("\r")
    for found in ESCAPE.finditer(text):
        shown += append_text(pieces, text[position : found.start()], style, shown)
        position = found.end()
        if found["final"]:
            style = apply_codes(style, found["numbers"])
    shown += append_text(pieces, text[position:], style, shown)
    if shown > MAX_LINE_CHARS:
        hidden = shown - MAX_LINE_CHARS
        pieces.append(Markup('<span class="cut">… {:,} more characters</span>').format(hidden))
    return Markup("").join(pieces), style


def append_text(pieces: list[Markup], text: str, style: TextStyle, shown: int) -> int:
    """Append text as far as it fits in a line; return how many characters it has."""
    if "\r" in text:
        pieces.clear()
        text = text.rpartition("\r")[2]
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    kept = text[: max(MAX_LINE_CHARS - shown, 0)]
    if kept:
        names = style.class_names
        markup = Markup('<span class="{}">{}</span>').format(names, kept) if names else escape(kept)
        pieces.append(markup)
    return len(text)


def skip_styles(text: str, style: TextStyle) -> TextStyle:
    """Return the style after a text that is not shown."""
    start = max(text.rfind(each) for each in STYLE_RESETS)
    for found in ESCAPE.finditer(text, max(start, 0)):
        if found["final"]:
            style = apply_codes(style, found["numbers"])
    return style
