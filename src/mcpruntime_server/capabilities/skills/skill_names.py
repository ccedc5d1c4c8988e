"""What skills are called: a Python name in code, the same with hyphens in the Agent Skills standard.

Rule: ASCII only, so that no two names look alike; nothing that Python, the package `skills` or the standard keeps for
itself.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Collection

from ...errors import InvalidRequest

MAX_NAME_CHARS = 64  # characters, as in the standard
NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
VERSIONED = re.compile(r"(?P<name>[^@]*)@v?(?P<version>[1-9][0-9]{0,5})")
VERSION = re.compile(r"v[0-9]+")  # what a module of an exact version is called
RESERVED = frozenset({"list", "load", "search", "skills", "tools"})
BRANDS = ("anthropic", "claude")  # which the standard's authors keep for themselves


def parse_skill_name(text: str) -> str:
    """Return the Python name of a skill that somebody has named; raises `InvalidRequest`."""
    name = text.strip().replace("-", "_")
    problem = name_problem(name)
    if problem:
        raise InvalidRequest(
            f"{text!r:.80} cannot name a skill: {problem}.",
            remedy="Use lowercase words with underscores, such as weather_report.",
        )
    return name


def name_problem(name: str) -> str:
    """Return why a skill cannot have a name; "" if it can."""
    if len(name) > MAX_NAME_CHARS:
        return f"it has more than {MAX_NAME_CHARS} characters"
    if not NAME.fullmatch(name):
        return "it is not made of lowercase ASCII letters, digits and single underscores, a letter first"
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "Python keeps it for itself"
    if name in RESERVED or VERSION.fullmatch(name):
        return "the package `skills` keeps it for itself"
    if hasattr(builtins, name):
        return "it would hide what Python calls so"
    if brand := next((brand for brand in BRANDS if brand in name), ""):
        return f"{brand!r} may not be in it"
    return ""


def choose_free_name(wanted: str, taken: Collection[str]) -> str:
    """Return a name for a skill like `wanted`, which nobody may have chosen, that is allowed and not taken."""
    base = re.sub(r"[^a-z0-9]+", "_", wanted.lower()).strip("_")[: MAX_NAME_CHARS - 8].strip("_")
    base = base if base and base[0].isalpha() else f"skill_{base}".rstrip("_")
    for brand in BRANDS:
        base = base.replace(brand, "x")
    base = f"{base}_skill" if name_problem(base) else base
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def parse_version(text: str) -> tuple[str, int | None]:
    """Return the name and the version of "weather_report@2"; None is the one in use. Raises `InvalidRequest`."""
    found = VERSIONED.fullmatch(text.strip())
    return (
        (parse_skill_name(found["name"]), int(found["version"]))
        if found
        else (parse_skill_name(text), None)
    )


def to_slug(name: str) -> str:
    """Return a skill's name as the standard writes it."""
    return name.replace("_", "-")
