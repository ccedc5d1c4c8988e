"""Which way a task goes, and why."""

from __future__ import annotations

import pytest

from mcpruntime_server.cli.reference_agent.task_routing import (
    DEFAULT_INPUT_TOKENS,
    SMALL_MATERIAL_CHARS,
    choose_route,
)


@pytest.mark.parametrize(
    ("task", "size", "more", "way", "reason"),
    [
        ("Who wrote it?", 5_000, {}, "question", "read at once"),
        ("Who wrote it?", None, {}, "programs", "no material"),
        ("Who wrote it?", 5_000, {"recursive": True}, "programs", "asked for"),
        ("Who wrote it?", 10 * DEFAULT_INPUT_TOKENS, {}, "programs", "more than"),
        ("Who wrote it?", 40_000, {"window": 8_000}, "programs", "more than the 12,000"),
        ("Who wrote it?", 40_000, {"window": 1_000_000}, "question", "read at once"),
        ("How many of them are late?", 5_000, {}, "programs", "How many"),
        (
            "How many of them are late?",
            SMALL_MATERIAL_CHARS,
            {},
            "question",
            "nothing has to be put together",
        ),
        ("Which pairs of users agree?", 5_000, {}, "programs", "pairs"),
        ("Compare the two reports", 5_000, {}, "programs", "Compare"),
        ("What does the allocation say?", 5_000, {}, "question", "read at once"),
        (
            "File an issue on tracker for this",
            50,
            {"packages": ["tracker", "git"]},
            "programs",
            "tools of tracker",
        ),
    ],
)
def test_a_task_goes_the_way_that_fits_it(
    task: str, size: int | None, more: dict[str, object], way: str, reason: str
) -> None:
    found = choose_route(task, size, **more)  # type: ignore[arg-type]
    assert (found.method, reason in found.reason) == (way, True), found
