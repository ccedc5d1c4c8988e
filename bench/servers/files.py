"""Real files of the host below one folder."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import TypedDict

from .base import StatefulServer, ToolError
from .names import FILES_FOLDER

server = StatefulServer("files")


class Entry(TypedDict):
    """A file or a folder."""

    name: str
    is_folder: bool
    size: int


def resolve_path(path: str) -> Path:
    """Return the path of the host; fails outside of the folder."""
    root = (server.folder / FILES_FOLDER).resolve()
    found = (root / path).resolve()
    if not found.is_relative_to(root):
        raise ToolError(f"The path {path!r} leads outside.")
    return found


def existing_file(path: str) -> Path:
    """Return the path of a file; fails if there is none."""
    found = resolve_path(path)
    if not found.is_file():
        raise ToolError(f"There is no file {path!r}.")
    return found


@server.tool(reads=True)
async def list_folder(path: str = "") -> list[Entry]:
    """Return the entries of a folder, sorted by name; the root is ''."""
    found = resolve_path(path)
    if not found.is_dir():
        raise ToolError(f"There is no folder {path!r}.")
    return [
        {
            "name": each.name,
            "is_folder": each.is_dir(),
            "size": each.stat().st_size * each.is_file(),
        }
        for each in sorted(found.iterdir())
    ]


@server.tool(reads=True)
async def read_file(path: str) -> str:
    """Return the text of a file."""
    return existing_file(path).read_text("utf-8")


@server.tool()
async def write_file(path: str, text: str) -> int:
    """Write a file, in a new folder if need be, and return its number of characters."""
    found = resolve_path(path)
    found.parent.mkdir(parents=True, exist_ok=True)
    return found.write_text(text, "utf-8")


@server.tool()
async def move_file(path: str, target: str) -> bool:
    """Move a file; fails if the target exists."""
    source, goal = existing_file(path), resolve_path(target)
    if goal.exists():
        raise ToolError(f"{target!r} exists.")
    goal.parent.mkdir(parents=True, exist_ok=True)
    source.rename(goal)
    return True


@server.tool()
async def delete_file(path: str) -> bool:
    """Delete a file."""
    existing_file(path).unlink()
    return True


if __name__ == "__main__":
    server.run()
