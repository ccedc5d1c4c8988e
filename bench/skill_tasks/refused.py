"""Tasks that must not become skills: each would be useless or harmful a second time.

Credentials are concatenated from parts, so that scanners do not report them as real ones.
"""

from __future__ import annotations

from .task import Task

AWS_KEY = "AKIA" + "Q7XJ2NW4LRT5VB3Z"
GITHUB_TOKEN = "ghp" + "_" + "x9Kq2Lm7Rt4Vw8Zb3Nc6Yd1Pf5Hg0Js2Ta7e"


def refused(
    name: str, text: str, *steps: str, why: str, fails: frozenset[int] = frozenset()
) -> Task:
    """Return a task that must not become an active skill."""
    return Task(name, text, steps, kind="refuse", why=why, fails=fails)


REFUSED = (
    refused(
        "constant_answer",
        "Which region has the most customers?",
        """\
answer = {"region": "AMER", "customers": 29}
print("The biggest region is", answer["region"])
answer
""",
        why="it asks nobody and computes nothing: the answer is written into it",
    ),
    refused(
        "file_of_another_run",
        "Compare this month's orders with the targets I gave you.",
        """\
import json

with open("targets.json", "w") as out:
    json.dump({"EMEA": 300, "APAC": 350, "AMER": 380}, out)
""",
        """\
import json
from tools.orders import query

region = "EMEA"
with open("targets.json") as file:
    targets = json.load(file)
rows = query(
    "SELECT COUNT(*) AS n FROM orders o JOIN customers c ON c.id = o.customer_id WHERE c.region = ?", [region]
)
{"region": region, "orders": rows[0].n, "missing": targets[region] - rows[0].n}
""",
        why="it reads a workspace file that an earlier run wrote and that no name in the code leads to",
    ),
    refused(
        "answer_table",
        "Look up the number of orders of a region.",
        """\
known = {"EMEA": 299, "APAC": 362, "AMER": 339}
region = "EMEA"
known[region]
""",
        why="the answers are a table in the code; nothing is asked or computed",
    ),
    refused(
        "key_in_code",
        "Sign the list of pending orders for the archive.",
        f"""\
import hashlib
from tools.orders import query

access = "{AWS_KEY}"
ids = [row.id for row in query("SELECT id FROM orders WHERE status = ? ORDER BY id", ["pending"])]
hashlib.sha256((access + repr(ids)).encode()).hexdigest()
""",
        why="a key of a cloud account is in a literal",
    ),
    refused(
        "token_in_code",
        "Prepare the request that opens an issue for every pull request number in the history.",
        f"""\
import re
from tools.git import git_log

headers = {{"Accept": "application/json", "Authorization": "token {GITHUB_TOKEN}"}}
numbers = re.findall(r"#(\\d+)", git_log("{{repo}}", max_count=50))
[{{"path": f"issues/{{number}}", "headers": headers}} for number in numbers]
""",
        why="a token is in a literal",
    ),
    refused(
        "path_in_helper",
        "How many people does each team have?",
        """\
import json
from collections import Counter
from tools.filesystem import read_text_file

def people():
    return json.loads(read_text_file("{data}/people.json").content)

def run(minimum: int = 5) -> dict:
    teams = Counter(person["team"] for person in people())
    return {team: n for team, n in teams.items() if n >= minimum}

run()
""",
        why="a helper function has an absolute path, which is not there elsewhere",
    ),
    refused(
        "by_chance",
        "Draw three orders for the audit.",
        """\
import random
from tools.orders import query

ids = [row.id for row in query("SELECT id FROM orders WHERE status = ?", ["paid"])]
random.sample(ids, 3)
""",
        why="the result is drawn by chance, without a seed, and no second run gives it",
    ),
    refused(
        "by_the_clock",
        "How many seconds ago was the last order of 2025 placed?",
        """\
from datetime import datetime
from tools.orders import query

last = query("SELECT MAX(placed) AS day FROM orders WHERE placed < ?", ["2026-01-01"])[0].day
(datetime.now() - datetime.fromisoformat(last)).total_seconds()
""",
        why="the result depends on the moment at which it runs",
    ),
    refused(
        "idle_parameter",
        "Count the cancelled orders of a channel.",
        """\
from tools.orders import query

def run(channel: str = "web", verbose: bool = False, currency: str = "EUR") -> int:
    rows = query("SELECT id FROM orders WHERE status = 'cancelled' AND channel = ?", [channel])
    return len(rows)

run("phone", False, "EUR")
""",
        why="`verbose` and `currency` never reach a call or the result",
    ),
    refused(
        "no_result",
        "Have a look at what sells.",
        """\
from tools.orders import query

category = "garden"
seen = set()
for row in query("SELECT name FROM products WHERE category = ? ORDER BY stock DESC", [category]):
    seen.add(row.name)
""",
        why="it neither returns nor prints anything",
    ),
    refused(
        "reads_environment",
        "Say who asked, and how many customers there are in Peru.",
        """\
import os
from tools.orders import query

country = "Peru"
found = query("SELECT COUNT(*) AS n FROM customers WHERE country = ?", [country])[0].n
{"by": os.environ.get("USER", "nobody"), "customers": found}
""",
        why="it reads the environment, which is another one elsewhere",
    ),
    refused(
        "work_at_import",
        "Log every lookup of a product into a file.",
        """\
from pathlib import Path
from tools.orders import query

LOG = Path("lookups.log").open("a")

def run(sku: str = "TO-101") -> dict:
    LOG.write(f"{sku}\\n")
    LOG.flush()
    return dict(query("SELECT name, price, stock FROM products WHERE sku = ?", [sku])[0])

run()
""",
        why="importing it opens a file and writes",
    ),
    refused(
        "undeclared_import",
        "Fetch the status page, or else tell me how many orders are pending.",
        """\
from tools.orders import query

def run(status: str = "pending") -> int:
    try:
        import requests
    except ImportError:
        return len(query("SELECT id FROM orders WHERE status = ?", [status]))
    return requests.get("http://localhost/status").json()["orders"]

run()
""",
        why="it imports what sandboxes do not have",
    ),
    refused(
        "ends_in_error",
        "What does the cheapest kitchen product cost in crowns?",
        """\
from tools.orders import query

row = query("SELECT MIN(price) AS price FROM products WHERE category = ?", ["kitchen"])[0]
row.price * row.rate
""",
        why="the run ended with an error",
        fails=frozenset({0}),
    ),
)
