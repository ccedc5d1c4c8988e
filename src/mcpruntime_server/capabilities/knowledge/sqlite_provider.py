"""The schema of a SQLite database as a provider: each table and view is a text. Rows only where the settings say so.

Rule 1: the database is opened for reading, for each look anew; no view of it is computed.
Rule 2: whatever is wrong with it (locked, damaged, no database) is `Unavailable`, and no look takes long.
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
from .provider import DocumentSkipped, SkippedDocuments, clean_line, is_valid_name

MAX_TABLES = 5_000
LOCK_TIMEOUT_S = 0.5  # that a look waits for whoever holds the database
MAX_QUERY_S = 3.0  # that a look may take
STEPS_PER_CHECK = 10_000  # of SQLite's machine between two looks at the clock
MAX_CELL_CHARS = 200  # characters of a value in a sample
MAX_COUNTED_ROWS = 100_000  # rows: counting more takes time
CHECK_SETTING_REMEDY = "Check `sqlite` in the settings."

SampleRow = dict[str, Any]


class SqliteProvider:
    """The tables and views of a database, by their names."""

    def __init__(self, path: Path, max_samples: int = 0) -> None:
        self.skipped = SkippedDocuments()
        self.max_samples = max_samples
        self._path = path

    def names(self) -> Mapping[str, str]:
        """Return a digest of what made each table; raises `Unavailable`."""
        self.skipped = SkippedDocuments()
        found: dict[str, str] = {}
        with self._connection() as db:
            for name in self._list_tables(db):
                found[name] = sha256("\n".join(_list_statements(db, name)).encode()).hexdigest()[
                    :16
                ]
        return found

    def read(self, name: str) -> str:
        """Return the columns, keys and indexes of a table, and the statements that made them."""
        with self._connection() as db:
            if name not in self._list_tables(db):
                raise DocumentSkipped("gone")
            return "\n".join(
                (
                    f"{_get_table_type(db, name)} {name}",
                    *_describe_columns(db, name),
                    *_describe_indexes(db, name),
                    "",
                    *_list_statements(db, name),
                )
            )

    def get_format(self, name: str) -> str:
        """Return how a text is taken apart."""
        return "schema"

    def read_sample(self, name: str, count: int) -> tuple[int | None, list[SampleRow]]:
        """Return how many rows a table has, if that is quickly counted, and the first few of them."""
        with self._connection() as db:
            if _get_table_type(db, name) != "table":
                return None, []  # a view may compute for ever
            limited = f"SELECT count(*) FROM (SELECT 1 FROM {quote_identifier(name)} LIMIT {MAX_COUNTED_ROWS + 1})"  # noqa: S608
            counted: int = db.execute(limited).fetchone()[0]
            found = (
                db.execute(f"SELECT * FROM {quote_identifier(name)} LIMIT ?", (count,))  # noqa: S608
                if count
                else None
            )
            columns = [each[0] for each in found.description] if found else []
            rows = [dict(zip(columns, map(shorten_value, row), strict=True)) for row in found or ()]
            return counted if counted <= MAX_COUNTED_ROWS else None, rows

    def _list_tables(self, db: sqlite3.Connection) -> list[str]:
        found = db.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
            "AND name NOT IN (SELECT name FROM pragma_table_list WHERE type = 'shadow') ORDER BY name LIMIT ?",
            (MAX_TABLES,),
        )
        names = [name for (name,) in found]
        for name in names:
            if not is_valid_name(name):
                self.skipped.add("not a printable name", ascii(name))
        return [name for name in names if is_valid_name(name)]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yield the database; raises `Unavailable`."""
        try:
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                raise Unavailable(f"{self._path} is no file.", remedy=CHECK_SETTING_REMEDY)
            db = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=ro", uri=True, timeout=LOCK_TIMEOUT_S
            )
        except OSError as exc:
            raise Unavailable(
                f"The database {self._path} cannot be read: {exc.strerror}.",
                remedy=CHECK_SETTING_REMEDY,
            ) from exc
        except sqlite3.Error as exc:
            raise Unavailable(
                f"The database {self._path} cannot be read: {exc}.", remedy=CHECK_SETTING_REMEDY
            ) from exc
        ends = time.monotonic() + MAX_QUERY_S
        try:
            db.text_factory = lambda data: data.decode("utf-8", "replace")
            db.set_progress_handler(lambda: time.monotonic() > ends, STEPS_PER_CHECK)
            db.execute("PRAGMA query_only = ON")
            db.execute("PRAGMA trusted_schema = OFF")
            yield db
        except (sqlite3.Error, sqlite3.Warning) as exc:
            raise Unavailable(
                f"The database {self._path} cannot be read: {clean_line(str(exc), 200)}.",
                remedy=CHECK_SETTING_REMEDY,
            ) from exc
        finally:
            db.close()


def quote_identifier(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def shorten_value(value: Any) -> Any:
    """Return a value of a row as JSON data of little size."""
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, str) and len(value) > MAX_CELL_CHARS:
        return value[:MAX_CELL_CHARS] + "…"
    return str(value) if isinstance(value, float) and value - value != 0 else value


def _get_table_type(db: sqlite3.Connection, name: str) -> str:
    found = db.execute(
        "SELECT type FROM sqlite_master WHERE name = ? AND type IN ('table', 'view')", (name,)
    ).fetchone()
    if found is None:
        raise DocumentSkipped("gone")
    return str(found[0])


def _list_statements(db: sqlite3.Connection, name: str) -> list[str]:
    """Return the statements that made a table, its indexes and its triggers."""
    made = "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type = 'index', type, name"
    return [f"{sql};" for (sql,) in db.execute(made, (name,))]


def _describe_columns(db: sqlite3.Connection, name: str) -> Iterator[str]:
    keys = {
        row[3]: f"references {row[2]}" + (f".{row[4]}" if row[4] else "")
        for row in db.execute("SELECT * FROM pragma_foreign_key_list(?)", (name,))
    }
    for _, column, kind, is_required, default, is_key, hidden in db.execute(
        "SELECT * FROM pragma_table_xinfo(?)", (name,)
    ):
        if hidden == 1:
            continue
        traits = [
            "primary key" if is_key else "",
            "not null" if is_required else "",
            f"default {clean_line(str(default), 80)}" if default is not None else "",
            "generated" if hidden in (2, 3) else "",
            keys.get(column, ""),
        ]
        yield f"  {' '.join(part for part in (column, kind) if part)}" + "".join(
            f", {each}" for each in traits if each
        )


def _describe_indexes(db: sqlite3.Connection, name: str) -> Iterator[str]:
    for row in db.execute("SELECT * FROM pragma_index_list(?)", (name,)).fetchall():
        columns = ", ".join(
            str(column) if column else "(expression)"
            for _, _, column in db.execute("SELECT * FROM pragma_index_info(?)", (row[1],))
        )
        yield f"  index {row[1]} on {columns}" + (", unique" if row[2] else "")
