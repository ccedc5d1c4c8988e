"""Tasks about files, for the filesystem server: tables, logs, notes and settings."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from .task import Task, Values, chosen
from .world import World


def folder(world: World, values: Values) -> Path:
    """Return the folder that the values select."""
    return Path(chosen(world, values, "{data}"))


def sales(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table of sales."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{**row, "amount": int(row["amount"])} for row in csv.DictReader(file)]


def people(world: World, values: Values) -> list[dict[str, Any]]:
    """Return the people of a folder."""
    found: list[dict[str, Any]] = json.loads((folder(world, values) / "people.json").read_text())
    return found


def log_entries(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a log, split into fields."""
    line = re.compile(
        r"(?P<at>\S+) (?P<level>\w+) (?P<service>\w+) (?P<what>\w+) took (?P<ms>\d+)ms"
    )
    return [
        {**match.groupdict(), "ms": int(match["ms"])} for match in line.finditer(path.read_text())
    ]


def open_items(world: World, values: Values) -> Any:
    owner = chosen(world, values, "@dana")
    found = {}
    for path in sorted((folder(world, values) / "notes").iterdir()):
        lines = [
            line[6:].removesuffix(owner).strip()
            for line in path.read_text().splitlines()
            if line.endswith(owner)
        ]
        boxes = [line[3] for line in path.read_text().splitlines() if line.endswith(owner)]
        if left := [line for line, box in zip(lines, boxes, strict=True) if box == " "]:
            found[path.stem] = left
    return found


def sales_by_team(world: World, values: Values) -> Any:
    month = chosen(world, values, "2025-03")
    found: Counter[str] = Counter()
    for row in sales(folder(world, values) / "sales" / f"{month}.csv"):
        found[row["team"]] += row["amount"]
    return dict(found)


def slow_errors(world: World, values: Values) -> Any:
    service, slow = chosen(world, values, "billing"), chosen(world, values, 2000)
    entries = log_entries(folder(world, values) / "logs" / f"{service}.log")
    hits = [entry for entry in entries if entry["level"] == "ERROR" and entry["ms"] > slow]
    return [{"at": entry["at"], "what": entry["what"], "ms": entry["ms"]} for entry in hits]


def best_paid(world: World, values: Values) -> Any:
    skill, count = chosen(world, values, "python"), chosen(world, values, 4)
    able = [person for person in people(world, values) if skill in person["skills"]]
    able.sort(key=lambda person: (-person["salary"], person["name"]))
    return [person["name"] for person in able[:count]]


def big_services(world: World, values: Values) -> Any:
    least = chosen(world, values, 512)
    paths = (folder(world, values) / "settings").glob("*.json")
    settings = [json.loads(path.read_text()) for path in paths]
    return {
        each["service"]: each["limits"]["memory_mb"] * each["replicas"]
        for each in settings
        if each["limits"]["memory_mb"] >= least
    }


def city_totals(world: World, values: Values) -> Any:
    team, first, last = (chosen(world, values, each) for each in ("design", "2025-01", "2025-06"))
    found: Counter[str] = Counter()
    for path in (folder(world, values) / "sales").iterdir():
        if first <= path.stem <= last:
            for row in sales(path):
                if row["team"] == team:
                    found[row["city"]] += row["amount"]
    return dict(found)


def level_report(world: World, values: Values) -> Any:
    service = chosen(world, values, "gateway")
    counts = Counter(
        entry["level"] for entry in log_entries(folder(world, values) / "logs" / f"{service}.log")
    )
    return "".join([f"# {service}\n", *(f"{level}: {counts[level]}\n" for level in sorted(counts))])


def slowest(world: World, values: Values) -> Any:
    count, level = chosen(world, values, 6), chosen(world, values, "WARN")
    found = [
        [entry["service"], entry["what"], entry["ms"]]
        for path in sorted((folder(world, values) / "logs").iterdir())
        for entry in log_entries(path)
        if entry["level"] == level
    ]
    return sorted(found, key=lambda each: -each[2])[:count]


def team_salaries(world: World, values: Values) -> Any:
    since = chosen(world, values, 2019)
    teams: dict[str, list[int]] = defaultdict(list)
    for person in people(world, values):
        if int(person["started"][:4]) >= since:
            teams[person["team"]].append(person["salary"])
    return {team: round(sum(salaries) / len(salaries)) for team, salaries in teams.items()}


FILES = (
    Task(
        "open_items",
        "What has Dana still to do, according to the notes?",
        (
            """\
from tools.filesystem import list_directory, read_text_file
print(list_directory("{data}/notes").content)
print(read_text_file("{data}/notes/retro.md").content[:300])
""",
            """\
import tools

base = "{data}"
owner = "@dana"
names = [line.split(" ", 1)[1] for line in list_directory(f"{base}/notes").content.splitlines()]
texts = tools.map(lambda name: read_text_file(f"{base}/notes/{name}").content, names)

todo = {}
for name, text in zip(names, texts):
    items = [
        line[len("- [ ] "):].replace(owner, "").strip()
        for line in text.value.splitlines()
        if line.startswith("- [ ]") and line.rstrip().endswith(owner)
    ]
    if items:
        todo[name.removesuffix(".md")] = items
todo
""",
        ),
        ({"@dana": "@emi"}, {"{data}": "{data2}"}),
        open_items,
    ),
    Task(
        "sales_by_team",
        "Add up the sales of March 2025 by team.",
        (
            """\
import csv, io
from tools.filesystem import read_text_file

base = "{data}"
month = "2025-03"
text = read_text_file(base + "/sales/" + month + ".csv").content
totals = {}
for row in csv.DictReader(io.StringIO(text)):
    totals[row["team"]] = totals.get(row["team"], 0) + int(row["amount"])
print(sorted(totals.items()))
totals
""",
        ),
        ({"2025-03": "2025-05"}, {"{data}": "{data2}", "2025-03": "2025-01"}),
        sales_by_team,
    ),
    Task(
        "slow_errors",
        "Show me the errors of the billing service that took longer than two seconds.",
        (
            """\
import re
import tools

def parse(line):
    at, level, service, what, _, took = line.split()
    return {"at": at, "level": level, "what": what, "ms": int(took.removesuffix("ms"))}

base = "{data}"
service = "billing"
log = tools.filesystem.read_text_file(path=f"{base}/logs/{service}.log").content
entries = [parse(line) for line in log.splitlines() if line]
[{"at": e["at"], "what": e["what"], "ms": e["ms"]} for e in entries if e["level"] == "ERROR" and e["ms"] > 2000]
""",
        ),
        ({2000: 3000}, {"billing": "search"}, {"{data}": "{data2}", "billing": "auth", 2000: 1500}),
        slow_errors,
    ),
    Task(
        "best_paid",
        "Names of the four best paid people who know Python.",
        (
            """\
import json
import tools
people = json.loads(tools.filesystem.read_text_file("{data}/people.json"))
""",
            """\
raw = tools.filesystem.read_text_file("{data}/people.json")
people = json.loads(raw.content)
print(people[0])
""",
            """\
able = sorted((p for p in people if "python" in p["skills"]), key=lambda p: (-p["salary"], p["name"]))
[p["name"] for p in able[:4]]
""",
        ),
        ({"python": "sql"}, {4: 2, "python": "rust"}),
        best_paid,
        fails=frozenset({0}),
    ),
    Task(
        "big_services",
        "How much memory do the services with at least 512 MB use, all replicas together?",
        (
            """\
import json
from tools.filesystem import read_text_file, search_files

found = search_files("{data}", "settings/*.json").content
paths = [p for p in found.splitlines() if p.endswith(".json")]
configs = []
for path in paths:
    try:
        configs.append(json.loads(read_text_file(path).content))
    except ValueError as error:
        print("not JSON:", path, error)
minimum = 512
{c["service"]: c["limits"]["memory_mb"] * c["replicas"] for c in configs if c["limits"]["memory_mb"] >= minimum}
""",
        ),
        ({512: 256}, {"{data}": "{data2}"}),
        big_services,
    ),
    Task(
        "city_totals",
        "Total sales of the design team by city, January to June 2025.",
        (
            """\
import io
import pandas as pd
import tools

folder = "{data}/sales"
names = [line.removeprefix("[FILE] ") for line in tools.filesystem.list_directory(folder).content.splitlines()]
first, last = "2025-01", "2025-06"
wanted = [name for name in names if first <= name[:7] <= last]
frames = []
for name in wanted:
    frames.append(pd.read_csv(io.StringIO(tools.filesystem.read_text_file(f"{folder}/{name}").content)))
df = pd.concat(frames)
print(df.head())
""",
            """\
team = "design"
totals = df[df["team"] == team].groupby("city")["amount"].sum()
{city: int(amount) for city, amount in totals.items()}
""",
        ),
        ({"design": "support"}, {"2025-01": "2025-04", "design": "sales"}),
        city_totals,
    ),
    Task(
        "level_report",
        "Write a small report of the gateway's log levels into a file next to the notes, and show it to me.",
        (
            """\
from collections import Counter
from tools.filesystem import read_text_file, write_file

base = "{data}"
service = "gateway"
log = read_text_file(f"{base}/logs/{service}.log").content
levels = Counter(line.split()[1] for line in log.splitlines())
report = f"# {service}\\n" + "".join(f"{level}: {levels[level]}\\n" for level in sorted(levels))
target = f"{base}/report-{service}.md"
write_file(target, report)
read_text_file(target).content
""",
        ),
        ({"gateway": "mail"}, {"{data}": "{data2}", "gateway": "auth"}),
        level_report,
    ),
    Task(
        "slowest",
        "The six slowest warnings over all logs.",
        (
            """\
import tools
fs = tools.filesystem
listing = fs.list_directory("{data}/logs").content
print(listing)
""",
            """\
print(fs.read_text_file("{data}/logs/auth.log", head=3).content)
""",
            """\
from tools.filesystem import list_directory, read_text_file

def entries(folder, level):
    for line in sorted(list_directory(folder).content.splitlines()):
        name = line.split()[-1]
        for entry in read_text_file(f"{folder}/{name}").content.splitlines():
            _, found, service, what, _, took = entry.split()
            if found == level:
                yield [service, what, int(took[:-2])]

ranking = sorted(entries("{data}/logs", "WARN"), key=lambda e: e[2], reverse=True)
ranking[:6]
""",
        ),
        ({6: 3}, {"WARN": "ERROR"}, {"WARN": "INFO", 6: 8}),
        slowest,
    ),
    Task(
        "team_salaries",
        "Average salary by team of those who started in 2019 or later.",
        (
            """\
import json
from collections import defaultdict
from tools.filesystem import read_text_file

def average_salaries(folder: str, since: int) -> dict:
    '''Return the mean salary by team of the people who started in a year or later.'''
    teams = defaultdict(list)
    for person in json.loads(read_text_file(f"{folder}/people.json").content):
        if int(person["started"].split("-")[0]) >= since:
            teams[person["team"]].append(person["salary"])
    return {team: round(sum(pay) / len(pay)) for team, pay in teams.items()}

average_salaries("{data}", 2019)
""",
        ),
        ({2019: 2022}, {"{data}": "{data2}"}),
        team_salaries,
    ),
)
