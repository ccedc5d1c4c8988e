"""Tasks about the shop: sessions with the orders server, in SQL and in plain Python."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date
from statistics import mean, median
from typing import Any

from .task import Task, Values, chosen
from .world import World


def sold(world: World) -> Iterator[dict[str, Any]]:
    """Yield every item that was ordered, with its order, product and customer."""
    customers = {row["id"]: row for row in world.table("customers")}
    orders = {row["id"]: row for row in world.table("orders")}
    products = {row["id"]: row for row in world.table("products")}
    for item in world.table("items"):
        order = orders[item["order_id"]]
        customer = {"customer": customers[order["customer_id"]]}
        amount = item["quantity"] * item["unit_price"]
        yield {
            **item,
            **customer,
            "order": order,
            "product": products[item["product_id"]],
            "amount": amount,
        }


def revenue_by_category(world: World, values: Values) -> Any:
    region, year = chosen(world, values, "EMEA"), chosen(world, values, "2025")
    found: dict[str, float] = defaultdict(float)
    for item in sold(world):
        order = item["order"]
        if (
            item["customer"]["region"] == region
            and order["placed"][:4] == year
            and order["status"] != "cancelled"
        ):
            found[item["product"]["category"]] += item["amount"]
    return {category: round(amount, 2) for category, amount in found.items()}


def top_customers(world: World, values: Values) -> Any:
    country, count = chosen(world, values, "Norway"), chosen(world, values, 5)
    found: dict[str, float] = defaultdict(float)
    for item in sold(world):
        if item["customer"]["country"] == country:
            found[item["customer"]["name"]] += item["amount"]
    best = sorted(found.items(), key=lambda pair: -pair[1])[:count]
    return [{"name": name, "spent": round(amount, 2)} for name, amount in best]


def late_shipments(world: World, values: Values) -> Any:
    days, channel = chosen(world, values, 9), chosen(world, values, "partner")
    return [
        order["id"]
        for order in world.table("orders")
        if order["shipped"] and order["channel"] == channel
        if (date.fromisoformat(order["shipped"]) - date.fromisoformat(order["placed"])).days > days
    ]


def orders_per_month(world: World, values: Values) -> Any:
    channel = chosen(world, values, "phone")
    months = [order["placed"][:7] for order in world.table("orders") if order["channel"] == channel]
    return dict(sorted(Counter(months).items()))


def to_reorder(world: World, values: Values) -> Any:
    category, least, wanted = (
        chosen(world, values, "garden"),
        chosen(world, values, 60),
        chosen(world, values, 100),
    )
    products = [
        row
        for row in world.table("products")
        if row["category"] == category and row["stock"] < least
    ]
    return {row["sku"]: wanted - row["stock"] for row in products}


def loyal_customers(world: World, values: Values) -> Any:
    segment, least = chosen(world, values, "business"), chosen(world, values, 14)
    counts = Counter(order["customer_id"] for order in world.table("orders"))
    rows = [row for row in world.table("customers") if row["segment"] == segment]
    return sorted(row["name"] for row in rows if counts[row["id"]] >= least)


def statuses_by_region(world: World, values: Values) -> Any:
    regions = chosen(world, values, ("EMEA", "APAC"))
    region_of = {row["id"]: row["region"] for row in world.table("customers")}
    orders = world.table("orders")
    return {
        region: dict(
            Counter(row["status"] for row in orders if region_of[row["customer_id"]] == region)
        )
        for region in regions
    }


def best_sellers(world: World, values: Values) -> Any:
    category, limit = chosen(world, values, "tools"), chosen(world, values, 3)
    counts: Counter[str] = Counter()
    for item in sold(world):
        if item["product"]["category"] == category:
            counts[item["product"]["name"]] += item["quantity"]
    return [
        [name, count]
        for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]
    ]


def average_order_values(world: World, values: Values) -> Any:
    pair = (chosen(world, values, "consumer"), chosen(world, values, "public"))
    totals: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for item in sold(world):
        totals[item["customer"]["segment"]][item["order_id"]] += item["amount"]
    first, second = (round(mean(totals[segment].values()), 2) for segment in pair)
    return {"first": first, "second": second, "difference": round(first - second, 2)}


def orders_to_chase(world: World, values: Values) -> Any:
    status, least = chosen(world, values, "pending"), chosen(world, values, 2500)
    totals: dict[int, float] = defaultdict(float)
    for item in sold(world):
        if item["order"]["status"] == status:
            totals[item["order_id"]] += item["amount"]
    return sorted(order for order, amount in totals.items() if amount >= least)


def customers_called(world: World, values: Values) -> Any:
    word = chosen(world, values, "Marine")
    rows = sorted(world.table("customers"), key=lambda row: row["name"])
    return [
        {"name": row["name"], "mail": row["email"]}
        for row in rows
        if word.lower() in row["name"].lower()
    ]


def price_summary(world: World, values: Values) -> Any:
    category = chosen(world, values, "lighting")
    prices = [row["price"] for row in world.table("products") if row["category"] == category]
    return {
        "cheapest": min(prices),
        "median": round(median(prices), 2),
        "dearest": max(prices),
        "count": len(prices),
    }


SHOP = (
    Task(
        "revenue_by_category",
        "What did we sell in EMEA in 2025, by product category, leaving out cancelled orders?",
        (
            '''\
from tools.orders import query

region = "EMEA"
year = "2025"
rows = query("""
    SELECT p.category, ROUND(SUM(i.quantity * i.unit_price), 2) AS revenue
    FROM items i
    JOIN orders o ON o.id = i.order_id
    JOIN products p ON p.id = i.product_id
    JOIN customers c ON c.id = o.customer_id
    WHERE c.region = ? AND substr(o.placed, 1, 4) = ? AND o.status != 'cancelled'
    GROUP BY p.category
    ORDER BY revenue DESC
""", [region, year])
for row in rows:
    print(f"{row.category:12} {row.revenue:12,.2f}")
{row.category: row.revenue for row in rows}
''',
        ),
        ({"EMEA": "APAC"}, {"EMEA": "AMER", "2025": "2024"}),
        revenue_by_category,
    ),
    Task(
        "top_customers",
        "Who are our five best customers in Norway, and how much have they spent?",
        (
            """\
import tools
print(tools.orders.list_tables())
for table in ("customers", "orders", "items"):
    print(table, [c.name for c in tools.orders.describe_table(table)])
""",
            """\
rows = tools.orders.query(
    "SELECT c.name, c.country, i.quantity, i.unit_price FROM customers c "
    "JOIN orders o ON o.customer_id = c.id JOIN items i ON i.order_id = o.id"
)
print(len(rows), rows[0])
""",
            """\
spent = {}
for row in rows:
    if row["country"] == "Norway":
        spent[row["name"]] = spent.get(row["name"], 0) + row["quantity"] * row["unit_price"]
ranking = sorted(spent.items(), key=lambda pair: pair[1], reverse=True)
[{"name": name, "spent": round(amount, 2)} for name, amount in ranking[:5]]
""",
        ),
        ({5: 2}, {"Norway": "Germany"}, {"Norway": "Japan", 5: 4}),
        top_customers,
    ),
    Task(
        "late_shipments",
        "Which partner orders took more than nine days to ship?",
        (
            """\
from tools.orders import query
rows = query("SELECT * FROM orders WHERE channel = ?", ["partner"])
late = [r.id for r in rows if r.shipped_at - r.ordered_at > 9]
""",
            """\
print(rows[0])
""",
            """\
from datetime import date

late = []
for r in rows:
    if not r.shipped:
        continue
    took = (date.fromisoformat(r.shipped) - date.fromisoformat(r.placed)).days
    if took > 9:
        late.append(r.id)
print(len(late), "of", len(rows), "were late")
late
""",
        ),
        ({9: 11}, {"partner": "phone", 9: 10}),
        late_shipments,
        fails=frozenset({0}),
    ),
    Task(
        "orders_per_month",
        "How many orders came in by phone in each month?",
        (
            """\
import pandas as pd
import tools

rows = tools.orders.query("SELECT id, placed FROM orders WHERE channel = ?", ["phone"])
df = pd.DataFrame(rows)
df["month"] = df["placed"].str[:7]
monthly = df.groupby("month")["id"].count()
print(monthly.tail())
monthly.to_dict()
""",
        ),
        ({"phone": "partner"}, {"phone": "web"}),
        orders_per_month,
    ),
    Task(
        "to_reorder",
        "What garden products are below 60 in stock, and how many do we order to have 100 again?",
        (
            """\
from tools.orders import query

MINIMUM = 60
TARGET = 100

def missing(product, target):
    return target - product["stock"]

products = query("SELECT sku, name, stock FROM products WHERE category = 'garden' ORDER BY sku")
print([p["name"] for p in products])
""",
            """\
category = "garden"
products = query("SELECT sku, name, stock FROM products WHERE category = ? ORDER BY sku", [category])
order = {p["sku"]: missing(p, TARGET) for p in products if p["stock"] < MINIMUM}
order
""",
        ),
        ({60: 90}, {"garden": "office", 100: 150}),
        to_reorder,
    ),
    Task(
        "loyal_customers",
        "Which business customers have ordered at least 14 times?",
        (
            """\
import tools

def orders_of(customer_id):
    found = tools.orders.query("SELECT COUNT(*) AS n FROM orders WHERE customer_id = ?", [customer_id])
    return found[0]["n"]

customers = tools.orders.query("SELECT id, name FROM customers WHERE segment = ?", ["business"])
loyal = []
for customer in customers:
    try:
        if orders_of(customer["id"]) >= 14:
            loyal.append(customer["name"])
    except tools.ToolError as error:
        print("skipped", customer["name"], error)
sorted(loyal)
""",
        ),
        ({14: 12}, {"business": "public"}),
        loyal_customers,
    ),
    Task(
        "statuses_by_region",
        "Count orders by status for EMEA and APAC, side by side.",
        (
            '''\
import tools

regions = ["EMEA", "APAC"]

def statuses(region):
    return tools.orders.query(
        """SELECT o.status, COUNT(*) AS n
           FROM orders o JOIN customers c ON c.id = o.customer_id
           WHERE c.region = ?
           GROUP BY o.status""",
        [region],
    )

slots = tools.map(statuses, regions)
{region: {row["status"]: row["n"] for row in slot.value} for region, slot in zip(regions, slots) if slot.ok}
''',
        ),
        ({("EMEA", "APAC"): ("AMER",)}, {("EMEA", "APAC"): ("AMER", "EMEA", "APAC")}),
        statuses_by_region,
    ),
    Task(
        "best_sellers",
        "The three best selling products among the tools, by pieces sold.",
        (
            '''\
from tools.orders import query

def run(category: str = "tools", limit: int = 3) -> list:
    """Return the products of a category that sold most, with the pieces sold."""
    rows = query(
        """
        SELECT p.name, SUM(i.quantity) AS pieces
        FROM items i JOIN products p ON p.id = i.product_id
        WHERE p.category = ?
        GROUP BY p.id ORDER BY pieces DESC, p.name LIMIT ?
        """,
        [category, limit],
    )
    return [[row.name, row.pieces] for row in rows]

run()
''',
        ),
        ({"tools": "kitchen"}, {"tools": "office", 3: 4}),
        best_sellers,
    ),
    Task(
        "average_order_values",
        "Compare the average order value of consumers with that of the public sector.",
        (
            '''\
import asyncio
from tools.orders import query

SQL = """
    SELECT AVG(total) AS average FROM (
        SELECT SUM(i.quantity * i.unit_price) AS total
        FROM orders o JOIN items i ON i.order_id = o.id JOIN customers c ON c.id = o.customer_id
        WHERE c.segment = ? GROUP BY o.id)
"""
left, right = await asyncio.gather(query.aio(SQL, ["consumer"]), query.aio(SQL, ["public"]))
first, second = round(left[0].average, 2), round(right[0].average, 2)
print(f"{first} against {second}")
{"first": first, "second": second, "difference": round(first - second, 2)}
''',
        ),
        ({"consumer": "business"}, {"public": "business"}),
        average_order_values,
    ),
    Task(
        "orders_to_chase",
        "Put a note on every pending order over 2,500 so that somebody chases it, and give me their numbers.",
        (
            '''\
from tools.orders import execute, query

rows = query("""
    SELECT o.id, ROUND(SUM(i.quantity * i.unit_price), 2) AS total
    FROM orders o JOIN items i ON i.order_id = o.id
    WHERE o.status = ?
    GROUP BY o.id HAVING total >= ?
    ORDER BY o.id
""", ["pending", 2500])
print(len(rows), "orders to chase")
''',
            """\
for row in rows:
    execute("INSERT OR REPLACE INTO notes VALUES (?, 'chase', ?)", [row.id, f"worth {row.total:,.2f}: please call"])
[row.id for row in rows]
""",
        ),
        ({2500: 4000}, {"pending": "paid", 2500: 4500}),
        orders_to_chase,
    ),
    Task(
        "customers_called",
        "Find the customers with Marine in their name, and their mail addresses.",
        (
            """\
import tools
word = "Marine"
rows = tools.orders.query(f"SELECT name, email FROM customers WHERE name LIKE '%{word}%' ORDER BY name")
[{"name": r["name"], "mail": r["email"]} for r in rows]
""",
        ),
        ({"Marine": "Foods"}, {"Marine": "cob"}),
        customers_called,
    ),
    Task(
        "price_summary",
        "Cheapest, median and dearest price in the lighting category.",
        (
            """\
from statistics import median
from tools.orders import query

prices = [row["price"] for row in query("SELECT price FROM products WHERE category = ?", ["lighting"])]
prices
""",
            """\
{"cheapest": min(prices), "median": round(median(prices), 2), "dearest": max(prices), "count": len(prices)}
""",
        ),
        ({"lighting": "kitchen"}, {"lighting": "tools"}),
        price_summary,
    ),
)
