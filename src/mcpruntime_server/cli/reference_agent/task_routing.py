"""Which way a task goes: one plain question to the model, or programs over the material. A pure function.

A question is cheaper and quicker, and good where the model can read everything at once and only has to find or say
something. Where many parts have to be put together, models lose count long before their windows are full.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

CHARS_PER_TOKEN = 3  # characters, at least
DEFAULT_INPUT_TOKENS = 32_000  # tokens, of a model that nothing is known of
MATERIAL_SHARE = (
    0.5  # of a window that material may fill; the rest is for the question and the answer
)
SMALL_MATERIAL_CHARS = 2_000  # characters of material in which nothing can be lost count of
AGGREGATION_WORDS = re.compile(
    r"\b(how (many|much|often)|count\w*|number of|each|every|all|total\w*|sum of|average|mean|median|most|least|fewest|"
    r"more often|less often|frequen\w+|distribution|percent\w*|share of|per|rank\w*|sort\w*|group\w*|list\b.*\bof|"
    r"compare\w*|pairs?|between|duplicates?|unique|distinct|across|table of)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TaskRoute:
    """The way that a task goes: by one `question`, or by `programs`; `reason` is a sentence."""

    method: Literal["question", "programs"]
    reason: str


def choose_route(
    task: str,
    size: int | None,
    max_input_tokens: int = 0,
    *,
    recursive: bool = False,
    is_compressed: bool = False,
    packages: Collection[str] = (),
) -> TaskRoute:
    """Return the way of a task with material of `size` characters (None: there is none).

    `window` is the model's, in tokens (0: not known). `packed`: the material has to be unpacked.
    `packages` are those of tools that programs could use.
    """
    if recursive:
        return TaskRoute("programs", "It was asked for.")
    if size is None:
        return TaskRoute(
            "programs", "There is no material: only programs can find or do something."
        )
    if is_compressed:
        return TaskRoute("programs", "The material is packed: only programs can read it.")
    room = int((max_input_tokens or DEFAULT_INPUT_TOKENS) * MATERIAL_SHARE * CHARS_PER_TOKEN)
    if size > room:
        return TaskRoute(
            "programs",
            f"{size:,} characters of material are more than the {room:,} that are read at once.",
        )
    words = set(re.findall(r"[a-z0-9_]+", task.lower()))
    if named := sorted(name for name in packages if name.lower() in words):
        return TaskRoute("programs", f"The task names the tools of {', '.join(named)}.")
    if size > SMALL_MATERIAL_CHARS and (found := AGGREGATION_WORDS.search(task)):
        return TaskRoute(
            "programs",
            f"Parts have to be put together ({found[0]!r}), in {size:,} characters of material.",
        )
    return TaskRoute(
        "question",
        f"{size:,} characters of material are read at once, and nothing has to be put together.",
    )
