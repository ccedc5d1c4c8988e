"""Any roster that obeys the rules is right."""

import csv
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

ROSTER = Path("/root/roster.csv")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
PEOPLE = {
    "ada": {"lead": True, "most": 4, "absent": ["sun"]},
    "ben": {"lead": False, "most": 5, "absent": ["mon", "tue"]},
    "cem": {"lead": True, "most": 4, "absent": ["fri", "sat"]},
    "dua": {"lead": False, "most": 4, "absent": []},
    "eva": {"lead": True, "most": 4, "absent": ["wed", "thu"]},
    "fin": {"lead": False, "most": 4, "absent": ["sat"]},
    "gil": {"lead": True, "most": 3, "absent": ["mon"]},
}


@pytest.fixture
def roster():
    rows = list(csv.DictReader(ROSTER.read_text().splitlines()))
    return {(row["day"], row["shift"]): (row["first"], row["second"]) for row in rows}


def test_each_shift_has_two_people_of_whom_one_can_lead(roster):
    assert set(roster) == {(day, shift) for day in DAYS for shift in ("early", "late")}
    for first, second in roster.values():
        assert first != second
        assert {first, second} <= set(PEOPLE)
        assert PEOPLE[first]["lead"] or PEOPLE[second]["lead"]


def test_nobody_works_while_absent_or_twice_a_day(roster):
    for day in DAYS:
        names = [*roster[day, "early"], *roster[day, "late"]]
        assert len(set(names)) == 4
        assert not [name for name in names if day in PEOPLE[name]["absent"]]


def test_nobody_works_early_after_a_late_shift(roster):
    for before, after in pairwise(DAYS):
        assert not set(roster[before, "late"]) & set(roster[after, "early"])


def test_nobody_has_too_many_shifts(roster):
    counts = Counter(name for pair in roster.values() for name in pair)
    assert not [name for name, count in counts.items() if count > PEOPLE[name]["most"]]
