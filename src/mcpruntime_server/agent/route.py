"""Which way a task goes: one plain question to the model, or programs over the material. A pure function.

A question is cheaper and quicker, and good where the model can read everything at once and only has to find or say
something. Where many parts have to be put together, models lose count long before their windows are full.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

TOKEN = 3  # characters, at least
WINDOW = 32_000  # tokens, of a model that nothing is known of
SHARE = 0.5  # of a window that material may fill; the rest is for the question and the answer
FEW = 2_000  # characters of material in which nothing can be lost count of
AGGREGATES = re.compile(
    r"\b(how (many|much|often)|count\w*|number of|each|every|all|total\w*|sum of|average|mean|median|most|least|fewest|"
    r"more often|less often|frequen\w+|distribution|percent\w*|share of|per|rank\w*|sort\w*|group\w*|list\b.*\bof|"
    r"compare\w*|pairs?|between|duplicates?|unique|distinct|across|table of)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Route:
    """The way that a task goes: by one `question`, or by `programs`; `reason` is a sentence."""

    way: Literal["question", "programs"]
    reason: str


def route(
    task: str,
    size: int | None,
    window: int = 0,
    *,
    recursive: bool = False,
    packed: bool = False,
    packages: Collection[str] = (),
) -> Route:
    """Return the way of a task with material of `size` characters (None: there is none).

    `window` is the model's, in tokens (0: not known). `packed`: the material has to be unpacked.
    `packages` are those of tools that programs could use.
    """
    if recursive:
        return Route("programs", "It was asked for.")
    if size is None:
        return Route("programs", "There is no material: only programs can find or do something.")
    if packed:
        return Route("programs", "The material is packed: only programs can read it.")
    room = int((window or WINDOW) * SHARE * TOKEN)
    if size > room:
        return Route("programs", f"{size:,} characters of material are more than the {room:,} that are read at once.")
    words = set(re.findall(r"[a-z0-9_]+", task.lower()))
    if named := sorted(name for name in packages if name.lower() in words):
        return Route("programs", f"The task names the tools of {', '.join(named)}.")
    if size > FEW and (found := AGGREGATES.search(task)):
        return Route("programs", f"Parts have to be put together ({found[0]!r}), in {size:,} characters of material.")
    return Route("question", f"{size:,} characters of material are read at once, and nothing has to be put together.")
