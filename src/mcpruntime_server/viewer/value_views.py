"""JSON data as pages show it: a table if it is one, else a tree that folds; both bounded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..journal.events import RunValue
from ..protocol.wire import escape_json_surrogates

MAX_NODES = 3_000
MAX_CHILDREN = 500  # of one list or object
MAX_TEXT_CHARS = 20_000
MAX_SUMMARY_CHARS = 90
MAX_TABLE_ROWS = 500
MAX_TABLE_COLUMNS = 30
MAX_CELL_CHARS = 300
MIN_TABLE_ROWS = 2
OPEN_NODES = 40  # of a tree that is shown unfolded
MAX_NODE_DEPTH = 40


@dataclass(frozen=True)
class ValueNode:
    """One value in a tree: `key` is its place in the one above, `kind` decides its colour."""

    key: str
    kind: str  # "object" | "array" | "string" | "number" | "word"
    text: str
    children: tuple[ValueNode, ...] = ()
    hidden_count: int = 0
    is_open: bool = False


@dataclass(frozen=True)
class TableView:
    """Records as a table; `hidden_count` rows are left out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]  # by column
    hidden_count: int


@dataclass(frozen=True)
class ValueView:
    """The value of a run: its type, and one of a table, a tree or a text."""

    type: str
    is_cut: bool
    table: TableView | None = None
    tree: ValueNode | None = None
    text: str = ""


class TreeBuilder:
    """Builds a tree of at most `MAX_NODES` nodes."""

    def __init__(self) -> None:
        self._left = MAX_NODES

    def build(self, data: Any, key: str = "", depth: int = 0) -> ValueNode:
        """Return the node of JSON data."""
        self._left -= 1
        if not isinstance(data, dict | list):
            return build_leaf(data, key)
        items = (
            [(str(name), item) for name, item in data.items()]
            if isinstance(data, dict)
            else [(str(place), item) for place, item in enumerate(data)]
        )
        children: list[ValueNode] = []
        for name, item in items[:MAX_CHILDREN]:
            if self._left <= 0 or depth >= MAX_NODE_DEPTH:
                break
            children.append(self.build(item, name, depth + 1))
        return ValueNode(
            key,
            "object" if isinstance(data, dict) else "array",
            summarise_json(data),
            tuple(children),
            len(items) - len(children),
            is_open=depth == 0 or (depth == 1 and len(items) <= OPEN_NODES // 4),
        )


def build_leaf(data: Any, key: str) -> ValueNode:
    """Return the node of data that has no parts."""
    if isinstance(data, str):
        text = data if len(data) <= MAX_TEXT_CHARS else f"{data[:MAX_TEXT_CHARS]}…"
        return ValueNode(key, "string", text)
    is_word = data is None or isinstance(data, bool)
    return ValueNode(key, "word" if is_word else "number", json.dumps(data))


def summarise_json(data: Any) -> str:
    """Return a short text that stands for a list or an object."""
    if isinstance(data, dict):
        names = ", ".join(str(name)[:MAX_SUMMARY_CHARS] for name in list(data)[:12])
        names = names if len(names) <= MAX_SUMMARY_CHARS else f"{names[:MAX_SUMMARY_CHARS]}…"
        return f"{{{names}}}"
    return f"[{len(data):,}]"


def build_tree(data: Any) -> ValueNode:
    """Return JSON data as a tree."""
    return TreeBuilder().build(data)


def build_table(data: Any) -> TableView | None:
    """Return a list of records as a table; None if it is something else."""
    if not isinstance(data, list) or len(data) < MIN_TABLE_ROWS:
        return None
    if not all(isinstance(each, dict) and each for each in data):
        return None
    columns = list(dict.fromkeys(str(name) for each in data[:MAX_TABLE_ROWS] for name in each))
    if len(columns) > MAX_TABLE_COLUMNS:
        return None
    shown = data[:MAX_TABLE_ROWS]
    values = [[each.get(name) for name in columns] for each in shown]
    if any(isinstance(value, dict | list) and value for row in values for value in row):
        return None
    numeric = tuple(
        all(is_number(row[place]) or row[place] is None for row in values)
        for place in range(len(columns))
    )
    rows = tuple(tuple(write_cell(value) for value in row) for row in values)
    return TableView(tuple(columns), rows, numeric, len(data) - len(shown))


def is_number(value: Any) -> bool:
    """Return whether JSON data is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_cell(value: Any) -> str:
    """Return the text of a cell."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_CELL_CHARS else f"{text[:MAX_CELL_CHARS]}…"


def build_value_view(value: RunValue | None) -> ValueView | None:
    """Return the value of a run as a page shows it; None if there is none."""
    if value is None:
        return None
    if value["kind"] == "json":
        try:
            data = escape_json_surrogates(json.loads(value["text"]))
        except (ValueError, RecursionError):
            return ValueView(value["type"], value["cut"], text=value["text"])
        table = build_table(data)
        if table is not None:
            return ValueView(value["type"], value["cut"], table=table)
        return ValueView(value["type"], value["cut"], tree=build_tree(data))
    return ValueView(value["type"], value["cut"], text=value["text"])
