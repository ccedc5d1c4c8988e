"""Tables as text in several formats, and typed tables with a schema that is checked."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from .base import StatefulServer, ToolError

server = StatefulServer("tables")
TYPES: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str}


class Source(TypedDict):
    """A table as text; `format` is csv, tsv, jsonl or kv."""

    format: str
    text: str


@server.tool(reads=True)
async def list_sources() -> list[str]:
    """Return the names of the tables that can be read."""
    return sorted(server.read_state()["sources"])


@server.tool(reads=True)
async def read_source(name: str) -> Source:
    """Return a table as text; csv and tsv have a header, kv has a record on each line."""
    found = server.read_state()["sources"].get(name)
    if found is None:
        raise ToolError(f"There is no source {name!r}.")
    result: Source = found
    return result


@server.tool(reads=True)
async def read_schema(target: str) -> dict[str, str]:
    """Return the columns of a target with their types: int, float or str."""
    found = server.read_state()["schemas"].get(target)
    if found is None:
        raise ToolError(f"There is no target {target!r}.")
    return dict(found)


@server.tool()
async def write_rows(target: str, rows: list[dict[str, Any]]) -> int:
    """Append up to 25 rows to a target; all must follow its schema. Return its number of rows."""
    with server.change_state() as state:
        schema = state["schemas"].get(target)
        if schema is None:
            raise ToolError(f"There is no target {target!r}.")
        if len(rows) > 25:
            raise ToolError(f"At most 25 rows are written at once, not {len(rows)}.")
        for number, row in enumerate(rows):
            check_row(schema, row, number)
        state["targets"][target] += rows
        return len(state["targets"][target])


def check_row(schema: dict[str, str], row: dict[str, Any], number: int) -> None:
    """Raise `ToolError` if a row does not follow the schema."""
    if set(row) != set(schema):
        raise ToolError(f"Row {number} has the columns {sorted(row)}, not {sorted(schema)}.")
    for column, kind in schema.items():
        if not isinstance(row[column], TYPES[kind]) or isinstance(row[column], bool):
            raise ToolError(f"Row {number}: {column} is no {kind}: {row[column]!r}.")


if __name__ == "__main__":
    server.run()
