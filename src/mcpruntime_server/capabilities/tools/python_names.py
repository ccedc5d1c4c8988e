"""Python names for what upstreams call their things, which may be anything at all.

Rule 1: a name that is fit for Python stays as it is, even if others would have to give way to it.
Rule 2: the same names always get the same Python names, in whatever order they come.
Rule 3: no Python name starts with an underscore, so none is private, mangled or special.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Collection, Iterable

MAX_NAME_CHARS = 64  # characters


def to_identifier(text: str, kind: str, reserved: Collection[str] = ()) -> str:
    """Return a Python identifier for `text`; `kind` ("tool", "server", ...) names what has no usable character."""
    folded = unicodedata.normalize("NFKC", text)[
        : MAX_NAME_CHARS * 2
    ]  # as Python itself does with identifiers
    name = "".join(char if f"a{char}".isidentifier() else "_" for char in folded)
    name = re.sub(r"_+", "_", name) if name != folded else name
    name = (
        name.strip("_")[:MAX_NAME_CHARS]
        if name != folded or name.startswith("_")
        else name[:MAX_NAME_CHARS]
    )
    if not name[:1].isidentifier():
        name = f"{kind}_{name}".rstrip("_")
    return f"{name}_" if keyword.iskeyword(name) or name in reserved else name


def assign_names(texts: Iterable[str], kind: str, reserved: Collection[str] = ()) -> dict[str, str]:
    """Return a Python name for each of `texts`, no two the same."""
    wanted = {text: to_identifier(text, kind, reserved) for text in texts}
    # Those that need no change come first, so that they keep their names.
    order = sorted(wanted, key=lambda text: (wanted[text] != text, text))
    taken: set[str] = set()
    given: dict[str, str] = {}
    for text in order:
        name, number = wanted[text], 2
        while name in taken:
            name, number = f"{wanted[text]}_{number}", number + 1
        taken.add(name)
        given[text] = name
    return {text: given[text] for text in wanted}


def is_public_name(text: str) -> bool:
    """Return whether `text` is a name such as this module makes."""
    public = text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("_")
    return public and unicodedata.normalize("NFKC", text) == text


def describe_collisions(
    names: dict[str, str], kind: str, reserved: Collection[str] = ()
) -> list[str]:
    """Return one sentence for each of `names` (as `unique` made them) that had to give way to another."""
    moved = {
        text: name for text, name in names.items() if name != to_identifier(text, kind, reserved)
    }
    return [
        f"the {kind} {text[:80]!r} is called {name!r}, because others share its name"
        for text, name in moved.items()
    ]


def to_class_name(text: str) -> str:
    """Return `text` as the name of a class: `git_log` becomes `GitLog`."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[\W_]+", text) if part)
