"""Database: a shop in SQLite; answers have at most 50 rows, and constraints refuse bad rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random
from typing import Any

from .task import Task
from .world import World

CUSTOMERS = "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT UNIQUE, city TEXT)"
ORDERS = (
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, cents INTEGER, "
    "status TEXT CHECK (status IN ('open', 'paid', 'sent', 'void')))"
)
CITIES = ("Bergen", "Turku", "Malmo", "Aarhus", "Narva")
FIRST_NAMES = ("Ada", "Bo", "Cy", "Di", "Eva", "Flo")
STATUSES = ("open", "paid", "sent")


def make_world(draw: Random) -> World:
    """Return 30 customers with 260 orders; four customers have none."""
    names = [f"{first}{last}" for first in FIRST_NAMES for last in "aeiou"]
    customers = [
        {"id": number + 1, "name": name, "city": draw.choice(CITIES)}
        for number, name in enumerate(names)
    ]
    orders = [
        {
            "id": number + 1,
            "customer": draw.randint(1, 26),
            "cents": draw.randint(100, 90_000),
            "status": draw.choice(STATUSES),
        }
        for number in range(260)
    ]
    taken = customers[5]["name"]
    for number in range(2, draw.randint(2, 5)):
        customers[4 + number]["name"] = f"{taken}{number}"
    tables = {
        "customers": {"sql": CUSTOMERS, "rows": customers},
        "orders": {"sql": ORDERS, "rows": orders},
    }
    facts = {
        "city": draw.choice(CITIES),
        "old": customers[3]["name"],
        "taken": taken,
    }
    return World({"database": tables}, facts)


def rows_of(world: World, table: str) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    rows: list[dict[str, Any]] = world.state["database"][table]["rows"]
    return rows


def customer_names(world: World) -> dict[int, str]:
    """Return the names of customers by id."""
    return {each["id"]: each["name"] for each in rows_of(world, "customers")}


def expect_count(world: World) -> Any:
    found = sorted(
        each["name"] for each in rows_of(world, "customers") if each["city"] == world.facts["city"]
    )
    return {"names": found}


def expect_best(world: World) -> Any:
    totals: Counter[int] = Counter()
    for order in rows_of(world, "orders"):
        if order["status"] != "open":
            totals[order["customer"]] += order["cents"]
    names = customer_names(world)
    return [[names[number], cents] for number, cents in totals.most_common(3)]


def expect_digest(world: World) -> Any:
    total = 0
    for order in rows_of(world, "orders"):
        total = (total * 31 + order["cents"]) % 1_000_003
    return total


def expect_voided(world: World) -> Any:
    changed = 0
    for order in rows_of(world, "orders"):
        if order["status"] == "open" and order["cents"] < 5_000:
            order["status"] = "void"
            changed += 1
    return changed


def expect_renamed(world: World) -> Any:
    customers = rows_of(world, "customers")
    names = {each["name"] for each in customers}
    number = 2
    while f"{world.facts['taken']}{number}" in names:
        number += 1
    name = f"{world.facts['taken']}{number}"
    for customer in customers:
        if customer["name"] == world.facts["old"]:
            customer["name"] = name
    return {"name": name, "tries": number}


def expect_cleaned(world: World) -> Any:
    with_orders = {order["customer"] for order in rows_of(world, "orders")}
    customers = rows_of(world, "customers")
    cities: dict[str, int] = defaultdict(int)
    for each in customers:
        if each["id"] not in with_orders:
            cities[each["city"]] += 1
    customers[:] = [each for each in customers if each["id"] in with_orders]
    return dict(cities)


TASKS = [
    Task(
        "customers-of-city",
        "easy",
        "Return an object whose key names holds the sorted names of the customers in the shop's "
        "database whose city is $city.",
        expect_count,
        """
from tools.database import query
found = query("SELECT name FROM customers WHERE city = ? ORDER BY name", ["$city"])
{"names": [row[0] for row in found["rows"]]}
""",
        (
            """
from tools.database import query
found = query("SELECT name FROM customers ORDER BY name", [])
{"names": [row[0] for row in found["rows"]]}
""",
            """
from tools.database import query
found = query("SELECT name FROM customers WHERE city = ? ORDER BY name", ["$city"])
{"names": found["rows"]}
""",
        ),
    ),
    Task(
        "best-customers",
        "medium",
        "Which three customers of the database have the highest total of orders that are not "
        "open? Return a list of [name, total in cents], the highest first.",
        expect_best,
        '''
from tools.database import query
query("""SELECT name, SUM(cents) FROM orders JOIN customers ON customers.id = orders.customer
    WHERE status != 'open' GROUP BY customer ORDER BY 2 DESC LIMIT 3""")["rows"]
''',
        (
            '''
from tools.database import query
query("""SELECT name, SUM(cents) FROM orders JOIN customers ON customers.id = orders.customer
    GROUP BY customer ORDER BY 2 DESC LIMIT 3""")["rows"]
''',
            '''
from tools.database import query
query("""SELECT name, MAX(cents) FROM orders JOIN customers ON customers.id = orders.customer
    WHERE status != 'open' GROUP BY customer ORDER BY 2 DESC LIMIT 3""")["rows"]
''',
        ),
    ),
    Task(
        "checksum",
        "hard",
        "Compute a checksum over the cents of all orders in the database, in the order of their "
        "ids: begin with 0, and for each order replace the checksum c by (31 * c + cents) modulo "
        "1000003. Return the last checksum.",
        expect_digest,
        """
from tools.database import query
total, offset = 0, 0
while True:
    page = query("SELECT cents FROM orders ORDER BY id LIMIT 50 OFFSET ?", [offset])
    for [cents] in page["rows"]:
        total = (total * 31 + cents) % 1_000_003
    offset += 50
    if len(page["rows"]) < 50:
        break
total
""",
        (
            """
from tools.database import query
total = 0
for [cents] in query("SELECT cents FROM orders ORDER BY id")["rows"]:
    total = (total * 31 + cents) % 1_000_003
total
""",
            """
from tools.database import query
total = 0
for offset in range(0, 260, 50):
    for [cents] in query("SELECT cents FROM orders ORDER BY id DESC LIMIT 50 OFFSET ?",
                         [offset])["rows"]:
        total = (total * 31 + cents) % 1_000_003
total
""",
        ),
        ("pages", "large"),
    ),
    Task(
        "void-small",
        "medium",
        "Set the status of all open orders below 5000 cents in the database to void. Return how "
        "many orders changed.",
        expect_voided,
        """
from tools.database import execute
execute("UPDATE orders SET status = 'void' WHERE status = 'open' AND cents < 5000")
""",
        (
            """
from tools.database import execute
execute("UPDATE orders SET status = 'void' WHERE status = 'open'")
""",
            """
from tools.database import query
query("SELECT COUNT(*) FROM orders WHERE status = 'open' AND cents < 5000")["rows"][0][0]
""",
        ),
        ("state",),
    ),
    Task(
        "rename",
        "hard",
        "Rename the customer $old in the database to $taken. If the database refuses a name, try "
        "the same name with a 2 after it, then with a 3, and so on. Return an object with name, "
        "the new name, and tries, how many names you tried.",
        expect_renamed,
        """
import tools
from tools.database import execute
for tries, name in enumerate(["$taken", *(f"$taken{n}" for n in range(2, 10))], 1):
    try:
        execute("UPDATE customers SET name = ? WHERE name = ?", [name, "$old"])
        break
    except tools.ToolError:
        continue
{"name": name, "tries": tries}
""",
        (
            """
from tools.database import execute
execute("DELETE FROM customers WHERE name = ?", ["$taken"])
execute("UPDATE customers SET name = ? WHERE name = ?", ["$taken", "$old"])
{"name": "$taken", "tries": 1}
""",
            """
from tools.database import execute
execute("UPDATE customers SET name = ? WHERE name = ?", ["${taken}2", "$old"])
{"name": "${taken}2", "tries": 1}
""",
        ),
        ("errors", "state"),
    ),
    Task(
        "remove-idle",
        "hard",
        "Delete every customer without orders from the database. Return an object with the number "
        "of deleted customers by city.",
        expect_cleaned,
        """
from collections import Counter
from tools.database import execute, query
idle = "id NOT IN (SELECT customer FROM orders)"
cities = Counter(row[0] for row in query(f"SELECT city FROM customers WHERE {idle}")["rows"])
execute(f"DELETE FROM customers WHERE {idle}")
dict(cities)
""",
        (
            """
from collections import Counter
from tools.database import execute, query
idle = "id NOT IN (SELECT customer FROM orders WHERE cents > 80000)"
cities = Counter(row[0] for row in query(f"SELECT city FROM customers WHERE {idle}")["rows"])
execute(f"DELETE FROM customers WHERE {idle}")
dict(cities)
""",
            """
from tools.database import execute
execute("DELETE FROM customers WHERE id NOT IN (SELECT customer FROM orders)")
""",
        ),
        ("state",),
    ),
]
