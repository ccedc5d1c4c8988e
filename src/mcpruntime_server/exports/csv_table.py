"""A tabular value as CSV that a spreadsheet opens without executing formulas in it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import isfinite
from typing import Any, NamedTuple, TextIO

from ..errors import Conflict
from ..journal.events import RunValue

FULL_WIDTH_STARTS = "\uff1d\uff0b\uff0d\uff20"  # of =, +, - and @
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", *FULL_WIDTH_STARTS)
MAX_CELLS = 1_000_000  # each row of a list of objects has the names of all others
REMEDY = "Return a list of rows, a list of objects, or an object of columns as the value."


class Table(NamedTuple):
    """The rows of a table, and how many cells they have together."""

    cell_count: int
    rows: Iterable[Iterable[Any]]


def is_table(value: RunValue | None) -> bool:
    """Return whether a value can be written as CSV."""
    if value is None or value["kind"] != "json" or value["cut"]:
        return False
    table = find_table(json.loads(value["text"]))
    return table is not None and table.cell_count <= MAX_CELLS


def write_csv(out: TextIO, value: RunValue | None) -> None:
    """Write a value as CSV; raises `Conflict` if it is no table, not complete, or too large."""
    if value is None or value["kind"] != "json":
        raise Conflict("The value is no table of JSON data.", remedy=REMEDY)
    if value["cut"]:
        raise Conflict("The value was cut when it was recorded.", remedy="Write it to a file.")
    table = find_table(json.loads(value["text"]))
    if table is None:
        raise Conflict("The value is no table.", remedy=REMEDY)
    if table.cell_count > MAX_CELLS:
        raise Conflict(
            f"The table would have {table.cell_count:,} cells; the limit is {MAX_CELLS:,}.",
            remedy="Use the same names in all rows.",
        )
    csv.writer(out, lineterminator="\r\n").writerows(map(guard_cell, row) for row in table.rows)


def find_table(data: Any) -> Table | None:
    """Return the table that JSON data is; None if it is none.

    Tables are lists of lists, lists of objects, objects of lists of one length, and lists of plain
    values. There is a heading if the columns have names.
    """
    if isinstance(data, Mapping):
        return _find_columns(data)
    if not isinstance(data, Sequence) or isinstance(data, str) or not data:
        return None
    if all(isinstance(row, Mapping) for row in data):
        names = list(dict.fromkeys(name for row in data for name in row))
        cell_count = len(names) * (len(data) + 1)
        return Table(
            cell_count, chain([names], ([row.get(name) for name in names] for row in data))
        )
    if all(isinstance(row, list) for row in data):
        return Table(sum(map(len, data)), data)
    if any(isinstance(row, (list, Mapping)) for row in data):
        return None
    return Table(len(data), ([each] for each in data))


def _find_columns(data: Mapping[str, Any]) -> Table | None:
    columns = list(data.values())
    if not columns or not all(isinstance(column, list) for column in columns):
        return None
    if len({len(column) for column in columns}) != 1:
        return None
    rows = zip(*columns, strict=True)
    return Table(len(columns) * (len(columns[0]) + 1), chain([list(data)], rows))


def guard_cell(cell: Any) -> Any:
    """Return a cell as it is written; text that a spreadsheet would take for a formula is quoted.

    Numbers stay numbers.
    """
    if cell is None or isinstance(cell, int):
        return cell
    if isinstance(cell, float) and isfinite(cell):  # `-inf` would be a formula
        return cell
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA_STARTS) else text
