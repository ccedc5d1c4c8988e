"""The state that a task starts from and is judged by: everything that the servers keep.

Rule: the state is on the host, in a folder that no sandbox sees. It is written before a task and
exported after it; nothing that a program says about its own work is believed.
"""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..servers.names import CALL_LOG, DATABASE_FILE, FILES_FOLDER

State = dict[str, Any]  # by server

EMPTY: State = {
    "calculator": {"registers": {}},
    "weather": {"stations": [], "alerts": []},
    "files": {},  # texts by path
    "database": {},  # tables by name, each with `sql` and `rows`
    "text": {"documents": [], "notes": []},
    "mail": {"messages": [], "folders": [], "contacts": [], "sent": []},
    "calendar": {"people": [], "events": []},
    "series": {"series": {}, "published": {}},
    "tables": {"sources": {}, "schemas": {}, "targets": {}},
    "web": {"products": [], "orders": []},
}
SERVERS = tuple(EMPTY)


@dataclass
class World:
    """A state of some servers, and the facts that prompts and programs of a category name."""

    state: State
    facts: dict[str, Any] = field(default_factory=dict)

    def whole_state(self) -> State:
        """Return a copy of the state, with an empty state for the other servers."""
        return copy.deepcopy({**EMPTY, **self.state})

    def copy(self) -> World:
        """Return a copy that may be changed."""
        return World(self.whole_state(), dict(self.facts))


def write_state(folder: Path, state: State) -> None:
    """Replace everything that the servers keep in `folder`, their log of calls included."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CALL_LOG).write_text("")
    shutil.rmtree(folder / FILES_FOLDER, ignore_errors=True)
    (folder / FILES_FOLDER).mkdir()
    for path, text in state["files"].items():
        file = folder / FILES_FOLDER / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    (folder / DATABASE_FILE).unlink(missing_ok=True)
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as database, database:
        for name, table in state["database"].items():
            database.execute(table["sql"])
            for row in table["rows"]:
                marks = ", ".join("?" * len(row))
                columns = ", ".join(row)
                statement = f"INSERT INTO {name} ({columns}) VALUES ({marks})"
                database.execute(statement, list(row.values()))
    for server in set(state) - {"files", "database"}:
        (folder / f"{server}.json").write_text(json.dumps(state[server]), "utf-8")


def export_state(folder: Path) -> State:
    """Return everything that the servers keep."""
    state: State = {
        server: json.loads((folder / f"{server}.json").read_text("utf-8"))
        for server in SERVERS
        if server not in {"files", "database"}
    }
    files = folder / FILES_FOLDER
    state["files"] = {
        str(path.relative_to(files)): path.read_text("utf-8", "replace")
        for path in sorted(files.rglob("*"))
        if path.is_file()
    }
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as database:
        database.row_factory = sqlite3.Row
        tables = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        state["database"] = {
            name: {
                "sql": sql,
                "rows": [dict(row) for row in database.execute(f"SELECT * FROM {name}")],
            }
            for name, sql in tables.fetchall()
        }
    return state


def read_calls(folder: Path) -> list[dict[str, Any]]:
    """Return the calls that the servers got since the state was written."""
    lines = (folder / CALL_LOG).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]
