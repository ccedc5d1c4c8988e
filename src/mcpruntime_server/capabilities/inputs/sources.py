"""From what a client names to inputs: inline text, files, workspace files and resources of upstreams.

Rule: whatever is wrong with one of them, the error says which and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...errors import InvalidRequest, McpRuntimeError
from ...journal.events import InputEntry
from .files import parse_file_uri
from .store import MAX_CONTENT_BYTES, InputStore

MAX_INPUTS = 64  # of one run
MAX_NAME_CHARS = 120
UNPRINTABLE_PATTERN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
SCHEME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
WORKSPACE_PREFIX = "workspace:"
INPUT_FORMS_REMEDY = (
    'An input is {"text": "..."}, an absolute path or file: address, a workspace file, or a resource of a server; '
    'with a name: {"source": "...", "name": "..."}.'
)


async def resolve_context(
    store: InputStore, sources: Sequence[Any], tip: str | None
) -> tuple[InputEntry, ...]:
    """Return what `given` names, for a session whose state is the end of run `tip`; raises `InvalidRequest`."""
    if len(sources) > MAX_INPUTS:
        raise InvalidRequest(f"`context` has {len(sources)} inputs; there can be {MAX_INPUTS}.")
    found: list[InputEntry] = []
    for place, each in enumerate(sources):
        try:
            made = await _resolve_input(store, each, tip)
        except McpRuntimeError as exc:
            named = (
                each
                if isinstance(each, str)
                else each.get("source", "text")
                if isinstance(each, dict)
                else each
            )
            raise InvalidRequest(
                f"context[{place}], {named!r:.200}: {exc.message}", remedy=exc.remedy
            ) from None
        found.append(
            InputEntry(
                **{
                    **made,
                    "name": make_unique_name(made["name"], [other["name"] for other in found]),
                }
            )
        )
    return tuple(found)


async def _resolve_input(store: InputStore, item: Any, tip: str | None) -> InputEntry:
    if isinstance(item, str):
        return await _from_source(store, item, "", tip)
    if not isinstance(item, dict) or not item.keys() <= {"text", "source", "name"}:
        raise InvalidRequest("This names no input.", remedy=INPUT_FORMS_REMEDY)
    name, text, source = item.get("name", ""), item.get("text"), item.get("source")
    if not isinstance(name, str) or (isinstance(text, str) == isinstance(source, str)):
        raise InvalidRequest(
            "An input is either a `text` or a `source`, and its `name` is a text.",
            remedy=INPUT_FORMS_REMEDY,
        )
    if isinstance(text, str):
        if len(text) > MAX_CONTENT_BYTES:
            raise InvalidRequest(
                f"The text has {len(text):,} characters.", remedy="Give large ones as files."
            )
        return await store.add_text(text, name or "text")
    return await _from_source(store, str(source), name, tip)


async def _from_source(store: InputStore, source: str, name: str, tip: str | None) -> InputEntry:
    if "\n" in source or len(source) > 4096:
        raise InvalidRequest("This is no place.", remedy='Give text as {"text": "..."}.')
    if source.startswith("/"):
        return await store.add_file(source, name)
    if source.startswith("file:"):
        return await store.add_file(parse_file_uri(source), name)
    if source.startswith(WORKSPACE_PREFIX) or not SCHEME_PATTERN.match(source):
        return await _from_workspace(store, source.removeprefix(WORKSPACE_PREFIX), name, tip)
    called, data = await store.read_resource(source)
    return await store.add_bytes(data, name or called)


async def _from_workspace(store: InputStore, path: str, name: str, tip: str | None) -> InputEntry:
    files, _ = await store.journal.load_files_at(tip, [])
    path = path.removeprefix("./")
    entry = files.get(path)
    if entry is None:
        listed = ", ".join(repr(each) for each in sorted(files)[:10]) or "none yet"
        raise InvalidRequest(
            f"The workspace of the session has no file {path!r:.200}.",
            remedy=f"It has {listed}. Files elsewhere are named by absolute paths.",
        )
    called = name or path.rpartition("/")[2]
    return InputEntry(
        name=called,
        digest=entry["digest"],
        path="",
        size=entry["size"],
        stamp="",
        start=0,
        end=None,
    )


def make_unique_name(name: str, taken: Sequence[str]) -> str:
    """Return a printable name that is not taken."""
    clean = UNPRINTABLE_PATTERN.sub("_", name)[:MAX_NAME_CHARS] or "input"
    found, number = clean, 1
    while found in taken:
        number += 1
        found = f"{clean} ({number})"
    return found
