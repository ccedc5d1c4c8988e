"""Queries in everyday words, over documents and a database.

The documents are the project's own, as they were when the queries were written: they must not
change with each paragraph that is added to the real ones.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from .conftest import OpenProviders, refresh_providers

DOCUMENTS = Path(__file__).parent / "documents"
SHOP = """
CREATE TABLE customers (
    id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, country TEXT, signed_up TEXT
);
CREATE TABLE products (sku TEXT PRIMARY KEY, title TEXT, unit_price REAL, discontinued INTEGER);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY, customer_id REFERENCES customers (id), placed_at TEXT, status TEXT
);
CREATE TABLE order_lines (
    order_id REFERENCES orders (id), sku TEXT REFERENCES products (sku), quantity INTEGER
);
CREATE TABLE stock (sku TEXT REFERENCES products (sku), warehouse TEXT, on_hand INTEGER);
CREATE VIEW revenue AS SELECT sku, sum(quantity) AS sold FROM order_lines GROUP BY sku;
"""
QUESTIONS = [  # a query, and text of the passage that answers it
    ("How do I install it?", "pip install mcpruntime-server"),
    ("What happens to runs when a server dies?", "When a server dies"),
    ("Which tools does the model see?", "whatever the number of servers behind"),
    (
        "How can a person approve a call on the command line?",
        "mcpruntime-server approvals RUN q1 allow",
    ),
    ("Does the sandbox have a network?", "The container has no network"),
    ("What is a checkpoint?", "**checkpoint**, **tier**"),
    ("When is a skill quarantined?", "is *quarantined*"),
    ("Which room may import runtime?", "| room | may import |"),
    ("Where do credentials of upstream servers go?", "Credentials"),
    ("What does the error code not_found mean?", "`not_found`"),
    ("How do I go back to an earlier step?", "replay rewind SESSION"),
    ("How much memory does one sandbox get?", "memory_mb = 512"),
    ("How many seconds may a run take?", "timeout_s = 120.0"),
    ("What happens when a replay diverges?", "`ReplayDiverged`"),
    ("Where is the email address of a customer?", "table customers"),
    ("Which table has the price of an article?", "table products"),
    ("How many pieces are left in the warehouse?", "table stock"),
    ("state of an order, and when it was placed", "table orders"),
    ("how many of a product were sold", "view revenue"),
    ("which foreign keys point to products", "references products.sku"),
]


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Any]:
    docs = shutil.copytree(DOCUMENTS, tmp_path / "docs")
    with sqlite3.connect(tmp_path / "shop.db") as db:
        db.executescript(SHOP)
    db.close()
    return {"docs": {"path": str(docs)}, "shop": {"sqlite": str(tmp_path / "shop.db")}}


async def test_most_queries_are_answered_by_the_first_three_passages(
    opened: OpenProviders, corpus: dict[str, Any], tmp_path: Path
) -> None:
    ranks = []
    async with opened(**corpus) as providers:
        await refresh_providers(providers)
        for question, answer in QUESTIONS:
            found = (await providers.search(question, 10))["passages"]
            ranks.append(
                next((rank for rank, each in enumerate(found, 1) if answer in each["text"]), 0)
            )
            print(f"{ranks[-1] or '-':>2}  {question}")
            for each in found:
                begin, end = each["span"]["chars"]
                first, last = each["span"]["lines"]
                whole = (await providers.get(each["uri"].partition("#")[0]))["text"]
                assert whole[begin:end] == each["text"]
                assert each["text"] in "\n".join(whole.split("\n")[first - 1 : last])
                assert (await providers.get(each["uri"]))["text"] == each["text"]
                if each["source"] == "docs":
                    assert whole == (tmp_path / "docs" / each["name"]).read_text()
    recall, first = (
        sum(0 < rank <= 3 for rank in ranks) / len(ranks),
        sum(rank == 1 for rank in ranks) / len(ranks),
    )
    print(f"in the first three: {recall:.2f}, first: {first:.2f}")
    assert recall >= 0.7
