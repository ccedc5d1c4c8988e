"""Which way a task goes, and why."""

from __future__ import annotations

import pytest

from mcpruntime_server.agent.route import FEW, WINDOW, route


@pytest.mark.parametrize(
    ("task", "size", "more", "way", "reason"),
    [
        ("Who wrote it?", 5_000, {}, "question", "read at once"),
        ("Who wrote it?", None, {}, "programs", "no material"),
        ("Who wrote it?", 5_000, {"recursive": True}, "programs", "asked for"),
        ("Who wrote it?", 10 * WINDOW, {}, "programs", "more than"),
        ("Who wrote it?", 40_000, {"window": 8_000}, "programs", "more than the 12,000"),
        ("Who wrote it?", 40_000, {"window": 1_000_000}, "question", "read at once"),
        ("How many of them are late?", 5_000, {}, "programs", "How many"),
        ("How many of them are late?", FEW, {}, "question", "nothing has to be put together"),
        ("Which pairs of users agree?", 5_000, {}, "programs", "pairs"),
        ("Compare the two reports", 5_000, {}, "programs", "Compare"),
        ("What does the allocation say?", 5_000, {}, "question", "read at once"),
        ("File an issue on tracker for this", 50, {"packages": ["tracker", "git"]}, "programs", "tools of tracker"),
    ],
)
def test_a_task_goes_the_way_that_fits_it(
    task: str, size: int | None, more: dict[str, object], way: str, reason: str
) -> None:
    found = route(task, size, **more)  # type: ignore[arg-type]
    assert (found.way, reason in found.reason) == (way, True), found
