"""A tabular value as CSV that a spreadsheet opens without executing formulas in it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from ..errors import Conflict
from ..journal.events import RunValue

FULL_WIDTH_STARTS = "\uff1d\uff0b\uff0d\uff20"  # of =, +, - and @
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", *FULL_WIDTH_STARTS)
REMEDY = "Return a list of rows, a list of objects, or an object of columns as the value."


def is_table(value: RunValue | None) -> bool:
    """Return whether a value can be written as CSV."""
    if value is None or value["kind"] != "json" or value["cut"]:
        return False
    return tabulate(json.loads(value["text"])) is not None


def write_csv(out: TextIO, value: RunValue | None) -> None:
    """Write a value as CSV; raises `Conflict` if it is no table, or not complete."""
    if value is None or value["kind"] != "json":
        raise Conflict("The value is no table of JSON data.", remedy=REMEDY)
    if value["cut"]:
        raise Conflict("The value was cut when it was recorded.", remedy="Write it to a file.")
    rows = tabulate(json.loads(value["text"]))
    if rows is None:
        raise Conflict("The value is no table.", remedy=REMEDY)
    csv.writer(out, lineterminator="\r\n").writerows(map(guard_cell, row) for row in rows)


def tabulate(data: Any) -> list[list[Any]] | None:
    """Return JSON data as rows, with a heading if the columns have names; None if it is no table.

    Tables are lists of lists, lists of objects, objects of lists of one length, and lists of plain
    values.
    """
    if isinstance(data, Mapping):
        return _tabulate_columns(data)
    if not isinstance(data, Sequence) or isinstance(data, str) or not data:
        return None
    if all(isinstance(row, Mapping) for row in data):
        names = list(dict.fromkeys(name for row in data for name in row))
        return [names, *([row.get(name) for name in names] for row in data)]
    if all(isinstance(row, list) for row in data):
        return [list(row) for row in data]
    if any(isinstance(row, (list, Mapping)) for row in data):
        return None
    return [[each] for each in data]


def _tabulate_columns(data: Mapping[str, Any]) -> list[list[Any]] | None:
    columns = list(data.values())
    if not columns or not all(isinstance(column, list) for column in columns):
        return None
    if len({len(column) for column in columns}) != 1:
        return None
    return [list(data), *map(list, zip(*columns, strict=True))]


def guard_cell(cell: Any) -> Any:
    """Return a cell as it is written; text that a spreadsheet would take for a formula is quoted.

    Numbers stay numbers.
    """
    if cell is None or isinstance(cell, (bool, int, float)):
        return cell
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA_STARTS) else text
