"""Transforms: tables as text in four formats, and targets with schemas that are checked."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from .task import Task
from .world import World

TEAMS = ("red", "green", "blue", "gold")
CITIES = ("Oslo", "Riga", "Graz", "Nice")


def make_world(draw: Random) -> World:
    """Return people, sales, devices and visits as text, and four empty targets."""
    people = [
        {"id": n, "name": f"p{n}", "team": draw.choice(TEAMS), "age": draw.randint(18, 70)}
        for n in range(1, 61)
    ]
    sales = [
        {
            "person": draw.randint(1, 60),
            "cents": draw.randint(100, 99_999),
            "day": draw.randint(1, 28),
        }
        for _ in range(140)
    ]
    devices = [
        {"serial": f"d{n}", "city": draw.choice(CITIES), "watts": draw.randint(10, 2_000)}
        for n in range(1, 31)
    ]
    visits = [
        {"person": draw.randint(1, 60), "city": draw.choice(CITIES)}
        for _ in range(draw.randint(80, 99))
    ]
    broken = draw.sample(range(30), draw.randint(2, 7))
    lines = [
        f"serial={each['serial']};city={each['city']};watts={each['watts']}" for each in devices
    ]
    for number in broken:
        lines[number] = lines[number].rpartition("=")[0] + "=unknown"
    sources = {
        "people": {"format": "csv", "text": to_csv(people, ",")},
        "sales": {"format": "tsv", "text": to_csv(sales, "\t")},
        "devices": {"format": "kv", "text": "\n".join(lines)},
        "visits": {"format": "jsonl", "text": "\n".join(json.dumps(each) for each in visits)},
    }
    schemas = {
        "team_totals": {"team": "str", "cents": "int"},
        "kilowatts": {"serial": "str", "kw": "float"},
        "adults": {"name": "str", "age": "int"},
        "pivot": {"city": "str", **dict.fromkeys(TEAMS, "int")},
    }
    targets: dict[str, list[Any]] = {name: [] for name in schemas}
    tables = {"sources": sources, "schemas": schemas, "targets": targets}
    facts = {
        "team": draw.choice(TEAMS),
        "age": draw.randint(30, 50),
        "people": people,
        "sales": sales,
        "devices": [each for n, each in enumerate(devices) if n not in broken],
        "visits": visits,
    }
    return World({"tables": tables}, facts)


def to_csv(rows: list[dict[str, Any]], separator: str) -> str:
    """Return rows as lines of text with a header."""
    lines = [list(rows[0]), *(list(map(str, each.values())) for each in rows)]
    return "\n".join(separator.join(line) for line in lines)


def targets_of(world: World) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the targets."""
    found: dict[str, list[dict[str, Any]]] = world.state["tables"]["targets"]
    return found


def expect_team(world: World) -> Any:
    return sorted(
        each["name"] for each in world.facts["people"] if each["team"] == world.facts["team"]
    )


def expect_adults(world: World) -> Any:
    rows = [
        {"name": each["name"], "age": each["age"]}
        for each in world.facts["people"]
        if each["age"] >= world.facts["age"]
    ]
    targets_of(world)["adults"] += rows
    return len(rows)


def expect_totals(world: World) -> Any:
    teams = {each["id"]: each["team"] for each in world.facts["people"]}
    totals = dict.fromkeys(TEAMS, 0)
    for sale in world.facts["sales"]:
        totals[teams[sale["person"]]] += sale["cents"]
    rows = [{"team": team, "cents": cents} for team, cents in totals.items()]
    targets_of(world)["team_totals"] += rows
    return max(totals, key=lambda team: totals[team]) + f" {max(totals.values())}"


def expect_kilowatts(world: World) -> Any:
    targets_of(world)["kilowatts"] += [
        {"serial": each["serial"], "kw": each["watts"] / 1000} for each in world.facts["devices"]
    ]
    return 30 - len(world.facts["devices"])


def expect_pivot(world: World) -> Any:
    teams = {each["id"]: each["team"] for each in world.facts["people"]}
    table = {city: dict.fromkeys(TEAMS, 0) for city in CITIES}
    for visit in world.facts["visits"]:
        table[visit["city"]][teams[visit["person"]]] += 1
    targets_of(world)["pivot"] += [{"city": city, **counts} for city, counts in table.items()]
    return {city: sum(counts.values()) for city, counts in table.items()}


def expect_nested(world: World) -> Any:
    sales = world.facts["sales"]
    found: dict[str, Any] = {}
    for day in sorted({sale["day"] for sale in sales}):
        cents = [sale["cents"] for sale in sales if sale["day"] == day]
        found[str(day)] = {"count": len(cents), "largest": max(cents)}
    return found


READ = """
import csv
import io
import json
from tools.tables import read_source

def read(name):
    source = read_source(name)
    text = source["text"]
    if source["format"] in ("csv", "tsv"):
        separator = "," if source["format"] == "csv" else "\\t"
        return list(csv.DictReader(io.StringIO(text), delimiter=separator))
    if source["format"] == "jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return [dict(part.split("=") for part in line.split(";")) for line in text.splitlines()]
"""

TASKS = [
    Task(
        "members",
        "easy",
        "The source people has a person on each line. Return the sorted list of the names of "
        "those in the team $team.",
        expect_team,
        READ + 'sorted(each["name"] for each in read("people") if each["team"] == "$team")\n',
        (
            READ + 'sorted(each["id"] for each in read("people") if each["team"] == "$team")\n',
            READ
            + 'sorted(each["name"] for each in read("people")[:20] if each["team"] == "$team")\n',
        ),
    ),
    Task(
        "by-day",
        "easy",
        "For each day in the source sales, return an object with the number of sales as count, "
        "and the largest cents as largest; all of them in an object by the day as text.",
        expect_nested,
        READ
        + """
days = {}
for each in read("sales"):
    days.setdefault(each["day"], []).append(int(each["cents"]))
{day: {"count": len(cents), "largest": max(cents)} for day, cents in days.items()}
""",
        (
            READ
            + """
days = {}
for each in read("sales"):
    days.setdefault(each["day"], []).append(each["cents"])
{day: {"count": len(cents), "largest": int(max(cents))} for day, cents in days.items()}
""",
            READ
            + """
days = {}
for each in read("sales"):
    days.setdefault(each["day"], []).append(int(each["cents"]))
{day: {"count": len(cents), "largest": sum(cents)} for day, cents in days.items()}
""",
        ),
        ("large",),
    ),
    Task(
        "adults",
        "medium",
        "Write every person of the source people who is at least $age years old to the target "
        "adults. A write takes at most 25 rows. Return how many there are.",
        expect_adults,
        READ
        + """
from tools.tables import write_rows
rows = [{"name": each["name"], "age": int(each["age"])} for each in read("people")
        if int(each["age"]) >= $age]
for at in range(0, len(rows), 25):
    write_rows("adults", rows[at : at + 25])
len(rows)
""",
        (
            READ
            + """
from tools.tables import write_rows
rows = [{"name": each["name"], "age": int(each["age"])} for each in read("people")
        if int(each["age"]) < $age]
for at in range(0, len(rows), 25):
    write_rows("adults", rows[at : at + 25])
len(rows)
""",
            READ
            + """
from tools.tables import write_rows
rows = [{"name": each["name"], "age": int(each["age"])} for each in read("people")
        if int(each["age"]) >= $age]
write_rows("adults", rows[:5])
len(rows)
""",
        ),
        ("pages", "state"),
    ),
    Task(
        "team-totals",
        "hard",
        "The source sales names people by their id in the source people. Write the total cents of "
        "each team to the target team_totals. Return the team with the highest total and the "
        "total, as one text with a space between them.",
        expect_totals,
        READ
        + """
from tools.tables import write_rows
teams = {each["id"]: each["team"] for each in read("people")}
totals = dict.fromkeys(sorted(set(teams.values())), 0)
for each in read("sales"):
    totals[teams[each["person"]]] += int(each["cents"])
write_rows("team_totals", [{"team": team, "cents": cents} for team, cents in totals.items()])
best = max(totals, key=totals.get)
f"{best} {totals[best]}"
""",
        (
            READ
            + """
from collections import Counter
from tools.tables import write_rows
teams = {each["id"]: each["team"] for each in read("people")}
totals = Counter(teams[each["person"]] for each in read("sales"))
write_rows("team_totals", [{"team": team, "cents": cents} for team, cents in totals.items()])
"{} {}".format(*totals.most_common(1)[0])
""",
            READ
            + """
teams = {each["id"]: each["team"] for each in read("people")}
totals = dict.fromkeys(sorted(set(teams.values())), 0)
for each in read("sales"):
    totals[teams[each["person"]]] += int(each["cents"])
best = max(totals, key=totals.get)
f"{best} {totals[best]}"
""",
        ),
        ("large", "state"),
    ),
    Task(
        "kilowatts",
        "hard",
        "Write the devices of the source devices to the target kilowatts, with watts divided by "
        "1000 as kw. A write takes at most 25 rows, and a device whose watts are no number is "
        "left out. Return how many were left out.",
        expect_kilowatts,
        READ
        + """
from tools.tables import write_rows
devices = read("devices")
rows = [{"serial": each["serial"], "kw": int(each["watts"]) / 1000} for each in devices
        if each["watts"].isdecimal()]
for at in range(0, len(rows), 25):
    write_rows("kilowatts", rows[at : at + 25])
len(devices) - len(rows)
""",
        (
            READ
            + """
from tools.tables import write_rows
devices = read("devices")
rows = [{"serial": each["serial"],
         "kw": int(each["watts"]) / 1000 if each["watts"].isdecimal() else 0.0}
        for each in devices]
for at in range(0, len(rows), 25):
    write_rows("kilowatts", rows[at : at + 25])
0
""",
            READ
            + """
from tools.tables import write_rows
devices = read("devices")
rows = [{"serial": each["serial"], "kw": int(each["watts"])} for each in devices
        if each["watts"].isdecimal()]
for at in range(0, len(rows), 25):
    write_rows("kilowatts", rows[at : at + 25])
len(devices) - len(rows)
""",
        ),
        ("errors", "pages", "state"),
    ),
    Task(
        "pivot",
        "hard",
        "The source visits names people by their id in the source people. Count the visits by "
        "city and team, and write a row for each city to the target pivot, whose schema has the "
        "teams. Return an object with the number of visits by city.",
        expect_pivot,
        READ
        + """
from tools.tables import read_schema, write_rows
teams = {int(each["id"]): each["team"] for each in read("people")}
columns = [name for name in read_schema("pivot") if name != "city"]
table = {}
for each in read("visits"):
    counts = table.setdefault(each["city"], dict.fromkeys(columns, 0))
    counts[teams[each["person"]]] += 1
write_rows("pivot", [{"city": city, **counts} for city, counts in table.items()])
{city: sum(counts.values()) for city, counts in table.items()}
""",
        (
            READ
            + """
from collections import Counter
dict(Counter(each["city"] for each in read("visits")))
""",
            READ
            + """
from collections import Counter
from tools.tables import read_schema, write_rows
columns = [name for name in read_schema("pivot") if name != "city"]
counts = Counter(each["city"] for each in read("visits"))
write_rows("pivot", [{"city": city, **dict.fromkeys(columns, count // len(columns))}
                     for city, count in counts.items()])
dict(counts)
""",
        ),
        ("large", "state"),
    ),
]
