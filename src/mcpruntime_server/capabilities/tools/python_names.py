"""Python names for the names of upstreams, tools and parameters, which may be any text.

Rule 1: a valid Python name stays unchanged, even if others must change for it.
Rule 2: the same set of names always gets the same Python names, in any order.
Rule 3: no Python name starts with an underscore, so none is private, mangled or special.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Collection, Iterable

MAX_NAME_CHARS = 64


def to_identifier(text: str, kind: str, reserved: Collection[str] = ()) -> str:
    """Return a Python identifier for `text`.

    `kind` ("tool", "server", ...) is used if `text` has no character that can begin a name.
    """
    folded = unicodedata.normalize("NFKC", text)  # as Python itself does with identifiers
    folded = folded[: MAX_NAME_CHARS * 2]
    name = "".join(char if f"a{char}".isidentifier() else "_" for char in folded)
    is_changed = name != folded
    if is_changed:
        name = re.sub(r"_+", "_", name)
    if is_changed or name.startswith("_"):
        name = name.strip("_")
    name = name[:MAX_NAME_CHARS]
    if not name[:1].isidentifier():
        name = f"{kind}_{name}".rstrip("_")
    return f"{name}_" if keyword.iskeyword(name) or name in reserved else name


def assign_names(texts: Iterable[str], kind: str, reserved: Collection[str] = ()) -> dict[str, str]:
    """Return a Python name for each of `texts`, no two the same."""
    wanted = {text: to_identifier(text, kind, reserved) for text in texts}
    # Names that need no change come first, so that they keep their names.
    order = sorted(wanted, key=lambda text: (wanted[text] != text, text))
    used: set[str] = set()
    assigned: dict[str, str] = {}
    for text in order:
        name, number = wanted[text], 2
        while name in used:
            name, number = f"{wanted[text]}_{number}", number + 1
        used.add(name)
        assigned[text] = name
    return {text: assigned[text] for text in wanted}


def is_public_name(text: str) -> bool:
    """Return whether `text` is a name that this module can return."""
    public = text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("_")
    return public and unicodedata.normalize("NFKC", text) == text


def describe_collisions(
    names: dict[str, str], kind: str, reserved: Collection[str] = ()
) -> list[str]:
    """Return one sentence for each of `names` that `assign_names` changed for uniqueness."""
    moved = {
        text: name for text, name in names.items() if name != to_identifier(text, kind, reserved)
    }
    return [
        f"the {kind} {text[:80]!r} is renamed to {name!r}, because others have the same name"
        for text, name in moved.items()
    ]


def to_class_name(text: str) -> str:
    """Return `text` as the name of a class: `git_log` becomes `GitLog`."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[\W_]+", text) if part)
