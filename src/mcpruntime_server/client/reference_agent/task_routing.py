"""Decide how to do a task: with one model request over all the material, or with programs.

A single request is cheaper and faster. It is good enough if the model can read everything at once
and only has to find or say something. If a task combines many parts, models lose count long before
the material reaches their input limits.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

CHARS_PER_TOKEN = 3  # a low estimate
DEFAULT_INPUT_TOKENS = 32_000  # for a model with an unknown limit
MATERIAL_SHARE = 0.5  # of the input limit; the rest is for the task and the answer
SMALL_MATERIAL_CHARS = 2_000  # a model does not lose count in so few
AGGREGATION_WORDS = re.compile(
    r"\b(how (many|much|often)|count\w*|number of|each|every|all|total\w*|sum of|average|mean|"
    r"median|most|least|fewest|more often|less often|frequen\w+|distribution|percent\w*|share of|"
    r"per|rank\w*|sort\w*|group\w*|list\b.*\bof|compare\w*|pairs?|between|duplicates?|unique|"
    r"distinct|across|table of)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TaskRoute:
    """How to do a task: with one model `request` or with `programs`; `reason` is a sentence."""

    method: Literal["request", "programs"]
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
    """Return how to do a task with material of `size` characters (None: no material).

    `max_input_tokens` is the model's limit (0: unknown). `packages` are the tool packages that
    programs can use.
    """
    if recursive:
        return TaskRoute("programs", "Programs were requested.")
    if size is None:
        return TaskRoute("programs", "Without material, only programs can find or do something.")
    if is_compressed:
        return TaskRoute("programs", "The material is compressed, and only programs can read it.")
    readable = max_material_chars(max_input_tokens or DEFAULT_INPUT_TOKENS)
    if size > readable:
        return TaskRoute(
            "programs",
            f"The material has {size:,} characters, and the model reads {readable:,} at once.",
        )
    words = set(re.findall(r"[a-z0-9_]+", task.lower()))
    if named := sorted(name for name in packages if name.lower() in words):
        return TaskRoute("programs", f"The task names the tools of {', '.join(named)}.")
    if size > SMALL_MATERIAL_CHARS and (found := AGGREGATION_WORDS.search(task)):
        return TaskRoute(
            "programs",
            f"The task combines parts ({found[0]!r}) of {size:,} characters of material.",
        )
    return TaskRoute(
        "request",
        f"The model can read {size:,} characters at once, and the task combines no parts.",
    )


def max_material_chars(max_input_tokens: int) -> int:
    """Return how many characters of material fit into a prompt."""
    return int(max_input_tokens * MATERIAL_SHARE * CHARS_PER_TOKEN)
