"""The files that a folder or a pattern names: `/data`, `/data/*.csv`, `/data/**/*.json`.

`*` and `?` match within a name, `**` matches any folders. Hidden files and folders are left out
unless a part of the pattern begins with a dot. Links are not followed. This module is synchronous:
call it from a worker thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import translate

from ...errors import InvalidRequest

WILDCARDS = re.compile(r"[*?\[]")
ANY_FOLDERS = "**"
MAX_SEEN_FILES = 100_000  # below the folder of one pattern
MAX_PATTERN_PARTS = 32
MAX_COMPARISONS = 2_000_000  # of names with parts of one pattern: about a second


def is_pattern(path: str) -> bool:
    """Return whether a path has wildcards."""
    return WILDCARDS.search(path) is not None


def split_pattern(pattern: str) -> tuple[str, str]:
    """Return the folder before the first part with wildcards, and the rest."""
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if is_pattern(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def match_paths(paths: Iterable[str], pattern: str) -> list[str]:
    """Return the relative paths that match a pattern, sorted; raises `InvalidRequest`."""
    parts = pattern.split("/")
    if len(parts) > MAX_PATTERN_PARTS:
        raise InvalidRequest(
            f"The pattern has {len(parts)} parts; {MAX_PATTERN_PARTS} are allowed."
        )
    shows_hidden = any(part.startswith(".") for part in parts)
    matchers = [None if part == ANY_FOLDERS else re.compile(translate(part)) for part in parts]
    found, comparisons = [], 0
    for path in paths:
        if not shows_hidden and _is_hidden(path):
            continue
        names = path.split("/")
        comparisons += len(names) * len(parts)
        if comparisons > MAX_COMPARISONS:
            raise InvalidRequest(
                "The pattern has too many parts for so many files.",
                remedy="Name a folder further down, or use fewer parts.",
            )
        if _matches_path(names, matchers):
            found.append(path)
    return sorted(found)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _matches_path(names: list[str], matchers: list[re.Pattern[str] | None]) -> bool:
    """Return whether the parts of a path match; the work is bounded by the product of both."""
    reached = {0}
    for name in names:
        reached = _skip_any(reached, matchers)
        following = {at for at in reached if at < len(matchers) and matchers[at] is None}
        for at in reached:
            matcher = matchers[at] if at < len(matchers) else None
            if matcher is not None and matcher.match(name):
                following.add(at + 1)
        reached = following
    return len(matchers) in _skip_any(reached, matchers)


def _skip_any(reached: set[int], matchers: list[re.Pattern[str] | None]) -> set[int]:
    """Return the places in a pattern that can be reached without another name."""
    found = set(reached)
    for at in range(len(matchers)):
        if at in found and matchers[at] is None:
            found.add(at + 1)
    return found


def iter_files(folder: str) -> Iterator[str]:
    """Yield the relative path of each regular file below a folder; raises `InvalidRequest`."""
    seen = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not os.path.islink(os.path.join(parent, each))]
        relative = os.path.relpath(parent, folder)
        for name in names:
            seen += 1
            if seen > MAX_SEEN_FILES:
                raise InvalidRequest(
                    f"{folder!r:.200} has more than {MAX_SEEN_FILES:,} files.",
                    remedy="Name a folder further down.",
                )
            path = os.path.join(parent, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield name if relative == "." else f"{relative}/{name}"
