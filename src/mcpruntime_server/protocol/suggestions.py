"""Suggestions for misspelled names.

Names are compared as they are, and with their words in alphabetical order and verbs of one family
alike, so that `list_products` is close to `shop_products_list` and to `shop_products_get`.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Collection, Iterable, Tuple

MIN_SIMILARITY = 0.6  # of a name that is suggested
MIN_MISSPELLING = 0.8  # of a name that is taken for a misspelling of another
MAX_COMPARED_NAMES = 2_000
MAX_COMPARED_CHARS = 100  # of a name
WORD = r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^\W_]+"  # compiled when it is used
VERB_FAMILIES = (
    {"get", "list", "search", "find", "fetch", "read", "query", "show", "describe", "view"},
    {"create", "add", "insert", "make", "new", "post", "write", "save", "upload"},
    {"update", "edit", "set", "modify", "change", "patch", "rename", "move"},
    {"delete", "remove", "drop", "destroy", "clear", "cancel"},
    {"send", "run", "start", "execute", "call", "invoke", "publish"},
)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " or nothing."""
    close = find_similar(name, names)
    return f"Did you mean {close!r}? " if close else ""


def find_similar(name: str, names: Iterable[str]) -> str:
    """Return the one of `names` that was probably meant, or "".

    Among similar names, one with the same verb is preferred, then one with a verb that does much
    the same.
    """
    from itertools import islice

    if len(name) > MAX_COMPARED_CHARS:
        return ""
    best, best_score = "", (-1, 0.0)
    for other in islice(names, MAX_COMPARED_NAMES):
        similarity = _compare_names(name, other)
        if similarity >= MIN_SIMILARITY:
            score = (_compare_verbs(name, other), similarity)
            if score > best_score:
                best, best_score = other, score
    return best


def find_misspelled(name: str, known: Iterable[str], given: Collection[str]) -> str:
    """Return the name in `known` that `name` is a misspelling of, or "".

    A name that is in `given`, too, was spelled right, so it is not the one that was meant.
    """
    from difflib import get_close_matches

    spelled = {_plain_spelling(each): each for each in known if each not in given}
    close = get_close_matches(_plain_spelling(name), spelled, n=1, cutoff=MIN_MISSPELLING)
    return spelled[close[0]] if close else ""


def _plain_spelling(name: str) -> str:
    """Return a name in lower case and without the marks between its words."""
    return name[:MAX_COMPARED_CHARS].replace("_", "").replace("-", "").lower()


def _compare_names(name: str, other: str) -> float:
    """Return how similar two names are, from 0 to 1; 0 if they are not similar enough."""
    from difflib import SequenceMatcher

    if len(other) > MAX_COMPARED_CHARS:
        return 0.0
    matcher = SequenceMatcher(None, other, name)
    if matcher.real_quick_ratio() < MIN_SIMILARITY:
        return 0.0
    in_order = matcher.ratio()
    matcher.set_seqs(_sort_words(other), _sort_words(name))
    return max(in_order, matcher.ratio())


def _sort_words(name: str) -> str:
    """Return the words of a name in alphabetical order, with one word for each family of verbs."""
    words = set(_split_words(name))
    for number, family in enumerate(VERB_FAMILIES):
        if not words.isdisjoint(family):
            words = {*(words - family), f"verb{number}"}
    return " ".join(sorted(words))


def _compare_verbs(name: str, other: str) -> int:
    """Return 2 if both names have the same verb, 1 for verbs of one family, else 0."""
    words, other_words = _split_words(name), _split_words(other)
    for family in VERB_FAMILIES:
        verbs = family.intersection(words)
        if verbs.intersection(other_words):
            return 2
        if verbs and family.intersection(other_words):
            return 1
    return 0


def _split_words(name: str) -> Tuple[str, ...]:
    """Return the words of a name in snake case, camel case or with hyphens, in lower case."""
    return tuple(word.lower() for word in re.findall(WORD, name))
