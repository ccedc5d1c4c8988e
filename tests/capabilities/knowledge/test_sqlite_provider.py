"""The schema of a database is found; rows are returned if allowed; nothing is ever changed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.knowledge.sqlite_provider import SqliteProvider
from mcpruntime_server.errors import CallFailed, Unavailable

from .conftest import OpenProviders, refresh_providers

SCHEMA = """
CREATE TABLE customers (
    id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, city TEXT DEFAULT 'Oslo'
);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer INTEGER NOT NULL REFERENCES customers (id),
    total REAL -- in euro, without tax
);
CREATE INDEX orders_of_customers ON orders (customer, total);
CREATE VIEW large_orders AS SELECT * FROM orders WHERE total > 100;
CREATE TABLE "odd ""name"" [x];--" (photo BLOB, note TEXT);
CREATE VIRTUAL TABLE notes USING fts5(body);
CREATE VIEW endless AS
    WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n;
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "my shop?.db"
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA)
        db.executemany(
            "INSERT INTO customers (email) VALUES (?)",
            [(f"c{number}@example.com",) for number in range(9)],
        )
        db.execute("""INSERT INTO "odd ""name"" [x];--" VALUES (x'00ff', ?)""", ("n" * 500,))
    db.close()
    return path


async def test_tables_are_passages(opened: OpenProviders, shop: Path) -> None:
    async with opened(shop={"sqlite": str(shop)}) as providers:
        await refresh_providers(providers)
        [best, *_] = (await providers.search("which column has the total of an order without tax"))[
            "passages"
        ]
        assert (best["name"], best["title"], best["source"]) == ("orders", "table orders", "shop")
        assert "  customer INTEGER, not null, references customers.id\n" in best["text"]
        assert "  index orders_of_customers on customer, total\n" in best["text"]
        assert (await providers.get(best["uri"]))["text"] == best["text"]
        [described] = await providers.describe_all()
        assert described["documents"] == 6  # shadow tables are not documents
        [odd] = (await providers.search("photo"))["passages"]
        assert (await providers.get(odd["uri"]))["text"] == odd["text"]
        assert "c1@example.com" not in str(await providers.describe("shop"))


async def test_rows_are_returned_only_on_request_and_if_the_settings_allow_it(
    opened: OpenProviders, shop: Path
) -> None:
    async with opened(
        shop={"sqlite": str(shop), "samples": 2}, closed={"sqlite": str(shop)}
    ) as providers:
        await refresh_providers(providers)
        outline = {each["name"]: each for each in (await providers.describe("shop", 2))["outline"]}
        assert outline["customers"]["rows"] == 9
        assert [row["email"] for row in outline["customers"]["samples"]] == [
            "c0@example.com",
            "c1@example.com",
        ]
        [odd] = [each for name, each in outline.items() if name.startswith("odd")]
        assert odd["samples"] == [{"photo": "<2 bytes>", "note": "n" * 200 + "…"}]
        assert (outline["endless"]["rows"], outline["endless"]["samples"]) == (None, [])
        for name, samples in (("shop", 3), ("closed", 1)):
            with pytest.raises(CallFailed, match="samples = ") as caught:
                await providers.describe(name, samples)
            assert caught.value.kind == "denied"


async def test_a_changed_table_is_found_in_its_new_form(opened: OpenProviders, shop: Path) -> None:
    async with opened(shop={"sqlite": str(shop)}) as providers:
        await refresh_providers(providers)
        with sqlite3.connect(shop) as db:
            db.executescript("DROP TABLE orders; ALTER TABLE customers ADD COLUMN loyalty TEXT;")
        db.close()
        with pytest.raises(CallFailed):
            await providers.get("knowledge://shop/orders")
        await refresh_providers(providers)
        [found] = (await providers.search("loyalty"))["passages"]
        assert found["name"] == "customers"
        assert (await providers.search("tax"))["passages"] == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_text("no database at all, only words " * 50), "not a database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000), "cannot be read"),
    ],
)
def test_a_file_that_is_no_database_is_reported(tmp_path: Path, make: object, words: str) -> None:
    path = tmp_path / "x.db"
    make(path)  # type: ignore[operator]
    with pytest.raises(Unavailable, match=words) as caught:
        SqliteProvider(path).names()
    assert str(path) in caught.value.message


def test_a_locked_database_is_reported(shop: Path) -> None:
    holder = sqlite3.connect(shop)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable, match="locked"):
        SqliteProvider(shop).names()
    holder.close()
    assert "orders" in SqliteProvider(shop).names()


def test_the_database_is_never_written(shop: Path) -> None:
    database, before = SqliteProvider(shop, 5), shop.read_bytes()
    for name in database.names():
        database.read(name)
        database.read_sample(name, 5)
    with database._connection() as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM customers")
    assert shop.read_bytes() == before
    assert [path.name for path in shop.parent.iterdir()] == [shop.name]
