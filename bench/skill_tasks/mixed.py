"""Tasks about time zones and a memory, tasks with several servers, and tasks without any."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from .history import commits
from .task import Task, Values, chosen
from .world import World, remembered

MEMORY = remembered()


def meeting_times(world: World, values: Values) -> Any:
    clock, home = chosen(world, values, "14:30"), chosen(world, values, "Europe/Oslo")
    hour, minute = map(int, clock.split(":"))
    moment = datetime.now(ZoneInfo(home)).replace(hour=hour, minute=minute, second=0, microsecond=0)
    zones = chosen(world, values, ("Asia/Tokyo", "America/Phoenix", "Asia/Kolkata"))
    return {zone: f"{moment.astimezone(ZoneInfo(zone)):%H:%M}" for zone in zones}


def hours_apart(world: World, values: Values) -> Any:
    pair = (chosen(world, values, "Asia/Tokyo"), chosen(world, values, "America/Bogota"))
    now = datetime.now(UTC)
    east, west = (now.astimezone(ZoneInfo(zone)).utcoffset() or timedelta() for zone in pair)
    return (east - west) / timedelta(hours=1)


def working_hours(world: World, values: Values) -> Any:
    begin, end = chosen(world, values, 9), chosen(world, values, 17)
    here, there = chosen(world, values, "Africa/Nairobi"), chosen(world, values, "Asia/Singapore")
    found = []
    for hour in range(begin, end):
        moment = datetime.now(ZoneInfo(here)).replace(hour=hour, minute=0)
        if begin <= moment.astimezone(ZoneInfo(there)).hour < end:
            found.append(f"{hour:02}:00")
    return found


def who_works_on(world: World, values: Values) -> Any:
    project, relation = chosen(world, values, "Atlas"), chosen(world, values, "leads")
    lines = [line for line in MEMORY if line["type"] == "relation" and line["to"] == project]
    return sorted(line["from"] for line in lines if line["relationType"] == relation)


def hours_in_city(world: World, values: Values) -> Any:
    city = chosen(world, values, "Turku")
    found = {}
    for line in MEMORY:
        if line["type"] == "entity" and f"lives in {city}" in line["observations"]:
            found[line["name"]] = int(line["observations"][1].split()[1])
    return {"people": found, "hours": sum(found.values())}


def milestones(world: World, values: Values) -> Any:
    names, project = chosen(world, values, ("Deneb", "Elara")), chosen(world, values, "Borealis")
    return [f"{name} belongs to {project}" for name in sorted(names)]


def night_commits(world: World, values: Values) -> Any:
    zone, newest = ZoneInfo(chosen(world, values, "Asia/Tokyo")), chosen(world, values, 15)
    found: Counter[str] = Counter()
    for commit in commits(world, values)[:newest]:
        if commit.at.astimezone(zone).hour < 6:
            found[commit.author] += 1
    return dict(found)


def customer_sheet(world: World, values: Values) -> Any:
    country = chosen(world, values, "Kenya")
    rows = [row for row in world.table("customers") if row["country"] == country]
    lines = [
        f"{row['name']};{row['segment']};{row['since']}"
        for row in sorted(rows, key=lambda row: row["name"])
    ]
    return ["name;segment;since", *lines]


def orders_on_release_days(world: World, values: Values) -> Any:
    kind, status = chosen(world, values, "feat"), chosen(world, values, "cancelled")
    days = {f"{commit.at:%Y-%m-%d}" for commit in commits(world, values) if commit.kind == kind}
    found = Counter(order["placed"] for order in world.table("orders") if order["status"] == status)
    return {day: found[day] for day in sorted(days) if found[day]}


def instalments(world: World, values: Values) -> Any:
    left, months, rate = (
        chosen(world, values, 12000),
        chosen(world, values, 6),
        chosen(world, values, 0.045),
    )
    monthly = rate / 12
    payment = left * monthly / (1 - (1 + monthly) ** -months)
    plan = []
    for month in range(1, months + 1):
        left = left + left * monthly - payment
        plan.append([month, round(payment, 2), round(abs(left), 2)])
    return plan


MIXED = (
    Task(
        "meeting_times",
        "It is 14:30 in Oslo. What time is that in Tokyo, Phoenix and Kolkata?",
        (
            """\
from tools.time import convert_time

home = "Europe/Oslo"
clock = "14:30"
zones = ["Asia/Tokyo", "America/Phoenix", "Asia/Kolkata"]
local = {}
for zone in zones:
    answer = convert_time(source_timezone=home, time=clock, target_timezone=zone)
    local[zone] = answer.target.datetime[11:16]
    print(zone, local[zone], answer.time_difference)
local
""",
        ),
        (
            {"14:30": "08:15"},
            {
                ("Asia/Tokyo", "America/Phoenix", "Asia/Kolkata"): ("UTC", "Asia/Kathmandu"),
                "Europe/Oslo": "Africa/Lagos",
            },
        ),
        meeting_times,
    ),
    Task(
        "hours_apart",
        "How many hours is Tokyo ahead of Bogota?",
        (
            """\
import tools
now = tools.time.get_current_time("Asia/Tokyo")
print(now)
""",
            """\
from datetime import datetime

def offset(zone):
    stamp = tools.time.get_current_time(zone).datetime
    return datetime.fromisoformat(stamp).utcoffset().total_seconds() / 3600

offset("Asia/Tokyo") - offset("America/Bogota")
""",
        ),
        (
            {"America/Bogota": "UTC"},
            {"Asia/Tokyo": "Asia/Kolkata", "America/Bogota": "Africa/Lagos"},
        ),
        hours_apart,
    ),
    Task(
        "working_hours",
        "In which hours of a nine to five day in Nairobi are they at work in Singapore as well?",
        (
            """\
from tools.time import convert_time

def run(here="Africa/Nairobi", there="Asia/Singapore", begin=9, end=17):
    overlap = []
    for hour in range(begin, end):
        other = convert_time(here, f"{hour:02}:00", there).target.datetime
        if begin <= int(other[11:13]) < end:
            overlap.append(f"{hour:02}:00")
    return overlap

run()
""",
        ),
        ({"Asia/Singapore": "Asia/Dubai"}, {"Africa/Nairobi": "Asia/Tokyo", 17: 19}),
        working_hours,
    ),
    Task(
        "who_works_on",
        "Who leads Atlas?",
        (
            """\
import tools
print(tools.memory.search_nodes("Atlas"))
""",
            """\
found = tools.memory.open_nodes(["Atlas"])
project = "Atlas"
sorted(r["from"] for r in found.relations if r["to"] == project and r["relationType"] == "leads")
""",
        ),
        ({"Atlas": "Cinder"}, {"leads": "reviews"}, {"Atlas": "Borealis", "leads": "reviews"}),
        who_works_on,
    ),
    Task(
        "hours_in_city",
        "How many hours a week do our people in Turku work, each and together?",
        (
            """\
from tools.memory import read_graph

city = "Turku"
people = [e for e in read_graph().entities if e.entityType == "person" and f"lives in {city}" in e.observations]
hours = {p.name: int(o.split()[1]) for p in people for o in p.observations if o.startswith("works")}
print(hours)
{"people": hours, "hours": sum(hours.values())}
""",
        ),
        ({"Turku": "Porto"}, {"Turku": "Oslo"}),
        hours_in_city,
    ),
    Task(
        "milestones",
        "Remember Deneb and Elara as milestones of Borealis, and show me what you have remembered.",
        (
            """\
from tools.memory import create_entities, create_relations, open_nodes

names = ["Deneb", "Elara"]
project = "Borealis"
create_entities([{"name": n, "entityType": "milestone", "observations": ["planned"]} for n in names])
create_relations([{"from": n, "to": project, "relationType": "belongs to"} for n in names])
""",
            """\
kept = open_nodes(names)
[f"{r['from']} {r['relationType']} {r['to']}" for r in sorted(kept.relations, key=lambda r: r["from"])]
""",
        ),
        (
            {("Deneb", "Elara"): ("Fornax", "Gemma", "Hydra")},
            {("Deneb", "Elara"): ("Indus",), "Borealis": "Cinder"},
        ),
        milestones,
    ),
    Task(
        "night_commits",
        "Who of the last 15 committers worked between midnight and six, by Tokyo's clocks?",
        (
            """\
import re
from collections import Counter
import tools
from tools.git import git_log
from tools.time import convert_time

log = git_log("{repo}", max_count=15)
entries = re.findall(r"Author: (.+)\\nDate: \\d{4}-\\d\\d-\\d\\d (\\d\\d:\\d\\d)", log)
print(entries[:3])
""",
            """\
def local_hour(entry):
    return int(convert_time("UTC", entry[1], "Asia/Tokyo").target.datetime[11:13])

hours = tools.map(local_hour, entries)
dict(Counter(author for (author, _), hour in zip(entries, hours) if hour.value < 6))
""",
        ),
        ({15: 30}, {"Asia/Tokyo": "Asia/Kolkata"}, {"{repo}": "{repo2}", 15: 25}),
        night_commits,
    ),
    Task(
        "customer_sheet",
        "Save our customers in Kenya as a sheet with semicolons, and read it back to see that it is right.",
        (
            """\
import tools

country = "Kenya"
rows = tools.orders.query("SELECT name, segment, since FROM customers WHERE country = ? ORDER BY name", [country])
lines = ["name;segment;since"] + [f"{r.name};{r.segment};{r.since}" for r in rows]
path = "{data}/sheet-" + country + ".csv"
tools.filesystem.write_file(path=path, content="\\n".join(lines))
tools.filesystem.read_text_file(path=path).content.splitlines()
""",
        ),
        ({"Kenya": "Spain"}, {"Kenya": "India"}),
        customer_sheet,
    ),
    Task(
        "orders_on_release_days",
        "Were orders cancelled on the days when features were committed? Count them by day.",
        (
            """\
import re
from tools.git import git_log

repo = "{repo}"
log = git_log(repo, max_count=1000)
days = {d for d, kind in re.findall(r"Date: (\\S+) .*\\nMessage: (\\w+)\\(", log) if kind == "feat"}
print(len(days), "days")
""",
            """\
from tools.orders import query

marks = ", ".join("?" for _ in days)
rows = query(
    f"SELECT placed, COUNT(*) AS n FROM orders WHERE status = ? AND placed IN ({marks}) GROUP BY placed",
    ["cancelled", *sorted(days)],
)
{row.placed: row.n for row in rows}
""",
        ),
        ({"feat": "fix"}, {"cancelled": "paid"}, {"{repo}": "{repo2}"}),
        orders_on_release_days,
    ),
    Task(
        "instalments",
        "I borrow 12,000 at 4.5 percent a year and pay it back in 6 monthly instalments. What is the plan?",
        (
            """\
principal = 12000
months = 6
rate = 0.045

monthly = rate / 12
payment = principal * monthly / (1 - (1 + monthly) ** -months)
plan, left = [], principal
for month in range(1, months + 1):
    interest = left * monthly
    left -= payment - interest
    plan.append([month, round(payment, 2), round(abs(left), 2)])
plan
""",
        ),
        ({12000: 30000}, {6: 12, 0.045: 0.06}),
        instalments,
    ),
)
