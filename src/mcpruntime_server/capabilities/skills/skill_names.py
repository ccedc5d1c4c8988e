"""Names of skills: a Python name in code, the same with hyphens in the Agent Skills standard.

Rule: names are ASCII, so that no two look alike. None is reserved by Python, the package `skills`
or the standard.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Collection

from ...errors import InvalidRequest

MAX_NAME_CHARS = 64  # the limit of the standard
NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
NAME_AND_VERSION = re.compile(r"(?P<name>[^@]*)@v?(?P<version>[1-9][0-9]{0,5})")
VERSION_MODULE = re.compile(r"v[0-9]+")  # the module of an exact version
RESERVED_NAMES = frozenset({"list", "load", "search", "skills", "tools"})
BRANDS = ("anthropic", "claude")  # reserved by the standard


def parse_skill_name(text: str) -> str:
    """Return the Python name of a skill for a name that somebody typed; raises `InvalidRequest`."""
    name = text.strip().replace("-", "_")
    if problem := name_problem(name):
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
        return "it is not made of lowercase ASCII letters, digits and single underscores"
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "it is a keyword of Python"
    if name in RESERVED_NAMES or VERSION_MODULE.fullmatch(name):
        return "the package `skills` reserves it"
    if hasattr(builtins, name):
        return "it would hide a builtin of Python"
    if brand := next((brand for brand in BRANDS if brand in name), ""):
        return f"it may not contain {brand!r}"
    return ""


def choose_free_name(wanted: str, taken: Collection[str]) -> str:
    """Return a valid name like `wanted` that is not taken."""
    base = re.sub(r"[^a-z0-9]+", "_", wanted.lower()).strip("_")[: MAX_NAME_CHARS - 8].strip("_")
    if not base or not base[0].isalpha():
        base = f"skill_{base}".rstrip("_")
    for brand in BRANDS:
        base = base.replace(brand, "x")
    if name_problem(base):
        base = f"{base}_skill"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def parse_version(text: str) -> tuple[str, int | None]:
    """Return the name and the version of "weather_report@2"; None if there is no version.

    Raises `InvalidRequest`.
    """
    match = NAME_AND_VERSION.fullmatch(text.strip())
    if match is None:
        return parse_skill_name(text), None
    return parse_skill_name(match["name"]), int(match["version"])


def to_slug(name: str) -> str:
    """Return a skill's name as the standard writes it."""
    return name.replace("_", "-")
