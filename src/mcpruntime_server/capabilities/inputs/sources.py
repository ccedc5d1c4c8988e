"""Turns what a client names in `context` into inputs.

It can name text, files, folders, patterns of files, workspace files and resources of upstreams.

Rule: if one of them is wrong, the error says which one, and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from anyio.to_thread import run_sync

from ...errors import InvalidRequest, McpRuntimeError
from ...journal.events import FileEntry, InputEntry
from .files import parse_file_uri
from .patterns import is_pattern, match_paths
from .store import MAX_CONTENT_BYTES, InputStore

MAX_INPUTS = 64  # of one run
MAX_NAME_CHARS = 120
MAX_SOURCE_CHARS = 4096
MAX_LISTED_FILES = 10  # workspace files that an error names
UNPRINTABLE_PATTERN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
SCHEME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
WORKSPACE_PREFIX = "workspace:"
INPUT_FORMS_REMEDY = (
    'An input is {"text": "..."}, an absolute path, folder or pattern (/data/*.csv), a file: '
    "address, a workspace file or pattern, or a resource of a server; with a name: "
    '{"source": "...", "name": "..."}.'
)


async def resolve_context(
    store: InputStore, sources: Sequence[Any], tip: str | None
) -> tuple[InputEntry, ...]:
    """Return the inputs that `sources` name; workspace files are those at the end of run `tip`.

    Raises `InvalidRequest`.
    """
    entries: list[InputEntry] = []
    for place, source in enumerate(sources):
        try:
            found = await _resolve_input(store, source, tip, MAX_INPUTS - len(entries))
        except McpRuntimeError as exc:
            shown = source.get("source", "text") if isinstance(source, dict) else source
            where = f"context[{place}]"
            if not exc.message.startswith(repr(shown)):
                where += f", {shown!r:.200}"
            raise InvalidRequest(f"{where}: {exc.message}", remedy=exc.remedy) from None
        for entry in found:
            name = make_unique_name(entry["name"], [each["name"] for each in entries])
            entries.append({**entry, "name": name})
    return tuple(entries)


async def _resolve_input(
    store: InputStore, item: Any, tip: str | None, room: int
) -> list[InputEntry]:
    """Return the inputs that one item names, at most `room`; raises `InvalidRequest`."""
    if room == 0:
        raise InvalidRequest(f"A run has at most {MAX_INPUTS} inputs.")
    if isinstance(item, str):
        return await _from_source(store, item, "", tip, room)
    if not isinstance(item, dict) or not item.keys() <= {"text", "source", "name"}:
        raise InvalidRequest("This does not name an input.", remedy=INPUT_FORMS_REMEDY)
    name, text, source = item.get("name", ""), item.get("text"), item.get("source")
    if not isinstance(name, str) or isinstance(text, str) == isinstance(source, str):
        raise InvalidRequest(
            "An input has either `text` or `source`, and its `name` is a string.",
            remedy=INPUT_FORMS_REMEDY,
        )
    if not isinstance(text, str):
        return await _from_source(store, str(source), name, tip, room)
    if len(text) > MAX_CONTENT_BYTES:
        raise InvalidRequest(
            f"The text has {len(text):,} characters.", remedy="Pass a large text as a file."
        )
    return [await store.add_text(text, name or "text")]


async def _from_source(
    store: InputStore, source: str, name: str, tip: str | None, room: int
) -> list[InputEntry]:
    if "\n" in source or len(source) > MAX_SOURCE_CHARS:
        raise InvalidRequest(
            "This is neither a path nor an address.", remedy='Pass text as {"text": "..."}.'
        )
    if source.startswith("/"):
        return await _from_machine(store, source, name, room)
    if source.startswith("file:"):
        return await _from_machine(store, parse_file_uri(source), name, room)
    if source.startswith(WORKSPACE_PREFIX) or not SCHEME_PATTERN.match(source):
        return await _from_workspace(store, source.removeprefix(WORKSPACE_PREFIX), name, tip, room)
    resource_name, data = await store.read_resource(source)
    return [await store.add_bytes(data, name or resource_name)]


async def _from_machine(store: InputStore, source: str, name: str, room: int) -> list[InputEntry]:
    """Return a file, the files below a folder, or those that match a pattern.

    The names of several are their paths below the folder, after `name`, if there is one.
    """
    listed = await run_sync(store.roots.list_files, source)
    if listed is None:
        return [await store.add_file(source, name)]
    folder, paths = listed
    check_count(len(paths), room)
    prefix = f"{name}/" if name else ""
    return [await store.add_file(f"{folder}/{path}", f"{prefix}{path}") for path in paths]


async def _from_workspace(
    store: InputStore, path: str, name: str, tip: str | None, room: int
) -> list[InputEntry]:
    files, _ = await store.journal.load_files_at(tip, [])
    path = path.removeprefix("./").removesuffix("/")
    if path in files:
        return [_workspace_entry(path, files[path], name or path.rpartition("/")[2])]
    pattern = path if is_pattern(path) else f"{path}/**"
    paths = await run_sync(match_paths, files, pattern)
    if not paths:
        listed = ", ".join(map(repr, sorted(files)[:MAX_LISTED_FILES])) or "none yet"
        raise InvalidRequest(
            f"The workspace of the session has no file {path!r:.200}.",
            remedy=f"Its files: {listed}. Name a file elsewhere by its absolute path.",
        )
    check_count(len(paths), room)
    prefix = f"{name}/" if name else ""
    return [_workspace_entry(each, files[each], f"{prefix}{each}") for each in paths]


def _workspace_entry(path: str, entry: FileEntry, name: str) -> InputEntry:
    return InputEntry(
        name=name,
        digest=entry["digest"],
        path="",
        size=entry["size"],
        stamp="",
        start=0,
        end=None,
    )


def check_count(count: int, room: int) -> None:
    """Raise `InvalidRequest` unless there are files, and room for them among the inputs."""
    if count == 0:
        raise InvalidRequest("No file matches.", remedy="List the folder, or change the pattern.")
    if count > room:
        raise InvalidRequest(
            f"These are {count:,} files; a run has at most {MAX_INPUTS} inputs.",
            remedy="Name fewer with a pattern, or mount the folder: [sandbox] mounts.",
        )


def make_unique_name(name: str, taken: Sequence[str]) -> str:
    """Return a printable name that is not among those `taken`."""
    printable = UNPRINTABLE_PATTERN.sub("_", name)[:MAX_NAME_CHARS] or "input"
    unique, number = printable, 1
    while unique in taken:
        number += 1
        unique = f"{printable} ({number})"
    return unique
