"""Skills in one line each, of fewer than 60 tokens whatever they are called and take.

Rule: models pay for every word, and which tokenizer they have is not known here; so tokens are guessed, rather too many
than too few.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from ..capabilities.skills.docstrings import to_one_line
from ..capabilities.skills.guides import Guide
from ..capabilities.skills.model import Parameter, Skill, format_signature

MAX_LINE_TOKENS = 56  # tokens, guessed
MAX_SIGNATURE_TOKENS = 48  # of these, at most, for name and signature
MAX_DEFAULT_CHARS = 12  # characters of a default in a signature that is too long
VOWELS = frozenset("aeiouyAEIOUY")
PUNCTUATION = r"[!-/:-@[-`{-~]"
TOKEN_PATTERN = re.compile(
    rf"{PUNCTUATION}?[A-Za-z]+|[0-9]+|{PUNCTUATION}+(?![A-Za-z])|[^!-~\s]"
)  # a word takes in the mark before it


def skill_line(skill: Skill | Guide) -> str:
    """Return a skill in one line: name, signature and summary."""
    told = skill_summary(skill)
    return f"{told['name']}{told['signature']}  # {told['summary']}"


def skill_summary(skill: Skill | Guide) -> dict[str, str]:
    """Return name, signature and summary of a skill, the last two cut as far as they have to be."""
    if isinstance(skill, Guide):
        signature, summary = "", f"guide: {to_one_line(skill.summary)}"
    else:
        fits = (
            each
            for each in shrinking_signatures(skill)
            if estimate_tokens(skill.name + each) <= MAX_SIGNATURE_TOKENS
        )
        signature, summary = next(fits, "(...)"), to_one_line(skill.summary)
    room = MAX_LINE_TOKENS - estimate_tokens(f"{skill.name}{signature}  # ")
    return {
        "name": skill.name,
        "signature": signature,
        "summary": truncate_to_tokens(summary, room),
    }


def shrinking_signatures(skill: Skill) -> Iterator[str]:
    """Yield a skill's signature, and then in fewer and fewer words: long defaults, types and defaults go first."""
    whole = skill.signature
    yield format_signature(whole)
    brief = replace(whole, parameters=tuple(map(hide_long_default, whole.parameters)))
    yield format_signature(brief)
    yield format_signature(replace(brief, return_annotation=""))
    yield format_signature(
        replace(whole, parameters=tuple(replace(each, annotation="") for each in brief.parameters))
    )
    names = [each.name for each in whole.parameters]
    for count in range(len(names), 0, -1):
        yield f"({', '.join(names[:count])}{', ...' if count < len(names) else ''})"


def hide_long_default(parameter: Parameter) -> Parameter:
    """Return a parameter that shows its default only if that is short."""
    is_long = parameter.default is not None and len(parameter.default) > MAX_DEFAULT_CHARS
    return replace(parameter, default="...") if is_long else parameter


def truncate_to_tokens(text: str, max_tokens: int) -> str:
    """Return as much of a text as has room, up to the end of a word."""
    if estimate_tokens(text) <= max_tokens:
        return text
    words = text[: max_tokens * 8].split(" ")
    while words and estimate_tokens(" ".join(words)) + 1 > max_tokens:
        words.pop()
    if words:
        return f"{' '.join(words)}..."
    end = len(text[: max_tokens * 2])
    while end and estimate_tokens(text[:end]) + 1 > max_tokens:
        end -= 1
    return f"{text[:end]}..."


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text is."""
    return sum(map(_estimate_piece_tokens, TOKEN_PATTERN.findall(text)))


def _estimate_piece_tokens(piece: str) -> int:
    if not piece.isascii():
        return len(piece.encode("utf-8", "replace")) - 1 or 1
    if piece.isdigit():
        return math.ceil(len(piece) / 3)
    if not piece[-1].isalpha():
        return math.ceil(len(piece) / 1.5)
    if len(piece) > 14 or VOWELS.isdisjoint(piece):  # no word
        return math.ceil(len(piece) / 1.8)
    return 1 if len(piece) <= 6 else math.ceil(len(piece) / 5)
