"""Tasks that were not used to tune the extraction: other coding habits, the same data.

Rule: the benchmark reports tasks that do not become skills; nobody adapts the tasks.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .history import commits
from .refused import refused
from .shop import sold
from .task import Task, Values, chosen
from .world import World


def basket(world: World, values: Values) -> Any:
    region, least = chosen(world, values, "APAC"), chosen(world, values, 4)
    sizes = Counter(
        item["order_id"] for item in sold(world) if item["customer"]["region"] == region
    )
    large = [order for order, size in sizes.items() if size >= least]
    return {"orders": len(sizes), "large": len(large), "share": round(len(large) / len(sizes), 3)}


def category_pairs(world: World, values: Values) -> Any:
    year, count = chosen(world, values, "2024"), chosen(world, values, 3)
    found: dict[int, set[str]] = defaultdict(set)
    for item in sold(world):
        if item["order"]["placed"].startswith(year):
            found[item["order_id"]].add(item["product"]["category"])
    pairs = Counter(
        f"{one}+{two}" for kinds in found.values() for one in kinds for two in kinds if one < two
    )
    return [
        [pair, times]
        for pair, times in sorted(pairs.items(), key=lambda each: (-each[1], each[0]))[:count]
    ]


def days_to_ship(world: World, values: Values) -> Any:
    country = chosen(world, values, "Japan")
    theirs = {row["id"] for row in world.table("customers") if row["country"] == country}
    shipped = [
        row for row in world.table("orders") if row["customer_id"] in theirs and row["shipped"]
    ]
    days = [
        (date.fromisoformat(row["shipped"]) - date.fromisoformat(row["placed"])).days
        for row in shipped
    ]
    return f"{country}: {len(days)} shipments, median {median(days):g} days"


def stock_value(world: World, values: Values) -> Any:
    dear = chosen(world, values, 50)
    rows = [row for row in world.table("products") if row["price"] >= dear]
    found: Counter[str] = Counter()
    for row in rows:
        found[row["category"]] += row["stock"]
    return [f"| {category} | {pieces} |" for category, pieces in sorted(found.items())]


def silent_customers(world: World, values: Values) -> Any:
    since, segment = chosen(world, values, "2025-10-01"), chosen(world, values, "public")
    last: dict[int, str] = {}
    for row in world.table("orders"):
        last[row["customer_id"]] = max(last.get(row["customer_id"], ""), row["placed"])
    rows = [row for row in world.table("customers") if row["segment"] == segment]
    return sorted(row["name"] for row in rows if last.get(row["id"], "") < since)


def busiest_weekday(world: World, values: Values) -> Any:
    names = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    author = chosen(world, values, "Chidi Okafor")
    days = Counter(
        names[commit.at.weekday()] for commit in commits(world, values) if commit.author == author
    )
    return dict(sorted(days.items(), key=lambda each: (-each[1], each[0])))


def streak(world: World, values: Values) -> Any:
    kind = chosen(world, values, "fix")
    best = now = 0
    for commit in reversed(commits(world, values)):
        now = now + 1 if commit.kind == kind else 0
        best = max(best, now)
    return best


def subjects_with(world: World, values: Values) -> Any:
    word = chosen(world, values, "cache")
    return [f"{c.sha[:7]} {c.subject}" for c in commits(world, values) if word in c.subject]


def monthly_growth(world: World, values: Values) -> Any:
    folder, team = Path(chosen(world, values, "{data}")), chosen(world, values, "design")
    totals = []
    for path in sorted((folder / "sales").glob("*.csv")):
        with path.open() as file:
            totals.append(
                (
                    path.stem,
                    sum(int(r["amount"]) for r in csv.DictReader(file) if r["team"] == team),
                )
            )
    return {month: amount - before for (_, before), (month, amount) in pairwise(totals)}


def services_with(world: World, values: Values) -> Any:
    level, folder = chosen(world, values, "WARN"), Path(chosen(world, values, "{data}"))
    found = {
        path.stem: path.read_text().count(f" {level} ")
        for path in sorted((folder / "logs").glob("*.log"))
    }
    return max(found, key=lambda name: (found[name], name))


def headings(world: World, values: Values) -> Any:
    topic, folder = chosen(world, values, "roadmap"), Path(chosen(world, values, "{data}"))
    return re.findall(r"^## (.+)$", (folder / "notes" / f"{topic}.md").read_text(), re.MULTILINE)


def hires_per_year(world: World, values: Values) -> Any:
    import json

    skill, folder = chosen(world, values, "python"), Path(chosen(world, values, "{data}"))
    people = json.loads((folder / "people.json").read_text())
    return dict(sorted(Counter(p["started"][:4] for p in people if skill in p["skills"]).items()))


HELD_OUT: tuple[Task, ...] = (
    Task(
        "basket_sizes",
        "How many orders from APAC have at least four different products?",
        (
            "from tools.orders import list_tables, describe_table\n"
            "for t in list_tables():\n    print(t, [c.name for c in describe_table(t)])\n",
            """\
from tools.orders import query
REGION = "APAC"
MIN_ITEMS = 4
sql = '''
select i.order_id as id, count(*) as n
from items i join orders o on o.id = i.order_id join customers c on c.id = o.customer_id
where c.region = ? group by i.order_id
'''
rows = query(sql, [REGION])
large = list(filter(lambda r: r.n >= MIN_ITEMS, rows))
print(f"{len(large)} of {len(rows)}")
""",
            "summary = dict(orders=len(rows), large=len(large), share=round(len(large) / len(rows), 3))\nsummary",
        ),
        ({"APAC": "EMEA"}, {4: 5}),
        basket,
    ),
    Task(
        "category_pairs",
        "Which product categories are bought together most in 2024? Top three pairs.",
        (
            """\
from itertools import combinations
from collections import Counter, defaultdict
import tools

year = "2024"
top_n = 3

data = tools.orders.query(
    f"SELECT i.order_id, p.category FROM items i JOIN products p ON p.id = i.product_id "
    f"JOIN orders o ON o.id = i.order_id WHERE o.placed LIKE '{year}%'"
)
by_order = defaultdict(set)
for row in data:
    by_order[row["order_id"]].add(row["category"])

pairs = Counter()
for categories in by_order.values():
    pairs.update("+".join(pair) for pair in combinations(sorted(categories), 2))

ranking = sorted(pairs.items(), key=lambda kv: (-kv[1], kv[0]))
ranking[:top_n]
""",
        ),
        ({"2024": "2025"}, {3: 5}),
        category_pairs,
    ),
    Task(
        "days_to_ship",
        "How long do shipments to Japan take?",
        (
            """\
import datetime as dt
import statistics
from tools import orders

class Shipment:
    def __init__(self, row):
        self.placed = dt.date.fromisoformat(row["placed"])
        self.shipped = dt.date.fromisoformat(row["shipped"])

    @property
    def days(self):
        return (self.shipped - self.placed).days


def load(country):
    rows = orders.query(
        "SELECT o.placed, o.shipped FROM orders o JOIN customers c ON c.id = o.customer_id "
        "WHERE c.country = ? AND o.shipped IS NOT NULL", [country])
    return [Shipment(r) for r in rows]
""",
            """\
country = "Japan"
shipments = load(country)
times = sorted(s.days for s in shipments)
print(times[:5], "...", times[-5:])
f"{country}: {len(times)} shipments, median {statistics.median(times):g} days"
""",
        ),
        ({"Japan": "Brazil"}, {"Japan": "Norway"}),
        days_to_ship,
    ),
    Task(
        "stock_table",
        "A table with the pieces in stock by category, of products from 50 up.",
        (
            """\
from tools.orders import query
products = query("SELECT category, price, stock FROM products")
# how dear are things?
prices = sorted(p.price for p in products)
print(min(prices), max(prices))
""",
            """\
threshold = 50
stock = {}
for p in products:
    if p.price < threshold:
        continue
    stock[p.category] = stock.get(p.category, 0) + p.stock
table = [f"| {name} | {pieces} |" for name, pieces in sorted(stock.items())]
print("\\n".join(["| category | pieces |", "|---|---|", *table]))
table
""",
        ),
        ({50: 100}, {50: 20}),
        stock_value,
    ),
    Task(
        "silent_customers",
        "Which public bodies have not ordered since October 2025?",
        (
            """\
from tools.orders import query

try:
    rows = query("SELECT name, MAX(placed) AS last FROM customers JOIN orders USING (customer_id) GROUP BY name")
except Exception as error:
    print("no:", error)
""",
            """\
def silent(segment, since):
    rows = query(
        "SELECT c.name, MAX(o.placed) AS last FROM customers c LEFT JOIN orders o ON o.customer_id = c.id "
        "WHERE c.segment = ? GROUP BY c.id",
        [segment],
    )
    return sorted(row.name for row in rows if (row.last or "") < since)

silent("public", since="2025-10-01")
""",
        ),
        ({"public": "business"}, {"2025-10-01": "2025-08-15"}),
        silent_customers,
    ),
    Task(
        "busiest_weekday",
        "On which weekdays does Chidi commit?",
        (
            """\
import re
from datetime import datetime
from tools.git import git_log

who = "Chidi Okafor"
text = git_log("{repo}", max_count=500)
days = {}
for block in text.split("Commit: ")[1:]:
    author = re.search(r"^Author: (.*?)(?: <|$)", block, re.M).group(1).strip()
    when = re.search(r"^Date: (\\S+)", block, re.M).group(1)
    if who in author:
        day = datetime.fromisoformat(re.search(r"^Date: (.+)$", block, re.M).group(1).strip()).strftime("%a")
        days[day] = days.get(day, 0) + 1
result = dict(sorted(days.items(), key=lambda each: (-each[1], each[0])))
result
""",
        ),
        ({"Chidi Okafor": "Dana Weiss"}, {"{repo}": "{repo2}", "Chidi Okafor": "Greta Lind"}),
        busiest_weekday,
    ),
    Task(
        "longest_streak",
        "What is the longest run of fix commits in a row?",
        (
            """\
from tools.git import git_log
import re, itertools
subjects = re.findall(r"^Message: (.*)$", git_log("{repo}", max_count=1000), re.MULTILINE)[::-1]
kind = "fix"
groups = itertools.groupby(subjects, lambda s: s.startswith(kind + "("))
runs = [len(list(group)) for is_kind, group in groups if is_kind]
max(runs, default=0)
""",
        ),
        ({"fix": "chore"}, {"fix": "docs"}),
        streak,
    ),
    Task(
        "subjects_with",
        "Which commits mention the cache?",
        (
            """\
from tools.git import git_log
import re

def parse(log):
    '''Short hash and subject of each commit.'''
    for sha, rest in re.findall(r"Commit: (\\w+)((?:\\n(?!Commit: ).*)*)", log):
        yield sha[:7], re.search(r"Message: (.*)", rest).group(1)

def main(repo: str, word: str) -> list[str]:
    return [f"{sha} {subject}" for sha, subject in parse(git_log(repo, max_count=1000)) if word in subject]

if __name__ == "__main__":
    found = main("{repo}", "cache")
    print(len(found), "commits")
""",
            'main("{repo}", "cache")',
        ),
        ({"cache": "login"}, {"{repo}": "{repo2}"}),
        subjects_with,
    ),
    Task(
        "monthly_growth",
        "How did the sales of the design team change from month to month?",
        (
            """\
from tools.filesystem import list_directory
print(list_directory(path="{data}/sales"))
""",
            """\
import csv, io
from tools.filesystem import read_text_file

base = "{data}"
team = "design"
totals = {}
for m in range(1, 7):
    month = f"2025-{m:02d}"
    answer = read_text_file(path=f"{base}/sales/{month}.csv")
    text = answer if isinstance(answer, str) else answer.content
    totals[month] = sum(int(row["amount"]) for row in csv.DictReader(io.StringIO(text)) if row["team"] == team)
totals
""",
            """\
months = sorted(totals)
growth = {b: totals[b] - totals[a] for a, b in zip(months, months[1:])}
growth
""",
        ),
        ({"design": "sales"}, {"{data}": "{data2}"}),
        monthly_growth,
    ),
    Task(
        "service_with_most",
        "Which service warns most?",
        (
            """\
from tools.filesystem import read_multiple_files, read_text_file

folder, level = "{data}", "WARN"
services = ["auth", "billing", "search", "mail", "gateway"]

def text(answer):
    return answer if isinstance(answer, str) else answer["content"]

logs = tools.map(lambda name: text(read_text_file(path=f"{folder}/logs/{name}.log")), services)
counts = {name: slot.value.count(f" {level} ") for name, slot in zip(services, logs) if slot.ok}
worst = max(counts, key=lambda name: (counts[name], name))
worst
""",
        ),
        ({"WARN": "ERROR"}, {"{data}": "{data2}", "WARN": "ERROR"}),
        services_with,
    ),
    Task(
        "headings_of_note",
        "What are the sections of the roadmap notes?",
        (
            """\
from tools.filesystem import read_text_file
name = "roadmap"
doc = read_text_file(path="{data}/notes/" + name + ".md")
doc = doc if isinstance(doc, str) else doc.content
[line[3:] for line in doc.splitlines() if line.startswith("## ")]
""",
        ),
        ({"roadmap": "budget"}, {"roadmap": "hiring"}),
        headings,
    ),
    Task(
        "hires_per_year",
        "In which years were people hired who know Python?",
        (
            """\
import json
from collections import Counter
from tools.filesystem import read_text_file

raw = await read_text_file.aio(path="{data}/people.json")
people = json.loads(raw if isinstance(raw, str) else raw.content)
print(people[0])
""",
            """\
wanted = "python"
years = Counter()
for person in people:
    if wanted in person["skills"]:
        years[person["started"][:4]] += 1
dict(sorted(years.items()))
""",
        ),
        ({"python": "rust"}, {"python": "french"}),
        hires_per_year,
    ),
    refused(
        "age_of_orders",
        "How old is the oldest pending order?",
        """\
from datetime import date
from tools.orders import query
[row] = query("SELECT MIN(placed) AS first FROM orders WHERE status = ?", ["pending"])
(date.today() - date.fromisoformat(row.first)).days
""",
        why="what comes out depends on the day",
    ),
    refused(
        "sample_of_customers",
        "Give me some customers to call.",
        """\
import random
from tools.orders import query
names = [row.name for row in query("SELECT name FROM customers WHERE country = ?", ["Norway"])]
random.shuffle(names)
names[:2]
""",
        why="what comes out depends on chance",
    ),
    refused(
        "token_in_header",
        "Put the orders into our tracker.",
        """\
from tools.orders import query
headers = {"Authorization": "Bearer """
        + "sk-proj-"
        + "9fKx2LmQ7Rt4Vw8Zb3Nc6Yd1Pf5Hg0Js2Ta7eUoXi"
        + """"}
rows = query("SELECT id FROM orders WHERE status = ? LIMIT 3", ["pending"])
[dict(id=row.id, **headers) for row in rows]
""",
        why="it holds a credential",
    ),
    refused(
        "home_folder",
        "Where do I keep my reports?",
        """\
import os
from tools.orders import query
count = query("SELECT COUNT(*) AS n FROM orders WHERE channel = ?", ["web"])[0].n
{"home": os.environ.get("HOME", "?"), "orders": count}
""",
        why="it reads the environment",
    ),
)
