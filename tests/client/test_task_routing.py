"""How a task is done, and why: with one model request, or with programs."""

from __future__ import annotations

import pytest

from mcpruntime_server.client.reference_agent.task_routing import (
    DEFAULT_INPUT_TOKENS,
    SMALL_MATERIAL_CHARS,
    choose_route,
)


@pytest.mark.parametrize(
    ("task", "size", "options", "method", "reason"),
    [
        ("Who wrote it?", 5_000, {}, "request", "can read 5,000 characters at once"),
        ("Who wrote it?", None, {}, "programs", "Without material"),
        ("Who wrote it?", 5_000, {"recursive": True}, "programs", "were requested"),
        ("Who wrote it?", 5_000, {"is_compressed": True}, "programs", "compressed"),
        ("Who wrote it?", 10 * DEFAULT_INPUT_TOKENS, {}, "programs", "reads 48,000 at once"),
        ("Who wrote it?", 40_000, {"max_input_tokens": 8_000}, "programs", "reads 12,000 at once"),
        ("Who wrote it?", 40_000, {"max_input_tokens": 1_000_000}, "request", "at once"),
        ("How many of them are late?", 5_000, {}, "programs", "How many"),
        ("How many of them are late?", SMALL_MATERIAL_CHARS, {}, "request", "combines no parts"),
        ("Which pairs of users agree?", 5_000, {}, "programs", "pairs"),
        ("Compare the two reports", 5_000, {}, "programs", "Compare"),
        ("What does the allocation say?", 5_000, {}, "request", "at once"),
        (
            "File an issue on tracker for this",
            50,
            {"packages": ["tracker", "git"]},
            "programs",
            "tools of tracker",
        ),
    ],
)
def test_a_task_takes_the_cheapest_route_that_suits_it(
    task: str, size: int | None, options: dict[str, object], method: str, reason: str
) -> None:
    route = choose_route(task, size, **options)  # type: ignore[arg-type]
    assert route.method == method
    assert reason in route.reason
