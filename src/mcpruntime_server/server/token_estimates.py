"""Estimates how many tokens a text has, rather too many than too few.

The tokenizer of the client's model is unknown, and the tables of one are large.
"""

from __future__ import annotations

import math
import re

VOWELS = frozenset("aeiouyAEIOUY")
PUNCTUATION = r"[!-/:-@[-`{-~]"
# A word includes the punctuation mark before it.
TOKEN_PATTERN = re.compile(rf"{PUNCTUATION}?[A-Za-z]+|[0-9]+|{PUNCTUATION}+(?![A-Za-z])|[^!-~\s]")


def estimate_tokens(text: str) -> int:
    """Return the estimated number of tokens of a text."""
    return sum(map(_estimate_piece_tokens, TOKEN_PATTERN.findall(text)))


def _estimate_piece_tokens(piece: str) -> int:
    if not piece.isascii():
        return len(piece.encode("utf-8", "replace")) - 1 or 1
    if piece.isdigit():
        return math.ceil(len(piece) / 3)
    if not piece[-1].isalpha():
        return math.ceil(len(piece) / 1.5)
    if len(piece) > 14 or VOWELS.isdisjoint(piece):  # not a word
        return math.ceil(len(piece) / 1.8)
    return 1 if len(piece) <= 6 else math.ceil(len(piece) / 5)
