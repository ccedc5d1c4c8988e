"""From what a client names to inputs: inline text, files, workspace files and resources of upstreams.

Rule: whatever is wrong with one of them, the error says which and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidRequest, McpRuntimeError
from ..journal.events import Input
from .files import path_in
from .service import MAX_CONTENT, Inputs

MAX_INPUTS = 64  # of one run
NAME_CHARS = 120
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
WORKSPACE = "workspace:"
FORMS = (
    'An input is {"text": "..."}, an absolute path or file: address, a workspace file, or a resource of a server; '
    'with a name: {"source": "...", "name": "..."}.'
)


async def resolve(inputs: Inputs, given: Sequence[Any], tip: str | None) -> tuple[Input, ...]:
    """Return what `given` names, for a session whose state is the end of run `tip`; raises `InvalidRequest`."""
    if len(given) > MAX_INPUTS:
        raise InvalidRequest(f"`context` has {len(given)} inputs; there can be {MAX_INPUTS}.")
    found: list[Input] = []
    for place, each in enumerate(given):
        try:
            made = await _one(inputs, each, tip)
        except McpRuntimeError as exc:
            named = each if isinstance(each, str) else each.get("source", "text") if isinstance(each, dict) else each
            raise InvalidRequest(f"context[{place}], {named!r:.200}: {exc.message}", remedy=exc.remedy) from None
        found.append(Input(**{**made, "name": unique(made["name"], [other["name"] for other in found])}))
    return tuple(found)


async def _one(inputs: Inputs, given: Any, tip: str | None) -> Input:
    if isinstance(given, str):
        return await _from_place(inputs, given, "", tip)
    if not isinstance(given, dict) or not given.keys() <= {"text", "source", "name"}:
        raise InvalidRequest("This names no input.", remedy=FORMS)
    name, text, source = given.get("name", ""), given.get("text"), given.get("source")
    if not isinstance(name, str) or (isinstance(text, str) == isinstance(source, str)):
        raise InvalidRequest("An input is either a `text` or a `source`, and its `name` is a text.", remedy=FORMS)
    if isinstance(text, str):
        if len(text) > MAX_CONTENT:
            raise InvalidRequest(f"The text has {len(text):,} characters.", remedy="Give large ones as files.")
        return await inputs.of_text(text, name or "text")
    return await _from_place(inputs, str(source), name, tip)


async def _from_place(inputs: Inputs, place: str, name: str, tip: str | None) -> Input:
    if "\n" in place or len(place) > 4096:
        raise InvalidRequest("This is no place.", remedy='Give text as {"text": "..."}.')
    if place.startswith("/"):
        return await inputs.of_file(place, name)
    if place.startswith("file:"):
        return await inputs.of_file(path_in(place), name)
    if place.startswith(WORKSPACE) or not SCHEME.match(place):
        return await _from_workspace(inputs, place.removeprefix(WORKSPACE), name, tip)
    called, data = await inputs.resource(place)
    return await inputs.of_bytes(data, name or called)


async def _from_workspace(inputs: Inputs, path: str, name: str, tip: str | None) -> Input:
    files, _ = await inputs.journal.files_at(tip, [])
    path = path.removeprefix("./")
    entry = files.get(path)
    if entry is None:
        listed = ", ".join(repr(each) for each in sorted(files)[:10]) or "none yet"
        raise InvalidRequest(
            f"The workspace of the session has no file {path!r:.200}.",
            remedy=f"It has {listed}. Files elsewhere are named by absolute paths.",
        )
    called = name or path.rpartition("/")[2]
    return Input(name=called, digest=entry["digest"], path="", size=entry["size"], stamp="", start=0, end=None)


def unique(name: str, taken: Sequence[str]) -> str:
    """Return a printable name that is not taken."""
    clean = UNPRINTABLE.sub("_", name)[:NAME_CHARS] or "input"
    found, number = clean, 1
    while found in taken:
        number += 1
        found = f"{clean} ({number})"
    return found
