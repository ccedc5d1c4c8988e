"""The schema of a SQLite database as a provider: each table and each view is a text.

Rule 1: the database is opened read-only, again for each access, and no view is evaluated. Rows are
read only if the settings allow it.
Rule 2: any problem with the database (locked, damaged, no database) raises `Unavailable`, and no
access takes long.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...errors import Unavailable
from ...protocol.payloads import JsonObject
from .provider import DocumentSkipped, SkippedDocuments, clean_line, is_valid_name

MAX_TABLES = 5_000
LOCK_TIMEOUT_S = 0.5  # that an access waits for a lock on the database
MAX_QUERY_S = 3.0  # that one access may take
STEPS_PER_CHECK = 10_000  # instructions of SQLite's virtual machine between two checks of the time
MAX_CELL_CHARS = 200  # of a value in a sample row
MAX_COUNTED_ROWS = 100_000  # counting more rows takes too long
HIDDEN_COLUMN, GENERATED_COLUMNS = 1, (2, 3)  # values of `hidden` in `pragma_table_xinfo`
CHECK_SETTING_REMEDY = "Check `sqlite` in the settings."
SELECT_NAMES = """
SELECT name FROM sqlite_master
WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
AND name NOT IN (SELECT name FROM pragma_table_list WHERE type = 'shadow') ORDER BY name LIMIT ?
"""
SELECT_STATEMENTS = """
SELECT sql FROM sqlite_master
WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type = 'index', type, name
"""

SampleRow = JsonObject


class SqliteProvider:
    """The tables and views of a database, by name."""

    def __init__(self, path: Path, max_samples: int = 0) -> None:
        self.skipped = SkippedDocuments()
        self.max_samples = max_samples
        self._path = path

    def names(self) -> Mapping[str, str]:
        """Return a digest of each table's definition; raises `Unavailable`."""
        self.skipped = SkippedDocuments()
        versions: dict[str, str] = {}
        with self._connection() as db:
            for name in self._list_tables(db):
                definition = "\n".join(_list_statements(db, name))
                versions[name] = sha256(definition.encode()).hexdigest()[:16]
        return versions

    def read(self, name: str) -> str:
        """Return columns, keys and indexes of a table, and the statements that created it."""
        with self._connection() as db:
            if name not in self._list_tables(db):
                raise DocumentSkipped("gone")
            lines = [f"{_get_table_type(db, name)} {name}"]
            lines += _describe_columns(db, name)
            lines += _describe_indexes(db, name)
            lines += ["", *_list_statements(db, name)]
            return "\n".join(lines)

    def get_format(self, name: str) -> str:
        """Return the format of all texts here."""
        return "schema"

    def read_sample(self, name: str, count: int) -> tuple[int | None, list[SampleRow]]:
        """Return the number of rows of a table and its first `count` rows.

        The number is None if counting would take too long.
        """
        with self._connection() as db:
            if _get_table_type(db, name) != "table":
                return None, []  # evaluating a view may take forever
            table = quote_identifier(name)
            count_rows = f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT ?)"  # noqa: S608
            counted: int = db.execute(count_rows, (MAX_COUNTED_ROWS + 1,)).fetchone()[0]
            rows: list[SampleRow] = []
            if count:
                cursor = db.execute(f"SELECT * FROM {table} LIMIT ?", (count,))  # noqa: S608
                columns = [each[0] for each in cursor.description]
                rows = [dict(zip(columns, map(shorten_value, row), strict=True)) for row in cursor]
            return counted if counted <= MAX_COUNTED_ROWS else None, rows

    def _list_tables(self, db: sqlite3.Connection) -> list[str]:
        names = [name for (name,) in db.execute(SELECT_NAMES, (MAX_TABLES,))]
        for name in names:
            if not is_valid_name(name):
                self.skipped.add("not a printable name", ascii(name))
        return [name for name in names if is_valid_name(name)]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection to the database; raises `Unavailable`."""
        try:
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                raise Unavailable(f"{self._path} is not a file.", remedy=CHECK_SETTING_REMEDY)
            uri = f"file:{quote(str(self._path))}?mode=ro"
            db = sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_S)
        except OSError as exc:
            raise self._unreadable_error(str(exc.strerror)) from exc
        except sqlite3.Error as exc:
            raise self._unreadable_error(str(exc)) from exc
        deadline = time.monotonic() + MAX_QUERY_S
        try:
            db.text_factory = lambda data: data.decode("utf-8", "replace")
            db.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_PER_CHECK)
            db.execute("PRAGMA query_only = ON")
            db.execute("PRAGMA trusted_schema = OFF")
            yield db
        except (sqlite3.Error, sqlite3.Warning) as exc:
            raise self._unreadable_error(clean_line(str(exc), 200)) from exc
        finally:
            db.close()

    def _unreadable_error(self, reason: str) -> Unavailable:
        return Unavailable(
            f"The database {self._path} cannot be read: {reason}.", remedy=CHECK_SETTING_REMEDY
        )


def quote_identifier(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def shorten_value(value: Any) -> Any:
    """Return a value of a row as small JSON data."""
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, str) and len(value) > MAX_CELL_CHARS:
        return value[:MAX_CELL_CHARS] + "…"
    is_infinite = isinstance(value, float) and value - value != 0
    return str(value) if is_infinite else value


def _get_table_type(db: sqlite3.Connection, name: str) -> str:
    row = db.execute(
        "SELECT type FROM sqlite_master WHERE name = ? AND type IN ('table', 'view')", (name,)
    ).fetchone()
    if row is None:
        raise DocumentSkipped("gone")
    return str(row[0])


def _list_statements(db: sqlite3.Connection, name: str) -> list[str]:
    """Return the statements that created a table, its indexes and its triggers."""
    return [f"{sql};" for (sql,) in db.execute(SELECT_STATEMENTS, (name,))]


def _describe_columns(db: sqlite3.Connection, name: str) -> Iterator[str]:
    references = {}
    for row in db.execute("SELECT * FROM pragma_foreign_key_list(?)", (name,)):
        _, _, table, own_column, other_column, *_ = row
        suffix = f".{other_column}" if other_column else ""
        references[own_column] = f"references {table}{suffix}"
    for row in db.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)):
        _, column, column_type, is_required, default, is_key, hidden = row
        if hidden == HIDDEN_COLUMN:
            continue
        traits = [
            "primary key" if is_key else "",
            "not null" if is_required else "",
            f"default {clean_line(str(default), 80)}" if default is not None else "",
            "generated" if hidden in GENERATED_COLUMNS else "",
            references.get(column, ""),
        ]
        described = " ".join(part for part in (column, column_type) if part)
        yield f"  {described}" + "".join(f", {trait}" for trait in traits if trait)


def _describe_indexes(db: sqlite3.Connection, name: str) -> Iterator[str]:
    for row in db.execute("SELECT * FROM pragma_index_list(?)", (name,)).fetchall():
        _, index, is_unique, *_ = row
        columns = ", ".join(
            str(column) if column else "(expression)"
            for _, _, column in db.execute("SELECT * FROM pragma_index_info(?)", (index,))
        )
        yield f"  index {index} on {columns}" + (", unique" if is_unique else "")
