"""An MCP server over the orders of a shop, in the SQLite file that is its argument.

Rule: `make_orders` always makes the same shop, so that tests know the right answers without it.
"""

from __future__ import annotations

import random
import sqlite3
import sys
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.types import ToolAnnotations
from pydantic import BaseModel

server = MCPServer("orders", log_level="ERROR")
READS = ToolAnnotations(read_only_hint=True)
MAX_ROWS = 5000

SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, email TEXT, region TEXT, country TEXT,
    segment TEXT, since TEXT);
CREATE TABLE products (id INTEGER PRIMARY KEY, sku TEXT UNIQUE, name TEXT, category TEXT,
    price REAL, stock INTEGER);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers(id),
    placed TEXT, shipped TEXT, status TEXT, channel TEXT);
CREATE TABLE items (order_id INTEGER REFERENCES orders(id),
    product_id INTEGER REFERENCES products(id), quantity INTEGER, unit_price REAL);
CREATE TABLE notes (order_id INTEGER, topic TEXT, text TEXT, PRIMARY KEY (order_id, topic));
"""
COUNTRIES = {
    "EMEA": ("Norway", "Germany", "Spain", "Kenya", "France"),
    "APAC": ("Japan", "India", "Australia", "Vietnam"),
    "AMER": ("Canada", "Brazil", "Mexico", "Chile", "Peru"),
}
FIRST = (
    "Aster",
    "Birch",
    "Cobalt",
    "Delta",
    "Ember",
    "Fjord",
    "Garnet",
    "Harbor",
    "Indigo",
    "Juniper",
    "Kestrel",
    "Lark",
)
SECOND = (
    "Works",
    "Trading",
    "Labs",
    "Foods",
    "Textiles",
    "Logistics",
    "Studio",
    "Marine",
    "Optics",
    "Motors",
)
GOODS = {
    "tools": (
        "hammer",
        "spirit level",
        "cordless drill",
        "hand saw",
        "torque wrench",
        "chisel set",
    ),
    "lighting": ("desk lamp", "floor lamp", "work light", "lantern", "led strip"),
    "garden": ("watering can", "rake", "hose reel", "planter", "pruning shears", "wheelbarrow"),
    "kitchen": ("kettle", "cast iron pan", "mixing bowl", "knife block", "scale"),
    "office": ("stapler", "label printer", "desk organiser", "whiteboard", "paper shredder"),
}
STATUSES = (
    "paid",
    "paid",
    "paid",
    "shipped",
    "shipped",
    "shipped",
    "pending",
    "cancelled",
    "returned",
)
CUSTOMERS, ORDERS = 80, 1000
FIRST_DAY, DAYS = date(2024, 1, 1), 730


def make_orders(path: Path) -> None:
    """Make the shop's database at `path`, where no file may be."""
    chance = random.Random("a shop")
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(SCHEMA)
        database.executemany(
            "INSERT INTO customers VALUES (?, ?, ?, ?, ?, ?, ?)", _customers(chance)
        )
        products = _products(chance)
        database.executemany("INSERT INTO products VALUES (?, ?, ?, ?, ?, ?)", products)
        for order in range(1, ORDERS + 1):
            placed = FIRST_DAY + timedelta(days=chance.randrange(DAYS))
            status = chance.choice(STATUSES)
            shipped = (
                placed + timedelta(days=chance.randint(0, 12))
                if status in ("shipped", "returned")
                else None
            )
            row = (
                order,
                chance.randint(1, CUSTOMERS),
                placed.isoformat(),
                shipped and shipped.isoformat(),
                status,
            )
            channel = chance.choice(("web", "web", "phone", "partner"))
            database.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)", (*row, channel))
            for product in chance.sample(products, chance.randint(1, 5)):
                price = round(product[4] * chance.choice((1, 1, 1, 0.9)), 2)
                database.execute(
                    "INSERT INTO items VALUES (?, ?, ?, ?)",
                    (order, product[0], chance.randint(1, 9), price),
                )


def _customers(chance: random.Random) -> list[tuple[Any, ...]]:
    names = [f"{first} {second}" for first in FIRST for second in SECOND]
    rows: list[tuple[Any, ...]] = []
    for number, name in enumerate(chance.sample(names, CUSTOMERS), 1):
        region = chance.choice(tuple(COUNTRIES))
        country = chance.choice(COUNTRIES[region])
        segment = chance.choice(("consumer", "business", "public"))
        since = date(2019, 1, 1) + timedelta(days=chance.randrange(1800))
        email = f"buying@{name.lower().replace(' ', '-')}.example"
        rows.append((number, name, email, region, country, segment, since.isoformat()))
    return rows


def _products(chance: random.Random) -> list[tuple[Any, ...]]:
    goods = [(category, name) for category, names in GOODS.items() for name in names]
    return [
        (
            number,
            f"{category[:2].upper()}-{100 + number}",
            name,
            category,
            chance.randint(300, 24000) / 100,
            stock,
        )
        for number, (category, name) in enumerate(goods, 1)
        for stock in [chance.randrange(120)]
    ]


class Column(BaseModel):
    """One column of a table."""

    name: str
    type: str
    key: bool


class Changed(BaseModel):
    """What a statement changed."""

    rows: int
    last_id: int | None


@server.tool(annotations=READS)
def list_tables() -> list[str]:
    """Return the names of the tables."""
    rows = _read("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name", [])
    return [row["name"] for row in rows]


@server.tool(annotations=READS)
def describe_table(table: str) -> list[Column]:
    """Return the columns of a table."""
    rows = _read("SELECT name, type, pk FROM pragma_table_info(?)", [table])
    if not rows:
        raise ValueError(f"no such table: {table}")
    return [Column(name=row["name"], type=row["type"], key=bool(row["pk"])) for row in rows]


@server.tool(annotations=READS)
def query(sql: str, params: list[Any] | None = None) -> list[dict[str, Any]]:
    """Run one SELECT and return its rows; `?` in `sql` stand for `params`."""
    return _read(sql, params or [])


@server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False))
def execute(sql: str, params: list[Any] | None = None) -> Changed:
    """Run one statement that changes data; `?` in `sql` stand for `params`."""
    with closing(sqlite3.connect(sys.argv[1])) as database, database:
        cursor = database.execute(sql, params or [])
        return Changed(rows=max(cursor.rowcount, 0), last_id=cursor.lastrowid)


def _read(sql: str, params: list[Any]) -> list[dict[str, Any]]:
    """Return the rows that a query has; the connection itself refuses to write."""
    with closing(
        sqlite3.connect(f"{Path(sys.argv[1]).resolve().as_uri()}?mode=ro", uri=True)
    ) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute(sql, params).fetchmany(MAX_ROWS + 1)
    if len(rows) > MAX_ROWS:
        raise ValueError(f"more than {MAX_ROWS} rows: add a LIMIT")
    return [dict(row) for row in rows]


if __name__ == "__main__":
    server.run()
