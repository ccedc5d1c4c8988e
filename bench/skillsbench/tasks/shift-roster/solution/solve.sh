#!/bin/bash
set -e
python3 - <<'END'
import csv, json
from itertools import combinations

people = json.load(open("/root/data/people.json"))
days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
shifts = [(day, shift) for day in days for shift in ("early", "late")]


def search(roster):
    if len(roster) == len(shifts):
        return roster
    day, shift = shifts[len(roster)]
    left = {
        name: facts["most"] - sum(name in pair for pair in roster)
        for name, facts in people.items()
        if day not in facts["absent"] and not (roster and name in roster[-1])
    }
    pairs = [
        pair
        for pair in combinations((name for name in left if left[name]), 2)
        if any(people[name]["lead"] for name in pair)
    ]
    pairs.sort(key=lambda pair: (sum(people[n]["lead"] for n in pair), -sum(left[n] for n in pair)))
    for pair in pairs:
        if found := search([*roster, pair]):
            return found
    return None


with open("/root/roster.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["day", "shift", "first", "second"])
    for (day, shift), pair in zip(shifts, search([])):
        writer.writerow([day, shift, *pair])
END
