"""Skills that do the same, and the cases that they bring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mcpruntime_server.capabilities.skills.extraction import read_written_skill
from mcpruntime_server.capabilities.skills.model import RecordedCase, RecordedStep, Skill
from mcpruntime_server.capabilities.skills.saving import (
    MAX_STEPS_WORDS,
    find_duplicate,
    merge_cases,
    select_last_steps,
)
from mcpruntime_server.capabilities.skills.source import source_shape

SOURCE = 'def run(city: str = "Oslo") -> str:\n    """Greet."""\n    return city.upper()\n'


def skill(name: str = "greet", version: int = 1, **changes: Any) -> Skill:
    made = Skill(name, "Greet a city.", SOURCE, version=version, state="active")
    return replace(made, **changes)


def test_sources_that_differ_in_docstrings_and_defaults_are_duplicates() -> None:
    other = SOURCE.replace("Oslo", "Rome").replace("Greet.", "Say hello.")
    assert source_shape(other) == source_shape(SOURCE)
    assert source_shape(SOURCE.replace("upper", "lower")) != source_shape(SOURCE)
    extracted = read_written_skill(other)
    assert find_duplicate(extracted, {"greet": (skill(),)}) == skill()
    assert find_duplicate(extracted, {"greet": (skill(state="retired"),)}) is None
    assert find_duplicate(extracted, {}) is None


def test_a_skill_is_extracted_from_as_many_steps_as_can_be_read() -> None:
    codes = ["a = 1", "x " * (MAX_STEPS_WORDS - 7), "b = 2", "c = 3", "x " * 200_000]
    steps = [
        RecordedStep(f"r_{number}", code, RecordedCase({}), True, 0, None)
        for number, code in enumerate(codes)
    ]
    assert select_last_steps(steps) == steps[1:]
    assert select_last_steps([*steps, steps[0]]) == [steps[0]]


def test_a_duplicate_gets_one_more_case() -> None:
    known, new = RecordedCase({"city": "Oslo"}), RecordedCase({"city": "Rome"})
    extracted = replace(read_written_skill(SOURCE), cases=(new,))
    assert merge_cases(extracted, skill(cases=(known,))).cases == (known, new)
    assert merge_cases(extracted, skill(cases=(new,))).cases == (new,)


def test_an_edited_draft_keeps_only_the_case_that_was_recorded_with_it() -> None:
    known, new = RecordedCase({"city": "Oslo"}), RecordedCase({"city": "Rome"})
    extracted = replace(read_written_skill(SOURCE), cases=(new,))
    edited = skill(cases=(known,), origin="edit", state="draft")
    assert merge_cases(extracted, edited).cases == (new,)
