"""Estimates how many tokens a text has: closely for plain words, or safely for any.

The tokenizer of the client's model is unknown, and the tables of one are large.
"""

from __future__ import annotations

import math
import re

PIECE = re.compile(r"[A-Za-z]+|\d+|_+|\s+|[^\w\s]+|\w")
MAX_WORD_CHARS = 8  # of one token
MAX_DIGITS = 3
MAX_MARKS = 3
VOWELS = frozenset("aeiouyAEIOUY")
PUNCTUATION = r"[!-/:-@[-`{-~]"
# A word includes the punctuation mark before it.
PIECE_WITH_MARK = re.compile(rf"{PUNCTUATION}?[A-Za-z]+|[0-9]+|{PUNCTUATION}+(?![A-Za-z])|[^!-~\s]")


def estimate_tokens(text: str) -> int:
    """Return about how many tokens `text` has; with rare words it has a fifth more."""
    return sum(map(_estimate_piece, PIECE.findall(text)))


def _estimate_piece(piece: str) -> int:
    first = piece[0]
    if not first.isascii():
        return len(piece.encode("utf-8", "replace"))
    if first.isalpha():
        return math.ceil(len(piece) / MAX_WORD_CHARS)
    if first.isdigit():
        return math.ceil(len(piece) / MAX_DIGITS)
    if first.isspace():
        return 0 if piece == " " else 1
    return math.ceil(len(piece) / MAX_MARKS)


def bound_tokens(text: str) -> int:
    """Return a number of tokens that a text hardly exceeds, whatever its words are."""
    return sum(map(_bound_piece, PIECE_WITH_MARK.findall(text)))


def _bound_piece(piece: str) -> int:
    if not piece.isascii():
        return len(piece.encode("utf-8", "replace")) - 1 or 1
    if piece.isdigit():
        return math.ceil(len(piece) / 3)
    if not piece[-1].isalpha():
        return math.ceil(len(piece) / 1.5)
    if len(piece) > 14 or VOWELS.isdisjoint(piece):  # not a word
        return math.ceil(len(piece) / 1.8)
    return 1 if len(piece) <= 6 else math.ceil(len(piece) / 5)
