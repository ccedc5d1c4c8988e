"""A SQLite database; a query returns at most 50 rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from typing_extensions import TypedDict

from .base import StatefulServer, ToolError
from .names import DATABASE_FILE

server = StatefulServer("database")
MAX_ROWS = 50


class Rows(TypedDict):
    """The rows of a query; `more` says that there are more than it returned."""

    columns: list[str]
    rows: list[list[Any]]
    more: bool


@server.tool(reads=True)
async def list_tables() -> list[str]:
    """Return the statements that made the tables."""
    with closing(sqlite3.connect(server.folder / DATABASE_FILE)) as database:
        rows = database.execute("SELECT sql FROM sqlite_master WHERE type = 'table' ORDER BY name")
        return [str(row[0]) for row in rows]


@server.tool(reads=True)
async def query(sql: str, parameters: list[Any] | None = None) -> Rows:
    """Return the first 50 rows of a SELECT; page with LIMIT and OFFSET."""
    with closing(sqlite3.connect(f"file:{server.folder / DATABASE_FILE}?mode=ro", uri=True)) as db:
        try:
            cursor = db.execute(sql, parameters or [])
            rows = cursor.fetchmany(MAX_ROWS + 1)
        except sqlite3.Error as exc:
            raise ToolError(f"SQLite: {exc}") from exc
        columns = [each[0] for each in cursor.description or ()]
        found = [list(row) for row in rows[:MAX_ROWS]]
        return {"columns": columns, "rows": found, "more": len(rows) > MAX_ROWS}


@server.tool()
async def execute(sql: str, parameters: list[Any] | None = None) -> int:
    """Run one INSERT, UPDATE or DELETE and return the number of changed rows."""
    with closing(sqlite3.connect(server.folder / DATABASE_FILE)) as database:
        try:
            with database:
                return database.execute(sql, parameters or []).rowcount
        except sqlite3.Error as exc:
            raise ToolError(f"SQLite: {exc}") from exc


if __name__ == "__main__":
    server.run()
