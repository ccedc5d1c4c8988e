"""Skills in one line each, of fewer than 60 tokens whatever they are called and take.

Rule: models pay for every word, and which tokenizer they have is not known here; so tokens are guessed, rather too many
than too few.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from ..skills.guides import Guide
from ..skills.model import Parameter, Skill, signature_text
from ..skills.texts import one_line

LINE = 56  # tokens, guessed
HEAD = 48  # of these, at most, for name and signature
DEFAULT = 12  # characters of a default in a signature that is too long
VOWELS = frozenset("aeiouyAEIOUY")
MARKS = r"[!-/:-@[-`{-~]"
PIECE = re.compile(rf"{MARKS}?[A-Za-z]+|[0-9]+|{MARKS}+(?![A-Za-z])|[^!-~\s]")  # a word takes in the mark before it


def line(skill: Skill | Guide) -> str:
    """Return a skill in one line: name, signature and summary."""
    told = brief(skill)
    return f"{told['name']}{told['signature']}  # {told['summary']}"


def brief(skill: Skill | Guide) -> dict[str, str]:
    """Return name, signature and summary of a skill, the last two cut as far as they have to be."""
    if isinstance(skill, Guide):
        signature, summary = "", f"guide: {one_line(skill.summary)}"
    else:
        fits = (each for each in signatures(skill) if tokens(skill.name + each) <= HEAD)
        signature, summary = next(fits, "(...)"), one_line(skill.summary)
    room = LINE - tokens(f"{skill.name}{signature}  # ")
    return {"name": skill.name, "signature": signature, "summary": cut(summary, room)}


def signatures(skill: Skill) -> Iterator[str]:
    """Yield a skill's signature, and then in fewer and fewer words: long defaults, types and defaults go first."""
    whole = skill.signature
    yield signature_text(whole)
    brief = replace(whole, parameters=tuple(map(without_long_default, whole.parameters)))
    yield signature_text(brief)
    yield signature_text(replace(brief, returns=""))
    yield signature_text(replace(whole, parameters=tuple(replace(each, annotation="") for each in brief.parameters)))
    names = [each.name for each in whole.parameters]
    for count in range(len(names), 0, -1):
        yield f"({', '.join(names[:count])}{', ...' if count < len(names) else ''})"


def without_long_default(parameter: Parameter) -> Parameter:
    """Return a parameter that shows its default only if that is short."""
    is_long = parameter.default is not None and len(parameter.default) > DEFAULT
    return replace(parameter, default="...") if is_long else parameter


def cut(text: str, room: int) -> str:
    """Return as much of a text as has room, up to the end of a word."""
    if tokens(text) <= room:
        return text
    words = text[: room * 8].split(" ")
    while words and tokens(" ".join(words)) + 1 > room:
        words.pop()
    if words:
        return f"{' '.join(words)}..."
    end = len(text[: room * 2])
    while end and tokens(text[:end]) + 1 > room:
        end -= 1
    return f"{text[:end]}..."


def tokens(text: str) -> int:
    """Return about how many tokens a text is."""
    return sum(map(_tokens, PIECE.findall(text)))


def _tokens(piece: str) -> int:
    if not piece.isascii():
        return len(piece.encode("utf-8", "replace")) - 1 or 1
    if piece.isdigit():
        return math.ceil(len(piece) / 3)
    if not piece[-1].isalpha():
        return math.ceil(len(piece) / 1.5)
    if len(piece) > 14 or VOWELS.isdisjoint(piece):  # no word
        return math.ceil(len(piece) / 1.8)
    return 1 if len(piece) <= 6 else math.ceil(len(piece) / 5)
